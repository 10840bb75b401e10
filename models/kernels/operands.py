"""Loading the scale, shift or gate of tokens, wherever its rows lie.

An operand's row for token t of a sample begins at sample * stride_sample + r * stride_row, where r
follows from MODE:

    "batch"   0: one row for all tokens of a sample (or for all samples: stride_sample = 0)
    "row"     t // period: a row for each token or each frame of `period` tokens
    "index"   the table row that an index names for the token; stride_sample = 0

Channels are innermost. VEC divides every stride and the width of a row; it is what keeps loads
wide, since run-time strides are not specialised.
"""

import triton
import triton.language as tl


@triton.jit
def token_rows(sample, token, stride_sample, stride_token, VEC: tl.constexpr):
    """Where the rows of a vector of tokens begin (int64), in a tensor (B, S, D)."""
    start = sample.to(tl.int64) * ((stride_sample // VEC) * VEC)
    return start + token.to(tl.int64) * ((stride_token // VEC) * VEC)


@triton.jit
def index_rows(index, sample, token, live, stride_sample, stride_token, INDEXED: tl.constexpr):
    """The table row (int64) of each token of a vector where it is `live`, else 0.

    index: (B, S) of i32|i64 in any strides, None if not INDEXED: then what is returned means
    nothing, and costs nothing.
    """
    if INDEXED:
        at = sample.to(tl.int64) * stride_sample + token.to(tl.int64) * stride_token
        return tl.load(index + at, mask=live, other=0).to(tl.int64)
    else:
        return token


@triton.jit
def load_operand(
    operand, sample, token, row, live, c, inside, stride_sample, stride_row, period,
    VEC: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """An operand's tile, in its dtype: [T, C], or [1, C] where a row serves all tokens of a sample.

    sample: scalar; token, row (of `index_rows`), live: [T]; c, inside: [C], channels and whether a
    row has them. What is not live or not inside is 0 and not read. MODE is not "none".
    """
    start = operand + sample.to(tl.int64) * ((stride_sample // VEC) * VEC)
    if MODE == "batch":
        return tl.load(start + c, mask=inside, other=0.0)[None, :]
    else:
        if MODE == "row":
            row = token // period
        at = row.to(tl.int64)[:, None] * ((stride_row // VEC) * VEC) + c[None, :]
        return tl.load(start + at, mask=live[:, None] & inside[None, :], other=0.0)
