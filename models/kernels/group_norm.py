"""silu(group_norm(x)) and silu(group_norm(x) + residual): in one launch, in two, in three for
channels_last.

Shapes: x, y: (N, C, P) contiguous, P = product of the spatial sizes, bf16|fp16|fp32; weight, bias:
(C,) of x's dtype; G groups of
D = C/G channels; a "row" is one (n, group), D*P contiguous elements. All arithmetic is fp32.

Formula and rounding points (R rounds to x's dtype), EXACT as eager does it:
    n = R(fma(x, rstd*w, fma(-rstd*w, mean, b)));  s = R(n + residual) where there is one;  y = R(s
    / (1 + exp(-s)))
else everything stays fp32 up to the one rounding of y. ROUND_STATS: mean = R(mean), rstd = R(rstd),
as eager on CUDA did up
to torch 2.12 (pytorch/pytorch#183946). Compile EXACT with enable_fp_fusion=False.

Parameters that every kernel shares:
    VEC       every row of P elements (C elements for channels_last), and `step` or `run`, is a
    multiple of it; 16-byte accesses need
              VEC * itemsize >= 16 and aligned pointers
    RES       "none": r is not read; "same": r is laid out as x; "strided": element (n, c, p) of r
    is at
              n*rs_n + c*rs_c + (p // inner)*rs_o + p % inner, with inner, rs_* multiples of RVEC
Integers are run-time values and not specialised: one binary serves every length.
"""

import triton
import triton.language as tl

from .moments import (
    combine,
    flat,
    load_head,
    merge_parts,
    part_of,
    run_moments,
    store_part,
    tile_moments,
    widen_again,
)
from .ptx import exp2, let_next_start, rsqrt, wait_for_previous
from .rounding import rounded

_STRIDES = ["rs_n", "rs_c", "rs_o", "inner"]


@triton.jit
def _silu(s, PRECISE: tl.constexpr):
    """s / (1 + exp(-s)) in fp32; large negative s gives -0, NaN and -inf give NaN.

    PRECISE repairs the rounding of s * log2(e), whose effect on 2^t grows with |t|, and divides
    with one rounding: a few ulp of fp32.
    Otherwise about 2^-21 relative near 0, which bf16 hardly ever sees, at a third of the
    instructions: a division is
    eight of them, two factors of rsqrt are three.
    """
    t = s * -1.4426950216293335
    e = exp2(t)
    if PRECISE:
        lost = tl.fma(s, -1.925963033500e-8, tl.fma(s, -1.4426950216293335, -t))
        # Outside this range e is inf or vanishes against 1, and inf * lost would make a NaN.
        e = tl.where(tl.abs(t) < 126.0, tl.fma(e, lost * 0.6931471805599453, e), e)
        return tl.div_rn(s, 1.0 + e)
    else:
        root = rsqrt(1.0 + e)
        return (s * root) * root


@triton.jit
def _affine(mean, rstd, w, b):
    """Scale and shift that turn x into the normalised value, fused as aten fuses them."""
    scale = rstd * w.to(tl.float32)
    return scale, tl.fma(-scale, mean, b.to(tl.float32))


@triton.jit
def _stats(mean, m2, count, eps, DTYPE: tl.constexpr, ROUND_STATS: tl.constexpr):
    """(mean, rstd) in fp32, rounded through DTYPE where eager does so."""
    rstd = tl.rsqrt(m2 / count + eps)
    if ROUND_STATS:
        mean = mean.to(DTYPE).to(tl.float32)
        rstd = rstd.to(DTYPE).to(tl.float32)
    return mean, rstd


@triton.jit
def _activate(x, r, scale, shift, DTYPE: tl.constexpr, RES: tl.constexpr, EXACT: tl.constexpr):
    """y in DTYPE from x (fp32), r (DTYPE, unused without a residual), scale and shift."""
    n = tl.fma(x, scale, shift)
    if RES != "none":
        if EXACT:
            n = rounded(n, DTYPE)
        n = n + r.to(tl.float32)
    if EXACT:
        n = rounded(n, DTYPE)
    return _silu(n, EXACT and tl.bfloat16 != DTYPE).to(DTYPE)


