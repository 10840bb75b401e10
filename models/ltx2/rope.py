"""Positions of LTX-2's tokens, in seconds and pixels, and the rotary tables made of them.

A token covers a span [start, end) along each axis: time in seconds, then, for video, height and
width in pixels. Its angle along an axis is that of the span's middle, as a fraction of the largest
position that the model knows.

Same mathematics as `LTX2AudioVideoRotaryPosEmbed` of diffusers (rope_type "split", read at 0.42.1),
bit for bit. Nothing here waits for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rotary", "Tables", "audio_coords", "rotary_tables", "video_coords"]

Tables = tuple[Tensor, Tensor]
"""cos and sin, each (B|1, H, T, R) in fp32."""


def video_coords(
    frames: int,
    height: int,
    width: int,
    *,
    fps: float = 24.0,
    patch: tuple[int, int, int] = (1, 1, 1),
    scale: tuple[int, int, int] = (8, 32, 32),
    causal_offset: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Spans of a video's tokens, (1, 3, S, 2) in fp32: (time in seconds, height and width in
    pixels), frames outermost among the S tokens.

    frames, height, width: of the latents; scale: frames and pixels to one latent step. The first
    latent frame stands for one video frame, hence the `causal_offset`.
    """
    sizes = (frames, height, width)
    steps = [
        torch.arange(0, size, step, dtype=torch.float32, device=device)
        for size, step in zip(sizes, patch, strict=True)
    ]
    starts = torch.meshgrid(*steps, indexing="ij")
    axes = []
    for start, step, factor in zip(starts, patch, scale, strict=True):
        axes.append(torch.stack([start, start + step], dim=-1).flatten(0, 2) * factor)
    axes[0] = (axes[0] + causal_offset - scale[0]).clamp(min=0) / fps
    return torch.stack(axes).unsqueeze(0)


def audio_coords(
    frames: int,
    *,
    patch: int = 1,
    scale: int = 4,
    hop_length: int = 160,
    sampling_rate: int = 16000,
    causal_offset: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Spans of audio tokens in seconds, (1, 1, A, 2) in fp32.

    frames: of the latents; scale: mel frames to one latent frame; hop_length: samples to one mel
    frame.
    """
    start = torch.arange(0, frames, patch, dtype=torch.float32, device=device)
    ends = [
        (edge * scale + causal_offset - scale).clip(min=0) * hop_length / sampling_rate
        for edge in (start, start + patch)
    ]
    return torch.stack(ends, dim=-1)[None, None]


def rotary_tables(
    coords: Tensor,
    max_positions: Sequence[float],
    *,
    dim: int,
    heads: int,
    theta: float = 10000.0,
    double_precision: bool = True,
) -> Tables:
    """(cos, sin) of `split_rotary`, each (B, heads, T, dim / heads / 2) in fp32.

    coords: (B, axes, T, 2) spans or (B, axes, T) positions; max_positions: the largest along each
    axis. The tables are views that lie token by token in memory, as diffusers' do. Where the axes
    do not divide dim / 2, the first angles of a token are zero. `double_precision`: the
    frequencies are computed in fp64 before they are rounded to fp32.
    """
    batch, axes, tokens = coords.shape[:3]
    if coords.ndim == 4:
        coords = (coords[..., 0] + coords[..., 1]) / 2.0
    grid = torch.stack([coords[:, axis] / max_positions[axis] for axis in range(axes)], dim=-1)
    exponents = torch.linspace(
        0.0,
        1.0,
        dim // (2 * axes),
        dtype=torch.float64 if double_precision else torch.float32,
        device=coords.device,
    )
    frequencies = (torch.pow(theta, exponents) * math.pi / 2.0).float()
    angles = (grid.unsqueeze(-1) * 2 - 1) * frequencies  # (B, T, axes, dim / (2 axes))
    angles = angles.transpose(-1, -2).flatten(2)
    missing = dim // 2 - angles.shape[-1]
    cos, sin = angles.cos(), angles.sin()
    if missing:
        cos = torch.cat([cos.new_ones(batch, tokens, missing), cos], dim=-1)
        sin = torch.cat([sin.new_zeros(batch, tokens, missing), sin], dim=-1)
    laid = (batch, tokens, heads, -1)
    return cos.view(laid).transpose(1, 2), sin.view(laid).transpose(1, 2)


@dataclass(frozen=True)
class Rotary:
    """How the tables of one stream are made, for attention within it and between the streams.

    `heads` are (how many, channels of each), `cross_heads` those between the streams, which meet in
    time alone.
    """

    heads: tuple[int, int]
    cross_heads: tuple[int, int]
    max_positions: tuple[float, ...]
    max_time: float
    theta: float
    double_precision: bool

    def tables(self, coords: Tensor) -> Tables:
        return self._made(coords, self.heads, self.max_positions)

    def cross_tables(self, coords: Tensor) -> Tables:
        return self._made(coords[:, :1], self.cross_heads, (self.max_time,))

    def _made(self, coords: Tensor, heads: tuple[int, int], positions: tuple[float, ...]) -> Tables:
        count, channels = heads
        return rotary_tables(
            coords,
            positions,
            dim=count * channels,
            heads=count,
            theta=self.theta,
            double_precision=self.double_precision,
        )
