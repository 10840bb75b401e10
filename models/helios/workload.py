"""What Helios asks of the ops: run the real module, on the meta device, under `jitd.record()`."""

from typing import Any

import torch
from torch import Tensor

from ...jit.record import Workload, record
from .config import TransformerConfig
from .presets import HISTORY, TEXT_TOKENS, Size, chunk_shape, variant_named
from .transformer import HeliosTransformer

__all__ = ["record_run", "run_chunk"]


def run_chunk(
    size: Size,
    scale: int = 1,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    history: bool = True,
    **overrides: Any,
) -> Tensor:
    """One forward of the released transformer with random weights: a chunk at 1/`scale` of a size.

    Parameters are in `dtype` but for those that stay in fp32, see `HeliosTransformer.cast`.
    `overrides` replace entries of its config. On the meta device nothing is allocated or computed.
    Gives what the latents move by.
    """
    c = TransformerConfig(**overrides)
    frames, height, width = chunk_shape(size, scale)
    with torch.device(device), torch.no_grad():
        module = HeliosTransformer(**overrides).cast(dtype).eval()
        times = torch.arange(sum(n for n, _ in HISTORY.values()) + frames)[None]
        given = {"indices_hidden_states": times[:, -frames:]}
        start = 0
        for term in reversed(HISTORY) if history else ():
            count, _ = HISTORY[term]
            latents = torch.randn(1, c.in_channels, count, *chunk_shape(size)[1:], dtype=dtype)
            given[f"latents_history_{term}"] = latents
            given[f"indices_latents_history_{term}"] = times[:, start : start + count]
            start += count
        return module(
            torch.randn(1, c.in_channels, frames, height, width, dtype=dtype),
            torch.tensor([725]),
            torch.randn(1, TEXT_TOKENS, c.text_dim, dtype=dtype),
            **given,
        )


def record_run(size: Size, *, dtype: torch.dtype, variant: str) -> Workload:
    """What a chunk of a size calls. A count is the calls in one forward of each stage: steps and
    guidance are not multiplied. Raises ValueError for a size that a stage cannot divide.
    """
    with record() as workload:
        for scale in variant_named(variant).scales:
            run_chunk(size, scale, dtype=dtype)
    return workload
