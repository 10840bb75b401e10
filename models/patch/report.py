"""What `patch` did, as a table."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .recipes import SUPPORTED
from .site import Site

__all__ = ["PatchReport"]

_COLUMNS = ("module", "class", "sites", "state", "ops", "calls", "declined", "verified")

NOTHING_FITS = f"none of jitd's recipes fits a module in it; supported are {SUPPORTED}."


class PatchReport:
    """The sites of a pipeline or a model. It is live: print it again after a run, or after
    `unpatch`. A copy, pickled or not, keeps what is so when it is made.

    `sites` has one entry for each module that a recipe knows, or whose class is a subclass of one
    that it knows, patched or left; `str` joins those of all layers:
    `transformer.transformer_blocks.*.attn1`. Counts are of calls that this report's sites answered:
    a later call of `patch` that decides otherwise begins anew, and these say so.
    """

    def __init__(self, sites: "Sequence[Site | SiteThen]") -> None:
        self.sites = tuple(sites)

    @property
    def patched(self) -> "tuple[Site | SiteThen, ...]":
        return tuple(site for site in self.sites if site.patched)

    @property
    def left(self) -> "tuple[Site | SiteThen, ...]":
        return tuple(site for site in self.sites if not site.patched)

    @property
    def calls(self) -> int:
        """Calls that the recipes answered."""
        return sum(site.calls for site in self.sites)

    @property
    def declined(self) -> Counter[str]:
        """Calls that the stock forwards answered, by cause."""
        return _declined(self.sites)

    def __repr__(self) -> str:
        return (
            f"<PatchReport: {len(self.patched)} sites patched, {len(self.left)} left, "
            f"{self.calls} calls, {self.declined.total()} declined>"
        )

    def __reduce__(self) -> Any:
        return PatchReport, (tuple(SiteThen.of(site) for site in self.sites),)

    def __str__(self) -> str:
        if not self.sites:
            return NOTHING_FITS[0].upper() + NOTHING_FITS[1:]
        rows = [_COLUMNS, *_rows(self.sites)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


@dataclass(frozen=True)
class RecipeThen:
    """What a report says of a recipe."""

    cls: str
    name: str
    ops: tuple[str, ...]


@dataclass(frozen=True)
class SiteThen:
    """What a site said when its report was copied: the same names, tied to no module. `verified`
    has its shares in order, without the signatures."""

    path: str
    recipe: RecipeThen
    left: str | None
    verify: str
    calls: int
    declined: Counter[str]
    verified: Mapping[Hashable, float | None]

    @classmethod
    def of(cls, site: "Site | SiteThen") -> "SiteThen":
        recipe = RecipeThen(site.recipe.cls, site.recipe.name, tuple(site.recipe.ops))
        shares = dict(enumerate(site.verified.values()))
        declined = Counter(site.declined)
        return cls(site.path, recipe, site.left, site.verify, site.calls, declined, shares)

    @property
    def patched(self) -> bool:
        return self.left is None


def _rows(sites: Sequence[Site | SiteThen]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], list[Site | SiteThen]] = {}
    for site in sites:
        where = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", site.path)
        state = "patched" if site.patched else f"left: {site.left}"
        groups.setdefault((where, site.recipe.name, state), []).append(site)
    return [
        (
            where,
            name,
            str(len(group)),
            state,
            ", ".join(group[0].recipe.ops),
            str(sum(site.calls for site in group)),
            _causes(group),
            _verified(group),
        )
        for (where, name, state), group in groups.items()
    ]


def _declined(sites: Sequence[Site | SiteThen]) -> Counter[str]:
    return sum((site.declined for site in sites), Counter[str]())


def _causes(sites: Sequence[Site | SiteThen]) -> str:
    return ", ".join(f"{cause} {n}" for cause, n in sorted(_declined(sites).items())) or "-"


def _verified(sites: Sequence[Site | SiteThen]) -> str:
    """Signatures compared, and how much of the bound was used at worst."""
    shares = [share for site in sites for share in site.verified.values()]
    done = [share for share in shares if share is not None]
    words = [f"{len(done)} (worst {max(done):.2g} of the bound)"] if done else []
    if len(done) < len(shares):
        words.append(f"{len(shares) - len(done)} not")
    return ", ".join(words) or "-"
