"""Candidates that become ready one by one, in any order, while the race is on."""

import random

import pytest
from jitd.autotune.search import CandidateFailed

SPEEDS = {
    **{f"tie{i}": 20.0 for i in range(5)},
    **{f"near{i}": 20.0 + 0.05 * i for i in range(5)},
    **{f"slow{i}": 24.0 + 2 * i for i in range(5)},
    "broken": None,
}


def test_no_order_of_arrival_changes_the_result(simulation):
    """Ties, seats in the last round, drops and the winner: 200 orders end with one result."""
    shuffled = random.Random(1)
    seen = []
    for _ in range(200):
        arrivals = shuffled.sample(list(SPEEDS), len(SPEEDS))
        timer = simulation.Timer()
        result = simulation.search(SPEEDS, arrivals=arrivals, timer=timer, stored="near4")
        seen.append((result.winner, result.outcomes, result.finalists, timer.in_turns))
        assert result.measured == tuple(name for name in arrivals if name != "broken")
    assert all(one == seen[0] for one in seen)
    assert seen[0][2] == ("tie0", "tie1", "tie2", "tie3", "near4")


def test_each_is_timed_before_the_next_is_asked_for(simulation):
    """What compiles meanwhile costs no time: the GPU has nothing left to do when it waits."""
    timer = simulation.Timer()
    log = []

    def arrivals():
        for name in ("c", "a", "b"):
            log.append((list(simulation.built), list(timer.alone)))
            yield name

    simulation.search({"a": 10.0, "b": 10.1, "c": 10.2}, arrivals=arrivals(), timer=timer)
    assert log == [
        ([], []),
        (["c"], [("c", 5)]),
        (["c", "a"], [("c", 5), ("a", 5)]),
    ]


def test_nobody_is_asked_for_after_the_floor_is_reached(simulation):
    """The stop does not wait for one more compile; who had not arrived is not built."""
    asked = []

    def arrivals():
        for name in ("c", "b", "a", "d"):
            asked.append(name)
            yield name

    result = simulation.search(
        {"a": 9.9, "b": 10.2, "c": 14.0, "d": 10.0}, arrivals=arrivals(), floor_us=10.0
    )
    assert (result.winner, result.stopped_early) == ("b", True)
    assert asked == simulation.built == ["c", "b"]
    assert [o.reason for o in result.outcomes if o.name in "ad"] == [
        "not timed: b reached the floor"
    ] * 2


def test_a_failure_does_not_end_the_arrivals(simulation):
    """One that cannot be built, and one that is wrong, leave the place to the next."""

    def verify(candidate, run):
        wrong = candidate.name == "b"
        return type(simulation.right)(not wrong, "off", 1.0, 1.0, 1.0, 0, (), "float64")

    result = simulation.search(
        {"a": None, "b": 5.0, "c": 10.0}, arrivals=iter("abc"), verify=verify
    )
    assert [o.status for o in result.outcomes] == ["failed", "wrong", "timed"]
    assert (result.winner, result.measured) == ("c", ("c",))


def test_who_never_becomes_ready_is_dropped_and_says_so(simulation):
    """Arrivals that end early, a pool that was closed say, leave an outcome for each."""
    seen = []
    result = simulation.search(
        {"a": 10.0, "b": 5.0}, arrivals=["a"], on_outcome=lambda outcome: seen.append(outcome.name)
    )
    late = result.outcomes[1]
    assert (late.status, late.timing) == ("dropped", None)
    assert late.reason == "not tried: it never became ready to be built"
    assert (result.winner, simulation.built) == ("a", ["a"])
    assert seen.count("b") == 1


def test_who_arrives_twice_is_tried_once(simulation):
    """Neither a failure nor a timing is made again."""
    result = simulation.search({"a": None, "b": 5.0}, arrivals=["a", "b", "a", "b"])
    assert simulation.built == ["a", "b"]
    assert result.measured == ("b",)


def test_a_stranger_is_refused(simulation):
    """A name that is no candidate's is a fault of the caller."""
    with pytest.raises(ValueError, match="'z' arrived"):
        simulation.search({"a": 10.0}, arrivals=["a", "z"])


def test_what_the_arrivals_raise_is_raised(simulation):
    """A compile pool that broke down is nobody's outcome, not even as CandidateFailed."""

    def arrivals():
        yield "a"
        raise CandidateFailed("the pool is gone")

    with pytest.raises(CandidateFailed, match="the pool is gone"):
        simulation.search({"a": 10.0, "b": 5.0}, arrivals=arrivals())


def test_every_step_is_announced_before_it_is_taken(simulation):
    """A watchdog knows whom to blame: name and stage are told before the work begins."""
    steps = []

    class Timer(simulation.Timer):
        def measure(self, run, reps):
            assert steps[-1] == (run.name, "time")
            return super().measure(run, reps)

        def interleaved(self, runs, rounds):
            assert steps[-1] == ("", "final")
            return super().interleaved(runs, rounds)

    def verify(candidate, run):
        assert steps[-1] == (candidate.name, "verify")
        return simulation.right

    simulation.search(
        {"a": 10.0, "b": None},
        timer=Timer(),
        verify=verify,
        on_step=lambda name, stage: steps.append((name, stage)),
    )
    assert steps == [
        ("a", "build"),
        ("a", "verify"),
        ("a", "time"),
        ("b", "build"),
        ("a", "time"),
        ("", "final"),
    ]
