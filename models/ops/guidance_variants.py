"""How predictions are made and guided.

Without a rescale that is one launch over the elements. With one, the standard deviations of two
tensors, one of which is still to be computed, stand between reading and writing: as two launches,
or as one whose programs meet once. In between a result in fp32 waits where it will be written, in
L2 at best; one in fewer bits is computed again.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from ...autotune.space import Space
from ...jit.declare import (
    Argument,
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
from ...jit.sign import Call, TensorSpec
from .flat_calls import MAX_ELEMENTS, copied_first, main, vector_width
from .group_norm_problem import next_power_of_two

_MODULE = "jitd.models.kernels.guidance"
_BRANCHES = ("cond", "neg", "perturbed", "modality", "x")
_SCALES = ("sigma", "cfg", "stg", "mod")
_NUMBERS = 5  # of a part


def sigma_mode(call: Call) -> str:
    """Whose sigma: "float", "one" for all elements, or that of an element's "rows"."""
    sigmas: TensorSpec | None = call.sigmas
    if sigmas is None:
        return "float"
    return "one" if sigmas.numel == 1 else "rows"


def _unfit(call: Call) -> str | None:
    """Why no kernel can take a call. Sizes are those of its bucket, whose members agree."""
    if any(spec.dtype == "fp64" for name, spec in call.tensors.items() if name != "sigmas"):
        return "predictions in fp64"
    shape = main(call).shape
    sizes = [next_power_of_two(n) for n in shape[:2]] if sigma_mode(call) == "rows" else []
    if next_power_of_two(main(call).numel) > MAX_ELEMENTS:
        return "2^30 elements"
    if sizes and sizes[0] * sizes[1] * shape[2] > MAX_ELEMENTS:
        return "2^30 elements"
    return None


def _where_args(call: Call) -> dict[str, Argument]:
    """How elements lie, and where their sigmas do."""
    mode, shape = sigma_mode(call), main(call).shape
    args: dict[str, Argument] = {
        "sigmas": None if mode == "float" else Pointer("sigmas"),
        "N": main(call).numel,
        "D": 1,
        "S": 1,
        "sigma_b": 0,
        "sigma_s": 0,
        "SIGMA": mode,
        "VEC": vector_width(call),
    }
    if mode == "rows":
        sigmas: TensorSpec = call.sigmas
        b, s = (
            0 if n == 1 else stride for n, stride in zip(sigmas.shape, sigmas.strides, strict=True)
        )
        args |= {"D": shape[2], "S": shape[1], "sigma_b": b, "sigma_s": s}
        args["VEC"] = vector_width(call, shape[2])
    return args


def _out(call: Call) -> TensorSpec:
    like: TensorSpec = call["x"] or call["cond"]
    return TensorSpec(like.dtype, like.shape)


def _plan(call: Call, launches: list[Launch], **workspaces: Workspace) -> Plan:
    return Plan(
        outputs={"out": _out(call)},
        launches=launches,
        workspaces=workspaces,
        contiguous=copied_first(call),
    )


def _tiles(call: Call, block: int) -> int:
    return ceil(main(call).numel / block)


def plan_x0(call: Call, params: Params, device: Device) -> Plan:
    launch = Launch(
        kernel=Kernel(_MODULE, "velocity_to_x0"),
        grid=(_tiles(call, params["BLOCK"]), 1, 1),
        args={
            "x": Pointer("x"),
            "v": Pointer("v"),
            "out": Pointer("out"),
            "sigma": call.sigma,
            "BLOCK": params["BLOCK"],
            **_where_args(call),
        },
        num_warps=params["num_warps"],
    )
    return _plan(call, [launch])


def _guidance_args(call: Call, params: Params) -> dict[str, Argument]:
    branches = {n: None if call[n] is None else Pointer(n) for n in _BRANCHES}
    scales = {name: call[name] for name in _SCALES}
    own = {"out": Pointer("out"), "BLOCK": params["BLOCK"]}
    return {**branches, **scales, **own, **_where_args(call)}


def plan_plain(call: Call, params: Params, device: Device) -> Plan:
    launch = Launch(
        kernel=Kernel(_MODULE, "guidance_plain"),
        grid=(_tiles(call, params["BLOCK"]), 1, 1),
        args=_guidance_args(call, params),
        num_warps=params["num_warps"],
    )
    return _plan(call, [launch])


def _flat_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    per_thread = params["BLOCK"] // (32 * params["num_warps"])
    return None if per_thread in (4, 8, 16) else f"{per_thread} elements a thread"


_FLAT = Space(
    {"BLOCK": [512, 1024, 2048, 4096], "num_warps": [2, 4, 8]},
    where=_flat_where,
    default=lambda asked: {"BLOCK": 1024, "num_warps": 4},
)

