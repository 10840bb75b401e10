"""Norms that a SiLU follows, computed with it by one op: what the recipes of VAEs share.

A site is a block, or a whole encoder or decoder for the norm before its last convolution. What is
not called there are those norms and the SiLU behind them; convolutions, dropouts, attentions,
samplers and all blocks are.

Rounding points are those of the ops: GroupNorm rounds its result once, the norms over channels
after each step, SiLU once more; nothing is kept in fp32 between modules.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops.group_norm import group_norm_silu
from .layouts import CHANNELS_LAST, suggests_channels_last
from .recipe import DTYPES, Recipe, name_of, numerics

__all__ = ["GROUP_NORM", "NormKind", "NormSites", "is_odd"]


@dataclass(frozen=True)
class NormKind:
    """A class of norms that one op computes with the SiLU behind it.

    cls:     qualified name of the class; a subclass is another class
    op:      name of the op
    silu:    silu(norm(x)), from norm, x and numerics
    odd:     why a norm of this class is none for the op, None if it is one
    weights: names of its parameters, which must have x's dtype
    """

    cls: str
    op: str
    silu: Callable[[Any, Tensor, str], Tensor]
    odd: Callable[[Any], str | None]
    weights: tuple[str, ...] = ()

    def refuses(self, norm: nn.Module) -> str | None:
        """Why `norm` is none that the op computes; None if it is one."""
        if name_of(type(norm)) != self.cls:
            return f"a {type(norm).__name__}, not {self.cls.rpartition('.')[2]}"
        return self.odd(norm)


@dataclass(frozen=True)
class NormSites:
    """Norms of a module, by name, with the one SiLU module that follows each."""

    kind: NormKind
    norms: tuple[str, ...]
    activation: str

    def fits(self, module: nn.Module) -> str | None:
        """Why a norm or the activation is not what an op computes; None if all are."""
        for name in self.norms:
            if reason := self.kind.refuses(getattr(module, name)):
                return f"{name}: {reason}"
        activation = getattr(module, self.activation)
        if type(activation) is not nn.SiLU or activation.inplace:
            return f"{self.activation}: {activation!r}, not SiLU()"
        return None

    def reads(self, module: nn.Module) -> list[nn.Module]:
        """All modules that are not called, whether they have parameters or not."""
        return [getattr(module, name) for name in (*self.norms, self.activation)]

    def takes(self, module: nn.Module, x: Tensor) -> str | None:
        """`dtype` if the ops do not take x with these weights; None if they do."""
        if x.dtype not in DTYPES:
            return "dtype"
        for name in self.norms:
            for weight in self.kind.weights:
                if getattr(getattr(module, name), weight).dtype != x.dtype:
                    return "dtype"
        return None

    def silu(self, module: nn.Module, name: str, x: Tensor) -> Tensor:
        """What the norm called `name` and the activation make of x."""
        return self.kind.silu(getattr(module, name), x, numerics(module))

    def recipe(self, cls: str, forward: Callable[..., Any], *sources: str, **rules: Any) -> Recipe:
        """The recipe of a class with these sites; `rules` replace those that are the sites' own.

        The classes of torch promise their meaning; others are part of the digest.
        """
        own = {"fits": self.fits, "reads": self.reads, "takes": self.takes}
        return Recipe(
            cls=cls,
            forward=forward,
            ops=(self.kind.op,),
            sources=frozenset(sources),
            relies=() if self.kind.cls.startswith("torch.") else (self.kind.cls,),
            **{**own, **rules},
        )


def is_odd(x: Tensor) -> bool:
    """Whether x is channels-last for the ops and contiguous for what eager puts behind a norm.

    That is so for a transposed view in which a dimension of one has a stride of its own: what
    attention makes of one sample, or of one frame. The ops read no such stride; aten does.
    """
    channels_last = CHANNELS_LAST.get(x.ndim)
    return (
        channels_last is not None
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=channels_last)
        and not suggests_channels_last(x)
    )


def _group_norm_silu(norm: Any, x: Tensor, numerics: str) -> Tensor:
    x = x.contiguous() if is_odd(x) else x  # as eager's group norm itself does
    return group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps, numerics=numerics)


def _plain(norm: Any) -> str | None:
    return "no weight and bias" if norm.weight is None or norm.bias is None else None


GROUP_NORM = NormKind(
    cls="torch.nn.modules.normalization.GroupNorm",
    op="group_norm_silu",
    silu=_group_norm_silu,
    odd=_plain,
    weights=("weight", "bias"),
)
