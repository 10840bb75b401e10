"""The search, on simulated candidates and clocks."""

import json
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace

import pytest
from jitd.autotune.policy import Policy
from jitd.autotune.search import Candidate, CandidateFailed, search

TEN = {f"c{i}": 10.0 + i for i in range(10)}


def by_name(result):
    return {outcome.name: outcome for outcome in result.outcomes}


def test_the_fastest_wins(simulation):
    """Without noise, and nothing stored, the best of ten is found."""
    assert simulation.search(TEN | {"c5": 5.0}).winner == "c5"


def test_the_regret_under_noise_is_small(simulation):
    """With 3 % noise, outliers and drift, what wins is within 4 % of the best, for 50 seeds."""
    speeds = {f"c{i:02}": 20 * (1 + 0.02 * i) for i in range(24)}
    for seed in range(50):
        timer = simulation.Timer(seed=seed, noise=0.03, wander=0.0005)
        assert speeds[simulation.search(speeds, timer=timer).winner] <= 20 * 1.04


def test_near_ties_end_at_the_same_winner(simulation):
    """Four candidates within half a percent: most noisy searches agree on one of them."""
    speeds = {"a": 20.1, "b": 20.0, "c": 20.05, "d": 20.08} | {f"s{i}": 23.0 + i for i in range(20)}
    winners = Counter(
        simulation.search(speeds, timer=simulation.Timer(seed=seed, noise=0.02)).winner
        for seed in range(50)
    )
    assert winners.most_common(1)[0][0] == "a"
    assert winners["a"] > 35
    assert set(winners) <= {"a", "b", "c", "d"}


def test_a_tied_default_wins_whatever_the_noise(simulation):
    """A default that is as good as the best is what almost every process ends with."""
    speeds = {"a": 20.0, "b": 20.0, "c": 20.0}
    winners = Counter(
        simulation.search(speeds, timer=simulation.Timer(seed=seed, noise=0.02), default="c").winner
        for seed in range(50)
    )
    assert winners["c"] > 40


def test_a_stored_winner_survives_noise(simulation):
    """Searching again does not swap a winner for one that is 1 % faster."""
    speeds = {"a": 19.8, "b": 19.9, "c": 20.0}
    for seed in range(50):
        timer = simulation.Timer(seed=seed, noise=0.02)
        assert simulation.search(speeds, timer=timer, stored="c").winner == "c"


def test_the_slow_leave_after_the_short_round(simulation):
    """Beyond 1.3x of the best a candidate is timed once, dropped, and its outcome says how far."""
    timer = simulation.Timer()
    result = simulation.search({"a": 10.0, "b": 13.1, "c": 12.9}, timer=timer)
    dropped = by_name(result)["b"]
    assert (dropped.status, dropped.timing.us, dropped.timing.reps) == ("dropped", 13.1, 5)
    assert "13.10 us after 5 repetitions, the best 10.00 us" in dropped.reason
    assert [reps for name, reps in timer.alone if name == "b"] == [5]
    assert [reps for name, reps in timer.alone if name == "c"] == [5, 15]


def test_only_the_finalists_are_timed_in_turns(simulation):
    """Ten close candidates: the fastest four share the last round, the others are dropped."""
    timer = simulation.Timer()
    speeds = {f"c{i}": 10.0 + 0.2 * (i % 7) + 0.01 * i for i in range(10)}
    result = simulation.search(speeds, timer=timer)
    assert timer.in_turns == [("c0", "c1", "c7", "c8")]
    assert [o.name for o in result.outcomes if o.status == "timed"] == ["c0", "c1", "c7", "c8"]
    assert all(o.timing.reps == 40 for o in result.outcomes if o.status == "timed")


