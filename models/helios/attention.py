"""Helios' attention: q and k normalised over all heads, turned, older keys amplified."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.rotary import qk_norm_rotary
from .config import TransformerConfig

__all__ = ["Attention"]

_MAX_SCALE = 10.0  # of the keys of history


class Attention(nn.Module):
    """Attention of x (B, S, dim) to itself, or to a context (B, T, dim).

    Heads lie side by side; q and k are normalised across all of them. `amplifies`: keys of history
    are scaled by up to ten, each head or all heads alike (`history_key_scale`).
    """

    def __init__(self, c: TransformerConfig, *, amplifies: bool = False) -> None:
        super().__init__()
        dim = c.dim
        self.heads, self.eps = c.num_attention_heads, c.eps
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
        q, k = qk_norm_rotary(
            self.to_q(x),
            self.to_k(context),
            self.norm_q.weight,
            self.norm_k.weight,
            q_cos=table,
            k_cos=table,
            eps=self.eps,
            layout="split" if table is None else "interleaved",
        )
        q, k, value = (t.unflatten(2, (self.heads, -1)) for t in (q, k, self.to_v(context)))
        if self.history_key_scale is not None and history:
            k = self._amplified(k, history)
        q, k, value = (t.transpose(1, 2) for t in (q, k, value))
        out = F.scaled_dot_product_attention(q, k, value)
        # As in models/ltx2/attention.py: contiguous, whatever the backend or meta device gives.
        return self.to_out[0](out.transpose(1, 2).flatten(2))

    def _amplified(self, k: Tensor, history: int) -> Tensor:
        """Keys (B, S, heads, d) with those of history scaled, rounded once."""
        scale = 1.0 + torch.sigmoid(self.history_key_scale) * (_MAX_SCALE - 1.0)
        older = (k[:, :history] * scale.view(-1, 1)).to(k.dtype)
        return torch.cat([older, k[:, history:]], dim=1)
