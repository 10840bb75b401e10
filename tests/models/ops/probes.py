"""A kernel that does what the interpreter of older Tritons cannot do beside newer numpys."""

import triton
import triton.language as tl


@triton.jit
def count_kernel(out_ptr, first, last, BLOCK: tl.constexpr):
    """out = the number of steps of a loop whose bounds are known when it runs."""
    steps = tl.zeros([BLOCK], tl.int32)
    for _ in range(first, last, BLOCK):
        steps += 1
    tl.store(out_ptr + tl.arange(0, BLOCK), steps)
