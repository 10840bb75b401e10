"""`patch` and `unpatch`: which modules of a pipeline get a forward of ours."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import nn

from .hooks import place_of_forward
from .recipe import Recipe, digest, name_of
from .recipe import numerics as numerics_of
from .recipes import RECIPES, recipe_for
from .report import PatchReport
from .site import Site, bind, site_of, unbind

__all__ = ["patch", "unpatch"]

_NUMERICS = ("exact", "fast")
_VERIFY = ("first", "never")


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
    unusual; a call is answered by the stock forward if it needs gradients, runs under autocast, or
    a hook moves weights that the site would read. The report says so, `jitd.stats()` counts it as
    `patch:<cause>`. Patching again changes what is chosen otherwise: the last call decides. A deep
    copy is patched like its original; a pickled model is a stock one.

    Raises ValueError for an unknown choice, for an unknown op, and for what is no pipeline.
    """
    if numerics not in _NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; allowed are {', '.join(_NUMERICS)}.")
    if verify not in _VERIFY:
        raise ValueError(f"verify is {verify!r}; allowed are {', '.join(_VERIFY)}.")
    chosen = _chosen(ops)
    sites = []
    for path, module, recipe in _sites(pipeline):
        site = Site(path, recipe, left=_why_left(module, recipe, chosen), verify=verify)
        before = site_of(module)
        if before is not None and before.is_like(site) and numerics_of(module) == numerics:
            site = before  # of a component that two pipelines share: both reports count
        else:
            unbind(module)
            if site.patched:
                bind(module, site, numerics)
        sites.append(site)
    return PatchReport(sites)


def unpatch(pipeline: Any) -> int:
    """Undo `patch`; returns how many modules had a forward of ours. ValueError as `patch`."""
    count = 0
    for _, module in _modules(pipeline):
        if site_of(module) is not None:
            unbind(module)
            count += 1
    return count


def _chosen(ops: str | Collection[str]) -> frozenset[str]:
    known = {op for recipe in RECIPES.values() for op in recipe.ops}
    if ops == "all":
        return frozenset(known)
    if not isinstance(ops, Iterable):
        raise ValueError(f"ops is {ops!r}; allowed are 'all' or names of ops.")
    wanted: frozenset[Any] = frozenset([ops] if isinstance(ops, str) else ops)
    if unknown := wanted - known:
        raise ValueError(
            f"no site uses the ops {', '.join(sorted(map(str, unknown)))}. "
            f"Allowed are 'all' or some of {', '.join(sorted(known))}."
        )
    return wanted


def _why_left(module: nn.Module, recipe: Recipe, chosen: frozenset[str]) -> str | None:
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
        recipe = recipe_for(type(module))
        if recipe is not None:
            yield path, module, recipe


def _modules(pipeline: Any) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, each once."""
    if isinstance(pipeline, nn.Module):
        yield from pipeline.named_modules()
        return
    components = getattr(pipeline, "components", None)
    if not isinstance(components, dict):
        raise ValueError(
            f"a {type(pipeline).__name__} cannot be patched; allowed are pipelines of diffusers "
            "and modules."
        )
    seen: set[nn.Module] = set()
    for name, component in components.items():
        if isinstance(component, nn.Module):
            yield from component.named_modules(memo=seen, prefix=name)
