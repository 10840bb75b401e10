"""The recipe for the attentions of LTX-2's transformer and of its text connectors.

The body is our own module's (`ltx2/attention.py`) over diffusers' submodules. A processor of
another class has its own way.
"""

from typing import Any

import torch
from torch import Tensor

from ..ltx2.attention import attended
from ..ltx2.rope import Tables
from .attention import dispatched, norms_of, rms_norms_fit
from .recipe import DTYPES, Recipe, name_of, numerics

__all__ = ["ATTENTION"]

_HOME = "diffusers.models.transformers.transformer_ltx2"
_PLAIN = f"{_HOME}.LTX2AudioVideoAttnProcessor"
_PERTURBED = f"{_HOME}.LTX2PerturbedAttnProcessor"


def _attention(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    query_rotary_emb: Tables | None = None,
    key_rotary_emb: Tables | None = None,
    perturbation_mask: Tensor | None = None,
    all_perturbed: bool | Tensor | None = None,
) -> Tensor:
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    if attention_mask is not None:
        batch, tokens, _ = context.shape
        attention_mask = module.prepare_attention_mask(attention_mask, tokens, batch)
        attention_mask = attention_mask.view(batch, module.heads, -1, attention_mask.shape[-1])
    if query_rotary_emb is None:
        key_rotary_emb = None
    elif key_rotary_emb is None:
        key_rotary_emb = query_rotary_emb
    if all_perturbed is None:
        all_perturbed = perturbation_mask is not None and torch.all(perturbation_mask == 0)

    def dot_products(q: Tensor, k: Tensor, value: Tensor) -> Tensor:
        from diffusers.models.transformers import transformer_ltx2 as stock  # noqa: PLC0415

        return dispatched(stock, module.processor, q, k, value, attention_mask).to(q.dtype)

    out = attended(
        module,
        hidden_states,
        context,
        dot_products,
        query_rotary_emb,
        key_rotary_emb,
        keep=perturbation_mask,
        skip=bool(all_perturbed),
        numerics=numerics(module),
    )
    last, dropout = module.to_out
    out = dropout(last(out))
    return out


def _attention_fits(module: Any) -> str | None:
    if name_of(type(module.processor)) not in (_PLAIN, _PERTURBED):
        return f"its processor, {type(module.processor).__name__}"
    if module.rope_type != "split":
        return f"{module.rope_type} rotary embedding"
    return rms_norms_fit(module)


def _attention_takes(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    query_rotary_emb: Tables | None = None,
    key_rotary_emb: Tables | None = None,
    **more: Any,
) -> str | None:
    processor = name_of(type(module.processor))
    if processor not in (_PLAIN, _PERTURBED):
        return "processor"
    if more and (processor == _PLAIN or more.keys() - {"perturbation_mask", "all_perturbed"}):
        return "arguments"  # which the stock forward drops, with a warning
    dtype = hidden_states.dtype
    if dtype not in DTYPES:
        return "dtype"
    for other in (module.norm_q.weight, module.norm_k.weight, encoder_hidden_states):
        if other is not None and other.dtype != dtype:
            return "dtype"
    for tables in (query_rotary_emb, key_rotary_emb):
        if tables is not None and (tables[0].ndim != 4 or tables[0].dtype != torch.float32):
            return "rotary"
    return None


ATTENTION = Recipe(
    cls=f"{_HOME}.LTX2Attention",
    forward=_attention,
    ops=("qk_norm_rotary", "head_gate"),
    sources=frozenset({"d4ddd230bd85c7d9"}),  # 0.38.0 to 0.42.1
    relies=(_PLAIN, _PERTURBED, f"{_HOME}.apply_split_rotary_emb"),
    fits=_attention_fits,
    reads=norms_of,
    takes=_attention_takes,
)
