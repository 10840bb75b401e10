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

from .ptx import exp, reciprocal
from .rounding import rounded


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
    """Whether all divisors are such that `_corrected` serves: no NaN, no inf, nothing near 0."""
    return tl.min(tl.where((divisor > 2.0**-60) & (divisor < 2.0**60), 1, 0)) > 0


@triton.jit
def _squares(v, DTYPE: tl.constexpr, FORM: tl.constexpr):
    """What is summed of channels v (fp32): v^2, in form "rms" rounded to DTYPE."""
    if FORM == "rms":
        return rounded(v * v, DTYPE)
    else:
        return v * v


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
def _activated(
    v, divisor, w, root, DTYPE: tl.constexpr, FORM: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """silu of channels v (fp32), normalised and weighted, in fp32."""
    n = rounded(_divided(v, divisor, EXACT), DTYPE)
    if FORM == "l2":
        n = rounded(n * root, DTYPE)
    if w is not None:
        n = rounded(n * w.to(tl.float32), DTYPE)
    return _divided(n, 1.0 + exp(-n), EXACT)


@triton.jit
def _quickly_activated(v, divisor, inverse, DTYPE: tl.constexpr):
    """`_activated` in form "rms" without a weight, of moderate divisors and at most 4096 channels:
    |n| <= 64, so that exp(-n) stays small enough.
    """
    n = rounded(_corrected(v, divisor, inverse), DTYPE)
    d = 1.0 + exp(-n)
    r = reciprocal(d)
    return _corrected(n, d, tl.fma(tl.fma(-d, r, 1.0), r, r))


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
    VEC: tl.constexpr,
    INNERMOST: tl.constexpr,
    FORM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """See the module. A program takes all channels of POSITIONS positions of a sample.

    Samples are x_n apart. Without INNERMOST positions are one run of memory, channels x_c apart,
    and out is contiguous; VEC divides P and both strides. With INNERMOST x and out are (N, P, C),
    and VEC divides C. CHANNELS < C: channels are read twice, CHANNELS at a time, the second time
    from cache.
    Moves: x once, out once.
    Grid: N * tiles, tiles = cdiv(P, POSITIONS).
    """
    dtype: tl.constexpr = out.dtype.element_ty
    middle: tl.constexpr = dtype if EXACT else tl.float32
    QUICK: tl.constexpr = FORM == "rms" and weight is None and C <= 4096 and dtype != tl.float32
    sample = tl.program_id(0) // tiles
    p = (tl.program_id(0) - sample * tiles) * POSITIONS + tl.arange(0, POSITIONS)
    sample = sample.to(tl.int64)
    if INNERMOST:
        here = (p < P)[None, :]
        at = (p.to(tl.int64) * C)[None, :]
        x_c = 1
        out_c = 1
        from_x = x + sample * P * C + at
        to = out + sample * P * C + at
    else:
        P = (P // VEC) * VEC
        here = (p < P)[None, :]
        x_c = (x_c // VEC) * VEC
        out_c = P.to(tl.int64)
        from_x = x + sample * ((x_n // VEC) * VEC) + p[None, :]
        to = out + sample * P * C + p[None, :]
    c = tl.arange(0, CHANNELS)
    if CHANNELS >= C:
        live = here & (c < C)[:, None]
        w = None
        if weight is not None:
            w = tl.load(weight + c, mask=c < C, other=0.0)[:, None]
        v = tl.load(from_x + c[:, None] * x_c, mask=live, other=0.0).to(tl.float32)
        total = tl.sum(_squares(v, middle, FORM), axis=0)[None, :]
        # Where nothing is, the divisor is 1: 0 / 0 would cost the slow path of a division.
        divisor = tl.where(here, _divisor(total, eps, C, middle, FORM), 1.0)
        at = to + c[:, None] * out_c
        if QUICK:
            if _moderate(divisor):
                result = _quickly_activated(v, divisor, tl.div_rn(1.0, divisor), middle)
                tl.store(at, result.to(dtype), mask=live)
            else:
                result = _activated(v, divisor, w, root, middle, FORM, EXACT)
                tl.store(at, result.to(dtype), mask=live)
        else:
            result = _activated(v, divisor, w, root, middle, FORM, EXACT)
            tl.store(at, result.to(dtype), mask=live)
    else:
        total = tl.zeros([CHANNELS, POSITIONS], tl.float32)
        for first in range(0, C, CHANNELS):
            live = here & (first + c < C)[:, None]
            v = tl.load(from_x + (first + c)[:, None] * x_c, mask=live, other=0.0)
            total += _squares(v.to(tl.float32), middle, FORM)
        total = tl.sum(total, axis=0)[None, :]
        divisor = tl.where(here, _divisor(total, eps, C, middle, FORM), 1.0)
        inverse = tl.div_rn(1.0, divisor)
        moderate = _moderate(divisor)
        for first in range(0, C, CHANNELS):
            live = here & (first + c < C)[:, None]
            w = None
            if weight is not None:
                w = tl.load(weight + (first + c), mask=first + c < C, other=0.0)[:, None]
            v = tl.load(from_x + (first + c)[:, None] * x_c, mask=live, other=0.0).to(tl.float32)
            at = to + (first + c)[:, None] * out_c
            if QUICK:
                if moderate:
                    result = _quickly_activated(v, divisor, inverse, middle)
                    tl.store(at, result.to(dtype), mask=live)
                else:
                    result = _activated(v, divisor, w, root, middle, FORM, EXACT)
                    tl.store(at, result.to(dtype), mask=live)
            else:
                result = _activated(v, divisor, w, root, middle, FORM, EXACT)
                tl.store(at, result.to(dtype), mask=live)
