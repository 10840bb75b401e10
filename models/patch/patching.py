"""`patch` and `unpatch`: which modules of a pipeline get a forward of ours."""

import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from .hooks import place_of_forward
from .recipe import Recipe, digest, name_of
from .recipe import numerics as numerics_of
from .recipes import RECIPES, recipe_above, recipe_for
from .report import NOTHING_FITS, PatchReport
from .site import Site, bind, site_of, unbind

__all__ = ["patch", "unpatch"]

_NUMERICS = ("exact", "fast")
_VERIFY = ("first", "never")
_LATER = "patched by a later call of patch"

log = logging.getLogger("jitd")

_patching = threading.RLock()

_REPORTED: WeakKeyDictionary[nn.Module, WeakSet[Site]] = WeakKeyDictionary()
"""What reports that somebody still holds have of each module: they say what is so now."""


def patch(
    pipeline: Any,
    *,
    numerics: str = "exact",
    ops: str | Collection[str] = "all",
    verify: str = "first",
) -> PatchReport:
    """Have jitd's ops compute what they can in a diffusers pipeline or model; says what that is.

    pipeline  a pipeline, or a model (any nn.Module). Weights, classes, names of parameters and
              modules, processors, LoRA, hooks and offloading stay as they are
    numerics  `exact` rounds where diffusers does, `fast` rounds once
    ops       `all`, or the names of the ops to use: a site is patched if all its ops are among them
    verify    `first`: the first call of each signature of each site is compared with diffusers'
              forward; `never`

    A site is left if its class is none that a recipe was written against, or its config is
    unusual; where nothing is a site, the report and a warning say what is supported. A call is
    answered by the stock forward if it needs gradients, runs under autocast, or a hook moves
    weights that the site would read. The report says so, `jitd.stats()` counts it as
    `patch:<cause>`. Patching again changes what is chosen otherwise: the last call decides. A deep
    copy is patched like its original; a pickled model is a stock one.

    Raises ValueError for an unknown choice, for an unknown op, and for what is no pipeline.
    """
    if numerics not in _NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; allowed are {', '.join(_NUMERICS)}.")
    if verify not in _VERIFY:
        raise ValueError(f"verify is {verify!r}; allowed are {', '.join(_VERIFY)}.")
    chosen = _chosen(ops)
    with _patching:
        sites = []
        for path, module, recipe in _sites(pipeline):
            left = _why_left(module, recipe, chosen)
            sites.append(_settled(module, Site(path, recipe, left=left, verify=verify), numerics))
    if not sites:
        log.warning("jitd.patch(%s): %s", type(pipeline).__name__, NOTHING_FITS)
    return PatchReport(sites)


def unpatch(pipeline: Any) -> int:
    """Undo `patch`; returns how many modules had a forward of ours. ValueError as `patch`."""
    count = 0
    with _patching:
        for _, module in _modules(pipeline):
            if site_of(module) is not None:
                unbind(module)
                _tell_earlier_reports(module, "unpatched")
                count += 1
    return count


def _settled(module: nn.Module, site: Site, numerics: str) -> Site:
    """Bind or let go of a module as `site` says; gives the site that it has then."""
    before = site_of(module)
    if before is not None and before.is_like(site) and numerics_of(module) == numerics:
        site = before  # of a component that two pipelines share: both reports count
    else:
        unbind(module)
        if site.patched:
            bind(module, site, numerics)
    _tell_earlier_reports(module, _LATER if site.patched else site.left, but=site)
    _REPORTED.setdefault(module, WeakSet()).add(site)
    return site


def _tell_earlier_reports(module: nn.Module, state: str | None, *, but: Site | None = None) -> None:
    """Have other reports say what is so now of a module that was patched anew, all but the site
    that `patch` settled on, or unpatched: then those that said that it was patched."""
    for site in _REPORTED.get(module, ()):
        if site is not but and (site.left in (None, _LATER) or but is not None):
            site.left = state


def _chosen(ops: str | Collection[str]) -> frozenset[str]:
    known = {op for recipe in RECIPES.values() for op in recipe.ops}
    if ops == "all":
        return frozenset(known)
    names = [ops] if isinstance(ops, str) else list(ops) if isinstance(ops, Iterable) else []
    if not names:
        raise ValueError(f"ops is {ops!r}; allowed are 'all' or names of ops.")
    if "all" in names:
        raise ValueError("'all' is no name of an op: write ops='all', or the names alone.")
    if unknown := {
        str(op) or repr(op) for op in names if not isinstance(op, str) or op not in known
    }:
        raise ValueError(
            f"no site uses the ops {', '.join(sorted(unknown))}. "
            f"Allowed are 'all' or some of {', '.join(sorted(known))}."
        )
    return frozenset(names)


def _why_left(module: nn.Module, recipe: Recipe, chosen: frozenset[str]) -> str | None:
    if recipe_for(type(module)) is None:
        return f"{type(module).__name__} is a subclass of {recipe.name}"
    if not chosen.issuperset(recipe.ops):
        return "ops not chosen"
    if digest(recipe.cls, *recipe.relies) not in recipe.sources:
        return "unknown version"
    stock = type(module).forward
    own = f"{stock.__module__}.{stock.__qualname__}" == f"{name_of(type(module))}.forward"
    if not own or place_of_forward(module) is None:
        return "forward was replaced"
    return recipe.fits(module)


def _sites(pipeline: Any) -> Iterator[tuple[str, nn.Module, Recipe]]:
    for path, module in _modules(pipeline):
        recipe = recipe_for(type(module)) or recipe_above(type(module))
        if recipe is not None:
            yield path, module, recipe


def _modules(pipeline: Any) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, each once."""
    if isinstance(pipeline, type):
        raise ValueError(
            f"{pipeline.__name__} is a class; give an instance of it: allowed are pipelines of "
            "diffusers and modules."
        )
    if isinstance(pipeline, nn.Module):
        yield from pipeline.named_modules()
        return
    components = getattr(pipeline, "components", None)
    if not isinstance(components, dict):
        raise ValueError(
            f"a {type(pipeline).__name__} has no modules; allowed are pipelines of diffusers and "
            "modules."
        )
    seen: set[nn.Module] = set()
    for name, component in components.items():
        if isinstance(component, nn.Module):
            yield from component.named_modules(memo=seen, prefix=name)
