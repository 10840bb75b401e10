"""x + y * gate, x * 2 * sigmoid(logits) head by head, and silu(a) * b.

All arithmetic is fp32; R rounds to x's dtype. Compile all but "fast" with enable_fp_fusion=False:
eager rounds the fp32 product, too.

x, y: bf16|fp16|fp32 in any strides of samples and tokens with their channels innermost. The result
is contiguous. Integers are run-time values and not specialised: one binary serves every length. VEC
divides the width of a row and every stride; 16-byte accesses need VEC * itemsize >= 16 and aligned
pointers.
"""

import triton
import triton.language as tl

from .operands import index_rows, load_operand, token_rows
from .ptx import exp
from .rounding import rounded
from .silu import silu_for_bf16

_TOKENS = ["S", "tiles", "x_b", "x_s"]
_GATE = ["gate_b", "gate_r", "gate_p", "index_b", "index_s"]


@triton.jit(do_not_specialize=["D", "cols", "y_b", "y_s", *_TOKENS, *_GATE])
def gate_residual(
    x,
    y,
    gate,
    index,
    out,
    S,
    D,
    tiles,
    cols,
    x_b: tl.int64,
    x_s: tl.int64,
    y_b: tl.int64,
    y_s: tl.int64,
    gate_b: tl.int64,
    gate_r: tl.int64,
    gate_p,
    index_b: tl.int64,
    index_s: tl.int64,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    GATE: tl.constexpr,
    INDEXED: tl.constexpr,
    ROUND: tl.constexpr,
):
    """out = R(x + R(y * gate)); without ROUND R(x + y * gate).

    x, y, out: (B, S, D); gate: of any float dtype, see `operands`. A program takes ROWS tokens of a
    sample by BLOCK channels; a gate of one row for all tokens is loaded once for them. Moves: x, y
    and the gate once, out once.
    Grid: B*tiles*cols, tiles = cdiv(S, ROWS), cols = cdiv(D, BLOCK).
    """
    D = (D // VEC) * VEC
    block = tl.program_id(0) // cols
    sample = block // tiles
    token = (block - sample * tiles) * ROWS + tl.arange(0, ROWS)
    c = (tl.program_id(0) - block * cols) * BLOCK + tl.arange(0, BLOCK)
    live = token < S
    inside = c < D
    valid = live[:, None] & inside[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    xv = tl.load(
        x + (token_rows(sample, token, x_b, x_s, VEC)[:, None] + c[None, :]), mask=valid, other=0.0
    )
    yv = tl.load(
        y + (token_rows(sample, token, y_b, y_s, VEC)[:, None] + c[None, :]), mask=valid, other=0.0
    )
    row = index_rows(index, sample, token, live, index_b, index_s, INDEXED)
    gv = load_operand(gate, sample, token, row, live, c, inside, gate_b, gate_r, gate_p, VEC, GATE)
    product = yv.to(tl.float32) * gv.to(tl.float32)
    if ROUND:
        product = product.to(dtype).to(tl.float32)
    at = (sample.to(tl.int64) * S + token)[:, None] * D + c[None, :]
    tl.store(out + at, (xv.to(tl.float32) + product).to(dtype), mask=valid)


@triton.jit(do_not_specialize=["H", "D", "logits_b", "logits_s", "logits_h", *_TOKENS])
def head_gate(
    x,
    logits,
    out,
    S,
    H,
    D,
    tiles,
    x_b: tl.int64,
    x_s: tl.int64,
    logits_b: tl.int64,
    logits_s: tl.int64,
    logits_h: tl.int64,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    ROUND: tl.constexpr,
):
    """out = R(x * 2R(1 / (1 + exp(-logits)))); without ROUND rounded once.

    x, out: (B, S, H*D); logits: (B, S, H) of x's dtype in any strides. A program takes HEADS heads
    in a row, of one token or several of a sample; BLOCK >= D. The division and exp are those of
    torch's sigmoid on CUDA, bit for bit. Moves: x and logits once, out once.
    Grid: B*tiles, tiles = cdiv(S*H, HEADS).
    """
    D = (D // VEC) * VEC
    sample = tl.program_id(0) // tiles
    n = (tl.program_id(0) - sample * tiles) * HEADS + tl.arange(0, HEADS)
    token = n // H
    head = n - token * H
    c = tl.arange(0, BLOCK)
    live = token < S
    valid = live[:, None] & (c < D)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    rows = token_rows(sample, token, x_b, x_s, VEC) + head * D
    v = tl.load(x + (rows[:, None] + c[None, :]), mask=valid, other=0.0)
    at = token_rows(sample, token, logits_b, logits_s, 1) + head * logits_h
    t = tl.load(logits + at, mask=live, other=0.0).to(tl.float32)
    factor = tl.div_rn(1.0, 1.0 + exp(-t))
    if ROUND:
        factor = factor.to(dtype).to(tl.float32)
    result = (v.to(tl.float32) * (2.0 * factor)[:, None]).to(dtype)
    first = sample.to(tl.int64) * S * H * D
    tl.store(out + (first + (n.to(tl.int64) * D)[:, None] + c[None, :]), result, mask=valid)


@triton.jit(do_not_specialize=["T", "D", "cols", "a_t", "b_t"])
def swiglu(
    a,
    b,
    out,
    T,
    D,
    cols,
    a_t: tl.int64,
    b_t: tl.int64,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
    EXACT: tl.constexpr,
):
    """out = R(R(a / (1 + exp(-a))) * b); without EXACT rounded once.

    a, b: (T, D), rows a_t and b_t apart, of one dtype; out: contiguous. A program takes ROWS rows
    by BLOCK channels. silu has the bits of torch's on CUDA. Moves: a and b once, out once.
    Grid: cdiv(T, ROWS) * cols, cols = cdiv(D, BLOCK).
    """
    D = (D // VEC) * VEC
    tile = tl.program_id(0) // cols
    row = tile * ROWS + tl.arange(0, ROWS)
    c = (tl.program_id(0) - tile * cols) * BLOCK + tl.arange(0, BLOCK)
    valid = (row < T)[:, None] & (c < D)[None, :]
    row = row.to(tl.int64)[:, None]
    dtype: tl.constexpr = out.dtype.element_ty
    av = tl.load(a + (row * ((a_t // VEC) * VEC) + c[None, :]), mask=valid, other=0.0)
    bv = tl.load(b + (row * ((b_t // VEC) * VEC) + c[None, :]), mask=valid, other=0.0)
    av = av.to(tl.float32)
    if dtype == tl.bfloat16:
        av = silu_for_bf16(av, False)
        if EXACT:
            av = rounded(av, dtype)
    elif EXACT:
        av = rounded(tl.div_rn(av, 1.0 + exp(-av)), dtype)
    else:
        av = av / (1.0 + exp(-av))
    tl.store(out + (row * D + c[None, :]), (av * bv.to(tl.float32)).to(dtype), mask=valid)