X0 = Variant(name="flat", plan=plan_x0, space=_FLAT, applies=_unfit)
PLAIN = Variant(
    name="plain",
    plan=plan_plain,
    space=_FLAT,
    applies=lambda call: "it is rescaled" if call.rescale else _unfit(call),
)


def _rescaled_only(call: Call) -> str | None:
    return _unfit(call) if call.rescale else "nothing is rescaled"


def _kept(call: Call) -> bool:
    """Whether what is not yet rescaled waits in the result, without being rounded for that."""
    return _out(call).dtype == "fp32"


# -- two launches -----------------------------------------------------------------------------


def plan_two_launch(call: Call, params: Params, device: Device) -> Plan:
    """Up to PARTS programs take the statistics of their tiles; then as many rescale theirs."""
    kept = _kept(call)
    args = {**_guidance_args(call, params), "ws": Pointer("parts"), "KEEP": kept}
    parts = min(params["PARTS"], _tiles(call, params["BLOCK"]))
    statistics = Launch(
        kernel=Kernel(_MODULE, "guidance_statistics"),
        grid=(parts, 1, 1),
        args=args,
        num_warps=params["num_warps"],
    )
    unread = {name: None for name in (*_BRANCHES, "sigmas")} if kept else {}
    rescale = Launch(
        kernel=Kernel(_MODULE, "guidance_rescale"),
        grid=(parts, 1, 1),
        args={
            **args,
            **unread,
            "rescale": float(call.rescale),
            "LANES": next_power_of_two(params["PARTS"]),
        },
        num_warps=params["num_warps"],
        dependent=True,
    )
    return _plan(call, [statistics, rescale], parts=Workspace("fp32", _NUMBERS * parts))


def _two_launch_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    tiles = _tiles(asked.call, params["BLOCK"])
    if params["PARTS"] > max(32, tiles):
        return f"{params['PARTS']} parts of {tiles} tiles"
    if params["PARTS"] < min(tiles, asked.device.sm_count):
        return f"{params['PARTS']} programs for {asked.device.sm_count} SMs"
    return _flat_where(params, asked)


def _two_launch_default(asked: Problem) -> dict[str, Any]:
    tiles = _tiles(asked.call, 1024)
    return {"PARTS": 528 if tiles > 32 else 32, "BLOCK": 1024, "num_warps": 4}


TWO_LAUNCH = Variant(
    name="two_launch",
    plan=plan_two_launch,
    space=Space(
        {
            "PARTS": [32, 132, 264, 528, 792],
            "BLOCK": [512, 1024, 2048, 4096],
            "num_warps": [4, 8],
        },
        where=_two_launch_where,
        default=_two_launch_default,
    ),
    applies=_rescaled_only,
)


# -- one launch -------------------------------------------------------------------------------


def plan_together(call: Call, params: Params, device: Device) -> Plan:
    """PER_SM programs for each SM, or one for each tile if there are fewer."""
    most = params["PER_SM"] * device.sm_count
    programs = min(most, _tiles(call, params["BLOCK"]))
    launch = Launch(
        kernel=Kernel(_MODULE, "guidance_together"),
        grid=(programs, 1, 1),
        args={
            **_guidance_args(call, params),
            "ws": Pointer("parts"),
            "bar": Pointer("barrier"),
            "rescale": float(call.rescale),
            "LANES": next_power_of_two(most),
            "KEEP": _kept(call),
        },
        num_warps=params["num_warps"],
        cooperative=True,
    )
    return _plan(
        call,
        [launch],
        parts=Workspace("fp32", _NUMBERS * programs),
        barrier=Workspace("i32", 1, zeroed=True),
    )


def _together_where(params: Mapping[str, Any], asked: Problem) -> str | None:
    tiles = _tiles(asked.call, params["BLOCK"])
    if params["PER_SM"] > 1 and params["PER_SM"] * asked.device.sm_count > 2 * tiles:
        return f"{params['PER_SM']} programs an SM for {tiles} tiles"
    if params["PER_SM"] * params["num_warps"] > 64:
        return "more than 64 warps an SM"
    return _flat_where(params, asked)


TOGETHER = Variant(
    name="together",
    plan=plan_together,
    space=Space(
        {
            "PER_SM": [1, 2, 4, 6, 8],
            "BLOCK": [512, 1024, 2048, 4096, 8192],
            "num_warps": [4, 8, 16],
        },
        where=_together_where,
        default=lambda asked: {"PER_SM": 2, "BLOCK": 4096, "num_warps": 8},
    ),
    applies=_rescaled_only,
    gpu_only=True,
)
