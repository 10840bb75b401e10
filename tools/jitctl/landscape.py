"""The landscape of a tune: every config with its time or its fate, as a winner's record keeps it.

Read from the record alone: neither the op nor torch is needed. Records of earlier versions lack
some of it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Value: TypeAlias = bool | int | str

_FATES = ("wrong", "failed", "dropped")  # what a cell says that has several, the worst first


@dataclass(frozen=True)
class Point:
    """One config. `us` is None if it was not timed; `registers` has one for each launch."""

    config: str
    variant: str
    params: Mapping[str, Value]
    status: str  # timed, dropped, failed, wrong
    reason: str = ""
    detail: str = ""
    us: float | None = None
    spread: float | None = None
    reps: int | None = None
    how: str = ""
    error: float | None = None
    registers: Sequence[int] | None = None
    spills: int | None = None  # bytes


@dataclass(frozen=True)
class Cell:
    """The configs of a landscape that share two parameters: the fastest, or their fate."""

    us: float | None = None
    fate: str = ""
    wins: bool = False


@dataclass(frozen=True)
class Panel:
    """The landscape of one variant over two of its axes. Where no config was is no cell."""

    variant: str
    x: str
    y: str
    xs: Sequence[Value]
    ys: Sequence[Value]
    cells: Mapping[tuple[Value, Value], Cell]


@dataclass(frozen=True)
class Landscape:
    """All configs of one tune. `dropped` has those that were never compiled, by their reasons."""

    winner: str
    floor_us: float | None
    points: Sequence[Point]
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Landscape":
        """The landscape in the body of a winner's record."""
        points = [_point(outcome) for outcome in body.get("outcomes") or ()]
        dropped = body.get("dropped") or {}
        return cls(body["config"], body.get("floor_us"), points, dropped)

    @property
    def best_us(self) -> float | None:
        """The fastest time, which need not be the winner's: near-ties are settled otherwise."""
        return min((point.us for point in self.points if point.us), default=None)

    @property
    def ranking(self) -> list[Point]:
        """The fastest first, then those without a time, by fate and name."""
        return sorted(
            self.points,
            key=lambda p: (p.us is None, p.us or 0.0, p.status if p.us is None else "", p.config),
        )

    def panels(self, x: str | None = None, y: str | None = None) -> list[Panel]:
        """The winner's variant first, then the others that were timed, over the axes `x` and `y`.

        By default x is BLOCK, or an axis named like it, or the first; y is num_warps. Raises
        ValueError for an axis that the winner's variant does not have; a variant that lacks one
        is left out.
        """
        first = next((p.variant for p in self.points if p.config == self.winner), "")
        timed = dict.fromkeys(p.variant for p in self.points if p.us is not None)
        chosen: list[Panel] = []
        for variant in sorted(timed, key=lambda name: name != first):
            points = [p for p in self.points if p.variant == variant] + self._never_built(variant)
            axes = list(dict.fromkeys(name for point in points for name in point.params))
            if variant != first and not {x, y} - {None} <= set(axes):
                continue
            pair = _chosen_axes(variant, axes, x, y)
            chosen.append(_panel(variant, points, *pair, self.winner))
        return chosen

    def _never_built(self, variant: str) -> list[Point]:
        points = []
        for reason, names in self.dropped.items():
            for name in names:
                of, params = _parsed(name)
                if of == variant and params:
                    points.append(Point(name, of, params, "dropped", reason))
        return points


def _chosen_axes(
    variant: str, axes: Sequence[str], x: str | None, y: str | None
) -> tuple[str, str]:
    for option, asked in (("--x", x), ("--y", y)):
        if asked is not None and asked not in axes:
            raise ValueError(f"{option} {asked}: {variant} has the axes {', '.join(axes)}.")
    if x is not None and x == y:
        raise ValueError(f"--x {x} --y {y}: two different axes of {', '.join(axes)} are needed.")
    if y is None:
        rest = [name for name in axes if name != x]
        y = "num_warps" if "num_warps" in rest else next(iter(rest[::-1]), "")
    if x is None:
        rest = [name for name in axes if name != y]
        like = [name for name in rest if "BLOCK" in name]
        x = "BLOCK" if "BLOCK" in rest else next(iter([*like, *rest]), "")
    if not (x and y):
        raise ValueError(f"{variant} has no two axes to draw, only {', '.join(axes) or 'none'}.")
    return x, y


def _panel(variant: str, points: Sequence[Point], x: str, y: str, winner: str) -> Panel:
    together: dict[tuple[Value, Value], list[Point]] = {}
    for point in points:
        if x in point.params and y in point.params:
            together.setdefault((point.params[x], point.params[y]), []).append(point)
    cells = {}
    for place, here in together.items():
        timed = [point.us for point in here if point.us is not None]
        fates = {point.status for point in here}
        fate = "" if timed else next((word for word in _FATES if word in fates), "not timed")
        wins = any(point.config == winner for point in here)
        cells[place] = Cell(min(timed, default=None), fate, wins)
    xs, ys = (_ordered({place[i] for place in together}) for i in (0, 1))
    return Panel(variant, x, y, xs, ys, cells)


def _ordered(values: set[Value]) -> list[Value]:
    """Numbers by size, then words."""
    words = [value for value in values if isinstance(value, str)]
    return [*sorted(value for value in values if not isinstance(value, str)), *sorted(words)]


def _point(outcome: Mapping[str, Any]) -> Point:
    timing = outcome.get("timing") or {}
    variant, params = _parsed(outcome["config"])
    return Point(
        config=outcome["config"],
        variant=outcome.get("variant", variant),
        params=outcome.get("params", params),
        status=outcome["status"],
        reason=outcome.get("reason", ""),
        detail=outcome.get("detail", ""),
        us=timing.get("us"),
        spread=timing.get("spread"),
        reps=timing.get("reps"),
        how=timing.get("how", ""),
        error=outcome.get("error"),
        registers=outcome.get("registers"),
        spills=outcome.get("spills"),
    )


def _parsed(name: str) -> tuple[str, dict[str, Value]]:
    """Variant and parameters of a config's name: `two_launch(BLOCK=1024, num_warps=4)`."""
    match = re.fullmatch(r"(\w+)\((.*)\)", name)
    if match is None:
        return name, {}  # a variant that was dropped as a whole
    pairs = (word.partition("=") for word in match[2].split(", ") if word)
    return match[1], {axis: _value(text) for axis, _, text in pairs}


def _value(text: str) -> Value:
    if text in ("True", "False"):
        return text == "True"
    return int(text) if re.fullmatch(r"-?\d+", text) else text
