import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def scale_kernel(out_ptr, x_ptr, factor, n, BLOCK: tl.constexpr):
    """out = x * factor, computed in fp32 and rounded once. Reads x, writes out."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n).to(tl.float32)
    tl.store(out_ptr + at, (x * factor).to(out_ptr.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def fade_kernel(out_ptr, x_ptr, early: tl.float64, late, n, BLOCK: tl.constexpr):
    """out = x * late + early, computed in fp64 and rounded once. Reads x, writes out."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n).to(tl.float64)
    tl.store(out_ptr + at, (x * late + early).to(out_ptr.dtype.element_ty), mask=at < n)
