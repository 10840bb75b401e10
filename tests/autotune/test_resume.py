"""Searches that know what an earlier one found: resumed, repeated, enlarged."""

import random
from contextlib import suppress
from dataclasses import replace

import pytest
from jitd.autotune.search import CandidateFailed, Outcome, Timing

SPEEDS = {
    "a": 13.0,
    "b": 10.3,
    "refused": None,
    "c": 10.1,
    "d": 10.0,
    "wrong": 1.0,
    "e": 10.2,
    "f": 10.05,
    "g": 12.9,
    "h": 13.2,
}


class Killed(BaseException):
    """As SIGKILL: the search does not get to do anything about it."""


def verdict(simulation):
    """Refuses the candidate called `wrong`."""

    def verify(candidate, run):
        wrong = candidate.name == "wrong"
        return replace(simulation.right, ok=not wrong, reason="off by 3" if wrong else "")

    return verify


def reports(simulation, kill_after=None, **changes):
    """What a search reported, by name, until it ended or was killed; and its result."""
    last, count = {}, 0

    def save(outcome):
        nonlocal count
        last[outcome.name] = outcome
        count += 1
        if count == kill_after:
            raise Killed

    result = None
    with suppress(Killed):
        result = simulation.search(SPEEDS, verify=verdict(simulation), on_outcome=save, **changes)
    return last, count, result


def timed(us, reps=40, status="timed", how="events"):
    """An outcome as an earlier search left it."""
    return Outcome("", status, "", Timing(us, 0.01, reps, how), 0.1)


@pytest.mark.parametrize("floor_us", [None, 9.6], ids=["no floor", "floor"])
@pytest.mark.parametrize("stored", [None, "e"])
def test_a_search_killed_anywhere_is_taken_up_where_it_was(simulation, floor_us, stored):
    """Killed after each of its reports in turn, it ends with the outcomes of an unbroken one.

    No timing is made twice but those of the last round, and nothing failed or wrong is tried twice.
    """
    changes = {"floor_us": floor_us, "stored": stored}
    _, count, whole = reports(simulation, timer=simulation.Timer(), **changes)
    assert whole.stopped_early == (floor_us is not None)
    for kill_after in range(1, count + 1):
        first, second = simulation.Timer(), simulation.Timer()
        known, _, nothing = reports(simulation, kill_after, timer=first, **changes)
        assert nothing is None
        simulation.built.clear()
        _, _, result = reports(simulation, timer=second, known=known, **changes)
        assert result.outcomes == whole.outcomes
        assert result.winner == whole.winner
        rounds = first.alone + second.alone
        assert len(set(rounds)) == len(rounds)
        tried_before = {n for n in ("refused", "wrong") if n in known}
        assert tried_before.isdisjoint(simulation.built)


def test_an_enlarged_space_times_only_what_is_new(simulation):
    """Known candidates are measured again in the last round only, beside a new finalist."""
    few = {f"c{i}": 20.0 + i for i in range(10)}
    known = {o.name: o for o in simulation.search(few).outcomes}
    for new_us, finalists, winner in (
        (20.5, ("c0", "c1", "c2", "new"), "c0"),
        (18.0, ("c0", "c1", "c2", "new"), "new"),
        (23.4, (), "c0"),
    ):
        simulation.built.clear()
        result = simulation.search({"new": new_us, **few}, known=known)
        assert result.measured == ("new",)
        assert set(result.finalists) == set(finalists)
        assert set(simulation.built) == {"new", *finalists}
        assert result.winner == simulation.search({"new": new_us, **few}).winner == winner


def test_what_is_known_never_changes_the_winner(simulation):
    """Whatever part of the outcomes is known, in whatever order the rest arrives."""
    rng = random.Random(3)
    for _ in range(100):
        speeds = {f"c{i}": rng.choice([20.0, 20.1, 21.0, 24.0, 30.0, None]) for i in range(12)}
        whole = simulation.search(speeds)
        known = {o.name: o for o in whole.outcomes if rng.random() < 0.5}
        arrivals = rng.sample(list(speeds), 12)
        again = simulation.search(speeds, known=known, arrivals=arrivals)
        assert again.winner == whole.winner
        assert set(again.measured).isdisjoint(known)


