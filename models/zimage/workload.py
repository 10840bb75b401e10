"""What Z-Image asks of the ops: run the real module, on the meta device, under `jitd.record()`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...jit.record import Workload, record
from .config import TransformerConfig
from .presets import CAPTIONS, Size, latent_shape, variant_named
from .transformer import ZImageTransformer

__all__ = ["record_run", "run_image"]

_NEGATIVE = 32  # tokens of a negative prompt, filled up: mostly it is empty


def run_image(
    size: Size,
    captions: Sequence[int] = (CAPTIONS[-1],),
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    module: ZImageTransformer | None = None,
    **overrides: Any,
) -> list[Tensor]:
    """One forward of the released transformer with random weights: an image of a size for each of
    the captions, which have so many tokens.

    `module` may be given, so that one serves several runs; else `overrides` replace entries of the
    released config. On the meta device nothing is allocated or computed. Gives what the latents
    move by.
    """
    with torch.device(device), torch.no_grad():
        if module is None:
            module = ZImageTransformer(**overrides).to(dtype).eval()
        c: TransformerConfig = module.config
        return module(
            [torch.randn(c.in_channels, 1, *latent_shape(size), dtype=dtype) for _ in captions],
            torch.full((len(captions),), 0.3),
            [torch.randn(length, c.cap_feat_dim, dtype=dtype) for length in captions],
        )


def record_run(size: Size, *, dtype: torch.dtype, variant: str) -> Workload:
    """What an image of a size calls. A count is the calls in one forward for each of the sixteen
    lengths of captions: steps are not multiplied.
    """
    negative = (_NEGATIVE,) * (variant_named(variant).batch - 1)
    with torch.device("meta"):
        module = ZImageTransformer().to(dtype).eval()
    with record() as workload:
        for length in CAPTIONS:
            run_image(size, (length, *negative), dtype=dtype, module=module)
    return workload
