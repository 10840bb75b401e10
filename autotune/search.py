"""The search: build and check every candidate, race those that are right, choose one.

The race is successive halving. Each candidate gets a short round as soon as it is ready, while
others are still being compiled; who is far behind leaves; the last few are timed in turns, so
that a drift of the clocks hits all of them alike. Longer timing does not make two processes agree
on one of several near-ties, a tie band with a fixed order does (`choose`), at a cost of about
0.15 % of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .candidate import (
    Candidate,
    CandidateFailed,
    DeviceLost,
    How,
    Outcome,
    Runnable,
    Samples,
    Status,
    Timer,
    Timing,
)
from .policy import Policy
from .race import Race
from .verify import Verdict

__all__ = [
    "Candidate",
    "CandidateFailed",
    "DeviceLost",
    "How",
    "Outcome",
    "Result",
    "Runnable",
    "Samples",
    "Status",
    "Timer",
    "Timing",
    "choose",
    "search",
]


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found.

    winner         a name, None if no candidate is valid
    outcomes       one each, in canonical order
    stopped_early  at a candidate near the floor, without waiting for the others
    measured       who was timed in this search before the last round, each once, in order
    finalists      who was timed in its last round, in turns; empty if all of them were settled
    drift          the timer's: how much the time of something that never changes has varied
    """

    winner: str | None
    outcomes: list[Outcome]
    stopped_early: bool
    measured: tuple[str, ...] = ()
    finalists: tuple[str, ...] = ()
    drift: float = 0.0


def search(
    candidates: Sequence[Candidate],
    *,
    verify: Callable[[Candidate, Runnable], Verdict],
    timer: Timer,
    policy: Policy,
    floor_us: float | None,
    stored: str | None,
    default: str | None,
    arrivals: Iterable[str] | None = None,
    known: Mapping[str, Outcome] = MappingProxyType({}),
    alive: Callable[[], bool] = lambda: True,
    on_step: Callable[[str, str], None] = lambda name, stage: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Result:
    """The fastest valid candidate, and what became of every other.

    candidates  in canonical order
    floor_us    what the bytes alone would take, None if unknown: the first candidate that is
                confirmed there ends the search, and nobody else is asked for
    arrivals    names in the order in which they become ready to be built; may block. Each is
                built, checked and timed before the next is asked for. A name that comes again,
                or is known, is passed over; one that is no candidate's raises ValueError. None:
                the stored winner, the default, the others in canonical order.
    known       outcomes of an earlier search, interrupted or of fewer candidates, of the same
                code. Failed and wrong stay so. One with a timing joins the race with it and
                answers every round of no more repetitions; it is built only to be timed for
                longer, and not checked again. Finalists who are all known by the full count are
                not timed again; one who is not has all of them timed together, since timings of
                different searches drift apart.
    alive       whether the device still works; asked after a candidate raised
    on_step     called with a name and "build", "verify" or "time" before each step, and with ""
                and "final" before the last round
    on_outcome  called with each failure, each timing as it is made and each drop, unless it is
                what was known. A candidate may be reported several times; `known`, overlaid with
                the last reports, is the result.

    What a candidate raises while it is built, checked or timed alone ends in its outcome. The
    last round, of candidates that have all run before, raises: the device is then at fault.
    Raises DeviceLost instead of either if `alive` denies.
    """
    order = [candidate.name for candidate in candidates]
    if len(set(order)) < len(order):
        raise ValueError(f"two candidates share a name: {sorted(order)}")
    if arrivals is None:
        place = {default: 1, stored: 0}
        arrivals = sorted(order, key=lambda name: place.get(name, 2))

    race = Race(
        candidates,
        verify=verify,
        timer=timer,
        policy=policy,
        floor_us=floor_us,
        alive=alive,
        on_step=on_step,
        on_outcome=on_outcome,
    )
    race.join(known)
    stopped_early = race.opening(arrivals)
    if not stopped_early:
        race.short_rounds()
    finalists = race.final(seeded={stored, default})

    timings = {name: race.timings[name] for name in race.running()}
    return Result(
        winner=choose(timings, order, stored=stored, default=default, policy=policy),
        outcomes=[race.outcomes[name] for name in order],
        stopped_early=stopped_early,
        measured=tuple(race.measured),
        finalists=finalists,
        drift=timer.drift,
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