def test_settled_finalists_are_neither_built_nor_timed(simulation):
    """A finished search, repeated, gives the same result without a run, and reports nothing."""
    first = simulation.search(SPEEDS, verify=verdict(simulation))
    simulation.built.clear()
    timer, seen = simulation.Timer(), []
    again = simulation.search(
        SPEEDS, known={o.name: o for o in first.outcomes}, timer=timer, on_outcome=seen.append
    )
    assert (again.winner, again.outcomes) == (first.winner, first.outcomes)
    assert (simulation.built, timer.alone, timer.in_turns, seen) == ([], [], [], [])
    assert (again.measured, again.finalists) == ((), ())


def test_failed_and_wrong_stay_so(simulation):
    """They are not built again, though they would be right and fast by now."""
    known = {
        "a": Outcome("a", "failed", "does not compile", detail="words"),
        "b": Outcome("b", "wrong", "off by 3", error=3.0),
    }
    seen = []
    result = simulation.search(
        {"a": 1.0, "b": 2.0, "c": 10.0}, known=known, on_outcome=lambda o: seen.append(o.name)
    )
    assert result.outcomes[:2] == list(known.values())
    assert (result.winner, set(simulation.built), set(seen)) == ("c", {"c"}, {"c"})


def test_the_known_are_built_to_be_timed_for_longer_but_not_checked(simulation):
    """Five known repetitions spare the opening and the check, not the rounds after it."""
    timer, checked = simulation.Timer(), []

    def verify(candidate, run):
        checked.append(candidate.name)
        return simulation.right

    known = {"a": timed(10.0, reps=5, status="dropped"), "far": timed(15.0, reps=5)}
    result = simulation.search(
        {"a": 10.0, "b": 10.5, "far": 15.0}, known=known, timer=timer, verify=verify
    )
    assert timer.alone == [("b", 5), ("a", 15), ("b", 15)]
    assert result.finalists == ("a", "b")
    assert simulation.built == ["b", "a"]
    assert checked == ["b"]
    assert [o.status for o in result.outcomes] == ["timed", "timed", "dropped"]
    assert result.outcomes[0].error == 0.1


def test_a_new_finalist_has_all_of_them_timed_in_turns(simulation):
    """Timings of two searches are not compared in the end: what drifted in between is undone."""
    timer = simulation.Timer()
    known = {"a": timed(9.0), "b": timed(9.5)}  # when the clocks were higher
    result = simulation.search({"a": 10.8, "b": 10.4, "c": 10.0}, known=known, timer=timer)
    assert timer.in_turns == [("a", "b", "c")]
    assert {n for n, _ in timer.alone} == {"c"}
    assert result.winner == "c"


def test_a_new_candidate_far_behind_leaves_the_settled_alone(simulation):
    """It needs its own short round, and nobody else needs any."""
    timer = simulation.Timer()
    known = {"a": timed(10.0), "b": timed(10.5)}
    result = simulation.search({"a": 10.0, "b": 10.5, "c": 14.0}, known=known, timer=timer)
    assert (timer.alone, timer.in_turns) == ([("c", 5)], [])
    assert (result.winner, simulation.built) == ("a", ["c"])


def test_timings_of_two_methods_settle_nothing(simulation):
    """A microsecond or two lies between them, which may be more than the tie band."""
    timer = simulation.Timer()
    known = {"a": timed(31.0, how="graph"), "b": timed(30.0)}
    assert simulation.search({"a": 29.0, "b": 30.0}, known=known, timer=timer).winner == "a"
    assert timer.in_turns == [("a", "b")]


@pytest.mark.parametrize("reps", [5, 40])
def test_a_known_candidate_that_cannot_be_built_any_more_leaves(simulation, reps):
    """As failed, in whatever round it is first needed, though its timing is kept."""
    known = {"a": timed(5.0, reps=reps)}
    result = simulation.search({"a": None, "b": 6.0}, known=known)
    assert result.outcomes[0].status == "failed"
    assert result.outcomes[0].timing == known["a"].timing
    assert result.winner == "b"