def test_stored_and_default_keep_a_seat_in_the_final(simulation):
    """Noise in a short round must not cost the stored winner the comparison that would keep it."""
    timer = simulation.Timer()
    speeds = {f"c{i}": 10.0 + 0.02 * i for i in range(10)}
    result = simulation.search(speeds, timer=timer, stored="c9", default="c8")
    assert set(timer.in_turns[0]) == {"c0", "c1", "c2", "c3", "c8", "c9"}
    assert result.winner == "c9"


def test_stored_then_default_then_canonical_order(simulation):
    """Candidates are built and timed in this order; outcomes come back in the canonical one."""
    timer = simulation.Timer()
    result = simulation.search(
        {"a": 10.0, "b": 10.0, "c": 10.0, "d": 10.0}, timer=timer, stored="d", default="c"
    )
    assert [name for name, _ in timer.alone][:4] == ["d", "c", "a", "b"]
    assert [outcome.name for outcome in result.outcomes] == ["a", "b", "c", "d"]


def test_names_that_are_no_candidates_do_not_matter(simulation):
    """A stored winner of an older space, or a default that was dropped, changes nothing."""
    assert simulation.search(TEN, stored="gone", default="hopeless").winner == "c0"


def test_failures_are_outcomes(simulation):
    """A refused build, an unexpected exception and a wrong result each end as what they are."""

    def refused():
        raise CandidateFailed("too much shared memory", "262144 of 232448 bytes")

    def broken():
        raise RuntimeError("ptxas died")

    def verify(candidate, run):
        if candidate.name == "wrong":
            return replace(simulation.right, ok=False, reason="3 elements", max_abs_error=7.0)
        return simulation.right

    candidates = [
        Candidate("refused", refused),
        Candidate("broken", broken),
        *simulation.candidates({"wrong": 1.0, "good": 10.0}),
    ]
    seen = []
    result = search(
        candidates,
        verify=verify,
        timer=simulation.Timer(),
        policy=Policy(),
        floor_us=None,
        stored="refused",
        default="broken",
        on_outcome=seen.append,
    )
    found = by_name(result)
    assert result.winner == "good"
    assert (found["refused"].status, found["refused"].reason, found["refused"].detail) == (
        "failed",
        "too much shared memory",
        "262144 of 232448 bytes",
    )
    assert (found["broken"].reason, found["broken"].detail) == ("raised RuntimeError", "ptxas died")
    assert (found["wrong"].status, found["wrong"].reason, found["wrong"].error) == (
        "wrong",
        "3 elements",
        7.0,
    )
    assert found["good"].error == simulation.right.max_abs_error
    assert [o.name for o in seen if o.status != "timed"] == ["refused", "broken", "wrong"]


def test_a_candidate_that_raises_in_the_check_or_the_timer_has_failed(simulation):
    """A launch that fails takes its candidate out, not the search."""

    def verify(candidate, run):
        if candidate.name == "a":
            raise RuntimeError("out of resources")
        return simulation.right

    class Timer(simulation.Timer):
        def measure(self, run, reps):
            if run.name == "b":
                raise CandidateFailed("cannot be captured")
            return super().measure(run, reps)

    result = simulation.search({"a": 1.0, "b": 2.0, "c": 3.0}, verify=verify, timer=Timer())
    assert result.winner == "c"
    assert [o.status for o in result.outcomes] == ["failed", "failed", "timed"]


