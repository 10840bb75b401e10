"""Split rotary embedding, and how its rows and tables lie; `qk_norm_rotary` has it behind a norm.

A row is one token: H heads of 2*R channels, D = 2*H*R. A head's halves a, b are turned by

    p = F(a * cos),  o = fma(-sin, b, p)          p' = F(b * cos),  o' = fma(sin, a, p')

in fp32, where EXACT rounds F to the tables' dtype: in fp32 not at all (diffusers), in x's dtype
once (Lightricks, SGLang). Results are rounded to x's dtype. Compile EXACT with
enable_fp_fusion=False.

Parameters that the kernels share:
    x         (B, T, D) bf16|fp16|fp32 with innermost stride 1, strides xs_b and xs_t
    cos, sin  (B, H, T, R) with innermost stride 1, strides ts_b, ts_h, ts_t; 0 where one serves all
    VEC       divides R and the strides of x; 16-byte accesses need VEC * itemsize >= 16
    TVEC      the same of the tables
Token counts and strides are run-time values and not specialised: one binary serves every length.
"""

import triton
import triton.language as tl

from .rounding import rounded


@triton.jit
def turned(a, b, cos, sin, FIRST: tl.constexpr):
    """Halves a, b (fp32) of heads turned by cos, sin, in fp32; first products rounded to FIRST."""
    cos = cos.to(tl.float32)
    sin = sin.to(tl.float32)
    return tl.fma(-sin, b, rounded(a * cos, FIRST)), tl.fma(sin, a, rounded(b * cos, FIRST))


@triton.jit
def live_heads(t, T, h, H: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Which elements of a tile (tokens, HEADS, HALF) exist. What always holds is not asked."""
    live = (t < T)[:, None, None]
    if H % HEADS != 0:
        live = live & (h < H)[None, :, None]
    if R != HALF:
        live = live & (tl.arange(0, HALF) < R)[None, None, :]
    return live


@triton.jit
def halves_at(ptr, b, t0, t, s_b, s_t, h, R: tl.constexpr, HALF: tl.constexpr, VEC: tl.constexpr):
    """Where the first halves of heads h of tokens t0 + t of sample b lie; the others are R on."""
    s_b = (s_b // VEC) * VEC
    s_t = (s_t // VEC) * VEC
    row = ptr + (b * s_b + t0 * s_t)
    inside = h[:, None] * (2 * R) + tl.arange(0, HALF)[None, :]
    return row + (t[:, None, None] * s_t + inside[None, :, :])


@triton.jit
def angles_at(
    cos, sin, b, t0, t, ts_b, ts_h, ts_t, h, live, HALF: tl.constexpr, TVEC: tl.constexpr
):
    """(cos, sin) of heads h of tokens t0 + t of sample b."""
    ts_b = (ts_b // TVEC) * TVEC
    ts_h = (ts_h // TVEC) * TVEC
    ts_t = (ts_t // TVEC) * TVEC
    at = t[:, None, None] * ts_t + h[None, :, None] * ts_h + tl.arange(0, HALF)[None, None, :]
    at += b * ts_b + t0 * ts_t
    return tl.load(cos + at, mask=live, other=0.0), tl.load(sin + at, mask=live, other=0.0)


@triton.jit(do_not_specialize=["T", "batch", "xs_b", "xs_t", "ts_b", "ts_h", "ts_t"])
def split_rotary(
    x,
    cos,
    sin,
    out,
    T,
    batch,
    xs_b: tl.int64,
    xs_t: tl.int64,
    ts_b: tl.int64,
    ts_h: tl.int64,
    ts_t: tl.int64,
    H: tl.constexpr,
    R: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    VEC: tl.constexpr,
    TVEC: tl.constexpr,
    EXACT: tl.constexpr,
):
    """out = x turned; out is contiguous. A program takes HEADS heads of TOKENS tokens.

    Moves: x, cos, sin and out once. Programs of one tile of tokens follow each other through the
    batch, so that tables which serve every sample come from L2. Rounding: see the module.
    Grid: cdiv(T, TOKENS) * batch * cdiv(H, HEADS). HALF: the power of two from R on.
    """
    parts: tl.constexpr = (H + HEADS - 1) // HEADS
    pid = tl.program_id(0)
    rest = pid // parts
    tile = rest // batch
    b = (rest - tile * batch).to(tl.int64)
    t0 = tile.to(tl.int64) * TOKENS
    t = tl.arange(0, TOKENS)
    h = (pid - rest * parts) * HEADS + tl.arange(0, HEADS)
    live = live_heads(t, T - t0, h, H, R, HEADS, HALF)
    first: tl.constexpr = cos.dtype.element_ty if EXACT else tl.float32

    at = halves_at(x, b, t0, t, xs_b, xs_t, h, R, HALF, VEC)
    av = tl.load(at, mask=live, other=0.0).to(tl.float32)
    bv = tl.load(at + R, mask=live, other=0.0).to(tl.float32)
    cv, sv = angles_at(cos, sin, b, t0, t, ts_b, ts_h, ts_t, h, live, HALF, TVEC)
    av, bv = turned(av, bv, cv, sv, first)
    row: tl.constexpr = 2 * H * R
    to = halves_at(out, b, t0, t, T.to(tl.int64) * row, row, h, R, HALF, VEC)
    tl.store(to, av.to(out.dtype.element_ty), mask=live)
    tl.store(to + R, bv.to(out.dtype.element_ty), mask=live)
