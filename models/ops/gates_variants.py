"""How gates are computed: one launch each, over tiles of tokens by channels.

A constexpr may depend on a call only through its bucket and the width of a row: whatever follows
the number of tokens would compile anew for every new one.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from ...autotune.space import Space
from ...jit.declare import Device, Kernel, Launch, Params, Plan, Pointer, Problem, Variant
from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import VECTOR_BYTES, common_power_of_two, next_power_of_two
from .operands import copied_first, index_args, operand_args, token_args, vector_width

_MODULE = "jitd.models.kernels.gates"
_DTYPES = ("bf16", "fp16", "fp32")
_TOKENS, _GATE = ("x", "y"), ("gate",)
_MAX_COUNT = 1 << 30  # tokens of a sample, and heads of all its tokens, are counted in 32 bits
_WIDEST_HEAD = 8192  # channels: a row of a tile


def _unfit(call: Call) -> str | None:
    """Why no kernel can take a call. Sizes are those of its bucket, whose members agree."""
    if call.x.dtype not in _DTYPES:
        return f"dtype {call.x.dtype}"
    if any(spec.dtype == "fp64" for spec in call.tensors.values()):
        return "an operand in fp64"
    if next_power_of_two(call.x.shape[1]) > _MAX_COUNT:
        return "2^30 tokens"
    return None


def _plan(call: Call, launch: Launch, copied: tuple[str, ...]) -> Plan:
    out = TensorSpec(call.x.dtype, call.x.shape)
    return Plan(outputs={"out": out}, launches=[launch], contiguous=copied)


# -- gate_residual ----------------------------------------------------------------------------


def plan_gate_residual(call: Call, params: Params, device: Device) -> Plan:
    """Tiles of ROWS tokens by BLOCK channels."""
    batch, tokens, width = call.x.shape
    tiles, cols = ceil(tokens / params["ROWS"]), ceil(width / params["BLOCK"])
    launch = Launch(
        kernel=Kernel(_MODULE, "gate_residual"),
        grid=(batch * tiles * cols, 1, 1),
        args={
            **token_args(call, "x"),
            **token_args(call, "y"),
            **operand_args(call, "gate"),
            **index_args(call, _GATE),
            "out": Pointer("out"),
            "S": tokens,
            "D": width,
            "tiles": tiles,
            "cols": cols,
            "ROWS": params["ROWS"],
            "BLOCK": params["BLOCK"],
            "VEC": vector_width(call, _TOKENS, _GATE),
            "ROUND": call.rounding == "each" and call.numerics == "exact",
        },
        num_warps=params["num_warps"],
        fp_fusion=call.numerics == "fast",
    )
    return _plan(call, launch, copied_first(call, _TOKENS, _GATE))


def _where(params: Mapping[str, Any], asked: Problem) -> str | None:
    width = asked.call.x.shape[2]
    block, per_thread = params["BLOCK"], params["ROWS"] * params["BLOCK"] // 32
    per_thread //= params["num_warps"]
    if block > max(_NARROWEST, next_power_of_two(width)):
        return "a block wider than a row"
    if block < 512 < width:
        return "narrow blocks of wide rows"
    if per_thread * ITEM_BYTES[asked.call.x.dtype] not in (32, 64):
        return f"{per_thread} elements a thread"
    return None


def _default(asked: Problem) -> dict[str, Any]:
    block = min(1024, max(_NARROWEST, next_power_of_two(asked.call.x.shape[2])))
    block = 512 if block == 256 else block
    return {"ROWS": max(1, 2048 // block), "BLOCK": block, "num_warps": 4}


_NARROWEST = 128

TILED = Variant(
    name="tiled",
    plan=plan_gate_residual,
    space=Space(
        {
            "ROWS": [1, 2, 4, 8, 16, 32],
            "BLOCK": [_NARROWEST, 512, 1024, 2048],
            "num_warps": [4, 8],
        },
        where=_where,
        default=_default,
    ),
    applies=_unfit,
)


# -- head_gate --------------------------------------------------------------------------------


def _head_dim(call: Call) -> int:
    return call.x.shape[2] // call.logits.shape[2]


def _heads_unfit(call: Call) -> str | None:
    if _head_dim(call) > _WIDEST_HEAD:
        return f"heads of {_head_dim(call)} channels"
    if next_power_of_two(call.x.shape[1]) * call.logits.shape[2] > _MAX_COUNT:
        return "2^30 heads of a sample"
    return _unfit(call)


def plan_head_gate(call: Call, params: Params, device: Device) -> Plan:
    """A program takes as many heads as fill TILE elements."""
    batch, tokens, _ = call.x.shape
    heads, head_dim = call.logits.shape[2], _head_dim(call)
    block = next_power_of_two(head_dim)
    each = max(1, params["TILE"] // block)
    tiles = ceil(tokens * heads / each)
    x = token_args(call, "x")
    widest = common_power_of_two(VECTOR_BYTES // ITEM_BYTES[call.x.dtype], head_dim)
    fits = common_power_of_two(widest, x["x_b"], x["x_s"]) == widest
    logits_b, logits_s, logits_h = call.logits.strides
    launch = Launch(
        kernel=Kernel(_MODULE, "head_gate"),
        grid=(batch * tiles, 1, 1),
        args={
            **x,
            "logits": Pointer("logits"),
            "out": Pointer("out"),
            "S": tokens,
            "H": heads,
            "D": head_dim,
            "tiles": tiles,
            "logits_b": logits_b,
            "logits_s": logits_s,
            "logits_h": logits_h,
            "HEADS": each,
            "BLOCK": block,
            "VEC": widest if fits else 1,
            "ROUND": call.numerics == "exact",
        },
        num_warps=params["num_warps"],
        fp_fusion=call.numerics == "fast",
    )
    return _plan(call, launch, copied_first(call, ("x",), ()))


def _heads_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    per_thread = params["TILE"] // (32 * params["num_warps"])
    if per_thread * ITEM_BYTES[asked.call.x.dtype] not in (32, 64, 128):
        return f"{per_thread} elements a thread"
    return None


HEADS = Variant(
    name="heads",
    plan=plan_head_gate,
    space=Space(
        {"TILE": [1024, 2048, 4096, 8192, 16384], "num_warps": [2, 4, 8]},
        where=_heads_where,
        default=lambda asked: {"TILE": 4096, "num_warps": 4},
    ),
    applies=_heads_unfit,
)


# -- swiglu -----------------------------------------------------------------------------------


def _as_rows(spec: TensorSpec) -> tuple[int, int] | None:
    """(rows, stride) of a tensor (…, D) whose rows lie evenly apart, channels innermost."""
    if spec.strides[-1] != 1 and spec.shape[-1] != 1:
        return None
    rows, stride = 1, 0
    for size, step in zip(reversed(spec.shape[:-1]), reversed(spec.strides[:-1]), strict=True):
        if size == 1:
            continue
        if rows > 1 and step != rows * stride:
            return None
        stride = stride if rows > 1 else step
        rows *= size
    return rows, stride


def plan_swiglu(call: Call, params: Params, device: Device) -> Plan:
    """Tiles of ROWS rows by BLOCK channels."""
    width = call.a.shape[-1]
    rows = call.a.numel // width
    found = {name: _as_rows(call[name]) for name in ("a", "b")}
    strides = {name: place[1] if place else width for name, place in found.items()}
    widest = common_power_of_two(VECTOR_BYTES // ITEM_BYTES[call.a.dtype], width)
    fits = common_power_of_two(widest, *strides.values()) == widest
    tiles, cols = ceil(rows / params["ROWS"]), ceil(width / params["BLOCK"])
    launch = Launch(
        kernel=Kernel(_MODULE, "swiglu"),
        grid=(tiles * cols, 1, 1),
        args={
            "a": Pointer("a"),
            "b": Pointer("b"),
            "out": Pointer("out"),
            "T": rows,
            "D": width,
            "cols": cols,
            "a_t": strides["a"],
            "b_t": strides["b"],
            "ROWS": params["ROWS"],
            "BLOCK": params["BLOCK"],
            "VEC": widest if fits else 1,
            "EXACT": call.numerics == "exact",
        },
        num_warps=params["num_warps"],
        fp_fusion=call.numerics == "fast",
    )
    out = TensorSpec(call.a.dtype, call.a.shape)
    copied = tuple(name for name, place in found.items() if place is None)
    return Plan(outputs={"out": out}, launches=[launch], contiguous=copied)


def _swiglu_unfit(call: Call) -> str | None:
    if call.a.dtype not in _DTYPES:
        return f"dtype {call.a.dtype}"
    rows = next_power_of_two(call.a.numel // max(1, call.a.shape[-1]))
    return "2^30 rows" if rows > _MAX_COUNT else None


def _swiglu_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    width, block = asked.call.a.shape[-1], params["BLOCK"]
    if block > max(_NARROWEST, next_power_of_two(width)):
        return "a block wider than a row"
    if block < 512 < width:
        return "narrow blocks of wide rows"
    per_thread = params["ROWS"] * block // (32 * params["num_warps"])
    if per_thread * ITEM_BYTES[asked.call.a.dtype] not in (32, 64):
        return f"{per_thread} elements a thread"
    return None


def _swiglu_default(asked: Problem) -> dict[str, Any]:
    block = min(1024, max(_NARROWEST, next_power_of_two(asked.call.a.shape[-1])))
    block = 512 if block == 256 else block
    return {"ROWS": max(1, 2048 // block), "BLOCK": block, "num_warps": 4}


SWIGLU = Variant(
    name="tiled",
    plan=plan_swiglu,
    space=Space(
        {
            "ROWS": [1, 2, 4, 8, 16, 32],
            "BLOCK": [_NARROWEST, 512, 1024, 2048],
            "num_warps": [4, 8],
        },
        where=_swiglu_where,
        default=_swiglu_default,
    ),
    applies=_swiglu_unfit,
)
