"""The meta device, with tensors in memory as they lie on the card at hand."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as config

from ..patch.layouts import CHANNELS_LAST, AsOnADevice, suggests_channels_last

__all__ = ["as_on_a_card"]


class _OnThisCard(AsOnADevice):
    def keeps(self, out: Tensor) -> bool:
        return _keeps(out.ndim, out.dtype)


@cache
def _keeps(ndim: int, dtype: torch.dtype) -> bool:
    """Whether convolutions of the card at hand keep channels-last; as cuDNN does, without one.

    Releases of torch leave some dtypes of some dimensions to another library than cuDNN.
    """
    if dtype == torch.float64:
        return False
    if not torch.cuda.is_available():
        return True
    x = torch.zeros(2, 16, *(8,) * (ndim - 2), dtype=dtype, device="cuda")
    x = x.to(memory_format=CHANNELS_LAST[ndim])
    weight = torch.zeros(16, 16, *(3,) * (ndim - 2), dtype=dtype, device="cuda")
    conv = torch.conv2d if ndim == 4 else torch.conv3d
    return suggests_channels_last(conv(x, weight, padding=1))


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Run models on the meta device in here. Not for several threads.

    Autocast, which knows no meta device, is none there; masks, which have no values, are full.
    """
    autocast = torch.autocast

    def none_on_meta(device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        if device_type == "meta":
            return nullcontext()
        return autocast(device_type, *args, **kwargs)

    torch.autocast = none_on_meta
    try:
        with torch.no_grad(), _OnThisCard(), config.patch(meta_nonzero_assume_all_nonzero=True):
            yield
    finally:
        torch.autocast = autocast
