"""Layouts of a real run, on the meta device.

torch's meta kernels answer a convolution contiguously. On a CPU (oneDNN) and on a card (cuDNN) the
result is channels-last if the input or the weights suggest that, which attention in a VAE does to
all that comes behind it. A workload that is recorded on meta needs the layouts of a real run, or it
names signatures that no real run asks for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["CHANNELS_LAST", "AsOnADevice", "suggests_channels_last"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = {torch.conv2d, torch.conv3d}


class AsOnADevice(TorchFunctionMode):
    """Within it, convolutions on meta answer in the layout that a device would give."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS and out.is_meta and self.keeps(out):
            operands = (*args, *(kwargs or {}).values())[:2]  # x and its weight
            if any(map(suggests_channels_last, operands)):
                return out.contiguous(memory_format=CHANNELS_LAST[out.ndim])
        return out

    def keeps(self, out: Tensor) -> bool:
        """Whether the device has convolutions with such a result that keep channels-last."""
        return True


def suggests_channels_last(x: Tensor) -> bool:
    """What aten makes of strides: x (N, C, H, W) or (N, C, F, H, W) is to be taken channels-last.

    Other than `is_contiguous`, this minds the strides of dimensions of one.
    """
    if x.ndim not in CHANNELS_LAST or x.stride(1) == 0:
        return False
    least = 0
    for dim in (1, *range(x.ndim - 1, 1, -1), 0):
        size, stride = x.shape[dim], x.stride(dim)
        if size == 0 or stride < least or (dim == 0 and least == x.stride(1)):
            return False
        least = stride * size if size > 1 else stride
    return True
