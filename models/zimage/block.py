"""One block of Z-Image's transformer, with timestep modulation or, for captions, without.

Between two matrix products stands one fused op:

    rms_norm_scale, rms_norm        attention_norm1, modulated or plain
    qk_norm_rotary                  queries and keys: normalised by head, and turned
    tanh_gate_residual_rms_norm     attention_norm2, its gate and the residual; plain without gate
    rms_norm_scale, rms_norm        ffn_norm1
    swiglu                          between the layers of the feed-forward
    tanh_gate_residual_rms_norm     ffn_norm2, its gate and the residual
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.gates import swiglu
from ..ops.rotary import qk_norm_rotary
from ..ops.row_norm import rms_norm, rms_norm_scale, tanh_gate_residual_rms_norm
from .config import TransformerConfig

__all__ = ["Block"]

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
        q, k = qk_norm_rotary(
            self.to_q(x),
            self.to_k(x),
            self.norm_q.weight,
            self.norm_k.weight,
            q_cos=table,
            k_cos=table,
            eps=_QK_EPS,
            layout="complex",
            rounding="each",
        )
        q, k, value = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, self.to_v(x))
        )
        out = F.scaled_dot_product_attention(q, k, value, attn_mask=mask)
        # As in models/ltx2/attention.py: contiguous, whatever the backend or meta device gives.
        return self.to_out[0](out.transpose(1, 2).flatten(2))


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
        self.eps = c.norm_eps
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
        scale = gate = ff_scale = ff_gate = None
        if self.adaLN_modulation is not None:
            rows = self.adaLN_modulation(timestep).unsqueeze(1)
            scale, gate, ff_scale, ff_gate = rows.chunk(4, dim=2)
        y = self.attention(self._normed(x, self.attention_norm1, scale), table, mask)
        x = tanh_gate_residual_rms_norm(x, y, gate, self.attention_norm2.weight, eps=self.eps)
        y = self.feed_forward(self._normed(x, self.ffn_norm1, ff_scale))
        return tanh_gate_residual_rms_norm(x, y, ff_gate, self.ffn_norm2.weight, eps=self.eps)

    def _normed(self, x: Tensor, norm: nn.RMSNorm, scale: Tensor | None) -> Tensor:
        if scale is None:
            return rms_norm(x, norm.weight, self.eps)
        return rms_norm_scale(x, 1.0 + scale, norm.weight, eps=self.eps)
