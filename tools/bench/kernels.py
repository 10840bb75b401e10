# mypy: ignore-errors
"""A small elementwise kernel, for what a launch costs, and one of rows with a space worth tuning.

Compile workers import this file.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def affine_silu_kernel(
    y_ptr, x_ptr, scale, shift, gain, offset, limit, n, BLOCK: tl.constexpr
):  # fmt: skip
    """y = min(gain * silu(scale * x + shift) + offset, limit), in fp32, rounded once.

    x, y: n contiguous elements. Eight run-time arguments, as real kernels have. Reads x, writes y.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x_ptr + at, mask=at < n, other=0.0).to(tl.float32) * scale + shift
    y = gain * (v / (1.0 + tl.exp(-v))) + offset
    y = tl.minimum(y, limit, propagate_nan=tl.PropagateNan.ALL)  # as clamp does
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def rms_norm_kernel(
    y_ptr, x_ptr, w_ptr, n, eps, BLOCK: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """y = x * rsqrt(mean(x²) + eps) * w over rows of n elements, in fp32, rounded once.

    x, y: rows, one after the other, a program each; w: n elements. Reads x twice, the second time
    mostly from caches, and writes y.
    """
    begin = tl.program_id(0).to(tl.int64) * n
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + begin + at, mask=at < n, other=0.0).to(tl.float32)
        squares += x * x
    scale = tl.rsqrt(tl.sum(squares) / n + eps)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + begin + at, mask=at < n, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + at, mask=at < n, other=0.0).to(tl.float32)
        y = x * scale * w
        tl.store(y_ptr + begin + at, y.to(y_ptr.dtype.element_ty), mask=at < n)
