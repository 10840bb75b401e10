"""Kernels that ask for every class of argument, and kernels that cannot be compiled."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["step"])
def classes_kernel(
    p, q, free, count, step, wide: tl.int64, flag, factor, double: tl.float64, BLOCK: tl.constexpr
):
    """Takes one argument of each kind, and uses them all."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(q + at * step, mask=at < count) * factor + free + wide + double
    tl.store(p + at, tl.where(flag, value, 0.0), mask=at < count)


@triton.jit
def optional_kernel(out_ptr, bias_ptr, BLOCK: tl.constexpr):
    """Does without a bias where there is none."""
    at = tl.arange(0, BLOCK)
    if bias_ptr is None:
        tl.store(out_ptr + at, at)
    else:
        tl.store(out_ptr + at, tl.load(bias_ptr + at))


@triton.jit
def plain_kernel(out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, at)


@triton.jit
def broken_kernel(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), a_name_that_nobody_defined)  # noqa: F821


@triton.constexpr_function
def leave():
    import os  # noqa: PLC0415  (Triton refuses functions that name os at module level)

    os._exit(7)


@triton.jit
def leaving_kernel(out_ptr, BLOCK: tl.constexpr):
    """Ends the process that compiles it."""
    CODE: tl.constexpr = leave()
    tl.store(out_ptr + tl.arange(0, BLOCK), CODE)
