"""GroupNorm with SiLU, and with a residual in between: `silu(group_norm(x) [+ residual])`.

Sites: the upsampler of LTX-2 (9 and 8 calls of a forward), HunyuanVideo's and FLUX's VAEs. SGLang
fuses the first form only (sgl-project/sglang#26045); `apply_group_norm_silu` has its meaning, so
that its users can switch by changing an import.

Numerics: `exact` rounds where eager does: the normalised value, then (with a residual) the sum,
then the result; statistics are fp32, never E[x²] - mean². `fast` rounds once, at the end. Sums run
over another tree than eager's, which flips a last bit now and then, and which one depends on the
config.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ...jit.declare import Cost
from ...jit.op import op
from ...jit.sign import Call, TensorSpec
from .group_norm_problem import (
    VECTOR_BYTES,
    GroupNormProblem,
    next_power_of_two,
    problem_of,
)
from .group_norm_variants import VARIANTS, output

NUMERICS = ("exact", "fast")
_DTYPES = ("bf16", "fp16", "fp32", "fp64")
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _check(call: Call) -> None:
    """Raise ValueError for arguments that make no sense in any dtype or on any device."""
    x, weight, bias = call.x, call.weight, call.bias
    if not 2 <= len(x.shape) <= 5:
        raise ValueError(
            f"group_norm: x has {len(x.shape)} dimensions {x.shape}; allowed are 2 to 5: (N, C, …)."
        )
    channels = x.shape[1]
    if call.groups < 1 or channels % call.groups:
        raise ValueError(
            f"group_norm: {channels} channels (x is {x.shape}) do not divide into "
            f"groups={call.groups}."
        )
    if x.dtype not in _DTYPES:
        raise ValueError(f"group_norm: x is {x.dtype}; allowed are {', '.join(_DTYPES)}.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"group_norm: {name} is {tensor.shape}; allowed is ({channels},).")
        if tensor.dtype != x.dtype:
            raise ValueError(f"group_norm: {name} is {tensor.dtype}, x {x.dtype}; make them equal.")
    residual = call.get("residual")
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"group_norm: residual is {residual.dtype} {residual.shape}; allowed is x's "
            f"{x.dtype} {x.shape}."
        )
    if call.numerics not in NUMERICS:
        raise ValueError(f"group_norm: numerics={call.numerics!r}; allowed are {NUMERICS}.")


def _memory_format(x: Tensor) -> torch.memory_format:
    """The same rule for tensors, symbolic sizes included."""
    if not x.is_contiguous() and x.ndim in _CHANNELS_LAST:
        channels_last = _CHANNELS_LAST[x.ndim]
        if x.is_contiguous(memory_format=channels_last):
            return channels_last
    return torch.contiguous_format


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


def _cost(call: Call) -> Cost:
    tensors = 3 if "residual" in call else 2
    return Cost(bytes=tensors * call.x.nbytes, flops=10 * call.x.numel)


def _bucket(call: Call) -> Call:
    """N up to a power of two, positions up to a quarter of one; channels and layouts as they are.

    A residual in another layout than x keeps its kind of layout. One that lies frame by frame is
    tuned at 16 frames, which are the latent frames of 121.
    """
    x: TensorSpec = call.x
    problem = problem_of(call)
    batch, positions = next_power_of_two(problem.N), problem.bucket_P
    kind = problem.residual.mode
    shape: tuple[int, ...] = (batch, problem.C, positions)
    if problem.channels_last or kind == "strided":
        frames = FRAMES if positions % FRAMES == 0 else 1
        shape = (batch, problem.C, frames, 1, positions // frames)
    layout = "channels_last_3d" if problem.channels_last else "contiguous"
    changes: dict[str, TensorSpec] = {
        "x": TensorSpec.with_layout(x.dtype, shape, layout),
        "weight": TensorSpec(x.dtype, (problem.C,)),
        "bias": TensorSpec(x.dtype, (problem.C,)),
    }
    if "residual" in call:
        changes["residual"] = TensorSpec.with_layout(
            x.dtype, shape, layout if kind == "same" else _residual_layout(problem)
        )
    return call.replace(**changes)


def _residual_layout(problem: GroupNormProblem) -> str:
    view = problem.residual
    if problem.channels_last:
        return "contiguous" if view.outer == view.inner or not view.outer else "perm02134"
    return "channels_last_3d" if view.channel == 1 else "perm02134"


def _reach(call: Call) -> list[Call]:
    """Calls of the bucket of `call` (a bucket's own) that reach its other binary classes.

    Lengths differ in the power of two that divides them, which decides the width of loads; a
    pointer may be misaligned.
    """
    x: TensorSpec = call.x
    problem = problem_of(call)
    found: dict[tuple[int, int], Call] = {(problem.vec, problem.residual.vec): call}
    if not problem.channels_last:
        strided = problem.residual.mode == "strided"
        for frames in range(1, 2 * FRAMES + 1) if strided else (1,):
            longest = problem.P // frames
            for length in range(longest, max(0, longest - 2 * VECTOR_BYTES), -1):
                shape = (x.shape[0], problem.C, frames, 1, length)
                reached = _with_shape(call, shape if strided else (*shape[:2], length))
                new = problem_of(reached)
                widths = new.vec, new.residual.vec
                if widths not in found and _bucket(reached) == call:
                    found[widths] = reached
    misaligned = call.replace(x=x.like(aligned=False, strides=x.strides))
    return [*found.values(), misaligned]


def _probes(call: Call) -> list[Call]:
    """The longest and the shortest of the lengths that share bucket and widths with `call`.

    The shortest is just above the next smaller bucket: its last tiles are nearly empty.
    """
    if any(spec.layout.startswith("strided(") for spec in call.tensors.values()):
        return []
    problem, bucket, x = problem_of(call), _bucket(call), call.x
    unit = problem.P // x.shape[-1] if len(x.shape) > 2 else 1
    longest, shortest = problem.bucket_P // unit, problem.shortest_P // unit
    tries = 2 * VECTOR_BYTES
    found: list[Call] = []
    for lengths in (range(longest, longest - tries, -1), range(shortest, shortest + tries)):
        for length in lengths if len(x.shape) > 2 else ():
            if length < 1 or unit * length > problem.bucket_P:
                continue
            probe = _with_shape(call, (*x.shape[:-1], length))
            if _widths(problem_of(probe)) == _widths(problem) and _bucket(probe) == bucket:
                found.append(probe)
                break
    return found


def _smaller(call: Call) -> Call | None:
    """The bucket of half the positions, down to where a card's caches would flatter it."""
    problem = problem_of(call)
    if problem.row_elements * problem.rows < _SMALLEST_TUNED:
        return None
    if problem.N > 1:
        shape = (problem.N // 2, *call.x.shape[1:])
    else:
        shape = (*call.x.shape[:-1], max(1, call.x.shape[-1] // 2))
    return _bucket(_with_shape(call, shape))


def _widths(problem: GroupNormProblem) -> tuple[int, int, str]:
    return problem.vec, problem.residual.vec, problem.residual.mode


def _with_shape(call: Call, shape: tuple[int, ...]) -> Call:
    changes = {
        name: TensorSpec.with_layout(spec.dtype, shape, spec.layout)
        for name, spec in call.tensors.items()
        if name in ("x", "residual")
    }
    return call.replace(**changes)


FRAMES = 16
_SMALLEST_TUNED = 1 << 24  # elements

_RULES: dict[str, Any] = {
    "variants": VARIANTS,
    "outputs": lambda call: {"y": output(call)},
    "fake": _fake,
    "cost": _cost,
    "check": _check,
    "selects": ("groups", "numerics"),
    "bucket": _bucket,
    "reach": _reach,
    "probes": _probes,
    "smaller": _smaller,
}


def _channels(call: Call) -> TensorSpec:
    return TensorSpec(call.x.dtype, call.x.shape[1:2])


@op(**_RULES, implied={"weight": _channels, "bias": _channels})
def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    *,
    numerics: str = "exact",
) -> Tensor:
    """silu(group_norm(x)).

    x: (N, C, *spatial), 2 to 5 dimensions, bf16|fp16|fp32; contiguous or channels_last(_3d),
    anything else is copied first, as aten does. weight, bias: (C,) of x's dtype. Returns x's
    shape and dtype, channels_last if x is, else contiguous. `groups` divides C; `eps` is added to
    the variance. Raises ValueError for shapes or dtypes that do not fit. float64 and CPU tensors
    are answered by this reference.
    """
    return F.silu(_group_norm(x, weight, bias, groups, eps))


@op(
    **_RULES,
    implied={
        "residual": lambda call: TensorSpec(call.x.dtype, call.x.shape),
        "weight": _channels,
        "bias": _channels,
    },
)
def group_norm_add_silu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    *,
    numerics: str = "exact",
) -> Tensor:
    """silu(group_norm(x) + residual), the end of a ResBlock.

    As `group_norm_silu`; residual: x's shape and dtype in any strides (frame-major behind the
    upsampler of LTX-2), read where it is if it has at most two strides over the positions.
    """
    return F.silu(_group_norm(x, weight, bias, groups, eps) + residual).contiguous(
        memory_format=_memory_format(x)
    )


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Eager's, in the layout that the kernels return: on CUDA eager itself drops channels_last."""
    y = torch.group_norm(x, groups, weight, bias, eps)
    return y.contiguous(memory_format=_memory_format(x))


def apply_group_norm_silu(x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    """`activation(norm(x))`, fused where that is the same: GroupNorm with affine, then SiLU.

    The meaning of SGLang's function of this name. Modules that do something else when called
    (subclasses of another forward, hooks, an in-place activation) are called.
    """
    if (
        type(norm) is nn.GroupNorm
        and type(activation) is nn.SiLU
        and norm.weight is not None
        and norm.bias is not None
        and not activation.inplace
        and not (_is_hooked(norm) or _is_hooked(activation))
    ):
        return group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return activation(norm(x))


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in module.__dict__ or _has_any_global_hook()
