"""A candidate that takes the device with it is no outcome, but the end of the search."""

import pickle

import pytest
from jitd.autotune.search import CandidateFailed, DeviceLost

SPEEDS = {"a": 10.0, "b": 10.1, "c": 10.2}
ILLEGAL = RuntimeError("illegal memory access")


def raising(simulation, at, error):
    """Arguments of a search in which `b`, or the last round, raises at a stage."""

    def step(name, stage):
        if stage == at and name in ("b", ""):
            raise error

    class Timer(simulation.Timer):
        def measure(self, run, reps):
            step(run.name, "time")
            return super().measure(run, reps)

        def interleaved(self, runs, rounds):
            step("", "final")
            return super().interleaved(runs, rounds)

    def verify(candidate, run):
        step(candidate.name, "verify")
        return simulation.right

    return {"timer": Timer(), "verify": verify}


@pytest.mark.parametrize("stage", ["verify", "time", "final"])
@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ILLEGAL, "RuntimeError: illegal memory access"),
        (CandidateFailed("launch failed", "error 700"), "launch failed: error 700"),
        (CandidateFailed("too slow"), "too slow"),
    ],
)
def test_a_lost_device_ends_the_search(simulation, stage, error, detail):
    """It is told who raised, in which step, and what; no outcome blames the candidate."""
    seen = []
    with pytest.raises(DeviceLost) as lost:
        simulation.search(
            SPEEDS,
            **raising(simulation, stage, error),
            alive=lambda: False,
            on_outcome=lambda outcome: seen.append((outcome.name, outcome.status)),
        )
    assert (lost.value.name, lost.value.stage) == ("" if stage == "final" else "b", stage)
    assert lost.value.detail == detail
    assert lost.value.__cause__ is error
    assert ("a", "timed") in seen
    assert {status for _, status in seen} == {"timed"}


def test_a_device_can_be_lost_in_a_build(simulation):
    """Loading a binary is where the driver tells of an earlier launch that went wrong."""
    with pytest.raises(DeviceLost) as lost:
        simulation.search(SPEEDS | {"b": None}, alive=lambda: False)
    assert (lost.value.name, lost.value.stage) == ("b", "build")


@pytest.mark.parametrize("stage", ["verify", "time"])
def test_on_a_device_that_lives_it_is_a_failure(simulation, stage):
    """The device is asked once, after the candidate raised, and the search goes on."""
    asked = []
    result = simulation.search(
        SPEEDS,
        **raising(simulation, stage, ILLEGAL),
        alive=lambda: asked.append(None) or True,
    )
    assert [o.status for o in result.outcomes] == ["timed", "failed", "timed"]
    assert len(asked) == 1


def test_the_last_round_raises_as_it_is_on_a_device_that_lives(simulation):
    """All finalists have run before: what goes wrong now is nobody's failure."""
    with pytest.raises(RuntimeError, match="illegal") as raised:
        simulation.search(SPEEDS, **raising(simulation, "final", ILLEGAL))
    assert raised.value is ILLEGAL


def test_what_a_step_already_calls_a_loss_stays_one(simulation):
    """A build that knows better than `alive` is believed."""
    error = DeviceLost("b", "verify", "xid 31")
    with pytest.raises(DeviceLost) as lost:
        simulation.search(SPEEDS, **raising(simulation, "verify", error))
    assert lost.value is error


def test_a_loss_travels_between_processes():
    """It arrives from a worker with what it was sent with, and says all of it."""
    lost = pickle.loads(pickle.dumps(DeviceLost("two(BLOCK=64)", "verify", "error 700")))
    assert (lost.name, lost.stage, lost.detail) == ("two(BLOCK=64)", "verify", "error 700")
    assert str(lost) == "two(BLOCK=64) left the device unusable, at stage verify: error 700"
    assert str(DeviceLost("", "final")).startswith("one of the finalists left the device")
