"""silu of numbers that are stored in bf16, by the fewest instructions that give eager's bits."""

import triton
import triton.language as tl

from .ptx import exp2, reciprocal, reciprocal_of_any

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def silu_for_bf16(n, BOUNDED: tl.constexpr):
    """n / (1 + exp(-n)) of fp32 n to a few ulps, which rounds to bf16 as the exact quotient does
    for every n of bf16: no silu of theirs comes so near to the middle between two numbers
    (tests/models/ops/test_channel_norm.py, and all 65,536 of them in tests/gpu/test_signed.py).

    BOUNDED: n is above -80, say; the inverse then takes one instruction instead of four.
    """
    d = 1.0 + exp2(n * -_LOG2_E)
    if BOUNDED:
        return n * reciprocal(d)
    else:
        return n * reciprocal_of_any(d)
