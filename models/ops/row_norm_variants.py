"""How norms of tokens are computed: one launch of `row_norm`, rows held in registers."""

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

from ...autotune.space import Space
from ...jit.declare import Argument, Device, Kernel, Launch, Params, Plan, Pointer, Problem, Variant
from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import next_power_of_two
from .operands import copied_first, index_args, operand_args, token_args, vector_width

_OPERANDS = ("gate", "scale", "shift", "scale2", "shift2")
_DTYPES = ("bf16", "fp16", "fp32")
WIDEST = 16384  # elements of a row: 16 warps hold it in 32 registers a thread
_TILE = 1024  # elements that a program should have at the least
_MOST_TOKENS = 1 << 30  # counted in 32 bits; offsets have 64


def outputs(call: Call) -> dict[str, TensorSpec]:
    """The results of any of the ops, by name: of x's shape and dtype, contiguous."""
    names = [*("residual" for _ in "y" if "y" in call and "scale" in call), "out"]
    names += ["out2"] if "scale2" in call else []
    return {name: TensorSpec(call.x.dtype, call.x.shape) for name in names}


def unfit(call: Call) -> str | None:
    """Why the kernel cannot take a call, or None."""
    for name, spec in call.tensors.items():
        if name != "index" and spec.dtype not in _DTYPES:
            return f"{name} is {spec.dtype}"
    _, tokens, width = _as_tokens(call).x.shape
    if width > WIDEST:
        return f"rows of {width} elements, more than {WIDEST}"
    return "2^30 tokens" if tokens >= _MOST_TOKENS else None


def _plan(call: Call, params: Params, norm: str, *, after: bool = False) -> Plan:
    results = outputs(call)
    call = _as_tokens(call)
    batch, tokens, width = call.x.shape
    streams = ["x", *("y" for _ in "y" if "y" in call)]
    affine = [name for name in ("weight", "bias") if call.get(name) is not None]
    copied = copied_first(call, streams, _OPERANDS)
    copied += tuple(name for name in affine if call[name].layout != "contiguous")
    args: dict[str, Argument] = {"y": None, "y_b": 0, "y_s": 0}
    for name in streams:
        args |= token_args(call, name)
    for name in _OPERANDS:
        args |= operand_args(call, name)
    for name in ("shift", "shift2"):  # they lie as scale and scale2
        del args[f"{name}_p"], args[name.upper()]
    for name in ("weight", "bias"):
        args[name] = Pointer(name) if name in affine else None
    for name in ("residual", "out", "out2"):
        args[name] = Pointer(name) if name in results else None
    tiles = ceil(tokens / (params["ROWS"] * params["STEPS"]))
    fast = call.numerics == "fast"
    native = call.rounding == "native" and not fast
    launch = Launch(
        kernel=Kernel("jitd.models.kernels.row_norm", "row_norm"),
        grid=(batch * tiles, 1, 1),
        args={
            **args,
            **index_args(call, _OPERANDS),
            "S": tokens,
            "tiles": tiles,
            "eps": call.get("eps", 0.0),
            "D": width,
            "BLOCK": next_power_of_two(width),
            "ROWS": params["ROWS"],
            "STEPS": params["STEPS"],
            "STAGES": params["STAGES"],
            "VEC": vector_width(call, streams, _OPERANDS),
            "LANE": params["LANE"],
            "NORM": "native" if native else norm,
            "ROUND": "once" if fast else "each" if native else call.rounding,
            "AFTER": after,
        },
        num_warps=params["num_warps"],
        fp_fusion=fast,
    )
    return Plan(outputs=results, launches=[launch], contiguous=copied)


def _as_tokens(call: Call) -> Call:
    """The call with x as (B, S, D): x of other dimensions, which stands alone, as its rows lie."""
    x: TensorSpec = call.x
    if len(x.shape) == 3:
        return call
    rows, width = prod(x.shape[:-1]), x.shape[-1]
    strides = [(n, s) for n, s in zip(x.shape[:-1], x.strides[:-1], strict=True) if n != 1]
    if x.strides[-1] == 1 or width == 1:
        for cut in range(len(strides) + 1):
            outer, inner = _merged(strides[:cut]), _merged(strides[cut:])
            if outer and inner:
                shape = (outer[0], inner[0], width)
                return call.replace(x=x.like(shape=shape, strides=(outer[1], inner[1], 1)))
    # Strides that make a plan copy it: no view of it as tokens is known.
    return call.replace(x=x.like(shape=(1, rows, width), strides=(rows * width, 1, rows)))


