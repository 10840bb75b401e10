"""Where Z-Image's tokens are, and the rotary table made of it.

A token has a place along three axes: a caption's n-th token is at (n, 0, 0), counted from 1, those
of the image that follows are at the caption's end along the first axis and at their row and column
along the others, and those that only fill an image up are at (0, 0, 0).

A table is (T, R, 2) in fp32, cosine and sine for each pair of a head's channels: what
`torch.view_as_real` makes of the complex numbers of diffusers' `RopeEmbedder` (read at 0.42.1), bit
for bit on the CPU. Nothing here waits for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["caption_table", "image_table"]

Axes = tuple[Sequence[int], float]
"""Channels of a head for each axis, and theta."""


def caption_table(tokens: int, axes: Axes, device: torch.device) -> Tensor:
    """The table of a caption, filled up to so many tokens."""
    first = torch.arange(1, tokens + 1, device=device)
    origin = torch.zeros(1, dtype=first.dtype, device=device)
    return _table((first, origin, origin), (tokens, 1, 1), axes)


def image_table(
    grid: Sequence[int], start: int, tokens: int, axes: Axes, device: torch.device
) -> Tensor:
    """The table of an image of (frames, rows, columns) behind a caption, filled up to `tokens`.

    start: the place of the image's first frame along the first axis.
    """
    places = [torch.arange(size, device=device) for size in grid]
    table = _table((places[0] + start, *places[1:]), grid, axes)
    origin = torch.zeros(1, dtype=torch.int64, device=device)
    filler = _table((origin,) * 3, (1, 1, 1), axes)
    # An index rather than an empty or a longer piece: the same code for every number of tokens.
    at = torch.arange(tokens, device=device).clamp(max=table.shape[0])
    return torch.cat([table, filler])[at]


def _table(places: Sequence[Tensor], grid: Sequence[int], axes: Axes) -> Tensor:
    dims, theta = axes
    waves = []
    for axis, (at, dim) in enumerate(zip(places, dims, strict=True)):
        exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=at.device) / dim
        angles = (at.double().unsqueeze(1) * (1.0 / theta**exponents)).float()
        shape = [1, 1, 1]
        shape[axis] = grid[axis]
        # polar, not cos and sin: these round otherwise on the CPU.
        turned = torch.view_as_real(torch.polar(torch.ones_like(angles), angles))
        waves.append(turned.view(*shape, dim // 2, 2).expand(*grid, dim // 2, 2))
    return torch.cat(waves, dim=-2).flatten(0, 2)
