"""What models run without jitd, where that is more than an op's reference.

A reference states rounding points as a chain of simple operations. torch has a fused kernel for
nn.RMSNorm, which eager models call: whoever compares with eager has to compare with that.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...jit.op import Op
from ...models.ops.rotary import split_rotary
from ...models.ops.row_norm import rms_norm as rms_norm_op

Function = Callable[..., Any]


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """nn.RMSNorm, whose weight is applied before the only rounding; else diffusers' chain."""
    if rounding == "once":
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return reference(rms_norm_op)(x, weight, eps, rounding=rounding)


def qk_norm_rotary(
    q: Tensor,
    k: Tensor,
    wq: Tensor | None,
    wk: Tensor | None,
    q_cos: Tensor | None = None,
    q_sin: Tensor | None = None,
    k_cos: Tensor | None = None,
    k_sin: Tensor | None = None,
    eps: float = 1e-6,
    *,
    layout: str = "split",
    rounding: str = "once",
    numerics: str = "exact",
) -> tuple[Tensor, Tensor]:
    """q and k normalised as `rms_norm` here does, over rows or heads, each turned as diffusers does
    it: Z-Image by complex numbers, the reference's way.
    """
    queries, keys = (
        rms_norm(x.unflatten(2, (-1, weight.shape[0])), weight, eps, rounding=rounding).flatten(2)
        if weight is not None and weight.shape[0] != x.shape[2]
        else rms_norm(x, weight, eps, rounding=rounding)
        for x, weight in ((q, wq), (k, wk))
    )
    turned = {"split": reference(split_rotary), "interleaved": _interleaved, "complex": _complex}[
        layout
    ]
    return (
        queries if q_cos is None else turned(queries, q_cos, q_sin),
        keys if k_cos is None else turned(keys, k_cos, k_sin),
    )


def _interleaved(x: Tensor, table: Tensor, _: None) -> Tensor:
    """Helios' function: neighbours turned, written to every other channel."""
    cos, sin = table.unsqueeze(2).chunk(2, -1)
    heads = x.unflatten(2, (-1, cos.shape[-1]))
    first, second = heads.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(heads)
    out[..., 0::2] = first * cos[..., 0::2] - second * sin[..., 1::2]
    out[..., 1::2] = first * sin[..., 1::2] + second * cos[..., 0::2]
    return out.flatten(2)


def _complex(x: Tensor, table: Tensor, _: None) -> Tensor:
    """Z-Image's function: neighbours as complex numbers."""
    pairs = torch.view_as_complex(x.float().unflatten(2, (-1, table.shape[2], 2)))
    turned = pairs * torch.view_as_complex(table).unsqueeze(2)
    return torch.view_as_real(turned).flatten(2).type_as(x)


EAGER: Mapping[str, Function] = {"rms_norm": rms_norm, "qk_norm_rotary": qk_norm_rotary}
"""By op: what eager runs, where it is not the reference."""


def reference(function: Function) -> Function:
    """The reference of an op, given as models call it."""
    found: Function = function.op.reference  # type: ignore[attr-defined]
    return found


class Eager:
    """A package's modules with eager in the place of the ops: `with eager(): model(x)`.

    Their names are rebound, so that neither a call nor torch.compile sees anything of jitd.
    """

    def __init__(self, package: str) -> None:
        self._bindings = [
            (module, name, value, EAGER.get(value.op.name, value.op.reference))
            for path, module in list(sys.modules.items())
            if path == package or path.startswith(f"{package}.")
            for name, value in list(vars(module).items())
            if isinstance(getattr(value, "op", None), Op)
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        for module, name, _, plain in self._bindings:
            setattr(module, name, plain)
        try:
            yield
        finally:
            for module, name, op, _ in self._bindings:
                setattr(module, name, op)
