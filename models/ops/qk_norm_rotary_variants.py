"""How `qk_norm_rotary` is computed: one launch over whole rows, its space.

A constexpr may depend on a call only through its bucket: dtypes, the heads, whether there are
tables and weights, and whether strides allow wide loads. Token counts are run-time values.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from ...autotune.space import Space
from ...jit.declare import Device, Kernel, Launch, Params, Plan, Pointer, Problem, Variant
from ...jit.sign import Call, TensorSpec
from .group_norm_problem import next_power_of_two
from .rotary_variants import (
    MAX_PROGRAMS,
    address_strides,
    as_read,
    copied_first,
    heads_of,
    unfit,
    widest_access,
)

_MAX_ROW = 1 << 14  # channels of a row that a program holds in registers
_ROWS = (1, 2, 4, 8)


def plan_qk(call: Call, params: Params, device: Device) -> Plan:
    """A program takes TILES tiles of ROWS whole tokens of queries, of keys, or of both."""
    read = as_read(call)
    batch = read.q.shape[0]
    tables = [read.q_cos, read.k_cos]
    heads, half = heads_of(read.q.shape[2], tables, call.layout)
    q_tiles, k_tiles = (ceil(read[x].shape[1] / (params["ROWS"] * params["TILES"])) for x in "qk")
    programs = max(q_tiles, k_tiles) if params["TOGETHER"] else q_tiles + k_tiles
    args: dict[str, Any] = {
        name: Pointer(name) if read[name] is not None else None
        for name in ("q", "k", "wq", "wk", "q_cos", "q_sin", "k_cos", "k_sin")
    }
    for letter in "qk":
        x, table = read[letter], read[f"{letter}_cos"]
        args[f"{letter}_out"] = Pointer(f"{letter}_out")
        args[f"{letter}_T"] = x.shape[1]
        args |= dict(zip((f"{letter}s_b", f"{letter}s_t"), address_strides(x), strict=False))
        args |= _table_strides(letter, table, call.layout)
    exact = call.numerics == "exact"
    present = [table for table in tables if table is not None]
    launch = Launch(
        kernel=Kernel("jitd.models.kernels.qk_norm_rotary", "qk_norm_rotary"),
        grid=(programs * batch, 1, 1),
        args={
            **args,
            "batch": batch,
            "q_tiles": q_tiles,
            "k_tiles": k_tiles,
            "eps": call.eps,
            "H": heads,
            "R": half,
            "ROWS": params["ROWS"],
            "TILES": params["TILES"],
            "HEADS": next_power_of_two(heads),
            "HALF": next_power_of_two(half),
            "TOGETHER": params["TOGETHER"],
            "LAYOUT": call.layout,
            "PER_HEAD": _per_head(call),
            "ROUND": call.rounding if exact else "once",
            "VEC": widest_access(read.q.dtype, half, [read.q, read.k]),
            "TVEC": min((widest_access(t.dtype, half, [t]) for t in present), default=1),
            "EXACT": exact,
        },
        num_warps=params["num_warps"],
        fp_fusion=not exact,
    )
    outputs = {f"{x}_out": TensorSpec(call[x].dtype, call[x].shape) for x in "qk"}
    return Plan(outputs=outputs, launches=[launch], contiguous=copied_first(call))


def _per_head(call: Call) -> bool:
    """Whether each head is normalised by itself."""
    weight = call.wq or call.wk
    return weight is not None and weight.shape != call.q.shape[2:]


def _table_strides(name: str, table: TensorSpec | None, layout: str) -> dict[str, int]:
    """Strides of a table's samples, heads and tokens; one of pairs has no heads."""
    strides = address_strides(table) if table else (0, 0, 0)
    if table is not None and layout != "split":
        strides = (strides[0], 0, strides[1])
    return dict(zip((f"{name}ts_b", f"{name}ts_h", f"{name}ts_t"), strides, strict=False))


def _qk_applies(call: Call) -> str | None:
    width = call.q.shape[2]
    if width % 2:
        return f"{width} channels: an odd number"
    row = _row(call)
    if row > _MAX_ROW:
        return f"rows of {row} elements in tiles; {_MAX_ROW} fit into registers"
    batch, *tokens = (next_power_of_two(n) for n in (*call.q.shape[:2], call.k.shape[1]))
    if batch * sum(tokens) >= MAX_PROGRAMS:
        return "more tokens than a grid has room for"
    return unfit(call) or unfit(call.replace(q=call.k))


def _row(call: Call) -> int:
    """Elements of the tile that holds a row: heads and halves up to powers of two."""
    heads, half = heads_of(call.q.shape[2], [call.q_cos, call.k_cos], call.layout)
    return 2 * next_power_of_two(heads) * next_power_of_two(half)


def _qk_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    call = asked.call
    q, k = call.q.shape[1], call.k.shape[1]
    each = _row(call) * params["ROWS"] / (32 * params["num_warps"])
    most = 32 if params["TOGETHER"] else 64
    all_there_is = params["ROWS"] == min(max(_ROWS), next_power_of_two(max(q, k)))
    if not (0 if params["num_warps"] == 1 and all_there_is else 8) <= each <= most:
        return f"{each:g} elements of a row for a thread"
    if params["ROWS"] > 1 and params["ROWS"] * _row(call) > 4096:
        return "several large rows at once"
    if params["ROWS"] * params["TILES"] > next_power_of_two(max(q, k)):
        return "more tokens than there are"
    if params["TOGETHER"] and next_power_of_two(q) != next_power_of_two(k):
        return "queries and keys of other lengths together"
    programs = call.q.shape[0] * (q + k) // (params["ROWS"] * params["TILES"])
    if params["TILES"] > 1 and programs < 8 * asked.device.sm_count:
        return f"{programs} programs for {asked.device.sm_count} SMs"
    return None


def _qk_default(asked: Problem) -> dict[str, Any]:
    """16 elements of a row for a thread, or as few more as 16 warps allow."""
    call = asked.call
    row = _row(call)
    num_warps = min(16, max(1, row // 512))
    rows = min(max(_ROWS), max(1, 512 // row), next_power_of_two(call.q.shape[1]))
    together = next_power_of_two(call.q.shape[1]) == next_power_of_two(call.k.shape[1])
    together = together and row <= 512 * num_warps
    return {"ROWS": rows, "TILES": 1, "num_warps": num_warps, "TOGETHER": together}


QK = Variant(
    name="rows",
    plan=plan_qk,
    space=Space(
        {
            "ROWS": _ROWS,
            "TILES": [1, 2, 4],
            "num_warps": [1, 2, 4, 8, 16],
            "TOGETHER": [False, True],
        },
        where=_qk_where,
        default=_qk_default,
    ),
    applies=_qk_applies,
)
