"""Recipes for Helios' transformer, as diffusers has it: the whole of it, its blocks, its last norm.

The stock transformer gives every block modulation parameters of every token, (B, S, 6, D), 0.68 GB
in bf16 for the 11040 tokens of a 384x640 chunk, which each block makes 1.36 GB in fp32 of, twice.
They are two rows: that of history and that of the chunk. Nobody can tell from a tensor of S rows
which are alike without waiting for the device; whoever makes it knows. So the transformer has a
recipe, too, which calls no op but hands patched blocks rows and an index instead. All others,
those with a hook or a forward of somebody else's around ours, and a patched block that leaves a
call to its stock forward, get what diffusers would give them: one tensor for all blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..helios.block import advanced
from ..helios.rope import averaged, rotary_table
from ..helios.sequence import Older, joined, modulation_rows, pixels
from ..helios.transformer import last_norm
from .helios_attention import ATTENTION
from .hooks import is_only_moved, is_ours
from .recipe import DTYPES, Recipe, name_of, numerics

__all__ = ["RECIPES"]

_HOME = "diffusers.models.transformers.transformer_helios"
_NORM = "diffusers.models.normalization.FP32LayerNorm"

# Rows (R, 6, D) in fp32 and the row of each token, (B, S), or no index and a row for each sample.
Rows = tuple[Tensor, Tensor | None]


# -- the transformer --------------------------------------------------------------------------


def _transformer(
    module: Any,
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    indices_hidden_states: Tensor | None = None,
    indices_latents_history_short: Tensor | None = None,
    indices_latents_history_mid: Tensor | None = None,
    indices_latents_history_long: Tensor | None = None,
    latents_history_short: Tensor | None = None,
    latents_history_mid: Tensor | None = None,
    latents_history_long: Tensor | None = None,
    return_dict: bool = True,
    attention_kwargs: dict[str, Any] | None = None,
) -> Any:
    def table(frames: Tensor, height: int, width: int, window: int) -> Tensor:
        return _table(module.rope, frames.to(hidden_states.device), height, width, window)

    if indices_hidden_states is None:
        indices_hidden_states = torch.arange(hidden_states.shape[2])[None]
    history = [
        Older(term, window, getattr(module, f"patch_{term}"), latents, frames)
        for term, window, latents, frames in (
            ("short", 1, latents_history_short, indices_latents_history_short),
            ("mid", 2, latents_history_mid, indices_latents_history_mid),
            ("long", 4, latents_history_long, indices_latents_history_long),
        )
        if latents is not None and frames is not None
    ]
    stream = joined(module.patch_embedding, hidden_states, indices_hidden_states, history, table)

    of_history = None
    if module.zero_history_timestep and stream.history:
        _, of_history, _ = module.condition_embedder(
            timestep.new_zeros(1), encoder_hidden_states, is_return_encoder_hidden_states=False
        )
        of_history = of_history.unflatten(-1, (6, -1))
    embedded, rows, text = module.condition_embedder(timestep, encoder_hidden_states)
    told = modulation_rows(rows.unflatten(-1, (6, -1)), of_history, stream)
    x, text, current = stream.x, text.contiguous(), stream.x.shape[1] - stream.history
    spread = None
    for block in module.blocks:
        temb: Any = told
        if not _takes_rows(block):
            if spread is None:
                spread = _by_token(told, x.shape[1], rows.dtype)
            temb = spread
        x = block(x, text, temb, stream.table, current)
    x = module.proj_out(module.norm_out(x, embedded.unsqueeze(1), current))
    out = pixels(x, stream.grid, module.config.patch_size)
    if not return_dict:
        return (out,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput  # noqa: PLC0415

    return Transformer2DModelOutput(sample=out)


def _table(rope: Any, frames: Tensor, height: int, width: int, window: int) -> Tensor:
    if frames.is_meta:  # stock switches autocast off on the way, which knows no such device
        dims = rope.DT, rope.DY, rope.DX
        return rotary_table(frames, height, width, dims=dims, theta=rope.theta, window=window)
    table = rope(frame_indices=frames, height=height, width=width, device=frames.device)
    return averaged(table, window)


def _takes_rows(block: nn.Module) -> bool:
    """Whether what the transformer gives this block goes to our forward as it is: a hook, or a
    forward of somebody else's around ours, expects what diffusers gives. Offloading and caches do
    not look at it.
    """
    own = block.__dict__
    if own["_forward_pre_hooks"] or own["_forward_hooks"]:
        return False
    return is_ours(own.get("forward")) or is_only_moved(block)


def _by_token(told: Rows, tokens: int, dtype: torch.dtype) -> Tensor:
    """Modulation parameters as the stock transformer gives them to a block: (B, S, 6, D), in the
    dtype in which they were made; a view where all tokens of a sample have the same."""
    rows, index = told[0].to(dtype), told[1]
    return rows.unsqueeze(1).expand(-1, tokens, -1, -1) if index is None else rows[index.long()]


def _spread(told: Rows) -> Tensor:
    """Modulation parameters that a stock block takes: by token, or by sample."""
    rows, index = told
    return rows if index is None else rows[index.long()]


def _transformer_fits(module: Any) -> str | None:
    if tuple(module.config.patch_size) != (1, 2, 2):
        return "patches of another size"
    return None


def _transformer_takes(
    module: Any,
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    indices_hidden_states: Tensor | None = None,
    indices_latents_history_short: Tensor | None = None,
    indices_latents_history_mid: Tensor | None = None,
    indices_latents_history_long: Tensor | None = None,
    latents_history_short: Tensor | None = None,
    latents_history_mid: Tensor | None = None,
    latents_history_long: Tensor | None = None,
    return_dict: bool = True,
    attention_kwargs: dict[str, Any] | None = None,
) -> str | None:
    if attention_kwargs:
        return "attention_kwargs"  # a scale of LoRA, which a decorator of the stock forward sets
    short = latents_history_short is not None and indices_latents_history_short is not None
    if not short and (latents_history_mid is not None or latents_history_long is not None):
        return "history"  # which has its height and width of the short-term one
    return None


# -- a block ----------------------------------------------------------------------------------


def _block(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor | Rows,
    rotary_emb: Tensor,
    original_context_length: int | None = None,
) -> Tensor:
    if isinstance(temb, tuple):
        rows, index = temb
    else:
        # By token or by sample. A sum with an fp32 table widens in the same pass.
        index = None
        if temb.ndim == 4 and temb.stride(1) == 0:
            temb = temb[:, 0]  # of a sample, spread over its tokens by a view
        rows = temb if module.scale_shift_table.dtype == torch.float32 else temb.float()

    def attn1(x: Tensor) -> Tensor:
        out: Tensor = module.attn1(x, None, None, rotary_emb, original_context_length)
        return out

    def attn2(x: Tensor) -> Tensor:
        out: Tensor = module.attn2(x, encoder_hidden_states, None, None, original_context_length)
        return out

    first = 0
    if module.guidance_cross_attn and original_context_length is not None:
        first = hidden_states.shape[1] - original_context_length
    return advanced(
        module, hidden_states, rows, index, attn1, attn2, first, numerics=numerics(module)
    )


def _block_as_stock(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor | Rows,
    rotary_emb: Tensor,
    original_context_length: int | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    temb = _spread(temb) if isinstance(temb, tuple) else temb
    return (hidden_states, encoder_hidden_states, temb, rotary_emb, original_context_length), {}


def _block_fits(module: Any) -> str | None:
    norms = (module.norm1, module.norm2, module.norm3)
    if isinstance(module.norm2, nn.Identity):
        return "no norm in front of cross-attention"
    if any(name_of(type(norm)) != _NORM for norm in norms):
        return "norms of another class"
    if module.norm1.weight is not None or module.norm3.weight is not None:
        return "norms with weights"
    if module.norm2.weight is None or module.norm2.bias is None:
        return "norm2 without weight and bias"
    if len({norm.eps for norm in norms}) > 1:
        return "norms that differ in eps"
    return None


def _block_reads(module: Any) -> Iterator[nn.Module]:
    yield from (module.norm1, module.norm2, module.norm3)


def _block_takes(
    module: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor | Rows,
    rotary_emb: Tensor,
    original_context_length: int | None = None,
) -> str | None:
    if hidden_states.dtype not in DTYPES:
        return "dtype"
    length = original_context_length
    if module.guidance_cross_attn and (length is None or length > hidden_states.shape[1]):
        return "context"  # an error, which is the stock forward's to raise
    return None


# -- the last norm ----------------------------------------------------------------------------


def _output_norm(
    module: Any, hidden_states: Tensor, temb: Tensor, original_context_length: int
) -> Tensor:
    temb = temb[:, -original_context_length:].unsqueeze(2)
    rows = (module.scale_shift_table.unsqueeze(0).to(temb.device) + temb).to(hidden_states.device)
    if rows.dtype != torch.float32:
        # Of a model that is 16-bit throughout. Stock rounds 1 + scale to 16 bits: so that the op's
        # own 1 + scale, in fp32, is just that (both differences are exact).
        shift, scale = rows.unbind(2)
        rows = torch.stack((shift.float(), (1 + scale).float() - 1), 2)
    if rows.shape[1] == 1:  # of a sample, as our own transformer has them
        rows = rows.squeeze(1)
    x = hidden_states[:, -original_context_length:]
    return last_norm(x, rows, module.norm.eps, numerics=numerics(module))


def _output_norm_fits(module: Any) -> str | None:
    if name_of(type(module.norm)) != _NORM or module.norm.weight is not None:
        return "a norm of another kind"
    return None


def _output_norm_reads(module: Any) -> Iterator[nn.Module]:
    yield module.norm


def _output_norm_takes(
    module: Any, hidden_states: Tensor, temb: Tensor, original_context_length: int
) -> str | None:
    return None if hidden_states.dtype in DTYPES else "dtype"


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        cls=f"{_HOME}.HeliosTransformer3DModel",
        forward=_transformer,
        ops=(),
        sources=frozenset(
            {
                "031702e63e8c1c25",  # 0.38.0
                "04ff5795d724b489",  # 0.39.0 to 0.42.1
            }
        ),
        relies=(f"{_HOME}.pad_for_3d_conv", f"{_HOME}.center_down_sample_3d"),
        fits=_transformer_fits,
        takes=_transformer_takes,
    ),
    Recipe(
        cls=f"{_HOME}.HeliosTransformerBlock",
        forward=_block,
        ops=("layer_norm_modulate", "gate_residual_layer_norm_modulate", "gate_residual"),
        sources=frozenset({"e6630ee7ac11f5d8"}),  # 0.38.0 to 0.42.1
        relies=(_NORM,),
        fits=_block_fits,
        reads=_block_reads,
        takes=_block_takes,
        as_stock=_block_as_stock,
    ),
    ATTENTION,
    Recipe(
        cls=f"{_HOME}.HeliosOutputNorm",
        forward=_output_norm,
        ops=("layer_norm_modulate",),
        sources=frozenset(
            {
                "78d3338b00f1479c",  # 0.38.0 to 0.40.0
                "2a061f36a76bc4be",  # 0.41.0 to 0.42.1
            }
        ),
        relies=(_NORM,),
        fits=_output_norm_fits,
        reads=_output_norm_reads,
        takes=_output_norm_takes,
    ),
)
