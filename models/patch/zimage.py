"""Recipes for Z-Image's transformer, as diffusers has it: its blocks, their attentions and
feed-forwards, its last layer.

Bodies are our own modules' (`zimage/block.py`) over diffusers' submodules. Where some images are
given and others are to be denoised (`noise_mask`, Z-Image-Omni), stock makes scales and gates of
every token; here each sample has two rows, and an index says which one a token takes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.gates import swiglu
from ..ops.row_norm import layer_norm_scale
from ..zimage.block import advanced, turned
from .attention import dispatched, norms_of
from .recipe import DTYPES, Recipe, name_of, numerics

__all__ = ["RECIPES"]

_HOME = "diffusers.models.transformers.transformer_z_image"
_NORM = "diffusers.models.normalization.RMSNorm"
_PROCESSOR = f"{_HOME}.ZSingleStreamAttnProcessor"
_SELECT = f"{_HOME}.select_per_token"
_NORMS = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")


# -- a block ----------------------------------------------------------------------------------


def _block(
    module: Any,
    x: Tensor,
    attn_mask: Tensor | None,
    freqs_cis: Tensor,
    adaln_input: Tensor | None = None,
    noise_mask: Tensor | None = None,
    adaln_noisy: Tensor | None = None,
    adaln_clean: Tensor | None = None,
) -> Tensor:
    def attend(h: Tensor) -> Tensor:
        out: Tensor = module.attention(h, attention_mask=attn_mask, freqs_cis=freqs_cis)
        return out

    rows = index = None
    if module.modulation:
        rows, index = _rows(
            module.adaLN_modulation, adaln_input, noise_mask, adaln_noisy, adaln_clean
        )
    return advanced(module, x, rows, index, attend, numerics=numerics(module))


def _rows(
    modulation: nn.Module,
    timestep: Tensor | None,
    noise_mask: Tensor | None,
    noisy: Tensor | None,
    clean: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Rows for each sample, (B, 1, C). With a mask (B, S), 1 where a token is noisy, (2B, C) and
    the row of each token, (B, S): those of noisy tokens first.
    """
    if noise_mask is None:
        return modulation(timestep).unsqueeze(1), None
    batch = noise_mask.shape[0]
    samples = torch.arange(batch, dtype=torch.int32, device=noise_mask.device).unsqueeze(1)
    index = (noise_mask != 1).to(torch.int32) * batch + samples
    return torch.cat([modulation(noisy), modulation(clean)]), index


def _block_fits(module: Any) -> str | None:
    norms = [getattr(module, name) for name in _NORMS]
    if any(name_of(type(norm)) != _NORM for norm in norms):
        return "norms of another class"
    if any(norm.weight is None or norm.bias is not None for norm in norms):
        return "norms without weights, or with biases"
    return None


def _block_reads(module: Any) -> Iterator[nn.Module]:
    for name in _NORMS:
        yield getattr(module, name)


def _block_takes(
    module: Any,
    x: Tensor,
    attn_mask: Tensor | None,
    freqs_cis: Tensor,
    adaln_input: Tensor | None = None,
    noise_mask: Tensor | None = None,
    adaln_noisy: Tensor | None = None,
    adaln_clean: Tensor | None = None,
) -> str | None:
    if x.dtype not in DTYPES:
        return "dtype"
    for norm in _block_reads(module):
        if norm.weight.dtype != x.dtype:
            return "dtype"
    if not module.modulation:
        return None
    return _timestep_takes(x, adaln_input, noise_mask, adaln_noisy, adaln_clean)


def _timestep_takes(
    x: Tensor,
    timestep: Tensor | None,
    noise_mask: Tensor | None,
    noisy: Tensor | None,
    clean: Tensor | None,
) -> str | None:
    for told in (timestep,) if noise_mask is None else (noisy, clean):
        if told is None:
            return "timestep"  # an error, which is the stock forward's to raise
        if told.dtype != x.dtype:
            return "dtype"
    if noise_mask is not None and noise_mask.shape != x.shape[:2]:
        return "noise_mask"
    return None


# -- its attention, its feed-forward ----------------------------------------------------------


def _attention(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    freqs_cis: Tensor | None = None,
) -> Tensor:
    from diffusers.models.transformers import transformer_z_image as stock  # noqa: PLC0415

    q, k, value = (project(hidden_states) for project in (module.to_q, module.to_k, module.to_v))
    table = torch.view_as_real(freqs_cis)
    q, k = turned(module, q, k, table, numerics=numerics(module))
    if attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = attention_mask[:, None, None, :]
    value = value.unflatten(2, (module.heads, -1))
    out = dispatched(stock, module.processor, q, k, value, attention_mask)
    out = out.flatten(2, 3).to(q.dtype)
    for layer in module.to_out:
        out = layer(out)
    return out