def _merged(dims: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """(size, stride) of dimensions as one, outermost first; None if their elements lie unevenly."""
    size, stride = 1, 0
    for n, step in reversed(dims):
        if size > 1 and step != size * stride:
            return None
        stride = stride if size > 1 else step
        size *= n
    return size, stride


def plan_rms(call: Call, params: Params, device: Device) -> Plan:
    """x or its sum with the gated y, divided by its root mean square."""
    return _plan(call, params, "rms")


def plan_layer(call: Call, params: Params, device: Device) -> Plan:
    """x, less its mean, divided by its standard deviation."""
    return _plan(call, params, "layer")


def plan_after(call: Call, params: Params, device: Device) -> Plan:
    """y divided by its root mean square, gated, added to x."""
    return _plan(call, params, "rms", after=True)


def plan_modulate(call: Call, params: Params, device: Device) -> Plan:
    """x as it is: no norm."""
    return _plan(call, params, "none")


def _where(params: Mapping[str, Any], asked: Problem) -> str | None:
    batch, tokens, width = _as_tokens(asked.call).x.shape
    rows, steps, warps = params["ROWS"], params["STEPS"], params["num_warps"]
    tile = rows * next_power_of_two(width)
    per_thread = tile / (32 * warps)
    # 16 bytes a thread and load; of 4-byte elements, or beside other tensors, half as many fit.
    roomy = ITEM_BYTES[asked.call.x.dtype] == 2 and len(asked.call.tensors) < 4
    if not (8 if warps > 1 else 1) <= per_thread <= (64 if roomy else 32):
        return f"{per_thread:g} elements a thread"
    if rows > 1 and tile > 16 * _TILE:
        return f"a tile of {tile} elements"
    if params["STAGES"] > 1 and (steps < 4 or not _mixed(asked.call)):
        return "tiles loaded ahead where that wins nothing"
    if params["LANE"] == 4 and not _mixed(asked.call):
        return "narrow loads where wide ones do"
    programs = batch * ceil(tokens / (rows * steps))
    if rows * steps > 1 and programs < 2 * asked.device.sm_count:
        return f"{programs} programs for {asked.device.sm_count} SMs"
    if tile * steps < _TILE and programs > 8 * asked.device.sm_count:
        return f"programs of {tile * steps} elements"
    return None


def _default(asked: Problem, steps: Sequence[int]) -> dict[str, Any]:
    block = next_power_of_two(asked.call.x.shape[-1])
    rows = max(1, min(64, _TILE // block))
    batch, tokens, _ = _as_tokens(asked.call).x.shape
    several = batch * tokens >= 4 * rows * steps[-1] * asked.device.sm_count
    return {
        "ROWS": rows,
        "STEPS": steps[-1] if len(steps) > 2 and several else 1,
        "STAGES": 1,
        "num_warps": max(1, min(16, rows * block // 512)),
        "LANE": 4 if _mixed(asked.call) else 8,
    }


def _mixed(call: Call) -> bool:
    """Whether 2-byte rows meet 4-byte operands, whose widest loads are of half as many channels:
    with 8 to a thread they have to change places through shared memory."""
    sizes = {ITEM_BYTES[spec.dtype] for name, spec in call.tensors.items() if name != "index"}
    return len(sizes) > 1


def _variant(plan: Any, steps: Sequence[int] = (1, 2)) -> tuple[Variant, ...]:
    space = Space(
        {
            "ROWS": [1, 2, 4, 8, 16, 32, 64],
            "STEPS": steps,
            "STAGES": [1, 3],
            "num_warps": [1, 2, 4, 8, 16],
            "LANE": [8, 4],
        },
        where=_where,
        default=lambda asked: _default(asked, steps),
    )
    return (Variant(name="rows", plan=plan, space=space, applies=unfit),)


RMS = _variant(plan_rms)
AFTER = _variant(plan_after, (1, 2, 4))  # a program takes tanh of its gate: more rows, less of it
LAYER = _variant(plan_layer, (1, 2, 4))
MODULATE = _variant(plan_modulate)
