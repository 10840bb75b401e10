"""What a model predicts, from velocities and under guidance.

Tensors of N <= 2^30 elements in the same order, bf16|fp16|fp32, so that 32 bits count them. All
arithmetic is fp32, except that of the parts' sums. R rounds to the dtype of the result. VEC divides
N (and D), which keeps loads wide. Compile with enable_fp_fusion=False: the references round each
operation.

With x the branches are velocities, and what is guided is R(x - sigma * v) of each. SIGMA says whose
sigma: "float" the argument's, "one" that of a tensor of one element, "rows" that of the element's
row of D elements, of S rows of a sample, in any strides.
"""

import triton
import triton.language as tl

from .ptx import let_next_start, wait_for_previous

_SIZES = ["N", "D", "S", "sigma_b", "sigma_s"]


@triton.jit
def sigma_at(
    sigma, sigmas, at, valid, D, S, sigma_b, sigma_s, VEC: tl.constexpr, SIGMA: tl.constexpr
):
    """The sigma of elements `at`, fp32; see the module."""
    if SIGMA == "rows":
        # at // VEC is equal over VEC neighbours: one division for all of them.
        row = (at // VEC) // (D // VEC)
        sample = row // S
        place = sample.to(tl.int64) * sigma_b + (row - sample * S).to(tl.int64) * sigma_s
        return tl.load(sigmas + place, mask=valid, other=0.0).to(tl.float32)
    elif SIGMA == "one":
        return tl.load(sigmas).to(tl.float32)
    else:
        return tl.cast(sigma, tl.float32)


@triton.jit
def _branch(branch, x, sigma, at, valid, DTYPE: tl.constexpr, VELOCITY: tl.constexpr):
    """A branch's prediction in fp32. `x`: the latents' elements in fp32, if it is a velocity."""
    v = tl.load(branch + at, mask=valid, other=0.0).to(tl.float32)
    if VELOCITY:
        v = (x - sigma * v).to(DTYPE).to(tl.float32)
    return v


@triton.jit
def _guided(
    cond, neg, perturbed, modality, x, sigmas, at, valid, D, S, sigma_b, sigma_s,
    sigma, cfg, stg, mod, DTYPE: tl.constexpr, VEC: tl.constexpr, SIGMA: tl.constexpr,
):  # fmt: skip
    """(conditional, guided) prediction of elements `at`, in fp32, 0 where not `valid`."""
    VELOCITY: tl.constexpr = x is not None
    latents = 0.0
    noise = 0.0
    if VELOCITY:
        latents = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        noise = sigma_at(sigma, sigmas, at, valid, D, S, sigma_b, sigma_s, VEC, SIGMA)
    c = _branch(cond, latents, noise, at, valid, DTYPE, VELOCITY)
    p = c
    if neg is not None:
        n = _branch(neg, latents, noise, at, valid, DTYPE, VELOCITY)
        p = p + tl.cast(cfg - 1.0, tl.float32) * (c - n)
    if perturbed is not None:
        n = _branch(perturbed, latents, noise, at, valid, DTYPE, VELOCITY)
        p = p + tl.cast(stg, tl.float32) * (c - n)
    if modality is not None:
        n = _branch(modality, latents, noise, at, valid, DTYPE, VELOCITY)
        p = p + tl.cast(mod - 1.0, tl.float32) * (c - n)
    return c, p


@triton.jit
def _add(v, valid, pivot, s, q):
    """Sums of v - pivot and of its square, continued."""
    d = tl.where(valid, v - pivot, 0.0)
    return s + d, tl.fma(d, d, q)


@triton.jit
def _joined(n, mean, m2):
    """(count, mean, M2), fp64 scalars, of disjoint sets of which those are given, fp64.

    Two passes over them, without a division for each: the mean of all, then the distances to it.
    """
    count = tl.sum(n)
    middle = tl.sum(n * mean) / tl.maximum(count, 1.0)
    d = mean - middle
    return count, middle, tl.sum(m2 + n * (d * d))


@triton.jit
def _of_lanes(pivot, n, s, q):
    """The same of lanes that each summed n values less their own pivot, and their squares, fp32."""
    e = s / tl.maximum(n, 1.0)
    m2 = q - s * e
    m2 = tl.where(m2 < 0.0, 0.0, m2)  # a maximum would make 0 of a NaN
    mean = tl.where(n > 0.0, pivot.to(tl.float64) + e.to(tl.float64), 0.0)
    return _joined(n.to(tl.float64), mean, m2.to(tl.float64))


@triton.jit
def _factor(ws, parts, rescale, LANES: tl.constexpr):
    """rescale * (std of the conditional / std of the guided prediction) + (1 - rescale), fp32.

    Standard deviations over all elements, divided by their number less one. Joins parts in a fixed
    order, in fp64. Loads bypass L1 (.cg): the parts may have been written during this launch.
    """
    lane = tl.arange(0, LANES)
    live = lane < parts
    at = ws + lane
    n = tl.load(at, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)
    at += parts
    c_mean = tl.load(at, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)
    at += parts
    c_m2 = tl.load(at, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)
    at += parts
    p_mean = tl.load(at, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)
    at += parts
    p_m2 = tl.load(at, mask=live, other=0.0, cache_modifier=".cg").to(tl.float64)
    count, _, c = _joined(n, c_mean, c_m2)
    count, _, p = _joined(n, p_mean, p_m2)
    c_std = tl.sqrt(c / (count - 1.0)).to(tl.float32)
    p_std = tl.sqrt(p / (count - 1.0)).to(tl.float32)
    ratio = tl.div_rn(c_std, p_std)
    return tl.cast(rescale, tl.float32) * ratio + tl.cast(1.0 - rescale, tl.float32)


@triton.jit
def _statistics(
    cond, neg, perturbed, modality, x, sigmas, out, ws, N, D, S, sigma_b, sigma_s,
    sigma, cfg, stg, mod, BLOCK: tl.constexpr, VEC: tl.constexpr, SIGMA: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """Part k of the statistics to ws, over tiles k, k + programs, ...; with KEEP the guided
    prediction, not yet rescaled, to out.

    Each lane subtracts its own first sample before it sums, which costs no accuracy whatever the
    mean.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    parts = tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK + lane
    valid = at < N
    c, p = _guided(
        cond, neg, perturbed, modality, x, sigmas, at, valid, D, S, sigma_b, sigma_s,
        sigma, cfg, stg, mod, dtype, VEC, SIGMA,
    )  # fmt: skip
    if KEEP:
        tl.store(out + at, p, mask=valid)
    c_pivot = c
    p_pivot = p
    n = valid.to(tl.float32)
    c_s = tl.zeros([BLOCK], tl.float32)
    c_q = tl.zeros([BLOCK], tl.float32)
    p_s = tl.zeros([BLOCK], tl.float32)
    p_q = tl.zeros([BLOCK], tl.float32)
    # A value less itself is 0, but for Inf and NaN, which have to be seen.
    c_s, c_q = _add(c, valid, c_pivot, c_s, c_q)
    p_s, p_q = _add(p, valid, p_pivot, p_s, p_q)
    for tile in range(tl.program_id(0) + parts, tl.cdiv(N, BLOCK), parts):
        at = tile * BLOCK + lane
        valid = at < N
        c, p = _guided(
            cond, neg, perturbed, modality, x, sigmas, at, valid, D, S, sigma_b, sigma_s,
            sigma, cfg, stg, mod, dtype, VEC, SIGMA,
        )  # fmt: skip
        if KEEP:
            tl.store(out + at, p, mask=valid)
        n += valid.to(tl.float32)
        c_s, c_q = _add(c, valid, c_pivot, c_s, c_q)
        p_s, p_q = _add(p, valid, p_pivot, p_s, p_q)
    count, c_mean, c_m2 = _of_lanes(c_pivot, n, c_s, c_q)
    count, p_mean, p_m2 = _of_lanes(p_pivot, n, p_s, p_q)
    part = ws + tl.program_id(0)
    tl.store(part, count.to(tl.float32))
    tl.store(part + parts, c_mean.to(tl.float32))
    tl.store(part + 2 * parts, c_m2.to(tl.float32))
    tl.store(part + 3 * parts, p_mean.to(tl.float32))
    tl.store(part + 4 * parts, p_m2.to(tl.float32))


@triton.jit
def _rescaled(
    cond, neg, perturbed, modality, x, sigmas, out, factor, N, D, S, sigma_b, sigma_s,
    sigma, cfg, stg, mod, BLOCK: tl.constexpr, VEC: tl.constexpr, SIGMA: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """The result in the tiles of `_statistics`: guided prediction times factor, the former as out
    has it with KEEP. From the last tile to the first: what was touched last may be in L2.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    k = tl.program_id(0)
    parts = tl.num_programs(0)
    last = (tl.cdiv(N, BLOCK) - 1 - k) // parts
    for i in range(0, last + 1):
        at = (k + (last - i) * parts) * BLOCK + tl.arange(0, BLOCK)
        valid = at < N
        if KEEP:
            p = tl.load(out + at, mask=valid, other=0.0)
        else:
            _, p = _guided(
                cond, neg, perturbed, modality, x, sigmas, at, valid, D, S, sigma_b, sigma_s,
                sigma, cfg, stg, mod, dtype, VEC, SIGMA,
            )  # fmt: skip
        tl.store(out + at, (p * factor).to(dtype), mask=valid)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=["sigmas"])
def velocity_to_x0(
    x,
    v,
    sigmas,
    out,
    N,
    D,
    S,
    sigma_b: tl.int64,
    sigma_s: tl.int64,
    sigma: tl.float64,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    SIGMA: tl.constexpr,
):
    """out = R(x - sigma * v). Moves: x and v once, out once. Grid: cdiv(N, BLOCK)."""
    N = (N // VEC) * VEC
    dtype: tl.constexpr = out.dtype.element_ty
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < N
    latents = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    noise = sigma_at(sigma, sigmas, at, valid, D, S, sigma_b, sigma_s, VEC, SIGMA)
    result = _branch(v, latents, noise, at, valid, dtype, True)
    tl.store(out + at, result.to(dtype), mask=valid)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=["sigmas"])
def guidance_plain(
    cond,
    neg,
    perturbed,
    modality,
    x,
    sigmas,
    out,
    N,
    D,
    S,
    sigma_b: tl.int64,
    sigma_s: tl.int64,
    sigma: tl.float64,
    cfg: tl.float64,
    stg: tl.float64,
    mod: tl.float64,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    SIGMA: tl.constexpr,
):
    """out = R(the guided prediction), not rescaled. Moves: each input once, out once.

    c + (cfg - 1)*(c - neg) + stg*(c - perturbed) + (mod - 1)*(c - modality), from left to right; a
    branch that is None adds nothing. Grid: cdiv(N, BLOCK).
    """
    N = (N // VEC) * VEC
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < N
    dtype: tl.constexpr = out.dtype.element_ty
    _, p = _guided(
        cond, neg, perturbed, modality, x, sigmas, at, valid, D, S, sigma_b, sigma_s,
        sigma, cfg, stg, mod, dtype, VEC, SIGMA,
    )  # fmt: skip
    tl.store(out + at, p.to(dtype), mask=valid)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=["sigmas"])
def guidance_statistics(
    cond,
    neg,
    perturbed,
    modality,
    x,
    sigmas,
    out,
    ws,
    N,
    D,
    S,
    sigma_b: tl.int64,
    sigma_s: tl.int64,
    sigma: tl.float64,
    cfg: tl.float64,
    stg: tl.float64,
    mod: tl.float64,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    SIGMA: tl.constexpr,
    KEEP: tl.constexpr,
):
    """The first of two launches: see `_statistics`. ws: fp32[5, programs]. Moves: each input once,
    with KEEP (out is fp32) out once. Grid: any number of programs up to cdiv(N, BLOCK).
    """
    let_next_start()
    _statistics(
        cond, neg, perturbed, modality, x, sigmas, out, ws, (N // VEC) * VEC, D, S, sigma_b,
        sigma_s, sigma, cfg, stg, mod, BLOCK, VEC, SIGMA, KEEP,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=["sigmas"])
def guidance_rescale(
    cond,
    neg,
    perturbed,
    modality,
    x,
    sigmas,
    out,
    ws,
    N,
    D,
    S,
    sigma_b: tl.int64,
    sigma_s: tl.int64,
    rescale: tl.float64,
    sigma: tl.float64,
    cfg: tl.float64,
    stg: tl.float64,
    mod: tl.float64,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    SIGMA: tl.constexpr,
    KEEP: tl.constexpr,
):
    """out = R(guided * (rescale * std(conditional) / std(guided) + 1 - rescale)), second launch.

    Moves: out twice with KEEP, else each input once and out once. Grid: that of the first launch,
    up to LANES.
    """
    wait_for_previous()
    factor = _factor(ws, tl.num_programs(0), rescale, LANES)
    _rescaled(
        cond, neg, perturbed, modality, x, sigmas, out, factor, (N // VEC) * VEC, D, S, sigma_b,
        sigma_s, sigma, cfg, stg, mod, BLOCK, VEC, SIGMA, KEEP,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=["sigmas"])
def guidance_together(
    cond,
    neg,
    perturbed,
    modality,
    x,
    sigmas,
    out,
    ws,
    bar,
    N,
    D,
    S,
    sigma_b: tl.int64,
    sigma_s: tl.int64,
    rescale: tl.float64,
    sigma: tl.float64,
    cfg: tl.float64,
    stg: tl.float64,
    mod: tl.float64,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    SIGMA: tl.constexpr,
    KEEP: tl.constexpr,
):
    """The same in one launch, whose programs meet once in between.

    Grid: up to LANES programs, all of them resident at once: launch cooperatively. bar: int32[1],
    zero before the first launch ever; each use flips its sign bit and leaves the others zero, so
    it is never cleared. Two launches that share it must not overlap.
    """
    N = (N // VEC) * VEC
    parts = tl.num_programs(0)
    k = tl.program_id(0)
    _statistics(
        cond, neg, perturbed, modality, x, sigmas, out, ws, N, D, S, sigma_b, sigma_s, sigma,
        cfg, stg, mod, BLOCK, VEC, SIGMA, KEEP,
    )  # fmt: skip
    tl.debug_barrier()
    # The first program's step carries the low bits over into the sign bit; all wait to see it.
    came = tl.atomic_add(
        bar, tl.where(k == 0, (2147483647 - parts) + 2, 1), sem="acq_rel", scope="gpu"
    )
    now = came
    while (now ^ came) >= 0:
        now = tl.atomic_add(bar, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    factor = _factor(ws, parts, rescale, LANES)
    _rescaled(
        cond, neg, perturbed, modality, x, sigmas, out, factor, N, D, S, sigma_b, sigma_s, sigma,
        cfg, stg, mod, BLOCK, VEC, SIGMA, KEEP,
    )  # fmt: skip
