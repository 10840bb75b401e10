"""One patched module: it answers calls, declines those it is not made for, and counts both."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from functools import cache, wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ...jit.stats import STATS
from .agreement import Agreement
from .hooks import is_ours, place_of_forward
from .recipe import Recipe
from .settings import changed, seen
from .verify import MAX_SIGNATURES, first_call, is_comparing, signature

__all__ = ["Site", "bind", "site_of", "unbind"]

log = logging.getLogger("jitd")

_LOSING = threading.Lock()


class Site:
    """What a report says of one module, and what its calls came to.

    path      of the module, from what was patched: `transformer.transformer_blocks.0.attn1`
    left      why it is not patched, or not any more; None: it is
    calls     answered by the recipe in eager mode; what is compiled is not counted
    declined  answered by the stock forward, by cause
    verified  share of the bound (agreement.py) that a first call reached, by signature; None:
              it could not be compared
    """

    def __init__(
        self, path: str, recipe: Recipe, *, left: str | None = None, verify: str = "never"
    ) -> None:
        self.path, self.recipe, self.left, self.verify = path, recipe, left, verify
        self.calls = 0
        self.declined: Counter[str] = Counter()
        self.verified: dict[Hashable, float | None] = {}

    @property
    def patched(self) -> bool:
        return self.left is None

    def is_like(self, other: "Site") -> bool:
        """Whether patching has nothing to change to make this the other."""
        mine, others = ((site.path, site.recipe, site.left, site.verify) for site in (self, other))
        return mine == others

    def decline(self, cause: str) -> None:
        if not is_comparing():
            self.declined[cause] += 1
            STATS.count(f"patch:{cause}")

    def answer(
        self, module: nn.Module, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """The recipe's answer to a call, or the stock forward's."""
        cause = why_not(module, self.recipe, args, kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            cause = cause or "transform"  # vmap, grad, …: no op of ours has rules for them
        if cause is not None:
            self.decline(cause)
            return stock(module, *args, **kwargs)
        verified = self.verify == "first" and self.recipe.ops
        if verified and signature(args, kwargs) not in self.verified:
            return first_call(self, module, stock, args, kwargs)
        return self.compute(module, args, kwargs)

    def compute(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The recipe's answer, counted."""
        result = self.recipe.forward(module, *args, **kwargs)
        self.called()
        return result

    def called(self) -> None:
        if not is_comparing():
            self.calls += 1

    def remember(self, key: Hashable, found: Agreement | None) -> None:
        """What the first call of a signature came to; None: it was not compared."""
        if len(self.verified) < MAX_SIGNATURES:
            self.verified[key] = None if found is None else found.share
        STATS.count("patch:unverified" if found is None else "patch:verified")

    def lose(self, module: nn.Module, fault: str) -> None:
        """Leave the module to its stock forward, for good. Said and counted once, whatever thread
        finds it, and in whose comparison: such a call is the first in a block's."""
        with _LOSING:
            if self.left is not None:
                return
            self.left = f"mismatch: {fault}"
        log.warning(
            "jitd.patch: %s (%s) goes back to its stock forward: %s",
            self.path, self.recipe.name, fault,
        )  # fmt: skip
        self.declined["mismatch"] += 1
        STATS.count("patch:mismatch")
        unbind(module)

    def __deepcopy__(self, memo: Any) -> "Site":
        return Site(self.path, self.recipe, left=self.left, verify=self.verify)

    def __reduce__(self) -> Any:
        # A pickled model is a stock one, which needs no jitd to be loaded: pickle looks the bound
        # forward up by its name, and finds the class's.
        return type(None), ()

    def __repr__(self) -> str:
        state = "patched" if self.patched else f"left ({self.left})"
        return f"<Site {self.path}: {self.recipe.name}, {state}, {self.calls} calls>"


def site_of(module: nn.Module) -> Site | None:
    """The site that answers for this module."""
    return module.__dict__.get("_jitd_site")


def bind(module: nn.Module, site: Site, numerics: str) -> None:
    """Have the site answer for the module, under whatever hooks it has."""
    place = place_of_forward(module)
    if place is None:
        raise ValueError(f"{site.path}: its forward was replaced; only the class's own is patched.")
    module._jitd_site = site
    module._jitd_numerics = numerics
    module._jitd_seen = type(module), seen(site.recipe.reads(module))
    owner, name = place
    setattr(owner, name, MethodType(_forward(site.recipe, type(module)), module))


def unbind(module: nn.Module) -> None:
    """Put the stock forward back where ours is."""
    place = place_of_forward(module)
    if place is not None:
        owner, name = place
        if owner is module and name == "forward":
            module.__dict__.pop("forward", None)
        elif is_ours(getattr(owner, name)):
            setattr(owner, name, MethodType(type(module).forward, module))
    for name in ("_jitd_site", "_jitd_numerics", "_jitd_seen"):
        module.__dict__.pop(name, None)


@cache
def _forward(recipe: Recipe, cls: type) -> Callable[..., Any]:
    """What all instances of a class are given: one function, so that torch.compile, which guards
    its identity, compiles a block once and not forty-eight times."""
    theirs, as_stock = cls.forward, recipe.as_stock

    def stock(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = as_stock(module, *args, **kwargs)
        if type(module) is cls:
            return theirs(module, *args, **kwargs)
        return type(module).forward(module, *args, **kwargs)  # as if nothing were bound

    @wraps(theirs)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if why_not(module, recipe, args, kwargs) is not None:
                return stock(module, *args, **kwargs)
            return recipe.forward(module, *args, **kwargs)
        site = site_of(module)
        if site is None:
            return stock(module, *args, **kwargs)
        return site.answer(module, stock, args, kwargs)

    forward._jitd_recipe = recipe
    return forward


def why_not(
    module: nn.Module, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Why the stock forward answers this call, in a word; None if the recipe does."""
    if module.training:
        return "training"
    if torch.is_grad_enabled() and _needs_grad(module, args, kwargs):
        return "grad"
    if torch._C._is_any_autocast_enabled():
        return "autocast"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hook"  # of all modules: those that are read would not run it
    before = getattr(module, "_jitd_seen", None)
    # None: it was unpatched, while its forward is still called by whoever wrapped it.
    if before is None or type(module) is not before[0]:
        return "replaced"
    cause = changed(tuple(recipe.reads(module)), before[1])
    return cause or recipe.takes(module, *args, **kwargs)


def _needs_grad(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for value in (*args, *kwargs.values(), *module.parameters()):
        if isinstance(value, Tensor) and value.requires_grad:
            return True
    return False