@triton.jit
def _residual(p, channel_offset, rs_o, inner, RVEC: tl.constexpr, RES: tl.constexpr):
    """Offsets into r of positions p of one channel (or several: shapes broadcast); one division
    per RVEC elements.
    """
    if RES == "strided":
        # p // RVEC is equal over RVEC neighbours, which is what lets the compiler keep wide loads.
        outer = (p // RVEC) // (inner // RVEC)
        rest = p - outer * ((inner // RVEC) * RVEC)
        return channel_offset + outer.to(tl.int64) * ((rs_o // RVEC) * RVEC) + rest
    else:
        return channel_offset + p


@triton.jit
def _channel(n, c, C, P, rs_n, rs_c, RVEC: tl.constexpr, RES: tl.constexpr):
    """Offset into r of position 0 of channel c of sample n (int64)."""
    if RES == "strided":
        return n.to(tl.int64) * ((rs_n // RVEC) * RVEC) + c.to(tl.int64) * ((rs_c // RVEC) * RVEC)
    else:
        return (n.to(tl.int64) * C + c) * P


@triton.jit(do_not_specialize=["P", "D", "G", "step", "across", "down", *_STRIDES])
def group_norm_split(
    x,
    r,
    w,
    b,
    y,
    ws,
    bar,
    P,
    D,
    G,
    step,
    across,
    down,
    rs_n: tl.int64,
    rs_c: tl.int64,
    rs_o: tl.int64,
    inner,
    eps,
    CH: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    RVEC: tl.constexpr,
    RES: tl.constexpr,
    EARLY: tl.constexpr,
    EXACT: tl.constexpr,
    ROUND_STATS: tl.constexpr,
):
    """y = silu(group_norm(x) [+ r]) in one launch: K = across*down programs hold one row in
    registers and meet once.

    Program k of a row takes channels [k // across * CH, +CH) and positions [k % across * step,
    +step), step <= BLOCK, as one
    tile; D*P < 2^31; its (mean, M2) (fp32, two-pass) go to ws, the row's programs wait for each
    other, and each joins all K parts in
    the same order. Moves: x once, r once, y once (plus 12*K bytes per row). Rounding: see the
    module.

    Grid: rows*K, all of them resident at once: launch cooperatively unless K == 1. LANES == 1 means
    K == 1: no barrier, ws and bar
    are not touched. ws: see `part_of`. bar: int32[rows], zero before the first launch ever; each
    use flips the sign bit and leaves the
    other bits zero, so it is never cleared, also when K changes. Two launches that share bar must
    not overlap.
    EARLY loads r before the wait instead of after.
    """
    P = (P // VEC) * VEC
    step = (step // VEC) * VEC
    parts = across * down
    row = tl.program_id(0) // parts
    k = tl.program_id(0) - row * parts
    kd = k // across
    start = (k - kd * across) * step
    n = row // G
    dtype: tl.constexpr = x.dtype.element_ty

    ch = kd * CH + tl.arange(0, CH)
    p = start + tl.arange(0, BLOCK)
    end = tl.minimum(start + step, P)
    valid = (ch < D)[:, None] & (p < end)[None, :]
    c = (row - n * G) * D + ch
    base = row.to(tl.int64) * D * P
    offsets = ch[:, None] * P + p[None, :]
    v = tl.load(x + base + offsets, mask=valid, other=0.0)
    head = load_head(x + base, D * P)
    wv = tl.load(w + c, mask=ch < D, other=0.0)[:, None]
    bv = tl.load(b + c, mask=ch < D, other=0.0)[:, None]
    r_offsets = _residual(
        p[None, :], _channel(n, c, D * G, P, rs_n, rs_c, RVEC, RES)[:, None], rs_o, inner, RVEC, RES
    )
    rv = v
    if RES != "none" and EARLY:
        rv = tl.load(r + r_offsets, mask=valid, other=0.0)

    count = (tl.minimum(D - kd * CH, CH) * (end - start)).to(tl.float32)
    origin, mean, m2 = tile_moments(v, valid, count, head, D * P)
    if LANES > 1:
        store_part(ws, row, k, parts, count, mean, m2)
        tl.debug_barrier()
        # The master's step carries the low bits over into the sign bit; the others wait to see it
        # change.
        came = tl.atomic_add(
            bar + row, tl.where(k == 0, (2147483647 - parts) + 2, 1), sem="acq_rel", scope="gpu"
        )
        now = came
        while (now ^ came) >= 0:
            now = tl.atomic_add(bar + row, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()
        count, mean, m2 = merge_parts(ws, row, parts, LANES)
    mean, rstd = _stats(origin + mean, m2, count, eps, dtype, ROUND_STATS)
    scale, shift = _affine(mean, rstd, wv, bv)
    if RES != "none" and not EARLY:
        rv = tl.load(r + r_offsets, mask=valid, other=0.0)
    tl.store(
        y + base + offsets,
        _activate(widen_again(v), rv, scale, shift, dtype, RES, EXACT),
        mask=valid,
    )


@triton.jit(do_not_specialize=["L", "rows", "parts"])
def group_norm_stats(
    x,
    ws,
    L,
    rows,
    parts,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    VEC: tl.constexpr,
):
    """Statistics of rows of L = D*P contiguous elements, `parts` programs a row; the first of two
    launches.

    fp32, pivoted sums per lane. Part k takes tiles k, k + parts, ... of BLOCK*UNROLL elements, so
    that neighbouring programs read
    neighbouring memory. Moves: x once. Grid: parts*rows. ws: see `part_of`.
    """
    let_next_start()
    row = tl.program_id(0) % rows
    k = tl.program_id(0) // rows
    tile: tl.constexpr = BLOCK * UNROLL
    base = x + ((row.to(tl.int64) * L) // VEC) * VEC
    origin, count, mean, m2 = run_moments(base, L, k * tile, parts * tile, BLOCK, UNROLL, VEC)
    if k == 0:
        tl.store(part_of(ws, row, parts) + 3 * parts, origin)
    store_part(ws, row, k, parts, count, mean, m2)


@triton.jit(do_not_specialize=["P", "D", "G", "step", "tiles", "parts", *_STRIDES])
def group_norm_apply(
    x,
    r,
    w,
    b,
    y,
    ws,
    P,
    D,
    G,
    step,
    tiles,
    parts,
    rs_n: tl.int64,
    rs_c: tl.int64,
    rs_o: tl.int64,
    inner,
    eps,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    RVEC: tl.constexpr,
    RES: tl.constexpr,
    EXACT: tl.constexpr,
    ROUND_STATS: tl.constexpr,
):
    """y = silu(group_norm(x) [+ r]) with the statistics of group_norm_stats; the second of two
    launches.

    A program takes positions [t*step, +step), step <= BLOCK, of one channel: scale and shift are
    scalars. It joins its row's parts itself,
    in order, LANES at a time. Programs go from the last tile to the first, as what was read last
    may still be in L2.
    Moves: x once, r once, y once. Rounding: see the module. Grid: N*C*tiles, tiles = cdiv(P, step).
    Launched as a programmatic dependent: x and r are loaded while the statistics end, so that
    launch must write neither.
    """
    P = (P // VEC) * VEC
    step = (step // VEC) * VEC
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    nc = pid // tiles
    start = (pid - nc * tiles) * step
    row = nc // D
    n = row // G
    c = nc - n * G * D
    dtype: tl.constexpr = x.dtype.element_ty
    p = start + tl.arange(0, BLOCK)
    valid = p < tl.minimum(start + step, P)
    at = nc.to(tl.int64) * P
    v = tl.load(x + at + p, mask=valid, other=0.0)
    rv = v
    if RES != "none":
        r_at = _channel(n, c, D * G, P, rs_n, rs_c, RVEC, RES)
        rv = tl.load(r + _residual(p, r_at, rs_o, inner, RVEC, RES), mask=valid, other=0.0)
    wv = tl.load(w + c)
    bv = tl.load(b + c)
    wait_for_previous()
    origin = tl.load(part_of(ws, row, parts) + 3 * parts)
    count, mean, m2 = merge_parts(ws, row, parts, LANES)
    mean, rstd = _stats(origin + mean, m2, count, eps, dtype, ROUND_STATS)
    scale, shift = _affine(mean, rstd, wv, bv)
    tl.store(
        y + at + p, _activate(v.to(tl.float32), rv, scale, shift, dtype, RES, EXACT), mask=valid
    )


@triton.jit(do_not_specialize=["P", "D", "G", "run", "chunks", "cols"])
def group_norm_stats_rows(
    x,
    ws,
    P,
    D,
    G,
    run,
    chunks,
    cols,
    BR: tl.constexpr,
    BC: tl.constexpr,
    VEC: tl.constexpr,
):
    """Per-channel statistics of channels_last x: (N, P, C) over runs of positions; the first of
    three launches.

    fp32, pivoted sums per lane (BR x BC lanes), joined over the positions. Moves: x once. A program
    takes `run` positions of BC channels.
    Grid: N*chunks*cols, chunks = cdiv(P, run), cols = cdiv(C, BC). ws: fp32[N, 2, chunks, C]:
    (mean, M2). VEC divides C.
    """
    C = ((D * G) // VEC) * VEC
    pid = tl.program_id(0)
    block = pid // cols
    n = block // chunks
    k = block - n * chunks
    c = (pid - block * cols) * BC + tl.arange(0, BC)
    lane = tl.arange(0, BR)
    first = k * run
    length = tl.minimum(P - first, run)
    base = x + (n.to(tl.int64) * P + first) * C
    live = (c < C)[None, :]
    offsets = lane.to(tl.int64)[:, None] * C + c[None, :]
    pivot = tl.load(base + offsets, mask=(lane < length)[:, None] & live, other=0.0).to(tl.float32)
    s = tl.zeros([BR, BC], tl.float32)
    q = tl.zeros([BR, BC], tl.float32)
    for i in range(BR, length, BR):
        valid = (i + lane < length)[:, None] & live
        base += BR * C
        v = tl.load(base + offsets, mask=valid, other=0.0).to(tl.float32)
        d = tl.where(valid, v - pivot, 0.0)
        s += d
        q = tl.fma(d, d, q)
    m = ((tl.maximum(length - lane, 0) + (BR - 1)) // BR).to(tl.float32)[:, None] + tl.zeros(
        [BR, BC], tl.float32
    )
    e = s / tl.maximum(m, 1.0)
    _, mean, m2 = tl.reduce((m, pivot + e, tl.maximum(q - s * e, 0.0)), 0, combine)
    means = ws + (n.to(tl.int64) * 2 * chunks + k) * C
    tl.store(means + c, mean, mask=c < C)
    tl.store(means + chunks.to(tl.int64) * C + c, m2, mask=c < C)


@triton.jit(do_not_specialize=["P", "D", "G", "run", "chunks"])
def group_norm_join_rows(
    ws,
    stat,
    P,
    D,
    G,
    run,
    chunks,
    eps,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """(mean, rstd) of each group from the per-channel parts of group_norm_stats_rows; the second of
    three launches.

    fp32, fixed order. Moves: 8 bytes per chunk and channel. Grid: N*G. stat: fp32[N*G, 2]. BD >= D;
    BK chunks at a time.
    """
    row = tl.program_id(0)
    n = row // G
    d = tl.arange(0, BD)
    c = (row - n * G) * D + d
    lane = tl.arange(0, BK)
    means = ws + n.to(tl.int64) * 2 * chunks * D * G
    count = tl.zeros([BK, BD], tl.float32)
    mean = tl.zeros([BK, BD], tl.float32)
    m2 = tl.zeros([BK, BD], tl.float32)
    for i in range(0, chunks, BK):
        k = i + lane
        valid = (k < chunks)[:, None] & (d < D)[None, :]
        nb = tl.where(valid, tl.minimum(P - k * run, run)[:, None], 0).to(tl.float32)
        at = k.to(tl.int64)[:, None] * (D * G) + c[None, :]
        mb = tl.load(means + at, mask=valid, other=0.0)
        qb = tl.load(means + chunks.to(tl.int64) * (D * G) + at, mask=valid, other=0.0)
        count, mean, m2 = combine(count, mean, m2, nb, mb, qb)
    count, mean, m2 = tl.reduce((flat(count), flat(mean), flat(m2)), 0, combine)
    mean, rstd = _stats(mean, m2, count, eps, tl.float32, False)
    tl.store(stat + 2 * row, mean)
    tl.store(stat + 2 * row + 1, rstd)


@triton.jit(do_not_specialize=["P", "D", "G", "tiles", "cols", *_STRIDES])
def group_norm_apply_rows(
    x,
    r,
    w,
    b,
    y,
    stat,
    P,
    D,
    G,
    tiles,
    cols,
    rs_n: tl.int64,
    rs_c: tl.int64,
    rs_o: tl.int64,
    inner,
    BR: tl.constexpr,
    BC: tl.constexpr,
    VEC: tl.constexpr,
    RES: tl.constexpr,
    EXACT: tl.constexpr,
    ROUND_STATS: tl.constexpr,
):
    """y = silu(group_norm(x) [+ r]) for channels_last x, y: (N, P, C); the last of three launches.

    A program takes BR positions of BC channels. Moves: x once, r once, y once. Rounding: see the
    module. RES "strided" addresses r
    as for the contiguous kernels, element by element.
    Grid: N*tiles*cols, tiles = cdiv(P, BR), cols = cdiv(C, BC). stat: fp32[N*G, 2]. VEC divides C.
    """
    C = ((D * G) // VEC) * VEC
    pid = tl.program_id(0)
    block = pid // cols
    n = block // tiles
    p = (block - n * tiles) * BR + tl.arange(0, BR)
    c = (pid - block * cols) * BC + tl.arange(0, BC)
    dtype: tl.constexpr = x.dtype.element_ty
    valid = (p < P)[:, None] & (c < C)[None, :]
    offsets = (n.to(tl.int64) * P + p.to(tl.int64))[:, None] * C + c[None, :]
    v = tl.load(x + offsets, mask=valid, other=0.0)
    rv = v
    if RES == "same":
        rv = tl.load(r + offsets, mask=valid, other=0.0)
    elif RES == "strided":
        r_at = _channel(n, c, C, P, rs_n, rs_c, 1, RES)[None, :]
        rv = tl.load(r + _residual(p[:, None], r_at, rs_o, inner, 1, RES), mask=valid, other=0.0)
    row = n * G + c // D
    mean = tl.load(stat + 2 * row, mask=c < C, other=0.0)
    rstd = tl.load(stat + 2 * row + 1, mask=c < C, other=0.0)
    if ROUND_STATS:
        mean = mean.to(dtype).to(tl.float32)
        rstd = rstd.to(dtype).to(tl.float32)
    scale, shift = _affine(
        mean, rstd, tl.load(w + c, mask=c < C, other=0.0), tl.load(b + c, mask=c < C, other=0.0)
    )
    out = _activate(v.to(tl.float32), rv, scale[None, :], shift[None, :], dtype, RES, EXACT)
    tl.store(y + offsets, out, mask=valid)
