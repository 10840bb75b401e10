"""Helios' attention: q and k normalised over all heads, turned, older keys amplified."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.rotary import qk_norm_rotary
from .config import TransformerConfig

__all__ = ["Attention", "turned"]

_MAX_SCALE = 10.0  # of the keys of history


class Attention(nn.Module):
    """Attention of x (B, S, dim) to itself, or to a context (B, T, dim).

    Heads lie side by side; q and k are normalised across all of them. `amplifies`: keys of history
    are scaled by up to ten, each head or all heads alike (`history_key_scale`).
    """

    def __init__(self, c: TransformerConfig, *, amplifies: bool = False) -> None:
        super().__init__()
        dim = c.dim
        self.heads = c.num_attention_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=c.eps)
        self.norm_k = nn.RMSNorm(dim, eps=c.eps)
        scales = self.heads if c.history_scale_mode == "per_head" else 1
        self.history_key_scale = nn.Parameter(torch.ones(scales)) if amplifies else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        table: Tensor | None = None,
        history: int = 0,
    ) -> Tensor:
        """What x gets from context, or from itself, (B, S, dim).

        table: that of `rope.py`, for x without a context; history: so many of the first tokens are
        not of the current chunk.
        """
        context = x if context is None else context
        scales = self.history_key_scale
        q, k = turned(self, self.to_q(x), self.to_k(context), table, scales, history)
        value = self.to_v(context).unflatten(2, (self.heads, -1))
        q, k, value = (t.transpose(1, 2) for t in (q, k, value))
        out = F.scaled_dot_product_attention(q, k, value)
        # As in models/ltx2/attention.py: contiguous, whatever the backend or meta device gives.
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class Norms(Protocol):
    """What `turned` reads of an attention: ours, or diffusers' HeliosAttention."""

    heads: int
    norm_q: Any  # torch.nn.RMSNorm: read, not called
    norm_k: Any


def turned(
    attention: Norms,
    q: Tensor,
    k: Tensor,
    table: Tensor | None,
    scales: Tensor | None = None,
    history: int = 0,
    *,
    numerics: str = "exact",
) -> tuple[Tensor, Tensor]:
    """Queries (B, S, dim) and keys (B, T, dim) as the scores need them, (B, S|T, heads, d).

    scales: those of the keys of history, (1,) or (heads,); others as in `Attention.forward`.
    """
    q, k = qk_norm_rotary(
        q,
        k,
        attention.norm_q.weight,
        attention.norm_k.weight,
        q_cos=table,
        k_cos=table,
        eps=attention.norm_q.eps,
        layout="split" if table is None else "interleaved",
        numerics=numerics,
    )
    q, k = (t.unflatten(2, (attention.heads, -1)) for t in (q, k))
    return q, _amplified(k, scales, history) if scales is not None and history > 0 else k


def _amplified(k: Tensor, scales: Tensor, history: int) -> Tensor:
    """Keys (B, S, heads, d) with those of history scaled, rounded once."""
    scale = 1.0 + torch.sigmoid(scales) * (_MAX_SCALE - 1.0)
    older = (k[:, :history] * scale.view(-1, 1)).to(k.dtype)
    return torch.cat([older, k[:, history:]], dim=1)
