"""The figures to reach, as data: which shapes are measured, and what counts as good there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

GROUPS = 32
"""Groups of every GroupNorm that is measured."""

Yardstick = Literal["best peer", "floor"]


@dataclass(frozen=True)
class Limit:
    """A time may be at most so many times the yardstick's, measured in the same process.

    `best peer` is the fastest of all others that were measured: eager, torch.compile and every
    peer given. A `must` is a limit that has to hold, a `goal` one that is worth working for.
    """

    at_most: float
    of: Yardstick
    word: Literal["must", "goal"] = "goal"

    def __str__(self) -> str:
        lead = "must " if self.word == "must" else ""
        return f"{lead}<= {self.at_most:g}x {self.of}"


@dataclass(frozen=True)
class Target:
    """One row of the GroupNorm table: a shape (N, C, *spatial) and its limits."""

    shape: tuple[int, ...]
    limits: tuple[Limit, ...]
    where: str = ""

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))


_SMALL = (Limit(0.6, "best peer"),)
_MEDIUM = (Limit(0.65, "best peer"),)
_LARGE = (Limit(1.55, "floor", "must"), Limit(1.3, "floor"))

GROUP_NORM: Sequence[Target] = (
    Target((1, 512, 16, 8, 12), _SMALL, "512x768, before"),
    Target((1, 512, 16, 16, 24), _SMALL, "512x768, after; 1024x1536, before"),
    Target((1, 512, 16, 32, 48), _MEDIUM, "1024x1536, after"),
    Target((1, 512, 16, 17, 30), _SMALL, "1088x1920, before"),
    Target((1, 512, 16, 34, 60), _MEDIUM, "1088x1920, after"),
    Target((1, 512, 8, 45, 80), (Limit(1.9, "floor"),), "SGLang's benchmark: small"),
    Target((1, 512, 16, 90, 160), _LARGE, "SGLang's benchmark: pre_720p"),
    Target((1, 512, 16, 180, 320), _LARGE, "SGLang's benchmark: post_720p"),
    # The channels of the released upsampler.
    Target((1, 1024, 16, 16, 24), _SMALL, "512x768, after; 1024x1536, before"),
    Target((1, 1024, 16, 32, 48), _MEDIUM, "1024x1536, after"),
    Target((1, 1024, 16, 17, 30), _SMALL, "1088x1920, before"),
    Target((1, 1024, 16, 34, 60), _MEDIUM, "1088x1920, after"),
)

HOST_OP_US = 8.0
"""At most so many microseconds for a whole call of an op with one launch, ..."""

HOST_OP_SHARE = 0.65
"""... and at most this share of `empty_like` and Triton's launch of the same kernel."""

START_FIRST_MS = 80.0
"""From a first torch kernel to a first tuned one, in a process with a warm cache."""

START_FURTHER_MS = 3.0
"""Each further signature."""

TUNE_SPEEDUP = 5.0
"""Times faster than @triton.autotune over the same configs, with workers and child up."""

TUNE_REGRET, TUNE_REGRET_PAIRS = 0.03, 0.95
"""A first pick is at most so much slower than the best of a long measurement, in so many pairs."""

TUNE_WORST = 0.02
"""No repeated tune picks anything that is slower than the best by more."""

TUNE_SAME, TUNE_SAME_PAIRS = 0.9, 0.7
"""From an empty store so many tunes pick the same, in so many pairs. With a stored winner: all."""

TUNE_TOGETHER = 1.3
"""Eight processes on a cold cache take at most so many times what one takes alone."""


@dataclass(frozen=True)
class Verdict:
    """A limit held against a measurement. `ratio` is None where the yardstick is missing."""

    limit: Limit
    ratio: float | None

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.limit.at_most

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.limit.word} ?"
        return f"{self.limit.word} {'met' if self.met else 'MISSED'} at {self.ratio:.2f}"


def judge(
    limits: Sequence[Limit], us: float | None, floor_us: float, others_us: Mapping[str, float]
) -> list[Verdict]:
    """Each limit against our time. Without a measured `compile` there is no best peer to name."""
    yardsticks = {"floor": floor_us}
    if "compile" in others_us:
        yardsticks["best peer"] = min(others_us.values())
    return [
        Verdict(one, us / yardsticks[one.of] if us is not None and one.of in yardsticks else None)
        for one in limits
    ]


@dataclass(frozen=True)
class Reached:
    """One figure of a part of `tune` beside its goal. `met` is None if it was not measured."""

    what: str
    goal: str
    value: str
    met: bool | None

    def __str__(self) -> str:
        word = {None: "not measured", True: "met", False: "MISSED"}[self.met]
        return f"{self.what}: {self.value} (goal {self.goal}): {word}"

    def json(self) -> dict[str, Any]:
        return {"what": self.what, "goal": self.goal, "value": self.value, "met": self.met}
