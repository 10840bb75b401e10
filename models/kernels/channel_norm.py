"""RMSNorm over the channels of channels-first tensors, with SiLU.

x, out: (N, C, P) bf16|fp16|fp32, P positions; weight: (C,) of x's dtype or None. All arithmetic is
fp32; R rounds to x's dtype where EXACT (compiled with enable_fp_fusion=False), else only what is
stored is rounded:

    n   = R(x / R(sqrt(R(R(mean(R(x^2))) + eps))))    FORM "rms", divided with one rounding
          R(R(x / max(sqrt(sum(x^2)), eps)) * root)   FORM "l2", root = sqrt(C)
    n   = R(n * weight)                               with a weight
    out = n / (1 + exp(-n))
"""

import triton
import triton.language as tl

from .ptx import exp, kept_narrow, reciprocal
from .rounding import rounded, rounded_squares
from .silu import silu_for_bf16

# e^64 is far from overflow, and so is its inverse; even where a mean of squares that is subnormal
# in fp16 lost a third of itself to rounding.
_MOST = tl.constexpr(64.0)


@triton.jit
def _divided(a, b, EXACT: tl.constexpr):
    """a / b, with one rounding if EXACT."""
    if EXACT:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def _corrected(a, b, inverse):
    """a / b with one rounding, of an inverse of b good to an ulp, where neither nears the ends of
    fp32: a third of what a division costs that takes every number.
    """
    q = a * inverse
    return tl.fma(tl.fma(-q, b, a), inverse, q)


@triton.jit
def _moderate(divisor):
    """Whether all divisors are such that `_quickly` serves: no NaN, no inf, nothing near 0."""
    return tl.min(tl.where((divisor > 2.0**-60) & (divisor < 2.0**60), 1, 0)) > 0


@triton.jit
def _bounded(weight, root, C: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr):
    """Whether no |n| is above _MOST, or `_quickly` does not mind: |x / divisor| * root is at most
    sqrt(C).
    """
    if DTYPE == tl.bfloat16:  # noqa: SIM300  (constexpr on the left)
        return True
    elif weight is None:
        return root < _MOST
    else:
        c = tl.arange(0, CHANNELS)
        largest = 0.0
        for first in range(0, C, CHANNELS):
            w = tl.load(weight + first + c, mask=first + c < C, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(w.to(tl.float32))))
        return root * largest < _MOST


@triton.jit
def _inside(here, c, first, C: tl.constexpr, CHANNELS: tl.constexpr):
    """Where channels first + c are, of positions that are `here`."""
    if C % CHANNELS == 0:
        return here
    else:
        return here & (c < C - first)


@triton.jit
def _added(squares, v, DTYPE: tl.constexpr, FORM: tl.constexpr):
    """`squares` and those of v, in form "rms" each rounded to DTYPE first."""
    if FORM == "rms":
        return squares + rounded_squares(v, DTYPE)
    else:
        wide = v.to(tl.float32)
        return tl.fma(wide, wide, squares)


@triton.jit
def _divisor(total, eps, C: tl.constexpr, DTYPE: tl.constexpr, FORM: tl.constexpr):
    """What the channels of a position are divided by, of the sum of their squares."""
    if FORM == "rms":
        mean = rounded(total * (1.0 / C), DTYPE)
        return rounded(tl.sqrt_rn(rounded(mean + eps, DTYPE)), DTYPE)
    else:
        norm = tl.sqrt_rn(total)
        return tl.where(norm < eps, eps, norm)  # a maximum would lose a NaN


@triton.jit
def _weighted(n, weight, k, root, C: tl.constexpr, DTYPE: tl.constexpr, FORM: tl.constexpr):
    """n of channels k with root and weight."""
    if FORM == "l2":
        n = rounded(n * root, DTYPE)
    if weight is not None:
        w = tl.load(weight + k, mask=k < C, other=0.0)
        n = rounded(n * w.to(tl.float32), DTYPE)
    return n