def _attention_fits(module: Any) -> str | None:
    if name_of(type(module.processor)) != _PROCESSOR:
        return f"its processor, {type(module.processor).__name__}"
    q, k = norms_of(module)
    if any(name_of(type(norm)) != _NORM for norm in (q, k)):
        return "norms of another class, or none"
    if any(norm.weight is None or norm.bias is not None for norm in (q, k)):
        return "norms without weights, or with biases"
    if (q.eps, q.weight.shape) != (k.eps, k.weight.shape):
        return "norms that differ"
    if module.inner_dim != module.inner_kv_dim:
        return "fewer heads of keys than of queries"
    if len(module.to_out) > 2:
        return "more layers behind it than two"
    return None


def _attention_takes(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    freqs_cis: Tensor | None = None,
    **more: Any,
) -> str | None:
    if name_of(type(module.processor)) != _PROCESSOR:
        return "processor"
    if more:
        return "arguments"  # which the stock forward drops, with a warning
    if freqs_cis is None or freqs_cis.ndim != 3 or freqs_cis.dtype != torch.complex64:
        return "rotary"
    if hidden_states.dtype not in DTYPES:
        return "dtype"
    for norm in norms_of(module):
        if norm.weight.dtype != hidden_states.dtype:
            return "dtype"
    return None


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.w2(swiglu(module.w1(x), module.w3(x), numerics=numerics(module)))
    return out


# -- the last layer ---------------------------------------------------------------------------


def _final(
    module: Any,
    x: Tensor,
    c: Tensor | None = None,
    noise_mask: Tensor | None = None,
    c_noisy: Tensor | None = None,
    c_clean: Tensor | None = None,
) -> Tensor:
    rows, index = _rows(module.adaLN_modulation, c, noise_mask, c_noisy, c_clean)
    norm = module.norm_final
    x = layer_norm_scale(x, 1.0 + rows, index=index, eps=norm.eps, numerics=numerics(module))
    out: Tensor = module.linear(x)
    return out


def _final_fits(module: Any) -> str | None:
    norm = module.norm_final
    if type(norm) is not nn.LayerNorm or norm.weight is not None:
        return "a norm of another kind"
    return None


def _final_reads(module: Any) -> Iterator[nn.Module]:
    yield module.norm_final


def _final_takes(
    module: Any,
    x: Tensor,
    c: Tensor | None = None,
    noise_mask: Tensor | None = None,
    c_noisy: Tensor | None = None,
    c_clean: Tensor | None = None,
) -> str | None:
    if x.dtype not in DTYPES:
        return "dtype"
    return _timestep_takes(x, c, noise_mask, c_noisy, c_clean)


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        cls=f"{_HOME}.ZImageTransformerBlock",
        forward=_block,
        ops=("rms_norm", "rms_norm_scale", "tanh_gate_residual_rms_norm"),
        sources=frozenset(
            {
                "925be52e719643cc",  # 0.38.0 to 0.40.0
                "79eec4f383f8c7f8",  # 0.41.0 to 0.42.1
            }
        ),
        relies=(_NORM, _SELECT),
        fits=_block_fits,
        reads=_block_reads,
        takes=_block_takes,
    ),
    Recipe(
        cls="diffusers.models.attention_processor.Attention",
        forward=_attention,
        ops=("qk_norm_rotary",),
        sources=frozenset(
            {
                "2cb6efff8a839911",  # 0.38.0 to 0.40.0
                "6de55a8107121b48",  # 0.41.0 to 0.42.1
            }
        ),
        relies=(_NORM, _PROCESSOR),
        fits=_attention_fits,
        reads=norms_of,
        takes=_attention_takes,
    ),
    Recipe(
        cls=f"{_HOME}.FeedForward",
        forward=_feed_forward,
        ops=("swiglu",),
        sources=frozenset(
            {
                "eb4e43299f01336c",  # 0.38.0 to 0.40.0
                "50bc8d3b99f18310",  # 0.41.0 to 0.42.1
            }
        ),
    ),
    Recipe(
        cls=f"{_HOME}.FinalLayer",
        forward=_final,
        ops=("layer_norm_scale",),
        sources=frozenset(
            {
                "e55670382363c00e",  # 0.38.0 to 0.40.0
                "c2c5928572d287ca",  # 0.41.0 to 0.42.1
            }
        ),
        relies=(_SELECT,),
        fits=_final_fits,
        reads=_final_reads,
        takes=_final_takes,
    ),
)
