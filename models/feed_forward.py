"""The feed-forward of a transformer's block, with diffusers' parameter names."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """Two layers with a tanh GELU between, `inner` wide inside."""

    def __init__(self, dim: int, inner: int, *, bias: bool = True) -> None:
        super().__init__()
        project = nn.ModuleDict({"proj": nn.Linear(dim, inner, bias=bias)})
        # As diffusers numbers them: 1 is a dropout that has no parameters.
        self.net = nn.ModuleList([project, nn.Identity(), nn.Linear(inner, dim, bias=bias)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0]["proj"](x), approximate="tanh"))
