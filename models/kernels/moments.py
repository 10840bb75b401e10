"""Count, mean and M2 (sum of squared distances to the mean) of fp32 values, and how two such
triples are joined.

Nothing here forms E[x^2] - mean^2, so a mean far larger than the spread costs no accuracy. Means
are kept relative to an `origin` near them: joining many would else round each time to the last
place of the full mean. All combinations run in a fixed order: equal inputs and
equal constexprs give equal bits.
"""

import triton
import triton.language as tl


@triton.jit
def combine(na, ma, qa, nb, mb, qb):
    """Chan's rule: the triple of two disjoint sets; an empty set (n = mean = M2 = 0) changes
    nothing.
    """
    n = na + nb
    f = nb / tl.maximum(n, 1.0)
    d = mb - ma
    # d * (d * ...): with an empty side the last factor is 0, and d * d alone could overflow to inf.
    return n, tl.fma(d, f, ma), qa + qb + d * (d * (na * f))


@triton.jit
def add_pairs(a0, a1, b0, b1):
    """Elementwise sum of two pairs."""
    return a0 + b0, a1 + b1


@triton.jit
def flat(x):
    """x as one dimension: Triton's interpreter reduces a tuple over all axes only so."""
    return tl.reshape(x, [x.numel])


@triton.jit
def widen_again(x):
    """x as fp32 by another route than a cast for bf16, so that the compiler keeps the 2-byte value
    alive and not the 4-byte one.
    """
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def load_head(ptr, length):
    """The first 32 elements of a row, 0 beyond its length."""
    lane = tl.arange(0, 32)
    return tl.load(ptr + lane, mask=lane < length, other=0.0)


@triton.jit
def origin_of(head, length):
    """The mean (fp32) of a row's head: near enough to the row's mean, and cheap.

    Apart from `load_head`, so that nothing need wait for that load before it loads the rest.
    """
    return tl.sum(head.to(tl.float32)) / tl.minimum(length, 32).to(tl.float32)


@triton.jit
def tile_moments(x, valid, count, head, length):
    """(origin, mean - origin, M2) of a tile in registers: x bf16|fp16|fp32 and 0 where not `valid`,
    `count` valid elements (fp32 scalar), of a row of `length` elements that begins with `head`.

    True two-pass; the first mean is corrected by the sum of the residuals, so it is as good as fp32
    can hold.
    """
    n = tl.maximum(count, 1.0)
    pivot = tl.sum(x.to(tl.float32)) / n
    d = tl.where(valid, widen_again(x) - pivot, 0.0)
    d = flat(d)
    s, q = tl.reduce((d, d * d), 0, add_pairs)
    e = s / n
    origin = origin_of(head, length)
    return origin, (pivot - origin) + e, tl.maximum(q - s * e, 0.0)


@triton.jit
def run_moments(
    ptr, length, first, stride, BLOCK: tl.constexpr, UNROLL: tl.constexpr, VEC: tl.constexpr
):
    """(origin, count, mean - origin, M2) of tiles of BLOCK*UNROLL elements at first, first +
    stride, ... of the row of `length` (a multiple of VEC) at `ptr`.

    Each of BLOCK lanes subtracts its own first sample before summing: 3 flops per element, and as
    that pivot is one of the lane's own n samples, q - s*s/n loses at most log2(n) bits whatever the
    mean. Lanes join by `combine`.
    """
    TILE: tl.constexpr = BLOCK * UNROLL
    head = load_head(ptr, length)
    length = (length // VEC) * VEC
    lane = tl.arange(0, BLOCK)
    pivot = tl.load(ptr + first + lane, mask=first + lane < length, other=0.0).to(tl.float32)
    n = tl.zeros([BLOCK], tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    q = tl.zeros([BLOCK], tl.float32)
    whole = (length // TILE) * TILE
    for i in range(first, whole, stride):
        for u in tl.static_range(UNROLL):
            d = tl.load(ptr + i + (u * BLOCK + lane)).to(tl.float32) - pivot
            s += d
            q = tl.fma(d, d, q)
        n += UNROLL
    if (whole < length) & ((whole - first) % stride == 0) & (whole >= first):
        for u in tl.static_range(UNROLL):
            at = whole + (u * BLOCK + lane)
            valid = at < length
            v = tl.load(ptr + at, mask=valid, other=0.0).to(tl.float32)
            d = tl.where(valid, v - pivot, 0.0)
            s += d
            q = tl.fma(d, d, q)
            n += valid.to(tl.float32)
    e = s / tl.maximum(n, 1.0)
    origin = origin_of(head, length)
    mean = tl.where(n > 0, (pivot - origin) + e, 0.0)  # of an empty lane: what `combine` ignores
    n, mean, m2 = tl.reduce((n, mean, tl.maximum(q - s * e, 0.0)), 0, combine)
    return origin, n, mean, m2


@triton.jit
def part_of(ws, row, parts):
    """Where the parts of a row begin in ws: fp32[rows, 3*parts + 1], counts, means less the row's
    origin, M2s, and last the origin.
    """
    return ws + row.to(tl.int64) * (3 * parts + 1)


@triton.jit
def store_part(ws, row, k, parts, count, mean, m2):
    """Write part k of a row to ws."""
    at = part_of(ws, row, parts) + k
    tl.store(at, count)
    tl.store(at + parts, mean)
    tl.store(at + 2 * parts, m2)


@triton.jit
def merge_parts(ws, row, parts, LANES: tl.constexpr):
    """(count, mean less the origin, M2) of the parts of a row, joined in a fixed order.

    Loads bypass L1 (.cg): the parts may have been written during this launch.
    """
    lane = tl.arange(0, LANES)
    n = tl.zeros([LANES], tl.float32)
    mean = tl.zeros([LANES], tl.float32)
    m2 = tl.zeros([LANES], tl.float32)
    for i in range(0, parts, LANES):
        at = part_of(ws, row, parts) + i + lane
        live = i + lane < parts
        nb = tl.load(at, mask=live, other=0.0, cache_modifier=".cg")
        mb = tl.load(at + parts, mask=live, other=0.0, cache_modifier=".cg")
        qb = tl.load(at + 2 * parts, mask=live, other=0.0, cache_modifier=".cg")
        n, mean, m2 = combine(n, mean, m2, nb, mb, qb)
    return tl.reduce((n, mean, m2), 0, combine)
