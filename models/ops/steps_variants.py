"""How steps of a sampler are computed: one launch each, a program for each BLOCK of elements."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from ...autotune.space import Space
from ...jit.declare import Argument, Device, Kernel, Launch, Params, Plan, Pointer, Problem, Variant
from ...jit.sign import Call, TensorSpec
from .flat_calls import MAX_ELEMENTS, copied_first, main, stacked, vector_width
from .group_norm_problem import next_power_of_two

_MODULE = "jitd.models.kernels.steps"


def _unfit(call: Call) -> str | None:
    """Why no kernel can take a call. The size is that of its bucket, whose members agree."""
    return "2^30 elements" if next_power_of_two(main(call).numel) > MAX_ELEMENTS else None


def _euler_unfit(call: Call) -> str | None:
    if any(spec.dtype == "fp64" for name, spec in call.tensors.items() if name != "table"):
        return "latents in fp64"  # the kernel computes in fp32, as eager does of others
    return _unfit(call)


def _plan(call: Call, params: Params, kernel: str, args: Mapping[str, Argument]) -> Plan:
    tables: dict[str, Argument] = {"table": None, "step": None}
    if call.table is not None:
        tables = {"table": Pointer("table"), "step": Pointer("step")}
    launch = Launch(
        kernel=Kernel(_MODULE, kernel),
        grid=(ceil(main(call).numel / params["BLOCK"]), 1, 1),
        args={
            "x": Pointer("x"),
            "x0": Pointer("x0"),
            "out": Pointer("out"),
            **tables,
            "N": main(call).numel,
            "BLOCK": params["BLOCK"],
            "VEC": vector_width(call),
            **args,
        },
        num_warps=params["num_warps"],
    )
    out = TensorSpec(call.x.dtype, call.x.shape)
    return Plan(outputs={"out": out}, launches=[launch], contiguous=copied_first(call))


def _optional(call: Call, name: str) -> Argument:
    return None if call[name] is None else Pointer(name)


def plan_euler(call: Call, params: Params, device: Device) -> Plan:
    scalars = {"sigma": call.sigma, "sigma_next": call.sigma_next}
    return _plan(call, params, "euler_step", scalars)


def plan_midpoint(call: Call, params: Params, device: Device) -> Plan:
    args = {name: call[name] for name in ("alpha", "move", "up")}
    noise = {"noise": _optional(call, "noise"), "STACKED": stacked(call, "noise")}
    return _plan(call, params, "res2s_midpoint", {**args, **noise})


def plan_step(call: Call, params: Params, device: Device) -> Plan:
    names = ("alpha_mid", "move_mid", "up_mid", "bong", "alpha", "first", "second", "up")
    args = {name: call[name] for name in names}
    noise = {name: _optional(call, name) for name in ("noise_mid", "noise")}
    noise["STACKED"] = stacked(call, "noise_mid") or stacked(call, "noise")
    return _plan(call, params, "res2s_step", {**args, **noise, "x0_mid": Pointer("x0_mid")})


def _where(params: Mapping[str, Any], asked: Problem) -> str | None:
    per_thread = params["BLOCK"] // (32 * params["num_warps"])
    return None if per_thread in (4, 8, 16) else f"{per_thread} elements a thread"


_SPACE = Space(
    {"BLOCK": [512, 1024, 2048, 4096], "num_warps": [2, 4, 8]},
    where=_where,
    default=lambda asked: {"BLOCK": 1024, "num_warps": 4},
)

EULER = Variant(name="flat", plan=plan_euler, space=_SPACE, applies=_euler_unfit)
MIDPOINT = Variant(name="flat", plan=plan_midpoint, space=_SPACE, applies=_unfit)
STEP = Variant(name="flat", plan=plan_step, space=_SPACE, applies=_unfit)
