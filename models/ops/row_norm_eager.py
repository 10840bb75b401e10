"""What eager makes of the norms of tokens: the parts that their references are put together from.

A normalised value is of x's dtype, but in fp32 where `rounding="once"`, whose rounding is still to
come. `modulation.py` says what the roundings mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .modulation import modulated, spread, wide


def rms_normed(x: Tensor, weight: Tensor | None, eps: float, rounding: str) -> Tensor:
    """x / sqrt(mean(x²) + eps) [* weight]."""
    if rounding == "native":
        n = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return n if weight is None else n * weight
    w = wide(x)
    n = w * torch.rsqrt(w.pow(2).mean(-1, keepdim=True) + eps)
    if rounding == "each":
        return n.to(x.dtype) if weight is None else n.to(x.dtype) * weight
    n = n if weight is None else n * wide(weight)
    return n if rounding == "once" else n.to(x.dtype)


def layer_normed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, rounding: str
) -> Tensor:
    """(x - mean) / std [* weight] [+ bias], all of it before the first rounding, as in aten."""
    if rounding == "each" and all(w is None or w.dtype == x.dtype for w in (weight, bias)):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)  # aten's own sums of such an x
    n = F.layer_norm(
        wide(x),
        x.shape[-1:],
        None if weight is None else wide(weight),
        None if bias is None else wide(bias),
        eps,
    )
    return n if rounding == "once" else n.to(x.dtype)


def shifted(n: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None,
            index: Tensor | None, rounding: str) -> Tensor:  # fmt: skip
    """n * (1 + scale) + shift in x's dtype; n alone where neither is given."""
    if scale is None or shift is None:
        return n.to(x.dtype)
    return modulated(n, scale, shift, index, x.dtype, rounding)


def scaled(n: Tensor, x: Tensor, scale: Tensor, index: Tensor | None, rounding: str) -> Tensor:
    """n * scale in x's dtype: the scale as it is, not 1 + scale."""
    scale = spread(scale, index, x)
    if rounding in ("each", "native"):
        return n * scale
    return (wide(n) * wide(scale)).to(x.dtype)


def tanh_gated(
    x: Tensor, n: Tensor, gate: Tensor | None, index: Tensor | None, rounding: str
) -> Tensor:
    """x + tanh(gate) * n in x's dtype; x + n without a gate."""
    if rounding in ("each", "native"):
        return x + (n if gate is None else torch.tanh(spread(gate, index, x)) * n)
    added = wide(n) if gate is None else torch.tanh(wide(spread(gate, index, x))) * wide(n)
    return (wide(x) + added).to(x.dtype)
