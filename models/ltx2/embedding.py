"""What LTX-2 makes of timesteps before its blocks: modulation parameters.

Timesteps come per sample, per token, or as rows and an index: the distinct ones, and for each
token which of them it has. Image-to-video has two, the step's and zero, however many tokens there
are; rows keep what is made of them two rows long, where a timestep for each token would have it
expanded to all of them. Results are the same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..embeddings import TimestepEmbedder

__all__ = ["Modulation", "Timesteps", "index_for", "timestep_rows"]

_INDEX_DTYPES = (torch.int32, torch.int64)


class Timesteps(NamedTuple):
    """Timesteps, flat, and how they lie against tokens: (B, 1), (B, S), or (R,) with `index`."""

    values: Tensor
    shape: tuple[int, ...]
    index: Tensor | None = None

    @classmethod
    def of(
        cls, name: str, timestep: Tensor, index: Tensor | None, batch: int, tokens: int
    ) -> "Timesteps":
        """timestep (B,), (B, S), or with index (B, S) rows (R,). Raises ValueError that says so."""
        shape = tuple(timestep.shape)
        if index is not None:
            if timestep.ndim != 1:
                raise ValueError(f"{name} is {shape}; with {name}_index it is rows, (R,).")
            if tuple(index.shape) != (batch, tokens) or index.dtype not in _INDEX_DTYPES:
                raise ValueError(
                    f"{name}_index is {index.dtype} {tuple(index.shape)}; allowed is a row for "
                    f"each token, {(batch, tokens)} of torch.int32 or torch.int64."
                )
            return cls(timestep, shape, index)
        if shape not in ((batch,), (batch, tokens)):
            raise ValueError(
                f"{name} is {shape}; allowed are {(batch,)}, {(batch, tokens)}, and rows (R,) with "
                f"{name}_index."
            )
        return cls(timestep.flatten(), (batch, tokens) if timestep.ndim == 2 else (batch, 1))

    def times(self, factor: float) -> "Timesteps":
        return self._replace(values=self.values * factor)


def timestep_rows(timestep: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, index) of a step in which `clean` tokens, those of given images, have timestep zero.

    timestep: (1,), the same for all samples, or (B,); clean: (B, S) of bool. Gives rows (R,), R = 2
    or B + 1, and index (B, S) of int32. Kernels are tuned for the number of rows: `jitctl warmup
    --i2v` for two, so prefer one timestep where there is one. Nothing waits for the device.
    """
    batch = clean.shape[0]
    if timestep.ndim != 1 or timestep.shape[0] not in (1, batch) or clean.ndim != 2:
        raise ValueError(
            f"timestep is {tuple(timestep.shape)}, clean {tuple(clean.shape)}; allowed are (1,) or "
            "(B,), and (B, S)."
        )
    rows = torch.cat([timestep, timestep.new_zeros(1)])
    of_sample = torch.arange(timestep.shape[0], dtype=torch.int32, device=clean.device)
    return rows, of_sample.unsqueeze(1).masked_fill(clean, timestep.shape[0])


def index_for(index: Tensor | None, *operands: Tensor | None) -> Tensor | None:
    """The index, if one of an op's operands is rows: one that nothing needs would still be read."""
    return index if any(o is not None and o.ndim == 2 for o in operands) else None


class Modulation(nn.Module):
    """Scales, shifts and gates of timesteps: `count` rows of D for each. diffusers'
    LTX2AdaLayerNormSingle.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(dim)})
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, timesteps: Timesteps, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Parameters (*timesteps.shape, count, D) and the embeddings (*timesteps.shape, D)."""
        embedded = self.emb["timestep_embedder"](timesteps.values, dtype)
        parameters = self.linear(F.silu(embedded))
        return (
            parameters.view(*timesteps.shape, self.count, -1),
            embedded.view(*timesteps.shape, -1),
        )
