"""Count, mean and M2 (sum of squared distances to the mean) of fp32 values, and how two such triples are joined.

Nothing here forms E[x^2] - mean^2, so a mean far larger than the spread costs no accuracy. All combinations run in
a fixed order: equal inputs and equal constexprs give equal bits.
"""

import triton
import triton.language as tl


@triton.jit
def combine(na, ma, qa, nb, mb, qb):
    """Chan's rule: the triple of two disjoint sets; an empty set (n = mean = M2 = 0) changes nothing."""
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
    """x as fp32 by another route than a cast for bf16, so that the compiler keeps the 2-byte value alive and not the 4-byte one."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def tile_moments(x, valid, count):
    """(mean, M2) of a tile in registers: x bf16|fp16|fp32 and 0 where not `valid`, `count` valid elements (fp32 scalar).

    True two-pass; the first mean is corrected by the sum of the residuals, so it is as good as fp32 can hold.
    """
    n = tl.maximum(count, 1.0)
    pivot = tl.sum(x.to(tl.float32)) / n
    d = tl.where(valid, widen_again(x) - pivot, 0.0)
    d = flat(d)
    s, q = tl.reduce((d, d * d), 0, add_pairs)
    e = s / n
    return pivot + e, tl.maximum(q - s * e, 0.0)


@triton.jit
def run_moments(ptr, length, BLOCK: tl.constexpr, UNROLL: tl.constexpr, VEC: tl.constexpr, POLICY: tl.constexpr):
    """(mean, M2) of `length` (< 2^31, a multiple of VEC) contiguous elements at `ptr`, streamed once.

    Each of BLOCK lanes subtracts its own first sample before summing: 3 flops per element, and as that pivot is
    one of the lane's own n samples, q - s*s/n loses at most log2(n) bits whatever the mean. Lanes join by `combine`.
    """
    length = (length // VEC) * VEC
    lane = tl.arange(0, BLOCK)
    pivot = tl.load(ptr + lane, mask=lane < length, other=0.0, eviction_policy=POLICY).to(tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    q = tl.zeros([BLOCK], tl.float32)
    whole = BLOCK + (tl.maximum(length - BLOCK, 0) // (BLOCK * UNROLL)) * (BLOCK * UNROLL)
    for i in range(BLOCK, whole, BLOCK * UNROLL):
        for u in tl.static_range(UNROLL):
            d = tl.load(ptr + (i + u * BLOCK) + lane, eviction_policy=POLICY).to(tl.float32) - pivot
            s += d
            q = tl.fma(d, d, q)
    for i in range(whole, length, BLOCK):
        valid = i + lane < length
        v = tl.load(ptr + i + lane, mask=valid, other=0.0, eviction_policy=POLICY).to(tl.float32)
        d = tl.where(valid, v - pivot, 0.0)
        s += d
        q = tl.fma(d, d, q)
    n = (tl.maximum(length - lane, 0) + (BLOCK - 1)) // BLOCK
    n = n.to(tl.float32)
    e = s / tl.maximum(n, 1.0)
    _, mean, m2 = tl.reduce((n, pivot + e, tl.maximum(q - s * e, 0.0)), 0, combine)
    return mean, m2


@triton.jit
def merge_parts(means, m2s, parts, across, D, P, step, CH: tl.constexpr, LANES: tl.constexpr):
    """(count, mean, M2) of `parts` partial results written by other programs, joined in a fixed order.

    Part k covers channels [k // across * CH, +CH) of D and positions [k % across * step, +step) of P, which gives its
    count. Loads bypass L1 (.cg): the parts may have been written during this launch.
    """
    lane = tl.arange(0, LANES)
    n = tl.zeros([LANES], tl.float32)
    mean = tl.zeros([LANES], tl.float32)
    m2 = tl.zeros([LANES], tl.float32)
    for i in range(0, parts, LANES):
        k = i + lane
        live = k < parts
        row = k // across
        nb = tl.minimum(D - row * CH, CH) * tl.minimum(P - (k - row * across).to(tl.int64) * step, step)
        nb = tl.where(live, nb, 0).to(tl.float32)
        mb = tl.load(means + k, mask=live, other=0.0, cache_modifier=".cg")
        qb = tl.load(m2s + k, mask=live, other=0.0, cache_modifier=".cg")
        n, mean, m2 = combine(n, mean, m2, nb, mb, qb)
    return tl.reduce((n, mean, m2), 0, combine)
