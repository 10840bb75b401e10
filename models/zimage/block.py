"""One block of Z-Image's transformer, with timestep modulation or, for captions, without.

Between two matrix products stands one fused op:

    rms_norm_scale, rms_norm        attention_norm1, modulated or plain
    qk_norm_rotary                  queries and keys: normalised by head, and turned
    tanh_gate_residual_rms_norm     attention_norm2, its gate and the residual; plain without gate
    rms_norm_scale, rms_norm        ffn_norm1
    swiglu                          between the layers of the feed-forward
    tanh_gate_residual_rms_norm     ffn_norm2, its gate and the residual
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.gates import swiglu
from ..ops.rotary import qk_norm_rotary
from ..ops.row_norm import rms_norm, rms_norm_scale, tanh_gate_residual_rms_norm
from .config import TransformerConfig

__all__ = ["Block", "advanced", "turned"]

_QK_EPS = 1e-5  # of queries and keys, whatever the model's norm_eps


class Attention(nn.Module):
    """Self-attention; q and k are normalised by head."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.heads = c.n_heads
        self.norm_q = nn.RMSNorm(c.dim // c.n_heads, eps=_QK_EPS)
        self.norm_k = nn.RMSNorm(c.dim // c.n_heads, eps=_QK_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(c.dim, c.dim, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(c.dim, c.dim, bias=False)])

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B, S, dim); table: (B|1, S, R, 2), of `rope.py`; mask: (B, 1, 1, S) of bool."""
        q, k = turned(self, self.to_q(x), self.to_k(x), table)
        value = self.to_v(x).unflatten(2, (self.heads, -1))
        q, k, value = (t.transpose(1, 2) for t in (q, k, value))
        out = F.scaled_dot_product_attention(q, k, value, attn_mask=mask)
        # As in models/ltx2/attention.py: contiguous, whatever the backend or meta device gives.
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class Norms(Protocol):
    """What `turned` reads of an attention: ours, or diffusers'."""

    heads: int
    norm_q: Any  # an RMSNorm: read, not called
    norm_k: Any


def turned(
    attention: Norms, q: Tensor, k: Tensor, table: Tensor | None, *, numerics: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, S, dim) as the scores need them, (B, S, heads, d)."""
    q, k = qk_norm_rotary(
        q,
        k,
        attention.norm_q.weight,
        attention.norm_k.weight,
        q_cos=table,
        k_cos=table,
        eps=attention.norm_q.eps,
        layout="complex",
        rounding="each",
        numerics=numerics,
    )
    heads = attention.heads, -1
    return q.unflatten(2, heads), k.unflatten(2, heads)


class FeedForward(nn.Module):
    """w2(silu(w1(x)) * w3(x))."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, inner, bias=False)
        self.w2 = nn.Linear(inner, dim, bias=False)
        self.w3 = nn.Linear(dim, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(self.w1(x), self.w3(x)))


class Block(nn.Module):
    """A block: see the module."""

    def __init__(self, c: TransformerConfig, *, modulated: bool = True) -> None:
        super().__init__()
        self.attention = Attention(c)
        self.feed_forward = FeedForward(c.dim, int(c.dim / 3 * 8))
        # Modules for their parameters; ops apply them.
        self.attention_norm1 = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.attention_norm2 = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.adaLN_modulation = (
            nn.Sequential(nn.Linear(c.modulation_dim, 4 * c.dim)) if modulated else None
        )

    def forward(
        self, x: Tensor, table: Tensor, mask: Tensor | None = None, timestep: Tensor | None = None
    ) -> Tensor:
        """The stream, (B, S, dim), after the block.

        table: (B|1, S, R, 2); mask: (B, 1, 1, S) of bool, False where nobody may look; timestep:
        embedded, (B, C), for a modulated block.
        """

        def attend(h: Tensor) -> Tensor:
            out: Tensor = self.attention(h, table, mask)
            return out

        rows = None
        if self.adaLN_modulation is not None:
            rows = self.adaLN_modulation(timestep).unsqueeze(1)
        return advanced(self, x, rows, None, attend)


class Layers(Protocol):
    """What `advanced` reads of a block: ours, or diffusers' ZImageTransformerBlock."""

    attention_norm1: Any  # RMSNorms: read, not called
    attention_norm2: Any
    ffn_norm1: Any
    ffn_norm2: Any
    feed_forward: Any


def advanced(
    block: Layers,
    x: Tensor,
    rows: Tensor | None,
    index: Tensor | None,
    attend: Callable[[Tensor], Tensor],
    *,
    numerics: str = "exact",
) -> Tensor:
    """The stream, (B, S, dim), after a block.

    rows: scale and gate of the attention, then of the feed-forward, (B, 1, 4 * dim) or, with the
    row of each token (B, S) as an index, (R, 4 * dim); None without modulation; attend: of the
    stream to itself.
    """
    scale = gate = ff_scale = ff_gate = None
    if rows is not None:
        scale, gate, ff_scale, ff_gate = rows.chunk(4, dim=-1)
    y = attend(_normed(x, block.attention_norm1, scale, index, numerics))
    x = _added(x, y, block.attention_norm2, gate, index, numerics)
    y = block.feed_forward(_normed(x, block.ffn_norm1, ff_scale, index, numerics))
    return _added(x, y, block.ffn_norm2, ff_gate, index, numerics)


def _normed(
    x: Tensor, norm: Any, scale: Tensor | None, index: Tensor | None, numerics: str
) -> Tensor:
    if scale is None:
        return rms_norm(x, norm.weight, norm.eps, numerics=numerics)
    return rms_norm_scale(x, 1.0 + scale, norm.weight, index, norm.eps, numerics=numerics)


def _added(
    x: Tensor, y: Tensor, norm: Any, gate: Tensor | None, index: Tensor | None, numerics: str
) -> Tensor:
    return tanh_gate_residual_rms_norm(x, y, gate, norm.weight, index, norm.eps, numerics=numerics)
