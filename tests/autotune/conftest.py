"""Simulated candidates and clocks: no test in this folder sleeps or looks at a real one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from jitd.autotune.policy import Policy
from jitd.autotune.search import Candidate, CandidateFailed, Result, Samples, search
from jitd.autotune.verify import Verdict

RIGHT = Verdict(True, "", 0.1, 0.1, 0.2, 0, (), "float64")


@dataclass
class Simulated:
    """A runnable that is only a name and a speed."""

    name: str
    us: float

    def __call__(self, i: int) -> None:
        raise AssertionError("a simulated timer runs nothing")


@dataclass
class SimulatedTimer:
    """Times as on a GPU: relative noise, rare outliers, and clocks that wander slowly."""

    seed: int = 0
    noise: float = 0.0
    wander: float = 0.0
    clock: float = 1.0
    drift: float = 0.0
    alone: list[tuple[str, int]] = field(default_factory=list)
    in_turns: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def _once(self, run: Simulated) -> float:
        self.clock *= 1 + self._random.gauss(0, self.wander)
        outlier = 1.5 if self.noise and self._random.random() < 0.02 else 1.0
        return run.us * self.clock * outlier * (1 + self._random.gauss(0, self.noise))

    def measure(self, run: Simulated, reps: int) -> Samples:
        self.alone.append((run.name, reps))
        return Samples([self._once(run) for _ in range(reps)], "events")

    def interleaved(self, runs: Sequence[Simulated], rounds: int) -> list[Samples]:
        self.in_turns.append(tuple(run.name for run in runs))
        table = [[self._once(run) for run in runs] for _ in range(rounds)]
        return [Samples(list(column), "events") for column in zip(*table, strict=True)]


RULES = Policy(rungs=(5, 15, 40), finalists=4)  # what the tests count by


class Simulation:
    """Builds candidates from a table of speeds and searches them."""

    Timer = SimulatedTimer
    Runnable = Simulated
    right = RIGHT

    def __init__(self) -> None:
        self.built: list[str] = []

    def candidates(self, speeds: Mapping[str, float | None]) -> list[Candidate]:
        """In the order of the table; who has no speed cannot be built."""

        def build(name: str) -> Simulated:
            self.built.append(name)
            us = speeds[name]
            if us is None:
                raise CandidateFailed("does not compile", "the compiler's words")
            return Simulated(name, us)

        return [Candidate(name, partial(build, name)) for name in speeds]

    def search(self, speeds: Mapping[str, float | None], **changes: object) -> Result:
        arguments: dict[str, object] = {
            "verify": lambda candidate, run: RIGHT,
            "timer": SimulatedTimer(),
            "policy": RULES,
            "floor_us": None,
            "stored": None,
            "default": None,
        }
        return search(self.candidates(speeds), **{**arguments, **changes})


@pytest.fixture
def simulation() -> Simulation:
    return Simulation()
