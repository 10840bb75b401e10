"""Norms of tokens, with a gated residual in front of them and up to two modulations behind, or with
a gate and the residual behind.

x, y and the results: (B, S, D), channels innermost, bf16|fp16|fp32. All arithmetic is fp32. R
rounds to x's dtype; ROUND says where (compile all but a "fast" one with enable_fp_fusion=False):

    v   = x;  R(x + y);  each: R(x + R(y * gate)), else R(x + y * gate);  with AFTER: y
    n   = v * rsqrt(mean(v^2) + eps)                      NORM "rms"
          R(v * R(rsqrt(R(R(mean(R(v^2))) + eps))))       NORM "native"
          (v - mean) * rsqrt(mean((v - mean)^2) + eps)    NORM "layer"
          v                                               NORM "none"
    n   = rms:   each: R(n) * weight, else n * weight     layer: fma(weight, n, bias)
    n   = R(n), but for once
    out = each: R(n * R(1 + scale)) + shift, else n * (1 + scale) + shift;  rounded as it is stored
          n * scale                                       without a shift
          each: x + R(R(tanh(gate)) * n), else x + tanh(gate) * n;  x + n        with AFTER

`out2` is the same of scale2 and shift2. Moves: every input and result once; an operand that tokens
share, once per program.
"""

import triton
import triton.language as tl

from .operands import index_rows, load_operand
from .ptx import tanh
from .rounding import rounded


@triton.jit
def gate_added(x, y, gate, DTYPE: tl.constexpr, ROUND: tl.constexpr):
    """The residual: x + y * gate, or x + y if gate is None; all in fp32, but rounded to DTYPE."""
    if gate is not None:
        y = y * gate.to(tl.float32)
        if ROUND == "each":
            y = rounded(y, DTYPE)
    return rounded(x + y, DTYPE)


