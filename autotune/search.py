"""The search: build and check every candidate, race those that are right, choose one.

The race is successive halving. Each candidate gets a short round; who is far behind leaves; the
last few are timed in turns, so that a drift of the clocks hits all of them alike. Longer timing
does not make two processes agree on one of several near-ties, a tie band with a fixed order does
(`choose`), at a cost of about 0.15 % of speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar

from .policy import Policy
from .verify import Verdict

T = TypeVar("T")
How = Literal["graph", "events"]
Status = Literal["timed", "dropped", "failed", "wrong"]


class Runnable(Protocol):
    """A candidate prepared to run: `run(i)` enqueues it once on its input set i and returns.

    A runnable that cannot be captured into a CUDA graph has an attribute `capturable = False`.
    """

    def __call__(self, i: int, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A config to try. `build` may compile; it raises CandidateFailed if there is no way."""

    name: str
    build: Callable[[], Runnable]


class CandidateFailed(Exception):
    """A candidate cannot be built or run: a fact about it, kept in its outcome."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


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

    status   timed: it was in the last round. dropped: right, but not fast enough to be there.
             failed: it could not be built or run. wrong: the check refused it.
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


@dataclass(frozen=True, slots=True)
class Result:
    """winner: a name, None if no candidate is valid. outcomes: one each, in canonical order."""

    winner: str | None
    outcomes: list[Outcome]
    stopped_early: bool


def search(
    candidates: Sequence[Candidate],
    *,
    verify: Callable[[Candidate, Runnable], Verdict],
    timer: Timer,
    policy: Policy,
    floor_us: float | None,
    stored: str | None,
    default: str | None,
    known: Mapping[str, Timing] = MappingProxyType({}),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Result:
    """The fastest valid candidate, and what became of every other.

    candidates  in canonical order. The stored winner and the default are taken first.
    floor_us    what the bytes alone would take, None if unknown: reaching it ends the search
    known       timings of an earlier search. One answers every round of no more repetitions than
                it has. It speaks for speed only: its candidate is built and checked all the same.
    on_outcome  called with each failure, each timing as it is made and each drop. A candidate may
                be reported several times; its last report is the one in the result.

    What a candidate raises while it is built, checked or timed alone ends in its outcome. The
    last round, of candidates that have all run before, raises: the device is then at fault.
    """
    order = [candidate.name for candidate in candidates]
    if len(set(order)) < len(order):
        raise ValueError(f"two candidates share a name: {sorted(order)}")
    place = {default: 1, stored: 0}

    race = _Race(timer, policy, known, on_outcome)
    for candidate in sorted(candidates, key=lambda candidate: place.get(candidate.name, 2)):
        race.admit(candidate, verify)
    stopped_early = race.opening(floor_us)
    if not stopped_early:
        race.short_rounds()
    race.final(seeded={stored, default})

    timings = {name: race.timings[name] for name in race.running}
    return Result(
        choose(timings, order, stored=stored, default=default, policy=policy),
        [race.outcomes[name] for name in order],
        stopped_early,
    )


def choose(
    timings: Mapping[str, Timing],
    order: Sequence[str],
    *,
    stored: str | None,
    default: str | None,
    policy: Policy,
) -> str | None:
    """The winner among `timings`; None if there are none. `order` is the canonical order.

    A stored winner stays unless something is faster by more than the hysteresis; only such
    candidates may then replace it. Of those within the tie band of the best, the default is
    preferred, else the first in canonical order.
    """
    rivals = [name for name in order if name in timings]
    if stored in rivals:
        to_beat = timings[stored].us
        rivals = [name for name in rivals if timings[name].us * (1 + policy.hysteresis) < to_beat]
        if not rivals:
            return stored
    if not rivals:
        return None
    best = min(timings[name].us for name in rivals)
    band = [name for name in rivals if timings[name].us <= best * (1 + policy.tie)]
    return default if default in band else band[0]


class _Race:
    """Who is still running, their latest timings, and the outcome of everybody so far."""

    def __init__(
        self,
        timer: Timer,
        policy: Policy,
        known: Mapping[str, Timing],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.running: dict[str, Runnable] = {}
        self.timings: dict[str, Timing] = {}
        self.outcomes: dict[str, Outcome] = {}
        self._errors: dict[str, float | None] = {}
        self._timer = timer
        self._policy = policy
        self._known = known
        self._on_outcome = on_outcome

    def admit(self, candidate: Candidate, verify: Callable[[Candidate, Runnable], Verdict]) -> None:
        """Build and check a candidate; it runs on only if both went well."""

        def built_and_checked() -> tuple[Runnable, Verdict]:
            run = candidate.build()
            return run, verify(candidate, run)

        answer = _attempt(built_and_checked)
        if isinstance(answer, CandidateFailed):
            self._leave(candidate.name, "failed", answer.reason, answer.detail)
            return
        run, verdict = answer
        self._errors[candidate.name] = verdict.max_abs_error
        if verdict.ok:
            self.running[candidate.name] = run
        else:
            self._leave(candidate.name, "wrong", verdict.reason)

    def opening(self, floor_us: float | None) -> bool:
        """The shortest round, for everybody; True if it ended at a candidate near the floor."""
        waiting = list(self.running)
        reached = False
        while waiting and not reached:
            name = waiting.pop(0)
            self._time(name, self._policy.rungs[0])
            if self._at_floor(name, floor_us):
                # A few repetitions can flatter: believe it only after the full count.
                self._time(name, self._policy.rungs[-1])
                reached = self._at_floor(name, floor_us)
        for late in waiting:
            self._leave(late, "dropped", f"not timed: {name} reached the floor")
        self._thin()
        return reached

    def short_rounds(self) -> None:
        """The rounds between the opening and the final, each longer and for fewer."""
        for reps in self._policy.rungs[1:-1]:
            for name in list(self.running):
                self._time(name, reps)
            self._thin()

    def final(self, seeded: set[str | None]) -> None:
        """Time the fastest few, and the seeded that are still running, in turns."""
        ranking = sorted(self.running, key=lambda name: self.timings[name].us)
        for name in ranking[self._policy.finalists :]:
            if name not in seeded:
                self._leave(name, "dropped", f"{self._policy.finalists} others were faster")
        reps = self._policy.rungs[-1]
        field = [name for name in self.running if not self._is_known(name, reps)]
        if field:
            runs = [self.running[name] for name in field]
            for name, samples in zip(field, self._timer.interleaved(runs, reps), strict=True):
                self._note(name, samples)

    def _time(self, name: str, reps: int) -> None:
        """Give a candidate a timing of at least `reps` repetitions, or its failure."""
        if self._is_known(name, reps):
            self.timings[name] = self._known[name]
            self.outcomes[name] = self._outcome(name, "timed", "timed earlier")
            return
        run = self.running[name]
        answer = _attempt(lambda: self._timer.measure(run, reps))
        if isinstance(answer, CandidateFailed):
            self._leave(name, "failed", answer.reason, answer.detail)
        else:
            self._note(name, answer)

    def _is_known(self, name: str, reps: int) -> bool:
        return name in self._known and self._known[name].reps >= reps

    def _note(self, name: str, samples: Samples) -> None:
        self.timings[name] = _timing(samples)
        self.outcomes[name] = self._outcome(name, "timed")
        self._on_outcome(self.outcomes[name])

    def _at_floor(self, name: str, floor_us: float | None) -> bool:
        """Whether a candidate is as fast as its bytes allow.

        One that is clearly faster says that the floor is wrong, and then stops nothing.
        """
        if floor_us is None or name not in self.running:
            return False
        return abs(self.timings[name].us - floor_us) <= self._policy.floor_stop * floor_us

    def _thin(self) -> None:
        """Drop who is too far behind to be worth a longer round."""
        best = min((self.timings[name].us for name in self.running), default=0.0)
        for name in list(self.running):
            timing = self.timings[name]
            if timing.us > best * self._policy.keep_within:
                self._leave(
                    name,
                    "dropped",
                    f"{timing.us:.2f} us after {timing.reps} repetitions, the best {best:.2f} us",
                )

    def _leave(self, name: str, status: Status, reason: str, detail: str = "") -> None:
        self.running.pop(name, None)
        self.outcomes[name] = self._outcome(name, status, reason, detail)
        self._on_outcome(self.outcomes[name])

    def _outcome(self, name: str, status: Status, reason: str = "", detail: str = "") -> Outcome:
        return Outcome(name, status, reason, self.timings.get(name), self._errors.get(name), detail)


def _attempt(step: Callable[[], T]) -> T | CandidateFailed:
    """The result of a step of a candidate, or its failure as a value."""
    try:
        return step()
    except CandidateFailed as failure:
        return failure
    except Exception as error:  # noqa: BLE001 - a candidate may raise anything; its outcome says it
        return CandidateFailed(f"raised {type(error).__name__}", str(error))


def _timing(samples: Samples) -> Timing:
    # A difference of two measurements can come out below zero for a run that does nothing, and a
    # negative time would turn every "within x % of the best" around.
    us = max(0.0, statistics.median(samples.us))
    if len(samples.us) < 2 or us == 0:
        return Timing(us, 0.0, len(samples.us), samples.how)
    fifths = statistics.quantiles(samples.us, n=5, method="inclusive")
    return Timing(us, (fifths[-1] - fifths[0]) / us, len(samples.us), samples.how)
