"""Tiny upsamplers of every layout, and spies on the two fused sites. Shared by the tests here."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from jitd.models.ltx2 import upsampler as module
from torch.nn.utils import (
    convert_conv2d_weight_memory_format,
    convert_conv3d_weight_memory_format,
)

BASE = {"in_channels": 8, "mid_channels": 64, "num_blocks_per_stage": 2}

# The five layouts in use first, then what else can be configured.
VARIANTS = {
    "x2_20": {"use_rational_resampler": True, "rational_spatial_scale": 2.0},
    "x2_23": {"use_rational_resampler": False},
    "x1.5": {"use_rational_resampler": True, "rational_spatial_scale": 1.5},
    "temporal": {"spatial_upsample": False, "temporal_upsample": True},
    "2d": {"dims": 2, "use_rational_resampler": False},
    "x0.75": {"use_rational_resampler": True, "rational_spatial_scale": 0.75},
    "x4": {"use_rational_resampler": True, "rational_spatial_scale": 4.0},
    "spatiotemporal": {"temporal_upsample": True},
    "2d_x1.5": {"dims": 2, "use_rational_resampler": True, "rational_spatial_scale": 1.5},
}

SHAPE = (1, 8, 3, 4, 6)


def build(variant, *, dtype=torch.float32, device="cpu", channels_last=False, **changes):
    """A tiny upsampler in eval mode; the same weights each time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = module.LatentUpsampler(**{**BASE, **VARIANTS[variant], **changes})
    model = model.to(dtype).eval()
    if channels_last:  # `.to(memory_format=…)` refuses a module with both kinds of convolution
        convert_conv2d_weight_memory_format(model, torch.channels_last)
        convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    return model


def latents(shape=SHAPE, *, dtype=torch.float32, device="cpu", channels_last=False):
    """Random latents, the same each time."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x


@dataclass
class Sites:
    """What the fused sites were given: one entry a call, in order."""

    calls: list = field(default_factory=list)

    @property
    def counts(self):
        return Counter(name for name, *_ in self.calls)

    @property
    def layouts(self):
        """Per call: op, then shape, meaningful strides and dtype of each activation."""
        return [(name, *map(_layout, tensors)) for name, *tensors in self.calls]


def spy(monkeypatch):
    """Record every call of the two ops that the upsampler makes, and let it through."""
    sites = Sites()
    for name, activations in (("apply_group_norm_silu", 1), ("group_norm_add_silu", 2)):
        op = getattr(module, name)

        def wrapped(*args, op=op, name=name, activations=activations):
            sites.calls.append((name, *args[:activations]))
            return op(*args)

        monkeypatch.setattr(module, name, wrapped)
    return sites


def _layout(x):
    strides = tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1)
    return tuple(x.shape), strides, x.dtype
