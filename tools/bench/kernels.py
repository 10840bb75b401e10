# mypy: ignore-errors
"""One small elementwise kernel, for what a launch costs. Compile workers import this file."""

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
    y = tl.minimum(gain * (v / (1.0 + tl.exp(-v))) + offset, limit)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < n)
