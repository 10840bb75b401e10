"""The rotary table of Helios' tokens: angles along time, height and width.

A table is [cos | sin], (B|1, T, 2D) in fp32 for heads of D channels, in which every angle stands
twice, as `HeliosRotaryPosEmbed` of diffusers makes it (read at 0.42.1), bit for bit. That of older
frames is averaged over windows, after which cos² + sin² is less than 1: a kernel has to read both.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["averaged", "filled_windows", "rotary_table"]


def rotary_table(
    frames: Tensor, height: int, width: int, *, dims: Sequence[int], theta: float, window: int = 1
) -> Tensor:
    """The table of frames (B|1, F) at these points in time, of height x width tokens each.

    dims: channels for time, height and width; window: the side of the cubes of tokens that are
    averaged, the table continued at its edges where they do not divide it. Gives (B|1, T, 2D).
    """
    along = (
        frames.to(torch.float32),
        torch.arange(height, dtype=torch.float32, device=frames.device),
        torch.arange(width, dtype=torch.float32, device=frames.device),
    )
    whole = (*frames.shape, height, width)
    cos, sin = [], []
    for axis, (positions, dim) in enumerate(zip(along, dims, strict=True)):
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=frames.device) / dim
        angles = positions.unsqueeze(-1) * (1.0 / theta**exponents)
        angles = angles.repeat_interleave(2, -1)
        # Time (B, F, d), height (H, d) or width (W, d), as it lies among (B, F, H, W).
        shape = (*frames.shape, 1, 1) if axis == 0 else (1, 1, height, 1)
        shape = (1, 1, 1, width) if axis == 2 else shape
        for found, waves in ((cos, angles.cos()), (sin, angles.sin())):
            found.append(waves.view(*shape, dim).expand(*whole, dim))
    table = torch.cat([*cos, *sin], dim=-1)
    return averaged(table.permute(0, 4, 1, 2, 3), window)


def averaged(table: Tensor, window: int) -> Tensor:
    """A table (B, 2D, F, H, W) by windows, as (B, T, 2D)."""
    if window > 1:
        table = F.avg_pool3d(filled_windows(table, (window,) * 3), window, stride=window)
    return table.flatten(2).transpose(1, 2)


def filled_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """x (B, C, F, H, W) with its last frame, row and column repeated until windows divide it."""
    missing = [-size % side for size, side in zip(x.shape[2:], window, strict=True)]
    frames, rows, columns = missing
    return F.pad(x, (0, columns, 0, rows, 0, frames), mode="replicate") if any(missing) else x
