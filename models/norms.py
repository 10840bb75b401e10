"""Norms with a modulation behind them as modules, with the names and arguments of SGLang's.

    norm(x) * (1 + scale) + shift

R rounds to x's dtype: the norm is rounded, then the result; what is between is fp32.
"""

import torch
from torch import Tensor, nn

from .ops.row_norm import layer_norm_modulate, rms_norm_modulate


class LayerNormScaleShift(nn.Module):
    """LayerNorm, then a modulation, in one launch.

    `elementwise_affine` adds weight and bias of `dtype`. Any hidden_size up to 16384 will do, and
    no operand is copied or expanded.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        elementwise_affine: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = (
            nn.Parameter(torch.ones(hidden_size, dtype=dtype)) if elementwise_affine else None
        )
        self.bias = (
            nn.Parameter(torch.zeros(hidden_size, dtype=dtype)) if elementwise_affine else None
        )

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x: (B, S, D), bf16|fp16|fp32; shift, scale: (1,), (D,), (1|B, D), (1|B, 1|S, D) or
        (1|B, F, 1, D) with S/F tokens to a frame, of any float dtype. Raises ValueError otherwise.
        """
        scale, shift = _operands(x, scale, shift)
        return layer_norm_modulate(
            x, scale, shift, self.weight, self.bias, eps=self.eps, rounding="norm"
        )


class RMSNormScaleShift(nn.Module):
    """As `LayerNormScaleShift` with an RMSNorm; `elementwise_affine` adds a weight of `dtype`."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        elementwise_affine: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = (
            nn.Parameter(torch.ones(hidden_size, dtype=dtype)) if elementwise_affine else None
        )

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """As `LayerNormScaleShift.forward`."""
        scale, shift = _operands(x, scale, shift)
        return rms_norm_modulate(x, scale, shift, self.weight, eps=self.eps, rounding="norm")


def _operands(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift as the ops take them: of one shape, a frame's row without its dimension."""
    scale, shift = (_operand(x, t) for t in (scale, shift))
    if scale.shape == shift.shape:
        return scale, shift
    if scale.ndim != shift.ndim:  # (D,) and (1, D) stand before what has tokens
        scale, shift = (t if t.ndim == 3 else t.reshape(-1, 1, t.shape[-1]) for t in (scale, shift))
    wide, other = torch.broadcast_tensors(scale, shift)
    return wide, other


def _operand(x: Tensor, operand: Tensor) -> Tensor:
    if operand.ndim == 4 and operand.shape[2] == 1:
        return operand.squeeze(2)
    if operand.shape[-1:] == (1,) and x.shape[-1] != 1:
        return operand.expand(*operand.shape[:-1], x.shape[-1])
    return operand
