"""What `patch` did, as a table."""

import re
from collections import Counter
from collections.abc import Sequence

from .site import Site

__all__ = ["PatchReport"]

_COLUMNS = ("module", "class", "sites", "state", "ops", "calls", "declined", "verified")


class PatchReport:
    """The sites of a pipeline or a model. Counts are live: print it again after a run.

    `sites` has one entry for each module that a recipe knows, patched or left; `str` joins those
    of all layers: `transformer.transformer_blocks.*.attn1`.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)

    @property
    def patched(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.patched)

    @property
    def left(self) -> tuple[Site, ...]:
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

    def __str__(self) -> str:
        rows = [_COLUMNS, *_rows(self.sites)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _rows(sites: Sequence[Site]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], list[Site]] = {}
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


def _declined(sites: Sequence[Site]) -> Counter[str]:
    return sum((site.declined for site in sites), Counter[str]())


def _causes(sites: Sequence[Site]) -> str:
    return ", ".join(f"{cause} {n}" for cause, n in sorted(_declined(sites).items())) or "-"


def _verified(sites: Sequence[Site]) -> str:
    """Signatures compared, and how much of the bound was used at worst."""
    shares = [share for site in sites for share in site.verified.values()]
    done = [share for share in shares if share is not None]
    words = [f"{len(done)} (worst {max(done):.2g} of the bound)"] if done else []
    if len(done) < len(shares):
        words.append(f"{len(shares) - len(done)} not")
    return ", ".join(words) or "-"
