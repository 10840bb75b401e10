"""The parameters worth trying for a variant, and the names of its configs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Value = int | bool | str
Params = dict[str, Value]
"""One point of a space: name to value, in the order of the axes."""

Problem = Any
"""What a space is asked about (a shape, a signature). Handed on to its callables, never read."""


class Space:
    """The product of `axes`, less the points that `where` calls hopeless for a problem.

    `where(params, problem)` returns None to keep a point, or the reason to drop it before it is
    compiled. `default(problem)` is the config that serves an untuned problem; it has to lie in
    the product, and may be a point that `where` would drop from a search.
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence[Value]],
        *,
        where: Callable[[Params, Problem], str | None] | None = None,
        default: Callable[[Problem], Mapping[str, Value]],
    ) -> None:
        self.axes = {name: tuple(values) for name, values in axes.items()}
        for name, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {name} has no values; give it at least one")
            if len({_exact(value) for value in values}) < len(values):
                raise ValueError(f"axis {name} names a value twice: {values}")
        self._where = where
        self._default = default

    def __repr__(self) -> str:
        sides = ", ".join(f"{name} x{len(values)}" for name, values in self.axes.items())
        return f"Space({sides})"

    def configs(self, problem: Problem) -> tuple[list[Params], list[tuple[Params, str]]]:
        """The points to try and the points dropped, each with its reason, in canonical order.

        Canonical order is that of the axes as declared, the last one fastest. It depends on
        nothing else, so that processes which find a tie agree on the winner.
        """
        kept: list[Params] = []
        dropped: list[tuple[Params, str]] = []
        for point in itertools.product(*self.axes.values()):
            params = dict(zip(self.axes, point, strict=True))
            reason = self._where(dict(params), problem) if self._where else None
            if reason is None:
                kept.append(params)
            else:
                dropped.append((params, reason))
        return kept, dropped

    def default(self, problem: Problem) -> Params:
        """The config that serves `problem` until it is tuned; ValueError if outside the space."""
        given = self._default(problem)
        for name in given:
            if name not in self.axes:
                raise ValueError(f"the default sets {name}; the axes are {', '.join(self.axes)}")
        for name, values in self.axes.items():
            if name not in given:
                raise ValueError(f"the default says nothing about axis {name}; choose of {values}")
            if _exact(given[name]) not in {_exact(value) for value in values}:
                raise ValueError(f"the default has {name}={given[name]!r}; allowed are {values}")
        return {name: given[name] for name in self.axes}


def name_of(variant: str, params: Mapping[str, Value]) -> str:
    """How a config is written everywhere: `two_launch(BLOCK=1024, num_warps=4)`."""
    return f"{variant}({', '.join(f'{name}={value!r}' for name, value in params.items())})"


def _exact(value: Value) -> tuple[type, Value]:
    """A value that keeps True and 1 apart: they select different code."""
    return type(value), value
