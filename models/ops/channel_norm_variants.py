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
_HELD_BYTES = 128  # of x, that a thread holds in registers without spilling
_MOST_PARTS = 16  # that a program holds: its code is as long


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
            "CHANNELS": params["CHANNELS"],
            "POSITIONS": params["POSITIONS"],
            "HELD": _holds(params, call),
            "VEC": widest if common_power_of_two(widest, *runs) == widest else 1,
            "INNERMOST": innermost,
            "FORM": call.form,
            "EXACT": call.numerics == "exact",
        },
        num_warps=params["num_warps"],
        fp_fusion=call.numerics == "fast",
    )
    return Plan(outputs={"out": output(call)}, launches=[launch], contiguous=copied)


def _per_thread(params: Mapping[str, Any]) -> float:
    """Elements that a thread has of CHANNELS by POSITIONS."""
    return params["CHANNELS"] * params["POSITIONS"] / (32 * params["num_warps"])


def _holds(params: Mapping[str, Any], call: Call) -> bool:
    """Whether a program holds all channels of its positions."""
    parts = ceil(call.x.shape[1] / params["CHANNELS"])
    held = parts * _per_thread(params) * ITEM_BYTES[call.x.dtype]
    return parts <= _MOST_PARTS and held <= _HELD_BYTES


def _where(params: Mapping[str, Any], asked: Problem) -> str | None:
    x: TensorSpec = asked.call.x
    item, channels = ITEM_BYTES[x.dtype], next_power_of_two(x.shape[1])
    tile, size = params["CHANNELS"] * params["POSITIONS"], channels * params["POSITIONS"]
    if params["CHANNELS"] > channels:
        return f"{params['CHANNELS']} of {x.shape[1]} channels"
    if x.layout.startswith("channels_last"):
        run, longest = params["CHANNELS"] * item, max(512, channels * item // 8)
        shortest, most = min(256, channels * item), 128
    else:
        run, longest = params["POSITIONS"] * item, 256
        shortest, most = 64 if channels < _MANY else 32, 256 // item
    if not shortest <= run <= longest:
        return f"runs of {run} bytes"
    smallest = params["num_warps"] == 1 and tile <= 256 and params["CHANNELS"] == channels
    if not smallest and _per_thread(params) * item not in {VECTOR_BYTES, 2 * VECTOR_BYTES}:
        return f"{_per_thread(params):g} elements a thread at a time"
    if not _holds(params, asked.call) and (channels <= _MANY or tile < 2048):
        return "channels read twice"
    if size < min(1024, channels * most) and x.numel // size > 8 * asked.device.sm_count:
        return f"programs of {size} elements"
    return None


def _default(asked: Problem) -> dict[str, Any]:
    """16 bytes a thread at a time. Runs of 64 bytes, as few warps as hold all channels; where
    channels are innermost, an eighth of them at a time, 4 warps. Of more than can be held, 16.
    """
    x: TensorSpec = asked.call.x
    item, channels = ITEM_BYTES[x.dtype], next_power_of_two(x.shape[1])
    innermost = x.layout.startswith("channels_last")
    positions = (64 if channels < _MANY else 32) // item

    def tile(warps: int) -> dict[str, Any]:
        elements = 32 * warps * VECTOR_BYTES // item
        if innermost:
            eighth = min(channels, 1024 // item, max(256 // item, channels // 8))
            sizes = {"CHANNELS": eighth, "POSITIONS": min(128, max(2, elements // eighth))}
        else:
            sizes = {"CHANNELS": min(channels, elements // positions), "POSITIONS": positions}
        return {**sizes, "num_warps": warps}

    needed = channels * positions * item // (32 * _HELD_BYTES)
    preferred = tile(4 if innermost else max(1, min(16, needed)))
    return preferred if _holds(preferred, asked.call) else tile(16)


_MANY = 1024  # channels, from which on holding them all wants narrow runs

CHANNELS = (
    Variant(
        name="channels",
        plan=plan_channels,
        space=Space(
            {
                "CHANNELS": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
                "POSITIONS": [2, 4, 8, 16, 32, 64, 128],
                "num_warps": [1, 2, 4, 8, 16],
            },
            where=_where,
            default=_default,
        ),
        applies=_unfit,
    ),
)
