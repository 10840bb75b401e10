"""Instructions that Triton's language does not offer, each beside what it means in the
interpreter.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, libdevice

if triton.knobs.runtime.interpret:

    @triton.jit
    def exp2(t):
        """2^t."""
        return tl.exp2(t)

    @triton.jit
    def exp(v):
        """e^v."""
        return tl.exp(v)

    @triton.jit
    def tanh(v):
        """tanh(v), by e^-2|v|."""
        e = tl.exp(-2.0 * tl.abs(v))
        t = (1.0 - e) / (1.0 + e)
        return tl.where(v < 0, -t, t)

    @triton.jit
    def reciprocal(v):
        """1 / v."""
        return 1.0 / v

    @triton.jit
    def reciprocal_of_any(v):
        """1 / v."""
        return 1.0 / v

    @triton.jit
    def rsqrt(v):
        """1 / sqrt(v)."""
        return tl.rsqrt(v)

    @triton.jit
    def kept_narrow(v):
        """v."""
        return v

    @triton.jit
    def let_next_start():
        """Nothing: the interpreter runs launches one after another."""

    @triton.jit
    def wait_for_previous():
        """Nothing: the interpreter runs launches one after another."""

else:

    @triton.jit
    def exp2(t):
        """2^t to 2 ulp, results below 2^-126 flushed to 0: one instruction, where tl.exp2 takes
        four.
        """
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [t], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def exp(v):
        """e^v as CUDA's expf computes it, to 1 ulp; but a result below 2^-126 is 0."""
        return libdevice.exp(v)

    @triton.jit
    def tanh(v):
        """tanh(v) as CUDA's tanhf computes it, to 1 ulp."""
        return libdevice.tanh(v)

    @triton.jit
    def reciprocal(v):
        """1 / v to 1 ulp for v from 2^-126 to 2^126: one instruction."""
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def reciprocal_of_any(v):
        """1 / v to 1 ulp, where the result is subnormal or v inf, too: four instructions."""
        return tl.inline_asm_elementwise(
            "rcp.approx.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def rsqrt(v):
        """1 / sqrt(v) to 2 ulp for normal v: one instruction, where tl.rsqrt takes four."""
        return tl.inline_asm_elementwise(
            "rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def kept_narrow(v):
        """v of 16 bits, in the half registers that it was loaded to: what is widened before and
        after would be kept wide in between, in twice as many.
        """
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [v], dtype=v.dtype, is_pure=False, pack=2
        )

    @triton.jit
    def let_next_start():
        """The next launch, if programmatic dependent, may start as programs of this one leave."""
        gdc_launch_dependents()

    @triton.jit
    def wait_for_previous():
        """Wait until the launch in front has ended and its writes can be seen."""
        gdc_wait()