def test_an_interrupt_is_not_a_failure(simulation):
    """Ctrl-C ends the search instead of a candidate."""

    def verify(candidate, run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulation.search(TEN, verify=verify)


def test_no_valid_candidate_gives_no_winner_and_every_reason(simulation):
    """When all are wrong the result says so for each, and nothing was timed."""
    timer = simulation.Timer()
    wrong = replace(simulation.right, ok=False, reason="off by 3")
    result = simulation.search(TEN, verify=lambda candidate, run: wrong, timer=timer)
    assert result.winner is None
    assert [(o.status, o.reason) for o in result.outcomes] == [("wrong", "off by 3")] * 10
    assert timer.alone == []
    assert timer.in_turns == []


def test_no_candidates_give_no_winner(simulation):
    """An empty space is an answer, too."""
    result = simulation.search({})
    assert (result.winner, result.outcomes, result.stopped_early) == (None, [], False)


def test_twins_are_refused(simulation):
    """Two candidates of one name would overwrite each other's outcome."""
    twins = simulation.candidates({"a": 1.0}) * 2
    with pytest.raises(ValueError, match="share a name"):
        search(
            twins,
            verify=lambda candidate, run: simulation.right,
            timer=simulation.Timer(),
            policy=Policy(),
            floor_us=None,
            stored=None,
            default=None,
        )


def test_the_search_stops_at_the_floor(simulation):
    """A candidate within 5 % of the floor ends it; who comes later is never timed and says why."""
    timer = simulation.Timer()
    result = simulation.search(
        {"a": 14.0, "b": 10.4, "c": 10.1, "d": 10.2}, timer=timer, floor_us=10.0
    )
    assert (result.winner, result.stopped_early) == ("b", True)
    assert timer.alone == [("a", 5), ("b", 5), ("b", 40)]
    assert by_name(result)["d"].status == "dropped"
    assert by_name(result)["d"].reason == "not timed: b reached the floor"
    assert by_name(result)["d"].timing is None
    assert simulation.built == ["a", "b"]


def test_an_early_stop_spares_the_short_rounds(simulation):
    """Who was timed before it goes straight to the last round, if it is near enough."""
    timer = simulation.Timer()
    simulation.search({"a": 12.0, "b": 10.4}, timer=timer, floor_us=10.0)
    assert timer.alone == [("a", 5), ("b", 5), ("b", 40)]
    assert timer.in_turns == [("a", "b")]


def test_who_has_left_is_let_go(simulation):
    """A runnable holds memory of the device; it goes with its candidate, not with the search."""
    runs, alive = [], []

    def verify(candidate, run):
        runs.append(weakref.ref(run))
        return simulation.right

    class Timer(simulation.Timer):
        def interleaved(self, runs_in_turns, rounds):
            alive.extend(run().name for run in runs if run() is not None)
            return super().interleaved(runs_in_turns, rounds)

    simulation.search({"a": 10.0, "b": 20.0, "c": 11.0}, verify=verify, timer=Timer())
    assert alive == ["a", "c"]


def test_a_flattering_short_round_does_not_stop_the_search(simulation):
    """Reaching the floor counts only when the full number of repetitions confirms it."""

    class Timer(simulation.Timer):
        def _once(self, run):
            return run.us * (0.9 if self.alone[-1][1] == 5 else 1.0)

    result = simulation.search({"a": 11.0, "b": 10.6, "c": 12.0}, timer=Timer(), floor_us=10.0)
    assert not result.stopped_early
    assert result.winner == "b"


def test_a_floor_that_is_beaten_stops_nothing(simulation):
    """A candidate far below the floor shows that the floor is wrong, so the search goes on."""
    result = simulation.search({"a": 8.0, "b": 7.0}, floor_us=10.0)
    assert (result.winner, result.stopped_early) == ("b", False)


def test_the_stored_winner_still_has_its_say_after_an_early_stop(simulation):
    """It is timed first, so a newcomer at the floor replaces it only if clearly faster."""
    result = simulation.search({"a": 10.4, "b": 10.6}, stored="b", floor_us=10.0)
    assert (result.winner, result.stopped_early) == ("b", True)


def test_timings_are_reported_as_they_are_made(simulation):
    """A search killed in the middle leaves every timing it had made with its caller."""
    seen = []

    class Killed(BaseException):
        pass

    class Timer(simulation.Timer):
        def measure(self, run, reps):
            if run.name == "c3":
                raise Killed
            return super().measure(run, reps)

    with pytest.raises(Killed):
        simulation.search(TEN, timer=Timer(), on_outcome=seen.append)
    assert [(o.name, o.timing.us) for o in seen] == [("c0", 10.0), ("c1", 11.0), ("c2", 12.0)]


def test_the_last_report_is_the_outcome(simulation):
    """Whoever keeps the last report of each name has the result."""
    last = {}
    result = simulation.search(
        TEN | {"c4": 10.1}, on_outcome=lambda outcome: last.update({outcome.name: outcome})
    )
    assert last == by_name(result)


def test_the_result_says_who_was_timed_and_how_steady_the_device_was(simulation):
    """Names before the last round, each once, those in it, and the timer's drift at the end."""
    result = simulation.search(TEN, timer=simulation.Timer(drift=0.07), default="c3")
    assert result.measured == ("c3", "c0", "c1", "c2", *(f"c{i}" for i in range(4, 10)))
    assert result.finalists == ("c0", "c1", "c2", "c3")
    assert result.drift == 0.07


def test_a_full_count_is_not_followed_by_a_short_round(simulation):
    """Who was timed by the full count for the floor's sake has answered the round of 15."""

    class Timer(simulation.Timer):
        def _once(self, run):
            return run.us * (0.9 if self.alone[-1][1] == 5 else 1.0)

    timer = Timer()
    simulation.search({"a": 11.0, "b": 12.0}, timer=timer, floor_us=10.0)
    assert timer.alone == [("a", 5), ("a", 40), ("b", 5), ("b", 15)]


def test_one_rung_is_enough(simulation):
    """A policy of a single round times everybody so, and then the finalists."""
    timer = simulation.Timer()
    assert simulation.search(TEN, timer=timer, policy=Policy(rungs=(8,))).winner == "c0"
    assert {reps for _, reps in timer.alone} == {8}
    assert timer.in_turns == [("c0", "c1", "c2", "c3")]


def test_a_time_below_zero_counts_as_zero(simulation):
    """A run of nothing, measured by a difference, cannot turn the comparisons around."""
    result = simulation.search({"a": -0.1, "b": 0.0, "c": 5.0})
    assert result.winner == "a"
    assert by_name(result)["a"].timing.us == 0.0


def test_a_timing_keeps_median_and_spread(simulation):
    """An outlier moves neither the median nor the 20th to 80th percentile."""

    class Timer(simulation.Timer):
        def interleaved(self, runs, rounds):
            return [replace(super().measure(runs[0], 5), us=[9.0, 10.0, 10.0, 11.0, 500.0])]

    timing = simulation.search({"a": 10.0}, timer=Timer()).outcomes[0].timing
    assert (timing.us, timing.reps) == (10.0, 5)
    assert timing.spread < 10


AGREEMENT = """
import json, sys
from jitd.autotune.policy import Policy
from jitd.autotune.search import Candidate, Samples, search
from jitd.autotune.space import Space, name_of
from jitd.autotune.verify import Verdict

class Timer:
    drift = 0.0
    def measure(self, run, reps):
        return Samples([20.0 + (hash(run) % 7) * 0.01] * reps, "events")
    def interleaved(self, runs, rounds):
        return [self.measure(run, rounds) for run in runs]

axes = {"KIND": ("row", "tile"), "BLOCK": (1, 2)}
space = Space(axes, default=lambda _: {"KIND": "row", "BLOCK": 1})
names = [name_of("v", params) for params in space.configs(None)[0]]
result = search([Candidate(n, lambda n=n: n) for n in names],
    verify=lambda c, r: Verdict(True, "", 0.0, 0.0, 0.0, 0, (), "float64"), timer=Timer(),
    policy=Policy(), floor_us=None, stored=sys.argv[1] or None, default=None)
json.dump([result.winner, [o.name for o in result.outcomes]], sys.stdout)
"""


def test_processes_agree_on_order_and_winner():
    """Other hash seeds, and so other small differences, give one order and one winner."""
    answers = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", AGREEMENT, ""],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        answers.add(done.stdout)
    assert len(answers) == 1
    assert json.loads(answers.pop())[0] == "v(KIND='row', BLOCK=1)"