@triton.jit
def _activated(
    v, divisor, weight, k, root, C: tl.constexpr, DTYPE: tl.constexpr, FORM: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """silu of channels k with values v (fp32), normalised and weighted, in fp32."""
    n = rounded(_divided(v, divisor, EXACT), DTYPE)
    n = _weighted(n, weight, k, root, C, DTYPE, FORM)
    return _divided(n, 1.0 + exp(-n), EXACT)


@triton.jit
def _quickly(
    v, divisor, inverse, weight, k, root, C: tl.constexpr, DTYPE: tl.constexpr,
    FORM: tl.constexpr, EXACT: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """`_activated` where divisors are `_moderate` and n is `_bounded`; STORED is out's dtype.

    No quotient of two numbers of bf16 comes so near to the middle between two that an ulp of fp32
    would change how it is rounded, but where it is subnormal: the inverse will do
    (tests/models/ops/test_channel_norm.py goes through all of them).
    """
    if EXACT and (FORM == "l2" or DTYPE != tl.bfloat16):  # noqa: SIM300
        n = rounded(_corrected(v, divisor, inverse), DTYPE)
    else:
        n = rounded(v * inverse, DTYPE)
    n = _weighted(n, weight, k, root, C, DTYPE, FORM)
    if STORED == tl.bfloat16:  # noqa: SIM300
        return silu_for_bf16(n, weight is None and C <= _MOST * _MOST)
    else:
        d = 1.0 + exp(-n)
        r = reciprocal(d)
        if EXACT:
            return _corrected(n, d, tl.fma(tl.fma(-d, r, 1.0), r, r))
        else:
            return n * r


@triton.jit(do_not_specialize=["P", "tiles", "x_n", "x_c"])
def channel_norm(  # noqa: PLR0912, PLR0915  (its branches are taken at compile time)
    x,
    weight,
    out,
    P,
    tiles,
    x_n: tl.int64,
    x_c: tl.int64,
    eps,
    root,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    HELD: tl.constexpr,
    VEC: tl.constexpr,
    INNERMOST: tl.constexpr,
    FORM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """See the module. A program takes POSITIONS positions of a sample, CHANNELS channels at a time.

    Samples are x_n apart. Without INNERMOST positions are one run of memory, channels x_c apart,
    and out is contiguous; VEC divides P and both strides. With INNERMOST x and out are (N, P, C),
    and VEC divides C. HELD: all channels stay in registers, as they were loaded; without it, and
    where inputs are such that the quick way is not right, they are read again, from cache.
    Moves: x once, out once.
    Grid: N * tiles, tiles = cdiv(P, POSITIONS).
    """
    dtype: tl.constexpr = out.dtype.element_ty
    middle: tl.constexpr = dtype if EXACT else tl.float32
    PARTS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    sample = tl.program_id(0) // tiles
    p = (tl.program_id(0) - sample * tiles) * POSITIONS + tl.arange(0, POSITIONS)
    sample = sample.to(tl.int64)
    c = tl.arange(0, CHANNELS)[:, None]
    if INNERMOST:
        x_c = 1
        out_c = 1
        at = sample * P * C + (p.to(tl.int64) * C)[None, :] + c
        from_x = x + at
        to = out + at
    else:
        P = (P // VEC) * VEC
        x_c = (x_c // VEC) * VEC
        out_c = P.to(tl.int64)
        from_x = x + sample * ((x_n // VEC) * VEC) + p[None, :] + c * x_c
        to = out + sample * P * C + p[None, :] + c * out_c
    here = (p < P)[None, :]
    squares = tl.zeros([CHANNELS, POSITIONS], tl.float32)
    held = ()
    if HELD:
        for part in tl.static_range(PARTS):
            live = _inside(here, c, part * CHANNELS, C, CHANNELS)
            held += (tl.load(from_x + part * CHANNELS * x_c, mask=live, other=0.0),)
        for part in tl.static_range(PARTS):
            squares = _added(squares, held[part], middle, FORM)
    else:
        for first in range(0, C, CHANNELS):
            live = _inside(here, c, first, C, CHANNELS)
            v = tl.load(from_x + first * x_c, mask=live, other=0.0)
            squares = _added(squares, v, middle, FORM)
    total = tl.sum(squares, axis=0)[None, :]
    # Where nothing is, the divisor is 1: 0 / 0 would cost the slow path of a division.
    divisor = tl.where(here, _divisor(total, eps, C, middle, FORM), 1.0)
    inverse = tl.div_rn(1.0, divisor)
    if _moderate(divisor) & _bounded(weight, root, C, CHANNELS, dtype):
        if HELD:
            for part in tl.static_range(PARTS):
                live = _inside(here, c, part * CHANNELS, C, CHANNELS)
                u = held[part]
                if dtype.primitive_bitwidth == 16 and CHANNELS * POSITIONS >= 512:
                    u = kept_narrow(u)
                result = _quickly(
                    u.to(tl.float32), divisor, inverse, weight, part * CHANNELS + c, root, C,
                    middle, FORM, EXACT, dtype,
                )  # fmt: skip
                tl.store(to + part * CHANNELS * out_c, result.to(dtype), mask=live)
        else:
            for first in range(0, C, CHANNELS):
                live = _inside(here, c, first, C, CHANNELS)
                v = tl.load(from_x + first * x_c, mask=live, other=0.0).to(tl.float32)
                result = _quickly(
                    v, divisor, inverse, weight, first + c, root, C, middle, FORM, EXACT, dtype
                )
                tl.store(to + first * out_c, result.to(dtype), mask=live)
    else:
        for first in range(0, C, CHANNELS):
            live = _inside(here, c, first, C, CHANNELS)
            wide = tl.load(from_x + first * x_c, mask=live, other=0.0).to(tl.float32)
            result = _activated(wide, divisor, weight, first + c, root, C, middle, FORM, EXACT)
            tl.store(to + first * out_c, result.to(dtype), mask=live)
