"""What transformers make of timesteps and prompts before their blocks. Parameters have diffusers'
names.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TextProjection", "TimestepEmbedder", "timestep_waves"]


def timestep_waves(timesteps: Tensor, frequencies: int = 128) -> Tensor:
    """Timesteps (N,) as (N, 2 * frequencies) in fp32: cosines, then sines, of falling frequency."""
    steps = torch.arange(frequencies, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * steps / frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Timesteps (N,) as (N, D): waves of `frequencies`, then two layers."""

    def __init__(self, dim: int, frequencies: int = 128) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.linear_1 = nn.Linear(2 * frequencies, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        waves = timestep_waves(timesteps, self.frequencies).to(dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class TextProjection(nn.Module):
    """Prompt embeddings (B, T, channels) to the width of a stream."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))
