"""The recipe for the attentions of Helios' transformer.

The body is our own module's (`helios/attention.py`) over diffusers' submodules. Projections may be
fused: what the stock processor projects and attends with is looked up at each call.
"""

from typing import Any

import torch
from torch import Tensor

from ..helios.attention import turned
from .attention import dispatched, norms_of, rms_norms_fit
from .recipe import Recipe, name_of, numerics

__all__ = ["ATTENTION"]

_HOME = "diffusers.models.transformers.transformer_helios"
_PROCESSOR = f"{_HOME}.HeliosAttnProcessor"


def _attention(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    rotary_emb: Tensor | None = None,
    original_context_length: int | None = None,
) -> Tensor:
    from diffusers.models.transformers import transformer_helios as stock  # noqa: PLC0415

    q, k, value = stock._get_qkv_projections(module, hidden_states, encoder_hidden_states)
    scales, history = None, 0
    if module.is_amplify_history and not module.is_cross_attention:
        scales = module.history_key_scale
        history = hidden_states.shape[1] - original_context_length
    q, k = turned(module, q, k, rotary_emb, scales, history, numerics=numerics(module))
    value = value.unflatten(2, (module.heads, -1))
    itself = encoder_hidden_states is None
    out = dispatched(stock, module.processor, q, k, value, attention_mask, parallel=itself)
    last, dropout = module.to_out
    out = dropout(last(out.flatten(2, 3).type_as(q)))
    return out


def _attention_fits(module: Any) -> str | None:
    if name_of(type(module.processor)) != _PROCESSOR:
        return f"its processor, {type(module.processor).__name__}"
    if reason := rms_norms_fit(module):
        return reason
    if getattr(module, "max_scale", 10.0) != 10.0:
        return "another scale of history"
    return None


def _attention_takes(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    rotary_emb: Tensor | None = None,
    original_context_length: int | None = None,
    **more: Any,
) -> str | None:
    if name_of(type(module.processor)) != _PROCESSOR:
        return "processor"
    if more:
        return "arguments"
    if encoder_hidden_states is not None and rotary_emb is not None:
        return "rotary"  # one table for tokens of both: no transformer does that
    if rotary_emb is not None and (rotary_emb.dtype != torch.float32 or rotary_emb.ndim != 3):
        return "rotary"
    for other in (module.norm_q.weight, module.norm_k.weight, encoder_hidden_states):
        if other is not None and other.dtype != hidden_states.dtype:
            return "dtype"
    return None


ATTENTION = Recipe(
    cls=f"{_HOME}.HeliosAttention",
    forward=_attention,
    ops=("qk_norm_rotary",),
    sources=frozenset({"6161967c719c324d"}),  # 0.38.0 to 0.42.1
    relies=(
        _PROCESSOR,
        f"{_HOME}._get_qkv_projections",
        f"{_HOME}.apply_rotary_emb_transposed",
    ),
    fits=_attention_fits,
    reads=norms_of,
    takes=_attention_takes,
)
