"""Calls and tensors of the two GroupNorm ops, by name. Also used by tests/gpu."""

import torch
import torch.nn.functional as F
from jitd.jit.sign import Call, TensorSpec
from jitd.jit.tensors import NAMES, spec_of
from jitd.models.ops.group_norm import group_norm_add_silu, group_norm_silu

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SILU, ADD = group_norm_silu.op, group_norm_add_silu.op
FUNCTIONS = {SILU.name: group_norm_silu, ADD.name: group_norm_add_silu}

# (shape, groups): batch 1 and more; channels, groups and sizes that are no powers of two.
SHAPES = [
    ((3, 6), 3),
    ((2, 12, 7), 4),
    ((1, 10, 5, 3), 5),
    ((2, 24, 3, 5), 3),
    ((3, 14, 3, 2, 5), 7),
    ((1, 4, 2, 3, 4), 1),
]


def randn(*shape, dtype=torch.float32, device="cpu", seed=0):
    """Normally distributed and the same each time."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, device=device, generator=generator).to(dtype)


# Layout -> a tensor of that layout with the values of x. Not every layout has every dimension.
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
    ),
    "frame_major": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "reversed": lambda x: (
        x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    ),
    "sliced": lambda x: F.pad(x, (2, 3))[..., 2:-3],
    "every_other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "sliced_channels_last": lambda x: LAYOUTS["channels_last"](F.pad(x, (1, 0)))[..., 1:],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
LEAST_DIMS = {"channels_last": 4, "sliced_channels_last": 4, "frame_major": 3}


def fits(layout, shape):
    """Whether a tensor of that shape can have that layout."""
    return len(shape) >= LEAST_DIMS.get(layout, 2)


def expanded(x):
    """One value per channel, seen at every position and in every sample: stride 0."""
    return x[:1, :, *([slice(1)] * (x.ndim - 2))].expand(x.shape)


def arguments(op, shape, groups, *, x="contiguous", residual=None, **how):
    """Positional arguments of `op`: random tensors, x and the residual laid out by name."""
    tensors = [LAYOUTS[x](randn(*shape, **how))]
    if op is ADD:
        lay_out = expanded if residual == "expanded" else LAYOUTS[residual or x]
        tensors.append(lay_out(randn(*shape, seed=1, **how)))
    tensors += [randn(shape[1], seed=2, **how), randn(shape[1], seed=3, **how)]
    return [*tensors, groups]


def eager(op, args, eps=1e-5):
    """What PyTorch's own modules compute for the arguments of `op`, in whatever layout."""
    x, *residual, weight, bias, groups = args
    return F.silu(sum(residual, F.group_norm(x, groups, weight, bias, eps)))


def call_of(op, args, *, eps=1e-5, numerics="exact"):
    """The call that these arguments make."""
    *tensors, groups = args
    names = [argument.name for argument in op.tensors]
    specs = dict(zip(names, map(spec_of, tensors), strict=True))
    return Call({**specs, "groups": groups, "eps": eps, "numerics": numerics})


def made_call(
    op, shape, groups, *, x="contiguous", residual=None, dtype="bf16", numerics="exact", eps=1e-5
):
    """A call without tensors; `x` and `residual` are layouts as `TensorSpec.layout` names them."""
    values = {"x": TensorSpec.with_layout(dtype, shape, x)}
    if op is ADD:
        values["residual"] = TensorSpec.with_layout(dtype, shape, residual or x)
    values["weight"] = values["bias"] = TensorSpec(dtype, shape[1:2])
    return Call({**values, "groups": groups, "eps": eps, "numerics": numerics})


def on_meta(tensor):
    """A tensor without memory and with the same strides (`.to("meta")` would close gaps)."""
    how = {"dtype": tensor.dtype, "device": "meta"}
    return torch.empty_strided(tensor.shape, tensor.stride(), **how)


def name_of(dtype):
    """`bf16` of torch.bfloat16, and a test's id for anything else."""
    return NAMES.get(dtype)


def laid_out(tensor):
    """Shape, dtype and those strides that mean something."""
    strides = tuple(s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1)
    return tuple(tensor.shape), tensor.dtype, strides
