"""A residual block of LTX-2's video decoder (2.3): twice a norm over channels with SiLU, and a
convolution. These take nearly all of its time.
"""

import torch
from torch import Tensor, nn

from ...models.ops.channel_norm import channel_rms_norm_silu

__all__ = ["ResBlock"]


class ResBlock(nn.Module):  # type: ignore[misc]  # torch is not followed
    """x + conv(silu(norm(conv(silu(norm(x)))))), kernels 3x3x3, x (N, C, F, H, W)."""

    EPS = 1e-8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=(0, 1, 1))
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_with_ends(channel_rms_norm_silu(x, eps=self.EPS)))
        return x + self.conv2(_with_ends(channel_rms_norm_silu(h, eps=self.EPS)))


def _with_ends(x: Tensor) -> Tensor:
    """x with its first and last frame repeated, as the decoder does it, which is not causal."""
    return torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