@triton.jit
def _centred(v, inside, D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows less their mean; 0 outside of D."""
    d = v - (tl.sum(v, axis=1) / D)[:, None]
    return tl.where(inside, d, 0.0) if BLOCK != D else d


@triton.jit
def normalised(
    v, inside, eps, DTYPE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr
):
    """n of rows v (fp32, 0 where not inside) of D elements of DTYPE; see the module.

    In fp32 the mean is corrected by that of the distances to it: as good as fp32 can hold. In 16
    bits the first one is off by less than a rounding of x.
    """
    if NORM == "native":
        mean = rounded(tl.sum(rounded(v * v, DTYPE), axis=1) * (1.0 / D), DTYPE)
        rstd = rounded(tl.rsqrt(rounded(mean + eps, DTYPE)), DTYPE)
        return rounded(v * rstd[:, None], DTYPE)
    if NORM == "rms":
        rstd = tl.rsqrt(tl.sum(v * v, axis=1) / D + eps)[:, None]
        return v * rstd
    if NORM == "layer":
        d = _centred(v, inside, D, BLOCK)
        if DTYPE == tl.float32:  # noqa: SIM300  (a constexpr compares from the left)
            d = _centred(d, inside, D, BLOCK)
        rstd = tl.rsqrt(tl.sum(d * d, axis=1) / D + eps)[:, None]
        return d * rstd
    return v


@triton.jit
def scaled(n, weight, bias, DTYPE: tl.constexpr, ROUND: tl.constexpr, NORM: tl.constexpr):
    """n times weight, plus bias (fp32 or None each), and the first rounding."""
    if NORM == "layer":
        if weight is not None and bias is not None:
            n = tl.fma(weight, n, bias)
        elif weight is not None:
            n = weight * n
        elif bias is not None:
            n = n + bias
    elif weight is not None:
        if ROUND == "each":
            n = rounded(n, DTYPE)
        n = n * weight
    if ROUND != "once":
        n = rounded(n, DTYPE)
    return n


@triton.jit
def modulated(n, scale, shift, DTYPE: tl.constexpr, ROUND: tl.constexpr):
    """n * (1 + scale) + shift, or n * scale if shift is None, in fp32, up to the last rounding.

    scale, shift: in any float dtype.
    """
    if shift is None:
        return n * scale.to(tl.float32)
    else:
        factor = 1.0 + scale.to(tl.float32)
        if ROUND == "each":
            return rounded(n * rounded(factor, DTYPE), DTYPE) + shift.to(tl.float32)
        else:
            return n * factor + shift.to(tl.float32)


@triton.jit
def tanh_gate(gate, DTYPE: tl.constexpr, ROUND: tl.constexpr):
    """tanh of a gate in any float dtype, in fp32."""
    t = tanh(gate.to(tl.float32))
    if ROUND == "each":
        t = rounded(t, DTYPE)
    return t


@triton.jit
def added_after(x, n, gate, DTYPE: tl.constexpr, ROUND: tl.constexpr):
    """x + gate * n, or x + n if gate is None, in fp32, up to the last rounding."""
    if gate is not None:
        n = gate * n
        if ROUND == "each":
            n = rounded(n, DTYPE)
    return x + n


_STRIDES = [
    *("x_b", "x_s", "y_b", "y_s", "index_b", "index_s", "gate_b", "gate_r", "scale_b", "scale_r"),
    *("shift_b", "shift_r", "scale2_b", "scale2_r", "shift2_b", "shift2_r"),
]


@triton.jit(do_not_specialize=["S", "tiles", "gate_p", "scale_p", "scale2_p", *_STRIDES])
def row_norm(  # noqa: PLR0912, PLR0915  (its branches are taken at compile time)
    x,
    y,
    gate,
    weight,
    bias,
    scale,
    shift,
    scale2,
    shift2,
    index,
    residual,
    out,
    out2,
    S,
    tiles,
    eps,
    x_b: tl.int64,
    x_s: tl.int64,
    y_b: tl.int64,
    y_s: tl.int64,
    index_b: tl.int64,
    index_s: tl.int64,
    gate_b: tl.int64,
    gate_r: tl.int64,
    gate_p,
    scale_b: tl.int64,
    scale_r: tl.int64,
    scale_p,
    shift_b: tl.int64,
    shift_r: tl.int64,
    scale2_b: tl.int64,
    scale2_r: tl.int64,
    scale2_p,
    shift2_b: tl.int64,
    shift2_r: tl.int64,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    VEC: tl.constexpr,
    LANE: tl.constexpr,
    INDEXED: tl.constexpr,
    GATE: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE2: tl.constexpr,
    NORM: tl.constexpr,
    ROUND: tl.constexpr,
    AFTER: tl.constexpr,
):
    """See the module. A program takes STEPS tiles of ROWS tokens of one sample, BLOCK >= D wide,
    and asks for STAGES of them at a time.

    Grid: B * tiles, tiles = cdiv(S, ROWS * STEPS). Operands are addressed as `operands.py` says,
    shift and shift2, which may be None, in the mode and with the period of scale and scale2. VEC
    divides D and every stride. LANE: channels side by side that a thread takes at most. Pointers of
    what there is not are None.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    sample = tl.program_id(0) // tiles
    first = (tl.program_id(0) - sample * tiles) * (ROWS * STEPS)
    sample = sample.to(tl.int64)
    c = tl.max_contiguous(tl.arange(0, BLOCK), LANE)
    inside = c < D
    w = None
    if weight is not None:
        w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    b = None
    if bias is not None:
        b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    # What all tokens of a sample share is loaded once, before the tiles.
    gain = None
    by = None
    plus = None
    by2 = None
    plus2 = None
    t0 = first + tl.arange(0, ROWS)
    if GATE == "batch":
        gain = load_operand(gate, sample, t0, t0, inside, c, inside, gate_b, 0, 1, VEC, GATE)
        if AFTER:
            gain = tanh_gate(gain, dtype, ROUND)
    if SCALE == "batch":
        by = load_operand(scale, sample, t0, t0, inside, c, inside, scale_b, 0, 1, VEC, SCALE)
        if shift is not None:
            plus = load_operand(shift, sample, t0, t0, inside, c, inside, shift_b, 0, 1, VEC, SCALE)
    if SCALE2 == "batch":
        by2 = load_operand(scale2, sample, t0, t0, inside, c, inside, scale2_b, 0, 1, VEC, SCALE2)
        plus2 = load_operand(shift2, sample, t0, t0, inside, c, inside, shift2_b, 0, 1, VEC, SCALE2)

    for step in tl.range(0, STEPS, num_stages=STAGES):
        t = first + step * ROWS + tl.arange(0, ROWS)
        here = t < S
        live = here[:, None] & inside[None, :]
        row = index_rows(index, sample, t, here, index_b, index_s, INDEXED)
        at = t.to(tl.int64)[:, None]
        from_x = x + sample * (x_b // VEC * VEC) + at * (x_s // VEC * VEC)
        v = tl.load(from_x + c[None, :], mask=live, other=0.0).to(tl.float32)
        to = (sample * S + at) * D + c[None, :]
        if y is not None:
            from_y = y + sample * (y_b // VEC * VEC) + at * (y_s // VEC * VEC)
            add = tl.load(from_y + c[None, :], mask=live, other=0.0).to(tl.float32)
            g = gain
            if GATE != "none" and GATE != "batch":  # noqa: PLR1714  (a constexpr has no `in`)
                g = load_operand(
                    gate, sample, t, row, here, c, inside, gate_b, gate_r, gate_p, VEC, GATE
                )
                if AFTER:
                    g = tanh_gate(g, dtype, ROUND)
            if AFTER:
                n = normalised(add, inside[None, :], eps, dtype, D, BLOCK, NORM)
                n = scaled(n, w, b, dtype, ROUND, NORM)
                v = added_after(v, n, g, dtype, ROUND)
                tl.store(out + to, v.to(dtype), mask=live)
            else:
                v = gate_added(v, add, g, dtype, ROUND)
                tl.store(residual + to, v.to(dtype), mask=live)
        if not AFTER:
            n = normalised(v, inside[None, :], eps, dtype, D, BLOCK, NORM)
            n = scaled(n, w, b, dtype, ROUND, NORM)
            if SCALE == "none":
                tl.store(out + to, n.to(dtype), mask=live)
        if SCALE != "none":
            m = by
            a = plus
            if SCALE != "batch":
                m = load_operand(
                    scale, sample, t, row, here, c, inside, scale_b, scale_r, scale_p, VEC, SCALE
                )
                if shift is not None:
                    a = load_operand(
                        shift, sample, t, row, here, c, inside, shift_b, shift_r, scale_p, VEC,
                        SCALE,
                    )  # fmt: skip
            tl.store(out + to, modulated(n, m, a, dtype, ROUND).to(dtype), mask=live)
        if SCALE2 != "none":
            m = by2
            a = plus2
            if SCALE2 != "batch":
                m = load_operand(
                    scale2, sample, t, row, here, c, inside, scale2_b, scale2_r, scale2_p, VEC,
                    SCALE2,
                )  # fmt: skip
                a = load_operand(
                    shift2, sample, t, row, here, c, inside, shift2_b, shift2_r, scale2_p, VEC,
                    SCALE2,
                )  # fmt: skip
            tl.store(out2 + to, modulated(n, m, a, dtype, ROUND).to(dtype), mask=live)
