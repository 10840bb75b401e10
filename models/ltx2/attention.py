"""LTX-2's attention: q and k normalised over all heads, turned, gated by head (2.3)."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.gates import head_gate
from ..ops.rotary import qk_norm_rotary
from .rope import Tables

__all__ = ["Attention", "attended"]


class Attention(nn.Module):
    """Attention of x (B, S, dim) to context (B, T, context_dim), to itself without one.

    Heads of head_dim channels lie side by side; q and k are normalised across all of them. `gated`
    scales each head of the result by 2 * sigmoid of what x says (`to_gate_logits`).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        context_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        gated: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        inner, context_dim = heads * head_dim, context_dim or dim
        self.heads = heads
        self.norm_q = nn.RMSNorm(inner, eps=eps)
        self.norm_k = nn.RMSNorm(inner, eps=eps)
        self.to_q = nn.Linear(dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim, bias=out_bias)])
        self.to_gate_logits = nn.Linear(dim, heads) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        rotary: Tables | None = None,
        context_rotary: Tables | None = None,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        skip: bool = False,
    ) -> Tensor:
        """What x gets from context, (B, S, dim).

        rotary, context_rotary: tables of x and of context, for self-attention the former serve
        both; mask: added to the scores, (B, 1, 1|S, T). Perturbed attention puts the values where
        the result would be: everywhere with `skip`, else by 1 - `keep` (B, 1, 1), which is 0 or 1.
        """
        if context is None:
            context, context_rotary = x, rotary

        def dot_products(q: Tensor, k: Tensor, value: Tensor) -> Tensor:
            q, k, value = (t.transpose(1, 2) for t in (q, k, value))
            out = F.scaled_dot_product_attention(q, k, value, attn_mask=mask)
            return out.transpose(1, 2)

        out = attended(self, x, context, dot_products, rotary, context_rotary, keep=keep, skip=skip)
        return self.to_out[0](out)


class Projections(Protocol):
    """What `attended` reads of an attention: ours, or diffusers' LTX2Attention."""

    heads: int
    norm_q: Any  # torch.nn.RMSNorm: read, not called
    norm_k: Any
    to_q: Any
    to_k: Any
    to_v: Any
    to_gate_logits: Any


def attended(
    attention: Projections,
    x: Tensor,
    context: Tensor,
    dot_products: Callable[[Tensor, Tensor, Tensor], Tensor],
    rotary: Tables | None,
    context_rotary: Tables | None,
    *,
    keep: Tensor | None = None,
    skip: bool = False,
    numerics: str = "exact",
) -> Tensor:
    """What x gets from context before the last projection, (B, S, heads * head_dim).

    dot_products: q, k and value, each (B, S|T, heads, head_dim), to the same of q's shape. keep and
    skip: see `Attention.forward`. numerics: of the ops.
    """
    value = attention.to_v(context)
    out = value
    if not skip:
        q, k = qk_norm_rotary(
            attention.to_q(x),
            attention.to_k(context),
            attention.norm_q.weight,
            attention.norm_k.weight,
            *(rotary or (None, None)),
            *(context_rotary or (None, None)),
            attention.norm_q.eps,
            numerics=numerics,
        )
        # Backends give this back token by token in memory, the meta device head by head: a copy
        # there, a view here, and contiguous either way. What follows is thus the same on meta.
        out = dot_products(*(t.unflatten(2, (attention.heads, -1)) for t in (q, k, value)))
        out = out.flatten(2)
        if keep is not None:
            out = torch.lerp(value, out, keep)
    if attention.to_gate_logits is not None:
        out = head_gate(out, attention.to_gate_logits(x), numerics=numerics)
    return out
