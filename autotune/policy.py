"""How candidates are measured and chosen: the numbers, and their place in a tuning key."""

from __future__ import annotations

from dataclasses import dataclass, fields

VERSION = 2
"""Raised when the same numbers come to mean another measurement."""

Identity = tuple[int | tuple[str, float | bool | tuple[int, ...]], ...]
"""The version, then a name and a number each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of one search. Winners found under different policies are not compared.

    clock_warmup_ms  the GPU is kept busy so long before the first timing, to raise its clocks
    rungs            repetitions per round: short rounds for all, the last one for the finalists
    keep_within      who is slower than this many times the best leaves after a short round
    finalists        seats in the last, interleaved round; the stored winner and the default
                     have theirs besides, as long as they are within `keep_within`
    graph_below_us   shorter runs are timed by CUDA-graph replay
    tie              share by which two timings may differ and still count as equal
    hysteresis       share by which a new winner has to be faster than the stored one
    floor_stop       the search stops at a candidate that is as near as this to the floor
    drift            share by which the canary may vary before a search counts as noisy
    flush_l2         each repetition finds a cold L2
    input_sets       input sets that a timed run rotates over
    """

    clock_warmup_ms: float = 200.0
    rungs: tuple[int, ...] = (5, 20, 60)
    keep_within: float = 1.3
    finalists: int = 6
    graph_below_us: float = 30.0
    tie: float = 0.01
    hysteresis: float = 0.03
    floor_stop: float = 0.05
    drift: float = 0.1
    flush_l2: bool = True
    input_sets: int = 2

    def __post_init__(self) -> None:
        if not self.rungs or min(self.rungs) < 1:
            raise ValueError(f"rungs={self.rungs}: give at least one round, each of 1 or more")
        if list(self.rungs) != sorted(self.rungs):
            raise ValueError(f"rungs={self.rungs}: a later round may not be shorter")
        if self.keep_within < 1:
            raise ValueError(f"keep_within={self.keep_within}: below 1 it drops the best, too")
        if self.finalists < 1 or self.input_sets < 1:
            raise ValueError(
                f"finalists={self.finalists}, input_sets={self.input_sets}: 1 or more each"
            )
        if not 0 <= self.tie <= self.hysteresis:
            raise ValueError(
                f"tie={self.tie}, hysteresis={self.hysteresis}: a stored winner inside the tie "
                "band must stay, so 0 <= tie <= hysteresis"
            )
        if self.drift <= 0:
            raise ValueError(f"drift={self.drift}: every search varies; allow more than 0")

    def identity(self) -> Identity:
        """What a key has to hold of this policy: the version, then every number by its name."""
        return (VERSION, *((field.name, getattr(self, field.name)) for field in fields(self)))
