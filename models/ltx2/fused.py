"""A block of LTX-2's transformer between its matrix products, which the caller brings.

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

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..ops.gates import gate_residual
from ..ops.row_norm import (
    gate_residual_rms_norm_dual_modulate,
    gate_residual_rms_norm_modulate,
    modulate,
    rms_norm_modulate,
)
from .embedding import index_for

__all__ = ["Side", "advanced"]


class Side(NamedTuple):
    """One stream of a block: operands of its fused ops, and the matrix products between them.

    Operands are (B|1, 1|S, D) in any strides, or rows (R, D) of which token (b, s) has index[b, s].
    """

    ada: tuple[Tensor, ...]  # (shift, scale, gate) of attn1, of ff and, 2.3, of attn2
    cross: tuple[Tensor, ...]  # scale and shift of a2v, of v2a, and the gate; isolated: none
    prompt: tuple[Tensor, ...]  # shift and scale, or none
    index: Tensor | None  # (B, S) of int32 or int64
    text: Tensor  # (B, T, cross-attention dim)
    attn1: Callable[[Tensor], Tensor]  # of the stream
    attn2: Callable[[Tensor, Tensor], Tensor]  # of the stream to the prompt
    between: Callable[[Tensor, Tensor], Tensor]  # of the stream to the other
    ff: Callable[[Tensor], Tensor]
    eps: float = 1e-6  # of every norm
    numerics: str = "exact"  # of every op


def advanced(video: Tensor, audio: Tensor, v: Side, a: Side) -> tuple[Tensor, Tensor]:
    """The streams, video (B, S, D) and audio (B, A, D'), after a block."""
    video, to_video, v_gate = _attended(video, v)
    audio, to_audio, a_gate = _attended(audio, a)
    if v.cross and a.cross:
        video, v_a2v, v_v2a = _crossing(video, to_video, v_gate, v)
        audio, a_a2v, a_v2a = _crossing(audio, to_audio, a_gate, a)
        to_video, v_gate = v.between(v_a2v, a_a2v), v.cross[4]
        to_audio, a_gate = a.between(a_v2a, v_v2a), a.cross[4]
    return _fed(video, to_video, v_gate, v), _fed(audio, to_audio, a_gate, a)


def _attended(x: Tensor, s: Side) -> tuple[Tensor, Tensor, Tensor | None]:
    """A stream after self-attention, what attn2 adds to it, and the gate of that."""
    shift, scale, gate = s.ada[:3]
    text_shift, text_scale, text_gate = s.ada[6:] or (None, None, None)
    h = rms_norm_modulate(
        x, scale, shift, index=index_for(s.index, scale), eps=s.eps, numerics=s.numerics
    )
    x, h = gate_residual_rms_norm_modulate(
        x,
        s.attn1(h),
        gate,
        text_scale,
        text_shift,
        index=index_for(s.index, gate),
        eps=s.eps,
        numerics=s.numerics,
    )
    text = s.text
    if s.prompt:
        shift, scale = s.prompt
        text = modulate(text, scale, shift, numerics=s.numerics)
    return x, s.attn2(h, text), text_gate


def _crossing(x: Tensor, y: Tensor, gate: Tensor | None, s: Side) -> tuple[Tensor, Tensor, Tensor]:
    """A stream with what attn2 adds, and its norm as a2v and as v2a read it."""
    a2v_scale, a2v_shift, v2a_scale, v2a_shift, _ = s.cross
    return gate_residual_rms_norm_dual_modulate(
        x, y, gate, a2v_scale, a2v_shift, v2a_scale, v2a_shift,
        index=index_for(s.index, gate, a2v_scale), eps=s.eps, numerics=s.numerics,
    )  # fmt: skip


def _fed(x: Tensor, y: Tensor, gate: Tensor | None, s: Side) -> Tensor:
    """A stream with what attention adds, and after the feed-forward."""
    shift, scale, ff_gate = s.ada[3:6]
    x, h = gate_residual_rms_norm_modulate(
        x,
        y,
        gate,
        scale,
        shift,
        index=index_for(s.index, gate, scale),
        eps=s.eps,
        numerics=s.numerics,
    )
    return gate_residual(
        x, s.ff(h), ff_gate, index=index_for(s.index, ff_gate), numerics=s.numerics
    )