def test_who_cannot_be_built_leaves_its_seat_to_the_next(simulation):
    """The four fastest of a former machine are gone; the fifth is better than no winner."""
    speeds = {f"c{i}": None for i in range(4)} | {"c4": 14.0, "c5": 14.5}
    known = {f"c{i}": timed(10.0 + i) for i in range(4)} | {"c4": timed(12.9, reps=15)}
    known["c0"] = timed(10.0, reps=15)  # so that the last round is not settled
    result = simulation.search(speeds, known=known, arrivals=())
    assert (result.winner, result.finalists) == ("c4", ("c4",))
    assert [o.status for o in result.outcomes] == ["failed"] * 4 + ["timed", "dropped"]


def test_a_known_candidate_at_the_floor_ends_the_search_at_once(simulation):
    """By its full count without a run; by a short one after it was confirmed."""
    speeds = {"a": 12.0, "b": 10.0}

    def nobody():
        raise AssertionError("nobody needs to be waited for")
        yield

    for reps, alone in ((40, []), (5, [("b", 40)])):
        timer = simulation.Timer()
        result = simulation.search(
            speeds,
            known={"b": timed(10.1, reps=reps)},
            arrivals=nobody(),
            timer=timer,
            floor_us=10.0,
        )
        assert (result.winner, result.stopped_early) == ("b", True)
        assert timer.alone == alone
        assert result.outcomes[0].reason == "not timed: b reached the floor"


def test_a_known_flattering_timing_does_not_stop_the_search(simulation):
    """Five repetitions near the floor count for no more than they would in one search."""
    result = simulation.search(
        {"a": 10.8, "b": 10.7}, known={"a": timed(10.1, reps=5)}, floor_us=10.0
    )
    assert not result.stopped_early
    assert result.measured == ("a", "b")


def test_who_was_dropped_untimed_is_tried(simulation):
    """That an earlier search stopped before it says nothing about it."""
    known = {"b": Outcome("b", "dropped", "not timed: z reached the floor")}
    assert simulation.search({"a": 10.0, "b": 5.0}, known=known).winner == "b"


def test_who_is_no_candidate_any_more_does_not_count(simulation):
    """Known outcomes of another space are passed over."""
    result = simulation.search({"a": 10.0}, known={"gone": timed(1.0)})
    assert (result.winner, [o.name for o in result.outcomes]) == ("a", ["a"])


def test_known_outcomes_and_reports_make_up_the_result(simulation):
    """Whoever overlays what was known with the last report of each has the result, always."""
    rng = random.Random(5)
    for _ in range(100):
        speeds = {f"c{i}": rng.choice([20.0, 20.1, 22.0, 27.0, None]) for i in range(9)}
        known = {
            name: replace(
                timed(us * rng.choice([0.9, 1.0]), rng.choice([5, 15, 40])),
                name=name,
                status=rng.choice(["timed", "dropped"]),
            )
            for name, us in speeds.items()
            if us and rng.random() < 0.6
        }
        last = dict(known)
        result = simulation.search(
            speeds, known=known, on_outcome=lambda o, last=last: last.update({o.name: o})
        )
        assert last == {o.name: o for o in result.outcomes}
        assert result.winner is None or last[result.winner].status == "timed"


def test_who_has_a_seat_among_the_settled_is_timed(simulation):
    """One that was dropped before others failed is in the last round now, and reported so."""
    known = {"a": Outcome("a", "failed"), "b": timed(10.0, status="dropped")}
    seen = []
    result = simulation.search({"a": 9.0, "b": 10.0}, known=known, on_outcome=seen.append)
    assert result.winner == "b"
    assert [(o.name, o.status) for o in seen] == [("b", "timed")]
    assert result.outcomes[1] == seen[0]


def test_a_settled_stored_winner_keeps_its_rights(simulation):
    """Hysteresis holds for known timings as for new ones."""
    speeds = {"a": 9.8, "b": 10.0}
    known = {name: timed(us) for name, us in speeds.items()}
    assert simulation.search(speeds, known=known).winner == "a"
    assert simulation.search(speeds, known=known, stored="b").winner == "b"


def test_a_late_build_that_raises_anything_is_a_failure(simulation):
    """A known candidate is not trusted more than a new one."""

    class Timer(simulation.Timer):
        def measure(self, run, reps):
            if run.name == "a":
                raise CandidateFailed("cannot be captured")
            return super().measure(run, reps)

    result = simulation.search({"a": 5.0, "b": 6.0}, known={"a": timed(5.0, reps=5)}, timer=Timer())
    assert [o.reason for o in result.outcomes] == ["cannot be captured", ""]
