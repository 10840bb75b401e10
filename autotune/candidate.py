"""What a search is given and what it gives: candidates, a timer, timings, outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

How = Literal["graph", "events"]
Status = Literal["timed", "dropped", "failed", "wrong"]


class Runnable(Protocol):
    """A candidate prepared to run: `run(i)` enqueues it once on its input set i and returns.

    A runnable that cannot be captured into a CUDA graph has an attribute `capturable = False`.
    """

    def __call__(self, i: int, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A config to try.

    `build` may compile, or wait for one who does; it raises CandidateFailed if there is no way.
    """

    name: str
    build: Callable[[], Runnable]


class CandidateFailed(Exception):
    """A candidate cannot be built or run: a fact about it, kept in its outcome."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class DeviceLost(Exception):
    """A candidate left the device unusable (an illegal access, say); no later one can be tried.

    name   of the candidate; "" in the last round, where it could be any of the finalists
    stage  build, verify, time or final
    """

    def __init__(self, name: str, stage: str, detail: str = "") -> None:
        super().__init__(name, stage, detail)
        self.name = name
        self.stage = stage
        self.detail = detail

    def __str__(self) -> str:
        who = self.name or "one of the finalists"
        return f"{who} left the device unusable, at stage {self.stage}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Samples:
    """The repetitions of one measurement, in microseconds, and how they were taken."""

    us: Sequence[float]
    how: How


class Timer(Protocol):
    """What times runnables; `timing.CudaTimer` on a GPU, a simulation in the tests."""

    def measure(self, run: Runnable, reps: int) -> Samples: ...

    def interleaved(self, runs: Sequence[Runnable], rounds: int) -> list[Samples]:
        """One Samples for each run, taken in turns, all by the same method."""
        ...

    @property
    def drift(self) -> float:
        """The share by which the time of something that never changes has varied so far."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """us: the median. spread: from the 20th to the 80th percentile, as a share of the median."""

    us: float
    spread: float
    reps: int
    how: How


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a candidate.

    status   timed: it was in the last round. dropped: not fast enough to be there, or never
             tried. failed: it could not be built or run. wrong: the check refused it.
    reason   why it is not "timed", in one line; `detail` has the compiler's or driver's words
    timing   the latest one, None if it was never timed
    error    the largest absolute error found by the check
    """

    name: str
    status: Status
    reason: str = ""
    timing: Timing | None = None
    error: float | None = None
    detail: str = ""
