"""RMSNorm of queries and keys with the rotary embedding behind it, in one launch.

A row is one token: H heads of 2*R channels, D = 2*H*R. `rotary` says how rows and tables lie in
memory; here the two channels that are turned together, a and b, are

    LAYOUT "split"        x[r] and x[R + r] of a head, turned as `rotary` says
           "interleaved"  x[2r] and x[2r + 1];  a*cos - b*sin, a*sin + b*cos, all products rounded
           "complex"      the same pairs;  fma(a, cos, -(b*sin)), fma(a, sin, b*cos): as CUDA's
                          complex multiplication is compiled

in fp32. In "interleaved" a row of the table is [cos | sin] of 2R entries each, of which entries 2r
of cos and 2r + 1 of sin count; in "complex" it is R pairs (cos, sin). Both are one memory for all
heads: *_sin is None.

The norm is over all D channels, or with PER_HEAD over each head's. R rounds to q's dtype where
EXACT:

    ROUND "once"    n = R(x * rsqrt(mean(x^2) + eps) * w)
          "each"    n = R(R(x * rsqrt(mean(x^2) + eps)) * w)
          "native"  n = R(R(x * R(rsqrt(R(R(mean(R(x^2))) + eps)))) * w)

Compile EXACT with enable_fp_fusion=False. Token counts and strides are run-time values and not
specialised: one binary serves every length.
"""

import triton
import triton.language as tl

from .rotary import angles_at, halves_at, live_heads, turned
from .rounding import rounded


@triton.jit
def _pairs(v, HEADS: tl.constexpr, HALF: tl.constexpr):
    """The first and the second of neighbours in the last dimension of v (rows, HEADS, 2*HALF)."""
    return tl.split(tl.reshape(v, [v.shape[0], HEADS, HALF, 2]))


