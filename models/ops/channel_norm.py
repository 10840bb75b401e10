"""RMSNorm over the channels of channels-first tensors, with SiLU: norms of video and audio VAEs.

    form "rms"   n = R(x / R(sqrt(R(R(mean(R(x²))) + eps))))   LTX-2's PerChannelRMSNorm (eps 1e-8)
                                                               and LTX2AudioPixelNorm (eps 1e-6)
    form "l2"    n = R(R(x / max(‖x‖, eps)) * sqrt(C))         Wan's WanRMS_norm (eps 1e-12)
    out = R(silu(n)), with a weight R(silu(R(n * weight)))

R rounds to x's dtype; a norm ‖x‖ is fp32. `exact` rounds so; `fast` rounds once, at the end. A tree
of sums flips a last bit of fp32 now and then, and which one depends on the config; the mean of form
"rms" is rounded to x's dtype, so that in bf16 and fp16 hardly any bit is another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...jit.declare import Cost
from ...jit.op import op
from ...jit.sign import Call, TensorSpec
from .channel_norm_variants import CHANNELS, FORMS, MOST_CHANNELS, output
from .group_norm_problem import next_power_of_two
from .modulation import DTYPES, NUMERICS, moved_bytes, wide

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_SMALLEST_TUNED = 1 << 24  # elements, below which a card's caches would flatter a bucket


def _check(call: Call) -> None:
    x, weight, name = call.x, call.weight, "channel_rms_norm_silu"
    if not 2 <= len(x.shape) <= 5:
        raise ValueError(f"{name}: x is {x.shape}; allowed are 2 to 5 dimensions, (N, C, …).")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: x is {x.dtype}; allowed are {', '.join(DTYPES)}.")
    if not 1 <= x.shape[1] <= MOST_CHANNELS:
        raise ValueError(f"{name}: x has {x.shape[1]} channels; allowed are 1 to {MOST_CHANNELS}.")
    if weight is not None and (weight.shape, weight.dtype) != (x.shape[1:2], x.dtype):
        raise ValueError(
            f"{name}: weight is {weight.dtype} {weight.shape}; allowed is {x.dtype} {x.shape[1:2]}."
        )
    for argument, allowed in (("form", FORMS), ("numerics", NUMERICS)):
        if call[argument] not in allowed:
            raise ValueError(
                f"{name}: {argument}={call[argument]!r}; allowed are {', '.join(allowed)}."
            )


def _memory_format(x: Tensor) -> torch.memory_format:
    """channels_last stays so; symbolic sizes will do, too."""
    if not x.is_contiguous() and x.ndim in _CHANNELS_LAST:
        channels_last = _CHANNELS_LAST[x.ndim]
        if x.is_contiguous(memory_format=channels_last):
            return channels_last
    return torch.contiguous_format


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


def _bucket(call: Call) -> Call:
    """Samples and positions up to powers of two; channels, and whether they lie innermost, stay."""
    x: TensorSpec = call.x
    samples, channels = next_power_of_two(x.shape[0]), x.shape[1]
    positions = next_power_of_two(x.numel // max(1, x.shape[0] * channels))
    return _of_positions(call, samples, positions)


def _of_positions(call: Call, samples: int, positions: int) -> Call:
    x: TensorSpec = call.x
    changes = {"x": TensorSpec(x.dtype, (samples, x.shape[1], positions))}
    if x.layout.startswith("channels_last"):
        shape = (samples, x.shape[1], 1, 1, positions)
        changes["x"] = TensorSpec.with_layout(x.dtype, shape, "channels_last_3d")
    if call.weight is not None:
        changes["weight"] = TensorSpec(x.dtype, call.weight.shape)
    return call.replace(**changes)


def _reach(call: Call) -> list[Call]:
    """x may begin anywhere, and an odd number of positions leaves nothing to vectorise."""
    found = [call, call.replace(x=call.x.like(aligned=False, strides=call.x.strides))]
    samples, positions = call.x.shape[0], call.x.shape[-1]
    if positions > 2 and not call.x.layout.startswith("channels_last"):
        found.append(_of_positions(call, samples, positions - 1))
    return found


def _probes(call: Call) -> list[Call]:
    """The fewest positions of the bucket: the last tile is as empty as can be."""
    samples, positions = call.x.shape[0], call.x.shape[-1]
    return [_of_positions(call, samples, positions // 2 + 1)] if positions > 2 else []


def _smaller(call: Call) -> Call | None:
    samples, positions = call.x.shape[0], call.x.shape[-1]
    if call.x.numel < _SMALLEST_TUNED or positions < 2:
        return None
    return _of_positions(call, samples, positions // 2)


def _cost(call: Call) -> Cost:
    return Cost(bytes=moved_bytes(call.tensors) + call.x.nbytes, flops=10 * call.x.numel)


@op(
    variants=CHANNELS,
    outputs=lambda call: {"out": output(call)},
    fake=_fake,
    cost=_cost,
    check=_check,
    selects=("form", "numerics"),
    bucket=_bucket,
    reach=_reach,
    probes=_probes,
    smaller=_smaller,
)
def channel_rms_norm_silu(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-8,
    *,
    form: str = "rms",
    numerics: str = "exact",
) -> Tensor:
    """silu of x normalised over its channels; see the module for the two forms.

    x: (N, C, *spatial), 2 to 5 dimensions, bf16|fp16|fp32; weight: (C,) of x's dtype or None. The
    result is channels_last(_3d) if x is, else contiguous. Raises ValueError for what does not fit.
    """
    if form == "rms":
        n = x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + eps)
    else:
        n = F.normalize(wide(x), dim=1, eps=eps).to(x.dtype) * x.shape[1] ** 0.5
    if weight is not None:
        n = n * weight.view(-1, *[1] * (x.ndim - 2))
    return F.silu(n).contiguous(memory_format=_memory_format(x))
