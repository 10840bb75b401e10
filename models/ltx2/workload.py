"""What LTX-2 asks of the ops: run the real module, on the meta device, under `jitd.record()`."""

from typing import Any

import torch
from torch import Tensor

from .presets import UPSAMPLERS, Size, latent_shape
from .upsampler import LatentUpsampler

__all__ = ["run_upsampler"]


def run_upsampler(
    size: Size,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    version: str = "2.3",
    **overrides: Any,
) -> Tensor:
    """One forward of a released upsampler with random weights, batch 1, at a final `size`.

    `version` names a config of `UPSAMPLERS`; `overrides` replace entries of it (a smaller
    `mid_channels`, say). On the meta device nothing is allocated or computed. Gives the latents
    that stage 2 starts from, (1, in_channels, F, H/32, W/32). Raises ValueError for an unknown
    version.
    """
    if version not in UPSAMPLERS:
        raise ValueError(f"version is {version!r}; it must be one of {', '.join(UPSAMPLERS)}")
    config = {**UPSAMPLERS[version], **overrides}
    with torch.device(device):
        module = LatentUpsampler(**config).to(dtype).eval()
        latents = torch.randn(1, config["in_channels"], *latent_shape(size), dtype=dtype)
    with torch.no_grad():
        return module(latents)
