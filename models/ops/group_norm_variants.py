"""How GroupNorm + SiLU is computed: variants, their launches and their spaces.

A constexpr may depend on a call only through its bucket (`bucket_P`): whatever follows the exact
length would compile anew for every new one.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from math import ceil
from typing import Any

from ...autotune.space import Space
from ...jit.declare import (
    Device,
    Kernel,
    Launch,
    Params,
    Plan,
    Pointer,
    Problem,
    Variant,
    Workspace,
)
from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import GroupNormProblem, next_power_of_two, problem_of, round_up

_MODULE = "jitd.models.kernels.group_norm"
_DTYPES = ("bf16", "fp16", "fp32")
_MAX_POSITIONS = 1 << 30  # positions, and elements of a row, are counted in 32 bits;
_MAX_ROW = 1 << 31  # offsets into the whole tensor in 64


def output(call: Call) -> TensorSpec:
    """y: in the layout of x if that is channels_last, else contiguous."""
    layout = call.x.layout if call.x.layout.startswith("channels_last") else "contiguous"
    return TensorSpec.with_layout(call.x.dtype, call.x.shape, layout)


def _unfit(call: Call) -> str | None:
    """Why no kernel can take a call. Sizes are those of its bucket, whose members agree."""
    if call.x.dtype not in _DTYPES:
        return f"dtype {call.x.dtype}"
    problem = problem_of(call)
    if problem.bucket_P > _MAX_POSITIONS or problem.D * problem.bucket_P >= _MAX_ROW:
        return "a group of 2^31 elements or 2^30 positions"
    return None


def _contiguous_only(call: Call) -> str | None:
    if call.x.layout.startswith("channels_last"):
        return "x is channels_last"
    return _unfit(call)


def _channels_last_only(call: Call) -> str | None:
    if not call.x.layout.startswith("channels_last"):
        return "x is not channels_last"
    return _unfit(call)


def _tensors(problem: GroupNormProblem) -> dict[str, Any]:
    """The arguments that every kernel with a residual takes."""
    view = problem.residual
    return {
        "x": Pointer("x"),
        "r": Pointer("x" if view.mode == "none" else "residual"),
        "w": Pointer("weight"),
        "b": Pointer("bias"),
        "y": Pointer("y"),
        "P": problem.P,
        "D": problem.D,
        "G": problem.G,
        "rs_n": view.batch,
        "rs_c": view.channel,
        "rs_o": view.outer,
        "inner": view.inner,
        "VEC": problem.vec,
        "RVEC": view.vec if view.mode != "none" else problem.vec,
        "RES": view.mode,
    }


def _rounding(call: Call) -> dict[str, Any]:
    exact = call.numerics == "exact"
    return {"EXACT": exact, "ROUND_STATS": exact and _eager_rounds_statistics()}


@lru_cache(maxsize=1)
def _eager_rounds_statistics() -> bool:
    """Whether group_norm of the installed torch rounds mean and rstd to x's dtype on CUDA.

    It did up to 2.12 (pytorch/pytorch#183946; measured on 2.11: with it 30 elements in a million
    differ from eager, without it 7 in a hundred).
    """
    major, minor = version("torch").split(".")[:2]
    return (int(major), int(minor)) < (2, 13)


def _plan(
    call: Call, problem: GroupNormProblem, launches: list[Launch], **workspaces: Workspace
) -> Plan:
    return Plan(
        outputs={"y": output(call)},
        launches=launches,
        workspaces=workspaces,
        contiguous=problem.copied,
    )


# -- split: one launch, a row held in registers by several programs ---------------------------


def plan_split(call: Call, params: Params, device: Device) -> Plan:
    """ACROSS programs along the positions times cdiv(D, CH) along the channels of each row."""
    problem = problem_of(call)
    step = _split_step(problem.P, params["ACROSS"], problem.vec)
    across = ceil(problem.P / step)
    down = ceil(problem.D / params["CH"])
    most = params["ACROSS"] * down  # programs a row at the bucket's size, what LANES is made for
    launch = Launch(
        kernel=Kernel(_MODULE, "group_norm_split"),
        grid=(problem.rows * across * down, 1, 1),
        args={
            **_tensors(problem),
            **_rounding(call),
            "ws": Pointer("parts" if most > 1 else "x"),
            "bar": Pointer("barrier" if most > 1 else "x"),
            "step": step,
            "across": across,
            "down": down,
            "eps": call.eps,
            "CH": params["CH"],
            "BLOCK": _split_block(problem, params["ACROSS"]),
            "LANES": 1 if most == 1 else max(32, next_power_of_two(most)),
            "EARLY": params["EARLY"],
        },
        num_warps=params["num_warps"],
        cooperative=most > 1,
        fp_fusion=call.numerics == "fast",
    )
    if most == 1:  # the kernel touches neither
        return _plan(call, problem, [launch])
    return _plan(
        call,
        problem,
        [launch],
        parts=Workspace("fp32", problem.rows * (3 * across * down + 1)),
        barrier=Workspace("i32", problem.rows, zeroed=True),
    )


def _split_step(positions: int, across: int, vec: int) -> int:
    return round_up(ceil(positions / across), vec if positions < 4096 else max(vec, 8))


def _split_block(problem: GroupNormProblem, across: int) -> int:
    return next_power_of_two(_split_step(problem.bucket_P, across, problem.vec))


def _split_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    problem = problem_of(asked.call)
    block = _split_block(problem, params["ACROSS"])
    down = ceil(problem.D / params["CH"])
    parts = params["ACROSS"] * down
    programs = problem.rows * parts
    tile = params["CH"] * block
    per_thread = tile / (32 * params["num_warps"])
    item_bytes = ITEM_BYTES[asked.call.x.dtype]
    if params["CH"] > next_power_of_two(problem.D):
        return "more channels than a group has"
    if params["EARLY"] and problem.residual.mode == "none":
        return "EARLY without a residual"
    if not (4 if params["num_warps"] > 1 else 0) <= per_thread <= 256 // item_bytes:
        return f"{per_thread:g} elements a thread"
    most_registers = min(255, 65536 // (32 * params["num_warps"]))
    registers = _split_registers(per_thread, item_bytes, early=params["EARLY"])
    registers = min(registers, most_registers)  # the rest is spilled, which may still win
    resident = _slots(asked.device, params["num_warps"], registers)
    if parts > 1 and programs > resident:
        return f"{programs} programs, {resident} fit on the card at once"
    if programs * 3 < asked.device.sm_count and programs < problem.rows * problem.D:
        return f"{programs} programs for {asked.device.sm_count} SMs"
    waste = problem.rows * problem.D * problem.bucket_P / (programs * tile)
    if waste < 0.4:
        return f"only {waste:.0%} of the tiles is used"
    return None


def _split_registers(per_thread: float, item_bytes: int, *, early: bool) -> int:
    """The fewest registers that a thread of `group_norm_split` was seen to take for its elements.

    Read off the binaries of Triton 3.6 and 3.9 for sm_90; some take a third more.
    """
    words = 2.0 + 0.5 * early if item_bytes == 2 else 2.8 + early
    return int(words * per_thread) + 8


def _slots(device: Device, num_warps: int, registers: int) -> int:
    """Programs that may fit on the card at once; an SM has 64 K registers and 64 warps.

    Registers are handed out to warps by 256. A guess on the generous side: the driver refuses a
    cooperative launch that does not fit.
    """
    per_warp = ceil(registers * 32 / 256) * 256
    return device.sm_count * min(65536 // (per_warp * num_warps), 64 // num_warps)


SPLIT = Variant(
    name="split",
    plan=plan_split,
    space=Space(
        {
            "CH": [1, 2, 4, 8, 16, 32],
            "ACROSS": [1, 2, 3, 4, 6, 8, 12, 16],
            "num_warps": [1, 4, 8, 16],
            "EARLY": [False, True],
        },
        where=_split_where,
        default=lambda asked: {"CH": 4, "ACROSS": 1, "num_warps": 8, "EARLY": False},
    ),
    applies=_contiguous_only,
    gpu_only=True,
)


# -- two launches: statistics, then apply -----------------------------------------------------


def plan_two_launch(call: Call, params: Params, device: Device) -> Plan:
    """PARTS programs a row take its statistics; then a program a tile of one channel applies them.

    The second launch is a programmatic dependent of the first: it loads while that one drains.
    """
    problem = problem_of(call)
    step, tiles = _tiling(problem, params["BLOCK"])
    fusion = call.numerics == "fast"
    stats = Launch(
        kernel=Kernel(_MODULE, "group_norm_stats"),
        grid=(params["PARTS"] * problem.rows, 1, 1),
        args={
            "x": Pointer("x"),
            "ws": Pointer("parts"),
            "L": problem.row_elements,
            "rows": problem.rows,
            "parts": params["PARTS"],
            "BLOCK": params["STATS_BLOCK"],
            "UNROLL": 4,
            "VEC": problem.vec,
        },
        num_warps=params["STATS_BLOCK"] // 256,
        fp_fusion=fusion,
    )
    apply = Launch(
        kernel=Kernel(_MODULE, "group_norm_apply"),
        grid=(problem.N * problem.C * tiles, 1, 1),
        args={
            **_tensors(problem),
            "ws": Pointer("parts"),
            "step": step,
            "tiles": tiles,
            "parts": params["PARTS"],
            "eps": call.eps,
            "BLOCK": params["BLOCK"],
            "LANES": max(32, params["PARTS"]),
            **_rounding(call),
        },
        num_warps=params["num_warps"],
        dependent=True,
        fp_fusion=fusion,
    )
    parts = Workspace("fp32", problem.rows * (3 * params["PARTS"] + 1))
    return _plan(call, problem, [stats, apply], parts=parts)


def _tiling(problem: GroupNormProblem, block: int) -> tuple[int, int]:
    """(step, tiles): positions a tile takes, evened out, and the tiles that cover a channel."""
    tiles = ceil(problem.P / block)
    step = round_up(ceil(problem.P / tiles), 64 if problem.P > 4096 else problem.vec)
    step = min(step, block)
    return step, ceil(problem.P / step)


def _two_launch_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    problem = problem_of(asked.call)
    row = problem.D * problem.bucket_P
    programs, part = problem.rows * params["PARTS"], row // params["PARTS"]
    if params["PARTS"] > 1 and part < 2 * params["STATS_BLOCK"]:
        return f"parts of {part} elements"
    if programs < asked.device.sm_count and part > 16384:
        return f"{programs} programs for {asked.device.sm_count} SMs"
    if programs > 16 * asked.device.sm_count and params["PARTS"] > 1:
        return f"{programs} programs for {asked.device.sm_count} SMs"
    if params["BLOCK"] > max(1024, next_power_of_two(problem.bucket_P)):
        return "a block longer than a channel"
    if params["BLOCK"] < 2048 < problem.bucket_P:
        return "short blocks of long channels"
    if not 8 <= params["BLOCK"] / (32 * params["num_warps"]) <= 64:
        return "too much or too little for a thread"
    return None


def _two_launch_default(asked: Problem) -> dict[str, Any]:
    problem = problem_of(asked.call)
    row = problem.D * problem.bucket_P
    block = min(4096, max(1024, next_power_of_two(problem.bucket_P)))
    return {
        "PARTS": min(64, max(1, next_power_of_two(row // 16384))),
        "STATS_BLOCK": 1024,
        "BLOCK": block,
        "num_warps": 4 if block > 1024 else 2,
    }


TWO_LAUNCH = Variant(
    name="two_launch",
    plan=plan_two_launch,
    space=Space(
        {
            "PARTS": [1, 2, 4, 8, 16, 32, 64, 128],
            "STATS_BLOCK": [1024, 2048],
            "BLOCK": [1024, 2048, 4096, 8192],
            "num_warps": [2, 4, 8],
        },
        where=_two_launch_where,
        default=_two_launch_default,
    ),
    applies=_contiguous_only,
)


# -- rows: channels_last, three launches ------------------------------------------------------


def plan_rows(call: Call, params: Params, device: Device) -> Plan:
    problem = problem_of(call)
    columns = min(params["COLUMNS"], next_power_of_two(problem.C))
    cols = ceil(problem.C / columns)
    chunks = ceil(problem.P / params["RUN"])
    tiles = ceil(problem.P / params["ROWS"])
    fusion = call.numerics == "fast"
    shape = {"P": problem.P, "D": problem.D, "G": problem.G}
    stats = Launch(
        kernel=Kernel(_MODULE, "group_norm_stats_rows"),
        grid=(problem.N * chunks * cols, 1, 1),
        args={
            **shape,
            "x": Pointer("x"),
            "ws": Pointer("parts"),
            "run": params["RUN"],
            "chunks": chunks,
            "cols": cols,
            "BR": 8,
            "BC": columns,
            "VEC": problem.vec,
        },
        num_warps=params["num_warps"],
        fp_fusion=fusion,
    )
    join = Launch(
        kernel=Kernel(_MODULE, "group_norm_join_rows"),
        grid=(problem.rows, 1, 1),
        args={
            **shape,
            "ws": Pointer("parts"),
            "stat": Pointer("stat"),
            "run": params["RUN"],
            "chunks": chunks,
            "eps": call.eps,
            "BK": 64,
            "BD": next_power_of_two(problem.D),
        },
        num_warps=4,
        fp_fusion=fusion,
    )
    args = {**_tensors(problem), **_rounding(call)}
    del args["RVEC"]
    apply = Launch(
        kernel=Kernel(_MODULE, "group_norm_apply_rows"),
        grid=(problem.N * tiles * cols, 1, 1),
        args={
            **args,
            "stat": Pointer("stat"),
            "tiles": tiles,
            "cols": cols,
            "BR": params["ROWS"],
            "BC": columns,
        },
        num_warps=params["num_warps"],
        fp_fusion=fusion,
    )
    return _plan(
        call,
        problem,
        [stats, join, apply],
        parts=Workspace("fp32", problem.N * 2 * chunks * problem.C),
        stat=Workspace("fp32", problem.rows * 2),
    )


ROWS = Variant(
    name="rows",
    plan=plan_rows,
    space=Space(
        {"RUN": [32, 64, 128, 256], "ROWS": [8, 16, 32], "COLUMNS": [512], "num_warps": [4, 8]},
        default=lambda asked: {"RUN": 64, "ROWS": 16, "COLUMNS": 512, "num_warps": 8},
    ),
    applies=_channels_last_only,
)

VARIANTS = (TWO_LAUNCH, SPLIT, ROWS)
