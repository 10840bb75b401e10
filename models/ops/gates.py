"""Gates: what an attention or a feed-forward adds to the stream, scaled by token, by head or by
element.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...jit.declare import Cost
from ...jit.op import op
from ...jit.sign import Call, TensorSpec
from .gates_variants import HEADS, SWIGLU, TILED
from .group_norm_problem import next_power_of_two
from .modulation import (
    DTYPES,
    NUMERICS,
    bucket_tokens,
    check_operands,
    check_tokens,
    gated,
    moved_bytes,
    table_rows,
)
from .token_calls import probe_tokens, reach_tokens, smaller_tokens


def _like_x(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _out(call: Call) -> dict[str, TensorSpec]:
    return {"out": TensorSpec(call.x.dtype, call.x.shape)}


def _cost(call: Call) -> Cost:
    return Cost(bytes=moved_bytes(call.tensors) + call.x.nbytes, flops=2 * call.x.numel)


def _check_residual(call: Call) -> None:
    check_tokens("gate_residual", call, ["y"])
    check_operands("gate_residual", call, [("gate",)])


def _residual_bucket(call: Call) -> Call:
    return bucket_tokens(call, ["gate"])


def _per_sample(call: Call) -> TensorSpec:
    shape = call.x.shape
    return TensorSpec(call.x.dtype, (*shape[:1], 1, *shape[-1:]))


@op(
    variants=[TILED],
    outputs=_out,
    fake=_like_x,
    cost=_cost,
    check=_check_residual,
    selects=("rounding", "numerics"),
    implied={"y": lambda call: TensorSpec(call.x.dtype, call.x.shape), "gate": _per_sample},
    bucket=_residual_bucket,
    reach=reach_tokens,
    probes=lambda call: probe_tokens(call, _residual_bucket),
    smaller=lambda call: smaller_tokens(call, _residual_bucket),
    below={"index": lambda call: table_rows(call, ["gate"])},
)
def gate_residual(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    index: Tensor | None = None,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """x + y * gate.

    x, y: (B, S, D), bf16|fp16|fp32; gate, index and rounding: see `modulation.py`. `each` rounds
    the product, then the sum (LTX-2, Z-Image); `once` the sum (Helios). Returns contiguous memory.
    Raises ValueError for what does not fit.
    """
    return gated(x, y, gate, index, rounding).contiguous()


def _check_heads(call: Call) -> None:
    x: TensorSpec = call.x
    logits: TensorSpec = call.logits
    if len(x.shape) != 3 or len(logits.shape) != 3 or x.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"head_gate: x is {x.shape}, logits {logits.shape}; allowed are (B, S, H*D) and "
            "(B, S, H)."
        )
    heads = logits.shape[2]
    if heads < 1 or x.shape[2] % heads:
        raise ValueError(f"head_gate: x's {x.shape[2]} channels do not divide into {heads} heads.")
    if x.dtype not in DTYPES or logits.dtype != x.dtype:
        raise ValueError(
            f"head_gate: x is {x.dtype}, logits {logits.dtype}; allowed are {', '.join(DTYPES)}, "
            "the same for both."
        )
    if call.numerics not in NUMERICS:
        raise ValueError(f"head_gate: numerics={call.numerics!r}; allowed are {NUMERICS}.")


def _head_bucket(call: Call) -> Call:
    batch, tokens, width = call.x.shape
    rows = next_power_of_two(batch), next_power_of_two(tokens)
    logits: Any = call.logits
    return call.replace(
        x=TensorSpec(call.x.dtype, (*rows, width)),
        logits=TensorSpec(logits.dtype, (*rows, logits.shape[2])),
    )


@op(
    variants=[HEADS],
    outputs=_out,
    fake=_like_x,
    cost=_cost,
    check=_check_heads,
    selects=("numerics",),
    bucket=_head_bucket,
    reach=reach_tokens,
    probes=lambda call: probe_tokens(call, _head_bucket),
    smaller=lambda call: smaller_tokens(call, _head_bucket),
)
def head_gate(x: Tensor, logits: Tensor, *, numerics: str = "exact") -> Tensor:
    """x * 2 * sigmoid(logits), a factor for each head: logits of 0 leave x as it is.

    x: (B, S, H*D), heads outermost in the last dimension, bf16|fp16|fp32; logits: (B, S, H) of x's
    dtype. `exact` rounds the sigmoid, then the product, as eager does. Returns contiguous memory.
    Raises ValueError for what does not fit.
    """
    gates = 2.0 * torch.sigmoid(logits)
    heads = x.unflatten(2, (logits.shape[2], -1))
    return (heads * gates.unsqueeze(-1)).flatten(2, 3).contiguous()


def _check_swiglu(call: Call) -> None:
    a: TensorSpec = call.a
    b: TensorSpec = call.b
    if not a.shape or (a.shape, a.dtype) != (b.shape, b.dtype):
        raise ValueError(
            f"swiglu: a is {a.dtype} {a.shape}, b {b.dtype} {b.shape}; allowed is (…, D), the same "
            "for both."
        )
    if a.dtype not in DTYPES:
        raise ValueError(f"swiglu: a is {a.dtype}; allowed are {', '.join(DTYPES)}.")
    if call.numerics not in NUMERICS:
        raise ValueError(f"swiglu: numerics={call.numerics!r}; allowed are {NUMERICS}.")


def _swiglu_of(call: Call, rows: int) -> Call:
    """The call with so many rows, contiguous."""
    spec = TensorSpec(call.a.dtype, (rows, call.a.shape[-1]))
    return call.replace(a=spec, b=spec)


def _swiglu_bucket(call: Call) -> Call:
    return _swiglu_of(call, next_power_of_two(call.a.numel // max(1, call.a.shape[-1])))


def _swiglu_reach(call: Call) -> list[Call]:
    """a, or both, may begin anywhere; and rows may be parts of others, of an odd number."""
    a: TensorSpec = call.a
    anywhere = a.like(aligned=False, strides=a.strides)
    gapped = a.like(strides=(a.shape[1] + 1, 1))
    found = [call.replace(a=anywhere), call.replace(a=anywhere, b=anywhere), call.replace(a=gapped)]
    return list(dict.fromkeys([call, *found]))


def _swiglu_probes(call: Call) -> list[Call]:
    """The fewest rows of the bucket: the last tile is as empty as can be."""
    rows = call.a.shape[0]
    return [_swiglu_of(call, rows // 2 + 1)] if rows > 2 else []


def _swiglu_smaller(call: Call) -> Call | None:
    rows = call.a.shape[0]
    return _swiglu_of(call, rows // 2) if rows > 1 and call.a.numel >= 1 << 24 else None


@op(
    variants=[SWIGLU],
    outputs=lambda call: {"out": TensorSpec(call.a.dtype, call.a.shape)},
    fake=_like_x,
    cost=lambda call: Cost(bytes=moved_bytes(call.tensors) + call.a.nbytes, flops=6 * call.a.numel),
    check=_check_swiglu,
    selects=("numerics",),
    implied={"b": lambda call: call.a},
    bucket=_swiglu_bucket,
    reach=_swiglu_reach,
    probes=_swiglu_probes,
    smaller=_swiglu_smaller,
)
def swiglu(a: Tensor, b: Tensor, *, numerics: str = "exact") -> Tensor:
    """silu(a) * b: what is between the two layers of Z-Image's feed-forward.

    a, b: (…, D), bf16|fp16|fp32; halves of one tensor are read where they are. `exact` rounds the
    silu, then the product, as eager does. Returns contiguous memory. Raises ValueError for what
    does not fit.
    """
    return (F.silu(a) * b).contiguous()
