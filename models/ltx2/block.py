"""One block of LTX-2's transformer: a video and an audio stream that attend to themselves, to the
prompt and to each other.

Between two matrix products stands one fused op. Each gated residual is taken together with the
norm behind it, and a norm with all of its modulations:

    rms_norm_modulate                      norm1
    gate_residual_rms_norm_modulate        attn1's gate and norm2 (2.3: modulated)
    modulate                               the prompt (2.3)
    gate_residual_rms_norm_dual_modulate   attn2's gate (2.0: none), and the norm that both
                                           attentions between the streams read, one modulation each
    gate_residual_rms_norm_modulate        their gate and norm3
    gate_residual                          the feed-forward's gate

each for video and for audio; with isolated streams attn2's gate meets norm3.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..feed_forward import FeedForward
from ..ops.gates import gate_residual
from ..ops.row_norm import (
    gate_residual_rms_norm_dual_modulate,
    gate_residual_rms_norm_modulate,
    modulate,
    rms_norm_modulate,
)
from .attention import Attention
from .config import TransformerConfig
from .embedding import index_for
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
        v_ada = _parameters(self.scale_shift_table, v.ada)
        a_ada = _parameters(self.audio_scale_shift_table, a.ada)
        video, to_video, v_gate = self._attended(
            video, v, v_ada, self.attn1, self.attn2, self.prompt_scale_shift_table, told.video
        )
        audio, to_audio, a_gate = self._attended(
            audio, a, a_ada, self.audio_attn1, self.audio_attn2,
            self.audio_prompt_scale_shift_table, told.audio,
        )  # fmt: skip
        if not told.isolated:
            v_cross = _parameters(self.video_a2v_cross_attn_scale_shift_table, v.cross)
            a_cross = _parameters(self.audio_a2v_cross_attn_scale_shift_table, a.cross)
            video, v_a2v, v_v2a = self._crossing(video, to_video, v_gate, v_cross, v.index)
            audio, a_a2v, a_v2a = self._crossing(audio, to_audio, a_gate, a_cross, a.index)
            to_video = _between(
                self.audio_to_video_attn, v_a2v, a_a2v, v.cross_rotary, a.cross_rotary, told.a2v
            )
            to_audio = _between(
                self.video_to_audio_attn, a_v2a, v_v2a, a.cross_rotary, v.cross_rotary, told.v2a
            )
            v_gate, a_gate = v_cross[4], a_cross[4]
        return (
            self._fed(video, to_video, v_gate, v_ada, v.index, self.ff),
            self._fed(audio, to_audio, a_gate, a_ada, a.index, self.audio_ff),
        )

    def _attended(
        self,
        x: Tensor,
        c: Conditioning,
        ada: tuple[Tensor, ...],
        attn1: Attention,
        attn2: Attention,
        prompt_table: Tensor | None,
        kept: Keep,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A stream after self-attention, what attn2 adds to it, and the gate of that."""
        shift, scale, gate = ada[:3]
        text_shift, text_scale, text_gate = ada[6:] or (None, None, None)
        h = rms_norm_modulate(x, scale, shift, index=index_for(c.index, scale), eps=self.eps)
        y = attn1(h, rotary=c.rotary, mask=c.self_mask, keep=kept.mask, skip=kept.skip)
        x, h = gate_residual_rms_norm_modulate(
            x, y, gate, text_scale, text_shift, index=index_for(c.index, gate), eps=self.eps
        )
        text = c.text
        if prompt_table is not None:
            # Without timestep-dependent parameters (LTX-2.5) the table alone modulates the prompt.
            shift, scale = (
                _parameters(prompt_table, c.prompt)
                if c.prompt is not None
                else prompt_table[None, None].unbind(-2)
            )
            text = modulate(text, scale, shift)
        return x, attn2(h, text, mask=c.text_mask), text_gate

    def _crossing(
        self,
        x: Tensor,
        y: Tensor,
        gate: Tensor | None,
        cross: tuple[Tensor, ...],
        index: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A stream with what attn2 adds, and its norm as a2v and as v2a read it."""
        a2v_scale, a2v_shift, v2a_scale, v2a_shift, _ = cross
        return gate_residual_rms_norm_dual_modulate(
            x, y, gate, a2v_scale, a2v_shift, v2a_scale, v2a_shift,
            index=index_for(index, gate, a2v_scale), eps=self.eps,
        )  # fmt: skip

    def _fed(
        self,
        x: Tensor,
        y: Tensor,
        gate: Tensor | None,
        ada: tuple[Tensor, ...],
        index: Tensor | None,
        ff: FeedForward,
    ) -> Tensor:
        """A stream with what attention adds, and after the feed-forward."""
        shift, scale, ff_gate = ada[3:6]
        x, h = gate_residual_rms_norm_modulate(
            x, y, gate, scale, shift, index=index_for(index, gate, scale), eps=self.eps
        )
        return gate_residual(x, ff(h), ff_gate, index=index_for(index, ff_gate))


def _between(
    attention: Attention, x: Tensor, context: Tensor, rotary: Tables, other: Tables, kept: Keep
) -> Tensor:
    """What a stream hears of the other, where it is to hear it."""
    if kept.skip:
        return torch.zeros_like(x)
    heard = attention(x, context, rotary=rotary, context_rotary=other)
    return heard if kept.mask is None else heard * kept.mask


def _table(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) / dim**0.5)


def _parameters(table: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
    """A block's own table (n, D) added to (…, n, D), as n operands."""
    return (table + parameters).unbind(-2)
