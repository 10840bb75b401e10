"""Steps of a sampler over latents: Euler's, and the two halves of res_2s.

Elementwise over tensors of N elements in the same order, each of bf16|fp16|fp32|fp64. R rounds to
x's dtype. VEC divides N, which is what keeps loads wide. Coefficients are arguments, or, so that a
captured step can be replayed at another place of its schedule, a row of a table on the device that
`step` names. Compile with enable_fp_fusion=False: the references round each operation.

Grid of each: cdiv(N, BLOCK).
"""

import triton
import triton.language as tl

_AT = ["table", "step"]  # read by one element at a time: their alignment decides nothing


@triton.jit
def _offsets(BLOCK: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _load(ptr, at, valid):
    """Elements in fp64, 0 where not `valid`."""
    return tl.load(ptr + at, mask=valid, other=0.0).to(tl.float64)


@triton.jit
def _store(out, at, value, valid):
    """Write fp64 values, rounded as torch rounds them: to fewer bits than 32 by way of fp32."""
    if out.dtype.element_ty.primitive_bitwidth < 32:
        value = value.to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _row(table, step, N: tl.constexpr):
    """The row of N numbers that the step counter names."""
    return table + tl.load(step).to(tl.int64) * N


@triton.jit
def _noise(noise, step, at, N, STACKED: tl.constexpr):
    """Where the noise of this step lies: STACKED noise is (steps, N)."""
    if STACKED:
        return noise + (tl.load(step).to(tl.int64) * N + at)
    else:
        return noise + at


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=_AT)
def euler_step(
    x,
    x0,
    out,
    table,
    step,
    N,
    sigma: tl.float64,
    sigma_next: tl.float64,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    """out = R(x + v * (sigma_next - sigma)) with v = R((x - x0) / sigma), all in fp32.

    With a table (fp64) sigma and sigma_next are table[step] and table[step + 1].
    Moves: x and x0 once, out once.
    """
    at = _offsets(BLOCK)
    valid = at < (N // VEC) * VEC
    dtype: tl.constexpr = out.dtype.element_ty
    if table is not None:
        row = _row(table, step, 1)
        sigma = tl.load(row)
        sigma_next = tl.load(row + 1)
    xv = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    x0v = tl.load(x0 + at, mask=valid, other=0.0).to(tl.float32)
    v = tl.div_rn(xv - x0v, tl.cast(sigma, tl.float32)).to(dtype).to(tl.float32)
    tl.store(out + at, (xv + v * tl.cast(sigma_next - sigma, tl.float32)).to(dtype), mask=valid)


@triton.jit
def _midpoint(x, x0, noise, step, at, valid, N, alpha, move, up, STACKED: tl.constexpr):
    """(x, x0, the midpoint) in fp64: alpha*(x + move*(x0 - x)) + up*noise."""
    s = _load(x, at, valid)
    d = _load(x0, at, valid)
    mid = alpha * (s + move * (d - s))
    if noise is not None:
        mid = mid + up * _load(_noise(noise, step, at, N, STACKED), 0, valid)
    return s, d, mid


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=_AT)
def res2s_midpoint(
    x,
    x0,
    noise,
    out,
    table,
    step,
    N,
    alpha: tl.float64,
    move: tl.float64,
    up: tl.float64,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    STACKED: tl.constexpr,
):
    """out = R(alpha*(x + move*(x0 - x)) + up*noise) in fp64; without noise nothing is added.

    With a table (steps, 8) the three are the first numbers of its row. STACKED noise is (steps, N).
    Moves: x, x0 and noise once, out once.
    """
    at = _offsets(BLOCK)
    valid = at < (N // VEC) * VEC
    if table is not None:
        row = _row(table, step, 8)
        alpha = tl.load(row)
        move = tl.load(row + 1)
        up = tl.load(row + 2)
    _, _, mid = _midpoint(x, x0, noise, step, at, valid, N, alpha, move, up, STACKED)
    _store(out, at, mid, valid)


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=_AT)
def res2s_step(
    x,
    x0,
    x0_mid,
    noise_mid,
    noise,
    out,
    table,
    step,
    N,
    alpha_mid: tl.float64,
    move_mid: tl.float64,
    up_mid: tl.float64,
    bong: tl.float64,
    alpha: tl.float64,
    first: tl.float64,
    second: tl.float64,
    up: tl.float64,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    STACKED: tl.constexpr,
):
    """out = R(alpha*(a + first*(x0 - a) + second*(x0_mid - a)) + up*noise) in fp64.

    a is x, or, if bong is not 0, mid + bong*(mid - x0), where mid is computed again as
    `res2s_midpoint` does: to have kept it, or a, in fp64 would have cost 16 bytes an element.
    With a table (steps, 8) the numbers are its row in the order of the arguments. Without noise
    nothing is added. STACKED noise, both, is (steps, N).
    Moves: x, x0, x0_mid and noise once, noise_mid once, out once.
    """
    at = _offsets(BLOCK)
    valid = at < (N // VEC) * VEC
    if table is not None:
        row = _row(table, step, 8)
        alpha_mid = tl.load(row)
        move_mid = tl.load(row + 1)
        up_mid = tl.load(row + 2)
        bong = tl.load(row + 3)
        alpha = tl.load(row + 4)
        first = tl.load(row + 5)
        second = tl.load(row + 6)
        up = tl.load(row + 7)
    s, d, mid = _midpoint(
        x, x0, noise_mid, step, at, valid, N, alpha_mid, move_mid, up_mid, STACKED
    )
    d2 = _load(x0_mid, at, valid)
    a = tl.where(bong != 0.0, mid + bong * (mid - d), s)
    result = alpha * ((a + first * (d - a)) + second * (d2 - a))
    if noise is not None:
        result = result + up * _load(_noise(noise, step, at, N, STACKED), 0, valid)
    _store(out, at, result, valid)