@triton.jit
def _row_at(ptr, b, t0, t, s_b, s_t, h, R: tl.constexpr, HALF: tl.constexpr, VEC: tl.constexpr):
    """Where all channels of heads h of tokens t0 + t of sample b lie: (tokens, heads, 2*HALF)."""
    s_b = (s_b // VEC) * VEC
    s_t = (s_t // VEC) * VEC
    inside = h[:, None] * (2 * R) + tl.arange(0, 2 * HALF)[None, :]
    return ptr + (b * s_b + t0 * s_t) + (t[:, None, None] * s_t + inside[None, :, :])


@triton.jit
def _live_rows(t, T, h, H: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """`live_heads` of whole heads, (tokens, HEADS, 2*HALF)."""
    return live_heads(t, T, h, H, 2 * R, HEADS, 2 * HALF)


@triton.jit
def _weights(
    w, H: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    LAYOUT: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """What a weight has for a and b, (1, HEADS, HALF), or (1, 1, HALF) if heads share it; without
    a weight nothing of use.
    """
    heads: tl.constexpr = 1 if PER_HEAD else HEADS
    h = tl.arange(0, heads)
    if w is None:
        return h, h
    elif LAYOUT == "split":
        r = tl.arange(0, HALF)
        at = h[None, :, None] * (2 * R) + r[None, None, :]
        live = (h < H)[None, :, None] & (r < R)[None, None, :]
        return tl.load(w + at, mask=live, other=0.0), tl.load(w + (at + R), mask=live, other=0.0)
    else:
        c = tl.arange(0, 2 * HALF)
        at = h[None, :, None] * (2 * R) + c[None, None, :]
        live = (h < H)[None, :, None] & (c < 2 * R)[None, None, :]
        return _pairs(tl.load(w + at, mask=live, other=0.0), heads, HALF)


@triton.jit
def _table(
    table, b, t0, t, T, ts_b, ts_t, R: tl.constexpr, HALF: tl.constexpr, LAYOUT: tl.constexpr,
    TVEC: tl.constexpr,
):  # fmt: skip
    """(cos, sin) of tokens t0 + t of sample b, (tokens, 1, HALF), of a table of pairs."""
    one = tl.arange(0, 1)
    live = _live_rows(t, T - t0, one, 1, R, 1, HALF)
    at = _row_at(table, b, t0, t, ts_b, ts_t, one, R, HALF, TVEC)
    if LAYOUT == "complex":
        return _pairs(tl.load(at, mask=live, other=0.0), 1, HALF)
    else:
        cos, _ = _pairs(tl.load(at, mask=live, other=0.0), 1, HALF)
        _, sin = _pairs(tl.load(at + 2 * R, mask=live, other=0.0), 1, HALF)
        return cos, sin


@triton.jit
def _squares(v, ROUND: tl.constexpr, DTYPE: tl.constexpr):
    """v^2 (fp32), for ROUND "native" rounded to DTYPE."""
    if ROUND == "native":
        return rounded(v * v, DTYPE)
    else:
        return v * v


@triton.jit
def _rstd(
    squares, eps, R: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, ROUND: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """1 / sqrt(mean + eps), (rows, heads, 1) or (rows, 1, 1), of squares (rows, heads, channels).

    One axis after the other: reshaped to rows first, several rows of a tile came out wrong on sm_90
    (Triton 3.6), and not twice the same.
    """
    total = tl.sum(squares, 2)
    if PER_HEAD:  # noqa: SIM108  (a select would be of two shapes)
        mean = total * (1.0 / (2 * R))
    else:
        mean = tl.sum(total, 1)[:, None] * (1.0 / (2 * H * R))
    if ROUND == "native":
        rstd = rounded(tl.rsqrt(rounded(rounded(mean, DTYPE) + eps, DTYPE)), DTYPE)
    else:
        rstd = tl.rsqrt(mean + eps)
    return rstd[:, :, None]


@triton.jit
def _scaled(
    v, rstd, w, WEIGHTED: tl.constexpr, ROUND: tl.constexpr, DTYPE: tl.constexpr,
    MIDDLE: tl.constexpr,
):  # fmt: skip
    """v (fp32) times rstd [times w], in fp32, rounded on the way to DTYPE as ROUND says, and to
    MIDDLE at the end.
    """
    v = v * rstd
    if ROUND != "once":
        v = rounded(v, DTYPE)
    if WEIGHTED:
        v = v * w.to(tl.float32)
    return rounded(v, MIDDLE)


@triton.jit
def _turned(a, b, cos, sin, LAYOUT: tl.constexpr, EXACT: tl.constexpr):
    """a, b (fp32) turned by cos, sin, in fp32; see the module."""
    if LAYOUT == "split":
        return turned(a, b, cos, sin, cos.dtype if EXACT else tl.float32)
    elif LAYOUT == "complex":
        return tl.fma(a, cos, -(b * sin)), tl.fma(a, sin, b * cos)
    else:
        return a * cos - b * sin, a * sin + b * cos


@triton.jit
def _place(pid, q_tiles, k_tiles, batch):
    """(whether of the queries, sample, tile of tokens) of a program that takes one of the two.

    Programs of queries and of keys alternate, samples follow each other: where their tables are
    one memory, it is read from L2 the second time. What is longer ends alone.
    """
    pairs = tl.minimum(q_tiles, k_tiles) * batch
    paired = pid < 2 * pairs
    queries = tl.where(paired, pid % 2 == 0, q_tiles > k_tiles)
    rest = tl.where(paired, pid // 2, pid - pairs)
    tile = rest // batch
    return queries, (rest - tile * batch).to(tl.int64), tile


@triton.jit
def _loaded(
    x, cos, sin, T, b, t0, s_b, s_t, ts_b, ts_h, ts_t,
    H: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    LAYOUT: tl.constexpr, VEC: tl.constexpr, TVEC: tl.constexpr,
):  # fmt: skip
    """(a, b, cos, sin) of ROWS tokens from t0 on; without tables a and b in their place. Of pairs
    a and b are the row as it lies, which is split when its squares have been summed.

    Everything is asked for before anything is waited for.
    """
    t = tl.arange(0, ROWS)
    h = tl.arange(0, HEADS)
    if LAYOUT == "split":
        live = live_heads(t, T - t0, h, H, R, HEADS, HALF)
        at = halves_at(x, b, t0, t, s_b, s_t, h, R, HALF, VEC)
        av = tl.load(at, mask=live, other=0.0)
        bv = tl.load(at + R, mask=live, other=0.0)
        if cos is None:
            return av, bv, av, bv
        else:
            cv, sv = angles_at(cos, sin, b, t0, t, ts_b, ts_h, ts_t, h, live, HALF, TVEC)
            return av, bv, cv, sv
    else:
        live = _live_rows(t, T - t0, h, H, R, HEADS, HALF)
        at = _row_at(x, b, t0, t, s_b, s_t, h, R, HALF, VEC)
        row = tl.load(at, mask=live, other=0.0)
        if cos is None:
            return row, row, row, row
        else:
            cv, sv = _table(cos, b, t0, t, T, ts_b, ts_t, R, HALF, LAYOUT, TVEC)
            return row, row, cv, sv


@triton.jit
def _finish(
    out, av, bv, cv, sv, wa, wb, T, b, t0, eps,
    WEIGHTED: tl.constexpr, ROTARY: tl.constexpr, EXACT: tl.constexpr, ROUND: tl.constexpr,
    LAYOUT: tl.constexpr, PER_HEAD: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Normalise, turn and store what `_loaded` gave."""
    dtype: tl.constexpr = out.dtype.element_ty
    row: tl.constexpr = 2 * H * R
    middle: tl.constexpr = dtype if EXACT and ROTARY else tl.float32
    av = av.to(tl.float32)
    if LAYOUT == "split":
        bv = bv.to(tl.float32)
        if ROUND == "native":
            squares = _squares(av, ROUND, dtype) + _squares(bv, ROUND, dtype)
        else:
            squares = tl.fma(av, av, bv * bv)
        rstd = _rstd(squares, eps, R, H, PER_HEAD, ROUND, dtype)
    else:
        rstd = _rstd(_squares(av, ROUND, dtype), eps, R, H, PER_HEAD, ROUND, dtype)
        av, bv = _pairs(av, HEADS, HALF)
    av = _scaled(av, rstd, wa, WEIGHTED, ROUND, dtype, middle)
    bv = _scaled(bv, rstd, wb, WEIGHTED, ROUND, dtype, middle)
    if ROTARY:
        av, bv = _turned(av, bv, cv, sv, LAYOUT, EXACT)
    t = tl.arange(0, ROWS)
    h = tl.arange(0, HEADS)
    if LAYOUT == "split":
        live = live_heads(t, T - t0, h, H, R, HEADS, HALF)
        to = halves_at(out, b, t0, t, T.to(tl.int64) * row, row, h, R, HALF, VEC)
        tl.store(to, av.to(dtype), mask=live)
        tl.store(to + R, bv.to(dtype), mask=live)
    else:
        live = _live_rows(t, T - t0, h, H, R, HEADS, HALF)
        to = _row_at(out, b, t0, t, T.to(tl.int64) * row, row, h, R, HALF, VEC)
        both = tl.reshape(tl.join(av.to(dtype), bv.to(dtype)), [ROWS, HEADS, 2 * HALF])
        tl.store(to, both, mask=live)


@triton.jit(
    do_not_specialize=[
        "q_T", "k_T", "batch", "q_tiles", "k_tiles", "qs_b", "qs_t", "ks_b", "ks_t",
        "qts_b", "qts_h", "qts_t", "kts_b", "kts_h", "kts_t",
    ]
)  # fmt: skip
def qk_norm_rotary(
    q,
    k,
    wq,
    wk,
    q_cos,
    q_sin,
    k_cos,
    k_sin,
    q_out,
    k_out,
    q_T,
    k_T,
    batch,
    q_tiles,
    k_tiles,
    qs_b: tl.int64,
    qs_t: tl.int64,
    ks_b: tl.int64,
    ks_t: tl.int64,
    qts_b: tl.int64,
    qts_h: tl.int64,
    qts_t: tl.int64,
    kts_b: tl.int64,
    kts_h: tl.int64,
    kts_t: tl.int64,
    eps,
    H: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    TOGETHER: tl.constexpr,
    LAYOUT: tl.constexpr,
    PER_HEAD: tl.constexpr,
    ROUND: tl.constexpr,
    VEC: tl.constexpr,
    TVEC: tl.constexpr,
    EXACT: tl.constexpr,
):
    """q_out, k_out = q, k normalised [times w], turned: q is (B, q_T, D), k is (B, k_T, D).

    Statistics are fp32 sums in an order that the constexprs fix. A weight is (D,), with PER_HEAD
    (2*R,), or None. Without q_cos, without k_cos, or without both, it is normalised only.

    A program takes TILES tiles of ROWS whole tokens and loads the weights once: with TOGETHER of
    queries and keys both, so that tables which are one memory come from L1 the second time; else
    of one of them. Moves: q, k, their tables and results once.
    Grid: batch * max(q_tiles, k_tiles), or batch * (q_tiles + k_tiles) if not TOGETHER, where
    tiles = cdiv(T, ROWS * TILES). HEADS, HALF: the powers of two from H and R on.
    """
    if TOGETHER:
        tile = tl.program_id(0) // batch
        b = (tl.program_id(0) - tile * batch).to(tl.int64)
        qa, qb = _weights(wq, H, R, HEADS, HALF, LAYOUT, PER_HEAD)
        ka, kb = _weights(wk, H, R, HEADS, HALF, LAYOUT, PER_HEAD)
        for i in range(TILES):
            t0 = (tile * TILES + i).to(tl.int64) * ROWS
            qav, qbv, qcv, qsv = _loaded(
                q, q_cos, q_sin, q_T, b, t0, qs_b, qs_t, qts_b, qts_h, qts_t,
                H, R, ROWS, HEADS, HALF, LAYOUT, VEC, TVEC,
            )  # fmt: skip
            kav, kbv, kcv, ksv = _loaded(
                k, k_cos, k_sin, k_T, b, t0, ks_b, ks_t, kts_b, kts_h, kts_t,
                H, R, ROWS, HEADS, HALF, LAYOUT, VEC, TVEC,
            )  # fmt: skip
            _finish(
                q_out, qav, qbv, qcv, qsv, qa, qb, q_T, b, t0, eps,
                wq is not None, q_cos is not None, EXACT, ROUND, LAYOUT, PER_HEAD,
                H, R, ROWS, HEADS, HALF, VEC,
            )  # fmt: skip
            _finish(
                k_out, kav, kbv, kcv, ksv, ka, kb, k_T, b, t0, eps,
                wk is not None, k_cos is not None, EXACT, ROUND, LAYOUT, PER_HEAD,
                H, R, ROWS, HEADS, HALF, VEC,
            )  # fmt: skip
    else:
        queries, b, tile = _place(tl.program_id(0), q_tiles, k_tiles, batch)
        if queries:
            qa, qb = _weights(wq, H, R, HEADS, HALF, LAYOUT, PER_HEAD)
            for i in range(TILES):
                t0 = (tile * TILES + i).to(tl.int64) * ROWS
                qav, qbv, qcv, qsv = _loaded(
                    q, q_cos, q_sin, q_T, b, t0, qs_b, qs_t, qts_b, qts_h, qts_t,
                    H, R, ROWS, HEADS, HALF, LAYOUT, VEC, TVEC,
                )  # fmt: skip
                _finish(
                    q_out, qav, qbv, qcv, qsv, qa, qb, q_T, b, t0, eps,
                    wq is not None, q_cos is not None, EXACT, ROUND, LAYOUT, PER_HEAD,
                    H, R, ROWS, HEADS, HALF, VEC,
                )  # fmt: skip
        else:
            ka, kb = _weights(wk, H, R, HEADS, HALF, LAYOUT, PER_HEAD)
            for i in range(TILES):
                t0 = (tile * TILES + i).to(tl.int64) * ROWS
                kav, kbv, kcv, ksv = _loaded(
                    k, k_cos, k_sin, k_T, b, t0, ks_b, ks_t, kts_b, kts_h, kts_t,
                    H, R, ROWS, HEADS, HALF, LAYOUT, VEC, TVEC,
                )  # fmt: skip
                _finish(
                    k_out, kav, kbv, kcv, ksv, ka, kb, k_T, b, t0, eps,
                    wk is not None, k_cos is not None, EXACT, ROUND, LAYOUT, PER_HEAD,
                    H, R, ROWS, HEADS, HALF, VEC,
                )  # fmt: skip
