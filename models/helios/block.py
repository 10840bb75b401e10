"""One block of Helios' transformer: history and the current chunk in one stream, of which only the
current chunk attends to the prompt.

Between two matrix products stands one fused op, statistics and modulation in fp32 and rounded once:

    layer_norm_modulate                norm1
    gate_residual_layer_norm_modulate  attn1's gate and norm2, which has a weight and a bias
    layer_norm_modulate                norm3, after attn2 is added to the current chunk
    gate_residual                      the feed-forward's gate

Tokens of history have another timestep than the current ones. Modulation parameters are rows, one
for each timestep, and an index that says which row a token has: two rows where diffusers has one
for every token, (B, S, 6, D) in fp32, 1.36 GB in each block at 11040 tokens. Results are the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..feed_forward import FeedForward
from ..ops.gates import gate_residual
from ..ops.row_norm import gate_residual_layer_norm_modulate, layer_norm_modulate
from .attention import Attention
from .config import TransformerConfig

__all__ = ["Block", "Conditioning", "advanced"]


class Conditioning(NamedTuple):
    """What every block is told."""

    rows: Tensor  # modulation parameters in fp32, (R, 6, D); without an index (B, 6, D)
    index: Tensor | None  # the row of each token, (B, S) of int32
    text: Tensor  # (B, T, D)
    table: Tensor  # of `rope.py`, (B|1, S, 2 * head dim)
    history: int  # so many of the first tokens are not of the current chunk


class Block(nn.Module):
    """A block: see the module."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.eps, self.only_current = c.eps, c.guidance_cross_attn
        self.attn1 = Attention(c, amplifies=c.is_amplify_history)
        self.attn2 = Attention(c)
        self.norm2 = nn.LayerNorm(c.dim, eps=c.eps)  # its parameters; an op applies them
        self.ffn = FeedForward(c.dim, c.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)

    def forward(self, x: Tensor, c: Conditioning) -> Tensor:
        """The stream, (B, S, D), after the block."""
        return advanced(
            self,
            x,
            c.rows,
            c.index,
            partial(self.attn1, table=c.table, history=c.history),
            partial(self.attn2, context=c.text),
            c.history if self.only_current else 0,
        )


class Layers(Protocol):
    """What `advanced` reads of a block: ours, or diffusers' HeliosTransformerBlock."""

    norm2: Any  # torch.nn.LayerNorm: read, not called. Its eps is that of all norms
    ffn: Any
    scale_shift_table: Any


def advanced(
    block: Layers,
    x: Tensor,
    rows: Tensor,
    index: Tensor | None,
    attn1: Callable[[Tensor], Tensor],
    attn2: Callable[[Tensor], Tensor],
    first: int,
    *,
    numerics: str = "exact",
) -> Tensor:
    """The stream, (B, S, D), after a block.

    rows: as in `Conditioning`, or (B, S, 6, D) without an index; attn1: of the stream to itself;
    attn2: of its tokens from `first` on to the prompt.
    """
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table + rows).unbind(-2)
    once = {"index": index, "rounding": "once", "numerics": numerics}
    norm2 = block.norm2
    eps = norm2.eps

    h = layer_norm_modulate(x, scale, shift, eps=eps, **once)
    # norm2 of history is not needed. One launch over all tokens moves less memory than two of
    # which the second would read the current ones again.
    x, h = gate_residual_layer_norm_modulate(
        x, attn1(h), gate, None, None, norm2.weight, norm2.bias, eps=eps, **once
    )
    x = _added(x, attn2(h[:, first:].contiguous()), first)
    h = layer_norm_modulate(x, ff_scale, ff_shift, eps=eps, **once)
    return gate_residual(x, block.ffn(h), ff_gate, **once)


def _added(x: Tensor, y: Tensor, first: int) -> Tensor:
    """x, a tensor of ours, with y added to its tokens from `first` on."""
    if x.requires_grad or y.requires_grad:  # gradients need x as it was
        return torch.cat([x[:, :first], x[:, first:] + y], dim=1)
    # History stays where it is: half of what a new tensor would move. (`x[:, first:] += y` would
    # copy the sum to itself afterwards.)
    x[:, first:].add_(y)
    return x
