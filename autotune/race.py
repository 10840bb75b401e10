"""The race of a search: who is still running, and what became of everybody else."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from .candidate import (
    Candidate,
    CandidateFailed,
    DeviceLost,
    Outcome,
    Runnable,
    Samples,
    Status,
    Timer,
    Timing,
)
from .policy import Policy
from .verify import Verdict

T = TypeVar("T")


class Race:
    """The rounds of a search, in the order in which they are held.

    timings   the latest one of each who was ever timed, or was known
    outcomes  of everybody so far; complete after `opening`, final after `final`
    measured  who was timed before the last round, each once, in order
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        verify: Callable[[Candidate, Runnable], Verdict],
        timer: Timer,
        policy: Policy,
        floor_us: float | None,
        alive: Callable[[], bool],
        on_step: Callable[[str, str], None],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.timings: dict[str, Timing] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.measured: list[str] = []
        self._candidates = {candidate.name: candidate for candidate in candidates}
        self._running: set[str] = set()
        self._built: dict[str, Runnable] = {}
        self._timed_here: set[str] = set()
        self._errors: dict[str, float | None] = {}
        self._verify = verify
        self._timer = timer
        self._policy = policy
        self._floor_us = floor_us
        self._alive = alive
        self._on_step = on_step
        self._on_outcome = on_outcome

    def running(self) -> list[str]:
        """Who is still in the race, in canonical order, so that ties do not hang on arrivals."""
        return [name for name in self._candidates if name in self._running]

    def join(self, known: Mapping[str, Outcome]) -> None:
        """Let those in whose outcome is known: with their timing, or out for the old reason."""
        for name in self._candidates:
            outcome = known.get(name)
            if outcome is None:
                continue
            if outcome.status in ("failed", "wrong"):
                self.outcomes[name] = outcome
            elif outcome.timing is not None:
                self.outcomes[name] = outcome
                self.timings[name] = outcome.timing
                self._errors[name] = outcome.error
                self._running.add(name)

    def opening(self, arrivals: Iterable[str]) -> bool:
        """The shortest round, for each as it arrives; True if it ended at one near the floor."""
        at_floor = next(filter(self._reaches_floor, self.running()), None)
        if at_floor is None:
            for name in arrivals:
                self._admit(name)
                if self._reaches_floor(name):
                    at_floor = name
                    break
        for name in self._candidates:
            if name not in self.outcomes:
                reason = f"not timed: {at_floor} reached the floor"
                if at_floor is None:
                    reason = "not tried: it never became ready to be built"
                self._leave(name, "dropped", reason)
        self._thin()
        return at_floor is not None

    def short_rounds(self) -> None:
        """The rounds between the opening and the final, each longer and for fewer."""
        for reps in self._policy.rungs[1:-1]:
            for name in self.running():
                self._time(name, reps)
            self._thin()

    def final(self, seeded: set[str | None]) -> tuple[str, ...]:
        """Time the fastest few, and the seeded that are still running, in turns.

        Gives their names; none if all of them are settled by earlier searches.
        """
        field = self._field(seeded)
        while not self._settled(field) and not all(self._build(name) for name in field):
            field = self._field(seeded)  # who could not be built leaves a seat
        for name in self.running():
            if name not in field:
                self._leave(name, "dropped", f"{self._policy.finalists} others were faster")
        if self._settled(field):
            for name in field:
                self._report(self._outcome(name, "timed"))
            return ()
        self._on_step("", "final")
        try:
            runs = [self._built[name] for name in field]
            table = self._timer.interleaved(runs, self._policy.rungs[-1])
        except Exception as error:
            if not self._alive():
                raise DeviceLost("", "final", _words(error)) from error
            raise
        for name, samples in zip(field, table, strict=True):
            self._note(name, samples)
        return tuple(field)

    def _admit(self, name: str) -> None:
        """Build, check and time one that has arrived; it runs on only if all went well."""
        if name not in self._candidates:
            raise ValueError(f"{name!r} arrived, which is none of the candidates")
        if name in self.outcomes:
            return
        if self._build(name):
            candidate, run = self._candidates[name], self._built[name]
            verdict = self._attempt(name, "verify", lambda: self._verify(candidate, run))
            if verdict is None:
                return
            self._errors[name] = verdict.max_abs_error
            if verdict.ok:
                self._running.add(name)
                self._time(name, self._policy.rungs[0])
            else:
                self._leave(name, "wrong", verdict.reason)

    def _build(self, name: str) -> bool:
        """Whether a candidate can run; built if it was not yet, out of the race if it cannot be."""
        if name not in self._built:
            run = self._attempt(name, "build", self._candidates[name].build)
            if run is None:
                return False
            self._built[name] = run
        return True

    def _time(self, name: str, reps: int) -> None:
        """Give a candidate a timing of at least `reps` repetitions, or its failure."""
        if name in self.timings and self.timings[name].reps >= reps:
            return
        if self._build(name):
            run = self._built[name]
            samples = self._attempt(name, "time", lambda: self._timer.measure(run, reps))
            if samples is not None:
                if name not in self.measured:
                    self.measured.append(name)
                self._note(name, samples)

    def _note(self, name: str, samples: Samples) -> None:
        self.timings[name] = _timing(samples)
        self._timed_here.add(name)
        self.outcomes[name] = self._outcome(name, "timed")
        self._on_outcome(self.outcomes[name])

    def _reaches_floor(self, name: str) -> bool:
        """Whether a candidate is as fast as its bytes allow, by the full count of repetitions."""
        if self._near_floor(name):
            # A few repetitions can flatter.
            self._time(name, self._policy.rungs[-1])
            return self._near_floor(name)
        return False

    def _near_floor(self, name: str) -> bool:
        """One that is clearly faster says that the floor is wrong, and then stops nothing."""
        if self._floor_us is None or name not in self._running:
            return False
        off = abs(self.timings[name].us - self._floor_us)
        return off <= self._policy.floor_stop * self._floor_us

    def _thin(self) -> None:
        """Drop who is too far behind to be worth a longer round."""
        running = self.running()
        best = min((self.timings[name].us for name in running), default=0.0)
        for name in running:
            timing = self.timings[name]
            if timing.us > best * self._policy.keep_within:
                self._leave(
                    name,
                    "dropped",
                    f"{timing.us:.2f} us after {timing.reps} repetitions, the best {best:.2f} us",
                )

    def _field(self, seeded: set[str | None]) -> list[str]:
        """Who has a seat in the last round."""
        running = self.running()
        ranking = sorted(running, key=lambda name: self.timings[name].us)
        seats = {*ranking[: self._policy.finalists], *seeded}
        return [name for name in running if name in seats]

    def _settled(self, field: Sequence[str]) -> bool:
        """Whether earlier searches have timed all of them for long enough, by one method."""
        return (
            all(self.timings[name].reps >= self._policy.rungs[-1] for name in field)
            and self._timed_here.isdisjoint(field)
            and len({self.timings[name].how for name in field}) <= 1
        )

    def _attempt(self, name: str, stage: str, step: Callable[[], T]) -> T | None:
        """The result of a step of a candidate; None if it failed, and is out for that."""
        self._on_step(name, stage)
        try:
            return step()
        except DeviceLost:
            raise
        except Exception as error:
            if not self._alive():
                raise DeviceLost(name, stage, _words(error)) from error
            if isinstance(error, CandidateFailed):
                reason, detail = error.reason, error.detail
            else:
                reason, detail = f"raised {type(error).__name__}", str(error)
        self._leave(name, "failed", reason, detail)
        return None

    def _leave(self, name: str, status: Status, reason: str, detail: str = "") -> None:
        self._running.discard(name)
        self._built.pop(name, None)
        self._report(self._outcome(name, status, reason, detail))

    def _report(self, outcome: Outcome) -> None:
        """Tell an outcome, unless it is what was known before."""
        if self.outcomes.get(outcome.name) != outcome:
            self.outcomes[outcome.name] = outcome
            self._on_outcome(outcome)

    def _outcome(self, name: str, status: Status, reason: str = "", detail: str = "") -> Outcome:
        return Outcome(name, status, reason, self.timings.get(name), self._errors.get(name), detail)


def _words(error: Exception) -> str:
    """What an exception says, on one line with its kind."""
    if isinstance(error, CandidateFailed):
        return f"{error.reason}: {error.detail}" if error.detail else error.reason
    return f"{type(error).__name__}: {error}"


def _timing(samples: Samples) -> Timing:
    # A difference of two measurements can come out below zero for a run that does nothing, and a
    # negative time would turn every "within x % of the best" around.
    us = max(0.0, statistics.median(samples.us))
    if len(samples.us) < 2 or us == 0:
        return Timing(us, 0.0, len(samples.us), samples.how)
    fifths = statistics.quantiles(samples.us, n=5, method="inclusive")
    return Timing(us, (fifths[-1] - fifths[0]) / us, len(samples.us), samples.how)
