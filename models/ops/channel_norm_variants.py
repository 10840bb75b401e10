"""How norms over channels are computed: one launch, over tiles of channels by positions."""

from collections.abc import Mapping
from math import ceil, prod, sqrt
from typing import Any

from ...autotune.space import Space
from ...jit.declare import Device, Kernel, Launch, Params, Plan, Pointer, Problem, Variant
from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import VECTOR_BYTES, common_power_of_two, next_power_of_two

FORMS = ("rms", "l2")
MOST_CHANNELS = 1 << 14
_DTYPES = ("bf16", "fp16", "fp32")
_MOST_POSITIONS = 1 << 30  # counted in 32 bits; offsets have 64


def output(call: Call) -> TensorSpec:
    """The result: channels_last if x is, else contiguous."""
    layout = call.x.layout if call.x.layout.startswith("channels_last") else "contiguous"
    return TensorSpec.with_layout(call.x.dtype, call.x.shape, layout)


def _strides(x: TensorSpec) -> tuple[int, int] | None:
    """Strides of samples and channels where the positions of a channel are one run of memory."""
    expected = 1
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.strides[2:]), strict=True):
        if size != 1 and stride != expected:
            return None
        expected *= size
    sizes = zip(x.shape[:2], x.strides[:2], strict=True)
    sample, channel = (0 if size == 1 else stride for size, stride in sizes)
    return sample, channel


def _unfit(call: Call) -> str | None:
    """Why the kernel cannot take a call, or None."""
    if call.x.dtype not in _DTYPES:
        return f"x is {call.x.dtype}"
    positions = next_power_of_two(prod(call.x.shape[2:]))
    return "2^30 positions" if positions >= _MOST_POSITIONS else None


def plan_channels(call: Call, params: Params, device: Device) -> Plan:
    """A program takes all channels of POSITIONS positions, CHANNELS at a time."""
    x: TensorSpec = call.x
    samples, channels, positions = x.shape[0], x.shape[1], prod(x.shape[2:])
    innermost = x.layout.startswith("channels_last")
    found = (positions * channels, 1) if innermost else _strides(x)
    copied = () if found else ("x",)
    sample, channel = found or (positions * channels, positions)
    if call.weight is not None and call.weight.layout != "contiguous":
        copied += ("weight",)
    widest = VECTOR_BYTES // ITEM_BYTES[x.dtype]
    runs = (channels,) if innermost else (positions, sample, channel)
    tiles = ceil(positions / params["POSITIONS"])
    launch = Launch(
        kernel=Kernel("jitd.models.kernels.channel_norm", "channel_norm"),
        grid=(samples * tiles, 1, 1),
        args={
            "x": Pointer("x"),
            "weight": None if call.weight is None else Pointer("weight"),
            "out": Pointer("out"),
            "P": positions,
            "tiles": tiles,
            "x_n": sample,
            "x_c": channel,
            "eps": call.eps,
            "root": sqrt(channels),
            "C": channels,
            "CHANNELS": min(params["CHANNELS"], next_power_of_two(channels)),
            "POSITIONS": params["POSITIONS"],
            "VEC": widest if common_power_of_two(widest, *runs) == widest else 1,
            "INNERMOST": innermost,
            "FORM": call.form,
            "EXACT": call.numerics == "exact",
        },
        num_warps=params["num_warps"],
        fp_fusion=call.numerics == "fast",
    )
    return Plan(outputs={"out": output(call)}, launches=[launch], contiguous=copied)


def _tile(params: Mapping[str, Any], call: Call) -> tuple[int, bool]:
    """(Elements of a tile, whether it has all channels.)"""
    channels = next_power_of_two(call.x.shape[1])
    return min(params["CHANNELS"], channels) * params["POSITIONS"], params["CHANNELS"] >= channels


def _where(params: Mapping[str, Any], asked: Problem) -> str | None:
    x: TensorSpec = asked.call.x
    tile, whole = _tile(params, asked.call)
    item, positions = ITEM_BYTES[x.dtype], params["POSITIONS"]
    if whole != (params["CHANNELS"] == MOST_CHANNELS):
        return "the same tile by another name"
    if x.layout.startswith("channels_last"):
        if not whole and 2 * x.shape[1] <= _HELD:
            return "channels in parts that a program can hold"
        if whole and tile > 16384:
            return f"a tile of {tile} elements"
    elif not 32 <= positions * item <= 256:
        return f"runs of {positions * item} bytes"
    per_thread = tile / (32 * params["num_warps"])
    smallest = params["num_warps"] == 1 and tile <= 256
    if not (1 if smallest else 16 // item) <= per_thread <= 32:
        return f"{per_thread:g} elements a thread"
    if tile < 1024 and x.numel // tile > 8 * asked.device.sm_count:
        return f"programs of {tile} elements"
    return None


def _default(asked: Problem) -> dict[str, Any]:
    """32 elements a thread; runs of 64 bytes, or whole positions of channels that are innermost."""
    x: TensorSpec = asked.call.x
    channels = next_power_of_two(x.shape[1])
    if x.layout.startswith("channels_last"):
        positions = max(2, min(128, 2048 // channels))
    else:
        positions = 64 // ITEM_BYTES[x.dtype]
    held = channels * positions <= _HELD
    tile = (channels if held else _PART) * positions
    return {
        "CHANNELS": MOST_CHANNELS if held else _PART,
        "POSITIONS": positions,
        "num_warps": max(1, min(16, tile // 1024)),
    }


_PART = 128  # channels at a time, of more than a program holds
_HELD = 16384  # elements that 16 warps hold without spilling

CHANNELS = (
    Variant(
        name="channels",
        plan=plan_channels,
        space=Space(
            {
                "CHANNELS": [_PART, MOST_CHANNELS],
                "POSITIONS": [2, 4, 8, 16, 32, 64, 128],
                "num_warps": [1, 2, 4, 8, 16],
            },
            where=_where,
            default=_default,
        ),
        applies=_unfit,
    ),
)
