"""One block of LTX-2's transformer: a video and an audio stream that attend to themselves, to the
prompt and to each other.

`fused.py` has what stands between the matrix products; here are these, and the parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..feed_forward import FeedForward
from .attention import Attention
from .config import TransformerConfig
from .fused import Side, advanced
from .perturbation import NOTHING, Keep, Perturbed
from .rope import Tables

__all__ = ["Block", "Conditioning"]


class Conditioning(NamedTuple):
    """What every block is told about one stream. Modulation parameters are (B, 1|S, n, D), or
    rows (R, n, D) of which token (b, s) has index[b, s].
    """

    ada: Tensor  # n = 6, or 9 where the prompt's queries are modulated: (shift, scale, gate) each
    cross: Tensor  # n = 5: scale and shift of a2v, of v2a, and the gate
    prompt: Tensor | None  # n = 2, (B, 1, 2, D): shift and scale of the prompt
    index: Tensor | None  # (B, S) of int32 or int64
    text: Tensor  # (B, T, cross-attention dim)
    text_mask: Tensor | None  # added to scores, (B, 1, 1|S, T)
    self_mask: Tensor | None  # the same of self-attention
    rotary: Tables
    cross_rotary: Tables


class Block(nn.Module):
    """A block: see the module."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        dim, audio_dim, eps = c.dim, c.audio_dim, c.norm_eps
        self.perturbed, self.eps = c.perturbed_attn, eps

        def attention(
            dim: int, heads: tuple[int, int], context: int | None, gated: bool
        ) -> Attention:
            bias, out_bias = c.attention_bias, c.attention_out_bias
            return Attention(
                dim, *heads, context_dim=context, bias=bias, out_bias=out_bias, gated=gated, eps=eps
            )

        video, audio, gated, audio_gated = c.heads, c.audio_heads, c.gated_attn, c.audio_gated_attn
        self.attn1 = attention(dim, video, None, gated)
        self.audio_attn1 = attention(audio_dim, audio, None, audio_gated)
        self.attn2 = attention(dim, video, c.cross_attention_dim, gated)
        self.audio_attn2 = attention(audio_dim, audio, c.audio_cross_attention_dim, audio_gated)
        self.audio_to_video_attn = attention(dim, audio, audio_dim, gated)
        self.video_to_audio_attn = attention(audio_dim, audio, dim, audio_gated)
        self.ff = FeedForward(dim, 4 * dim, bias=c.ff_bias)
        self.audio_ff = FeedForward(audio_dim, 4 * audio_dim, bias=c.audio_ff_bias)

        self.scale_shift_table = _table(9 if c.cross_attn_mod else 6, dim)
        self.audio_scale_shift_table = _table(9 if c.audio_cross_attn_mod else 6, audio_dim)
        prompts = c.modulates_prompts
        self.prompt_scale_shift_table = _table(2, dim) if prompts else None
        self.audio_prompt_scale_shift_table = _table(2, audio_dim) if prompts else None
        self.video_a2v_cross_attn_scale_shift_table = _table(5, dim)
        self.audio_a2v_cross_attn_scale_shift_table = _table(5, audio_dim)

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        v: Conditioning,
        a: Conditioning,
        told: Perturbed = NOTHING,
    ) -> tuple[Tensor, Tensor]:
        """The streams, video (B, S, dim) and audio (B, A, audio_dim), after the block.

        A block without perturbed attention perturbs no self-attention, whatever it is told.
        """
        if not self.perturbed:
            told = told._replace(video=NOTHING.video, audio=NOTHING.audio)
        v_cross: tuple[Tensor, ...] = ()
        a_cross: tuple[Tensor, ...] = ()
        if not told.isolated:
            v_cross = _parameters(self.video_a2v_cross_attn_scale_shift_table, v.cross)
            a_cross = _parameters(self.audio_a2v_cross_attn_scale_shift_table, a.cross)
        v_side = Side(
            ada=_parameters(self.scale_shift_table, v.ada),
            cross=v_cross,
            prompt=_prompt(self.prompt_scale_shift_table, v.prompt),
            index=v.index,
            text=v.text,
            attn1=_itself(self.attn1, v, told.video),
            attn2=partial(self.attn2, mask=v.text_mask),
            between=_between(self.audio_to_video_attn, v.cross_rotary, a.cross_rotary, told.a2v),
            ff=self.ff,
            eps=self.eps,
        )
        a_side = Side(
            ada=_parameters(self.audio_scale_shift_table, a.ada),
            cross=a_cross,
            prompt=_prompt(self.audio_prompt_scale_shift_table, a.prompt),
            index=a.index,
            text=a.text,
            attn1=_itself(self.audio_attn1, a, told.audio),
            attn2=partial(self.audio_attn2, mask=a.text_mask),
            between=_between(self.video_to_audio_attn, a.cross_rotary, v.cross_rotary, told.v2a),
            ff=self.audio_ff,
            eps=self.eps,
        )
        return advanced(video, audio, v_side, a_side)


def _itself(attention: Attention, c: Conditioning, kept: Keep) -> Callable[[Tensor], Tensor]:
    return partial(attention, rotary=c.rotary, mask=c.self_mask, keep=kept.mask, skip=kept.skip)


def _between(
    attention: Attention, rotary: Tables, other: Tables, kept: Keep
) -> Callable[[Tensor, Tensor], Tensor]:
    """What a stream hears of the other, where it is to hear it."""

    def heard(x: Tensor, context: Tensor) -> Tensor:
        if kept.skip:
            return torch.zeros_like(x)
        out = attention(x, context, rotary=rotary, context_rotary=other)
        return out if kept.mask is None else out * kept.mask

    return heard


def _table(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) / dim**0.5)


def _parameters(table: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
    """A block's own table (n, D) added to (…, n, D), as n operands."""
    return (table + parameters).unbind(-2)


def _prompt(table: Tensor | None, parameters: Tensor | None) -> tuple[Tensor, ...]:
    """Of a prompt; without timestep-dependent ones (LTX-2.5) the table alone."""
    if table is None:
        return ()
    return table[None, None].unbind(-2) if parameters is None else _parameters(table, parameters)
