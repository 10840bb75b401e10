"""Helios' block as eager code has it: modulation parameters for every token.

The formulas are those of `models/helios/block.py`. Where that has two rows and an index, eager code
has (B, S, 6, D): once in the model's dtype for all blocks, and in each block once more in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.helios.block import Block, Conditioning

__all__ = ["ExpandedBlock", "expanded_parameters"]


def expanded_parameters(told: Conditioning, x: Tensor) -> Tensor:
    """Parameters of every token, (B, S, 6, D) in x's dtype."""
    rows = told.rows.to(x.dtype)
    if told.index is None:
        return rows.unsqueeze(1).repeat(1, x.shape[1], 1, 1)
    return rows[told.index.long()]


class ExpandedBlock(nn.Module):  # type: ignore[misc]  # torch is not followed
    """A block of Helios with its weights, as plain torch."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, text: Tensor, parameters: Tensor, table: Tensor, history: int
    ) -> Tensor:
        """The stream, (B, S, D); parameters: of `expanded_parameters`."""
        b = self.block
        of_tokens = (b.scale_shift_table.unsqueeze(0) + parameters.float()).unbind(2)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = of_tokens
        h = (self._normed(x) * (1 + scale) + shift).to(x.dtype)
        x = (x.float() + b.attn1(h, table=table, history=history) * gate).to(x.dtype)
        older, chunk = x[:, :history], x[:, history:]
        norm = b.norm2
        h = F.layer_norm(chunk.float(), norm.normalized_shape, norm.weight, norm.bias, b.eps)
        x = torch.cat([older, chunk + b.attn2(h.to(x.dtype), text)], dim=1)
        h = (self._normed(x) * (1 + ff_scale) + ff_shift).to(x.dtype)
        return (x.float() + b.ffn(h).float() * ff_gate).to(x.dtype)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], eps=self.block.eps)
