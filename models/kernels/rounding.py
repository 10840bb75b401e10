"""fp32 rounded to a narrower dtype and back: a rounding point of eager's inside a kernel; squares
of narrow numbers, rounded so.
"""

import triton
import triton.language as tl

if triton.knobs.runtime.interpret:
    _FEWEST = tl.constexpr(1)

    @triton.jit
    def _bf16(v):
        """v rounded to bf16 and back; the interpreter's own cast cuts off.

        Adding and taking away 1.5 * 2^16 times v's power of two rounds to nearest even. The bound
        keeps inf and huge values from becoming NaN.
        """
        power = tl.minimum(tl.abs(v), 1.2676506002282294e30).to(tl.int32, bitcast=True)
        power = (power & 0x7F800000).to(tl.float32, bitcast=True)
        return tl.fma(power, -98304.0, tl.fma(power, 98304.0, v))

    @triton.jit
    def _narrow_squares(v):
        """v^2 rounded to v's dtype, as fp32."""
        wide = v.to(tl.float32)
        return rounded(wide * wide, v.dtype)

else:
    _FEWEST = tl.constexpr(512)

    @triton.jit
    def _bf16(v):
        """v rounded to bf16 and back, two at a time: three instructions for both, where a cast of
        each takes one that runs at a quarter of the rate.
        """
        return tl.inline_asm_elementwise(
            "{ .reg .b32 both; cvt.rn.bf16x2.f32 both, $3, $2; "
            "shl.b32 $0, both, 16; and.b32 $1, both, 0xffff0000; }",
            "=r,=r,r,r",
            [v],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )

    @triton.jit
    def _narrow_squares(v):
        """v^2 rounded to v's dtype, as fp32: two products by one instruction."""
        if v.dtype == tl.bfloat16:
            product: tl.constexpr = (
                "{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, $1, $1, z; }"
            )
        else:
            product: tl.constexpr = "mul.rn.f16x2 $0, $1, $1;"
        squares = tl.inline_asm_elementwise(
            product, "=r,r", [v], dtype=v.dtype, is_pure=True, pack=2
        )
        return squares.to(tl.float32)


@triton.jit
def rounded(v, DTYPE: tl.constexpr):
    """fp32 v rounded to DTYPE, nearest even, as fp32.

    Few elements (a statistic of each row) are cast: a thread may have but one, which is no pair.
    """
    if DTYPE == tl.bfloat16 and v.numel >= _FEWEST:  # noqa: SIM300  (constexpr on the left)
        return _bf16(v)
    else:
        return v.to(DTYPE).to(tl.float32)


@triton.jit
def rounded_squares(v, DTYPE: tl.constexpr):
    """v^2 rounded to DTYPE, nearest even, as fp32. v: a tile of DTYPE or of fp32."""
    if v.dtype == DTYPE and DTYPE != tl.float32 and v.numel >= _FEWEST:  # noqa: SIM300  (as above)
        return _narrow_squares(v)
    else:
        wide = v.to(tl.float32)
        return rounded(wide * wide, DTYPE)
