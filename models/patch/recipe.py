"""What one class of diffusers becomes when it is patched."""

import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

__all__ = ["DTYPES", "Recipe", "digest", "name_of", "numerics"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What ops over rows compute in fp32 as eager does; in fp64 eager is more exact than they."""


def _fits(module: nn.Module) -> str | None:
    return None


def _reads(module: nn.Module) -> Iterable[nn.Module]:
    return ()


def _takes(module: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    return None


def _as_stock(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], Any]:
    return args, kwargs


@dataclass(frozen=True)
class Recipe:
    """How instances of one diffusers class compute when they are patched.

    cls      its qualified name, `diffusers.models.….LTX2VideoTransformerBlock`
    forward  `forward(module, *args, **kwargs)`: arguments and results of the stock forward,
             written with jitd's ops, to which it passes `numerics(module)`. It calls the module's
             children wherever it can, so that LoRA, hooks and offloading work on them, and
             writes into none of its arguments, save lists and dicts as the stock forward does
    ops      names of the ops it calls. One that calls none, but gives patched children what they
             take besides, has nothing to verify: they have
    sources  digests (`digest`) of the class in every release that it was written against
    relies   qualified names of further classes and functions that have to be what they were: a
             processor, a helper that `forward` does again. They belong to the digest
    fits     why this instance is left, in a few words: its config, its processor. None: it fits
    reads    children whose parameters or config `forward` reads instead of calling them. If one of
             them has a hook, which might bring its weights, or is not what it was when it was
             patched (settings.py: class, eps, shapes of weights), the stock forward answers
    takes    `takes(module, *args, **kwargs)`: why this call goes to the stock forward, one word
             for the counters; None: `forward` takes it. torch.compile traces it, too
    as_stock `as_stock(module, *args, **kwargs)`: args and kwargs as the stock forward takes them,
             where another recipe's forward gives this one something that diffusers does not

    `fits` and `takes` look at configs, dtypes and arguments, never at values of tensors.
    """

    cls: str
    forward: Callable[..., Any]
    ops: tuple[str, ...]
    sources: frozenset[str]
    relies: tuple[str, ...] = ()
    fits: Callable[[nn.Module], str | None] = _fits
    reads: Callable[[nn.Module], Iterable[nn.Module]] = _reads
    takes: Callable[..., str | None] = _takes
    as_stock: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] = _as_stock

    @property
    def name(self) -> str:
        return self.cls.rpartition(".")[2]


def name_of(cls: type) -> str:
    """The qualified name that recipes know a class by."""
    return f"{cls.__module__}.{cls.__qualname__}"


def numerics(module: nn.Module) -> str:
    """`exact` or `fast`, as `patch` was told for this module; `exact` if it is not patched."""
    chosen: str = getattr(module, "_jitd_numerics", "exact")
    return chosen


@lru_cache
def digest(*names: str) -> str:
    """A digest of the source text of classes and functions, given by their qualified names.

    `digest(recipe.cls, *recipe.relies)` is what `sources` is looked up for. Empty if one of them
    does not exist or has no source: it is no known version.
    """
    text = hashlib.blake2b(digest_size=8)
    for name in names:
        home, _, attribute = name.rpartition(".")
        try:
            source = inspect.getsource(getattr(import_module(home), attribute))
        except (ImportError, AttributeError, OSError, TypeError):
            return ""
        text.update(source.encode())
    return text.hexdigest()
