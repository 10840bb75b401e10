"""How `split_rotary` is computed, and what its kernel and that of `qk_norm_rotary` see of a call.

A constexpr may depend on a call only through its bucket: dtypes, the heads, whether there are
tables and weights, and whether strides allow wide loads. Token counts are run-time values.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from ...autotune.space import Space
from ...jit.declare import Device, Kernel, Launch, Params, Plan, Pointer, Problem, Variant
from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import common_power_of_two, next_power_of_two
from .rotary_rules import half_of, outer_strides

_MODULE = "jitd.models.kernels.rotary"
_DTYPES = ("bf16", "fp16", "fp32")
_VECTOR_BYTES = 16
_MAX_HALF = 1 << 13
_MAX_TOKENS = 1 << 30  # counted in 32 bits; offsets into whole tensors in 64
MAX_PROGRAMS = 1 << 31
_TOKENS = (1, 2, 4, 8)


# -- what the kernels see of a call -----------------------------------------------------------


def heads_of(
    width: int, tables: Sequence[TensorSpec | None], layout: str = "split"
) -> tuple[int, int]:
    """(H, R) of a row; one that nothing turns is one head."""
    for table in tables:
        if table is not None:
            half = half_of(table, layout)
            return width // (2 * half), half
    return 1, width // 2


def widest_access(dtype: str, half: int, specs: Sequence[TensorSpec]) -> int:
    """Elements of the widest access that R and all outer strides allow, or 1.

    Nothing in between: each width is another binary.
    """
    widest = common_power_of_two(_VECTOR_BYTES // ITEM_BYTES[dtype], half)
    strides = [stride for spec in specs for stride in outer_strides(spec)]
    return 1 if any(stride % widest for stride in strides) else widest


def address_strides(spec: TensorSpec) -> tuple[int, ...]:
    """As they count in an address: 0 where there is one element only."""
    return tuple(s if n > 1 else 0 for s, n in zip(spec.strides, spec.shape, strict=True))


def copied_first(call: Call) -> tuple[str, ...]:
    """Tensors that are made contiguous first: the kernels need innermost strides of 1, and those
    of cos to be those of sin."""
    copied = [name for name, spec in call.tensors.items() if not _dense(call, name, spec)]
    for cos, sin in (("cos", "sin"), ("q_cos", "q_sin"), ("k_cos", "k_sin")):
        one, other = call.get(cos), call.get(sin)
        if other is not None and (one.strides != other.strides or {cos, sin} & {*copied}):
            copied += [name for name in (cos, sin) if name not in copied]
    return tuple(copied)


def _dense(call: Call, name: str, spec: TensorSpec) -> bool:
    """Whether what a kernel reads of a token, or of its head, is one run of memory."""
    if name in ("q_cos", "k_cos") and call.layout == "complex" and spec.strides[-2] != 2:
        return spec.shape[-2] == 1 and spec.strides[-1] == 1
    return spec.strides[-1] == 1 or spec.shape[-1] == 1


def as_read(call: Call) -> Call:
    """The call as the kernels find it, after the copies."""
    return call.replace(
        **{name: call[name].like(strides=(), aligned=True) for name in copied_first(call)}
    )


def unfit(call: Call) -> str | None:
    """Why the kernels cannot take a call. Sizes are those of its bucket, whose members agree."""
    for name, spec in call.tensors.items():
        if spec.dtype not in _DTYPES:
            return f"{name} is {spec.dtype}"
    first: TensorSpec = next(iter(call.tensors.values()))
    if next_power_of_two(first.shape[1]) > _MAX_TOKENS:
        return f"more than {_MAX_TOKENS} tokens"
    return None


# -- split_rotary -----------------------------------------------------------------------------


def plan_split(call: Call, params: Params, device: Device) -> Plan:
    """A program takes HEADS heads of TOKENS tokens."""
    read = as_read(call)
    batch, tokens, width = read.x.shape
    heads, half = heads_of(width, [read.cos])
    grid = ceil(tokens / params["TOKENS"]) * batch * ceil(heads / params["HEADS"])
    x_strides, table_strides = address_strides(read.x), address_strides(read.cos)
    launch = Launch(
        kernel=Kernel(_MODULE, "split_rotary"),
        grid=(grid, 1, 1),
        args={
            "x": Pointer("x"),
            "cos": Pointer("cos"),
            "sin": Pointer("sin"),
            "out": Pointer("out"),
            "T": tokens,
            "batch": batch,
            "xs_b": x_strides[0],
            "xs_t": x_strides[1],
            "ts_b": table_strides[0],
            "ts_h": table_strides[1],
            "ts_t": table_strides[2],
            "H": heads,
            "R": half,
            "TOKENS": params["TOKENS"],
            "HEADS": params["HEADS"],
            "HALF": next_power_of_two(half),
            "VEC": widest_access(read.x.dtype, half, [read.x]),
            "TVEC": widest_access(read.cos.dtype, half, [read.cos]),
            "EXACT": call.numerics == "exact",
        },
        num_warps=params["num_warps"],
        fp_fusion=call.numerics == "fast",
    )
    outputs = {"out": TensorSpec(call.x.dtype, call.x.shape)}
    return Plan(outputs=outputs, launches=[launch], contiguous=copied_first(call))


def _split_applies(call: Call) -> str | None:
    half = call.cos.shape[3]
    if half > _MAX_HALF:
        return f"heads of 2 x {half} channels"
    batch, tokens, width = (next_power_of_two(n) for n in call.x.shape)
    if batch * tokens * width // next_power_of_two(half) >= MAX_PROGRAMS:
        return "more tiles than a grid has room for"
    return unfit(call)


def _split_tile(params: Mapping[str, Any], half: int) -> float:
    """Elements of each half for a thread."""
    tile = params["TOKENS"] * params["HEADS"] * next_power_of_two(half)
    return float(tile / (32 * params["num_warps"]))


def _split_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    call = asked.call
    heads, half = heads_of(call.x.shape[2], [call.cos])
    if params["HEADS"] > next_power_of_two(heads):
        return "more heads than a row has"
    most_tokens = next_power_of_two(call.x.shape[1])
    if params["TOKENS"] > most_tokens:
        return "more tokens than there are"
    block = next_power_of_two(half)
    whole = params["HEADS"] == next_power_of_two(heads)
    if params["HEADS"] * block < 256 and not whole:
        return "short runs of a row"
    if params["TOKENS"] * params["HEADS"] * block > 4096 and params["TOKENS"] > 1:
        return "a large tile of several tokens"
    vector = _VECTOR_BYTES // ITEM_BYTES[call.x.dtype]
    each = _split_tile(params, half)
    all_there_is = whole and params["TOKENS"] == min(max(_TOKENS), most_tokens)
    if not (0 if params["num_warps"] == 1 and all_there_is else vector / 2) <= each <= 2 * vector:
        return f"{each:g} elements of each half for a thread"
    return None


def _split_default(asked: Problem) -> dict[str, Any]:
    """A kilo-element of each half for a program, one vector of each for a thread."""
    call = asked.call
    heads, half = heads_of(call.x.shape[2], [call.cos])
    block = next_power_of_two(half)
    rows = max(1, 1024 // block)
    params = {"TOKENS": 1, "HEADS": min(rows, 16, next_power_of_two(heads))}
    params["TOKENS"] = min(rows // params["HEADS"], 8, next_power_of_two(call.x.shape[1]))
    tile = params["TOKENS"] * params["HEADS"] * block
    each = 32 * _VECTOR_BYTES // ITEM_BYTES[call.x.dtype]
    return params | {"num_warps": min(8, max(1, tile // each))}


SPLIT = Variant(
    name="tiles",
    plan=plan_split,
    space=Space(
        {"TOKENS": _TOKENS, "HEADS": [1, 2, 4, 8, 16, 32], "num_warps": [1, 2, 4, 8]},
        where=_split_where,
        default=_split_default,
    ),
    applies=_split_applies,
)
