"""A tune survives its candidates, its processes and a busy card."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import jitd
import pytest
import torch
from jitd.jit import runtime
from jitd.jit.isolated import Isolated
from jitd.jit.stats import Stats
from jitd.models.ops.group_norm import group_norm_silu
from wrong.ops import HAZARD, HAZARD_CALL, hazard

from .conftest import WAIT_S, answer

pytestmark = pytest.mark.gpu

OP = group_norm_silu.op
SIGNATURE = "group_norm_silu[bf16](1x512x16x16x24:channels_last_3d, groups=32)"
LONGER = "group_norm_silu[bf16](1x512x16x45x80, groups=32)"  # enough candidates to be killed among
STEP_S = 8  # more than any step of a good candidate, first use of a library included
PROCESSES = 8
TENTHS = [
    pytest.param(n, marks=() if n in (0, 5) else pytest.mark.long, id=f"at-{n}-tenths")
    for n in range(10)
]


class Listening:
    """A tuner that lets another do the work and notes what it was asked and heard."""

    def __init__(self, inner):
        self.inner, self.tasks, self.trials = inner, [], []

    def start(self):
        self.inner.start()

    def tune(self, task, candidates, watcher):
        self.tasks.append(task)
        self._watcher = watcher
        return self.inner.tune(task, candidates, self)

    def check(self, *asked):
        return self.inner.check(*asked)

    def trial(self, record):
        self.trials.append(record)
        self._watcher.trial(record)

    def idle(self):
        self._watcher.idle()


def wait_until(condition, what, children=()):
    """The first true value of `condition()`; fails when it takes long or a child ends."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} after {WAIT_S:g} s"
        for child in children:
            assert child.poll() is None, f"a process ended before {what}: {child.stderr.read()}"
        time.sleep(0.002)
    return found


def progress(store):
    """The share of the candidates of which the journal of a tune under way knows something."""
    for header in store.headers("timing", OP.name):
        return header.meta["done"] / header.meta["of"]
    return 1.0 if any(store.headers("winner", OP.name)) else 0.0


def right(function, text):
    """Whether a call that is launched strictly gives what its reference does."""
    call = OP.parse(text).call
    with torch.no_grad():
        x = torch.randn(call.x.shape, device="cuda").bfloat16()
        if "channels_last" in text:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        w, b = (torch.randn(call.x.shape[1], device="cuda").bfloat16() for _ in range(2))
        out, want = function(x, w, b, call.groups), OP.reference(x, w, b, call.groups)
        torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-2)
    return not [name for name in jitd.stats() if name.startswith("reference:")]


def stored(builder, signature=SIGNATURE):
    """The winner's record of a signature."""
    return builder.winners.body(OP, OP.parse(signature).call)


# -- candidates -------------------------------------------------------------------------------


def test_a_candidate_that_hangs_and_one_that_crashes_cost_themselves(workers, cold, card):
    """The tune ends with the good one, the records say why not the others, and the caller's CUDA
    context never notices."""
    kept = torch.arange(1000, device="cuda")
    keeper = Isolated(card, step_timeout_s=STEP_S, memory_share=0.5, stats=Stats())
    builder = replace(runtime.current().builder_at(0), tuner=lambda: keeper)
    try:
        ready = builder.get_or_build(HAZARD, HAZARD_CALL, "tune")
    finally:
        keeper.close()
    assert ready.config.name == "good(BLOCK=1024)"
    trials = {t["variant"]: t for t in builder.winners.body(HAZARD, HAZARD_CALL)["outcomes"]}
    assert {name: t["status"] for name, t in trials.items()} == {
        "good": "timed",
        "hangs": "failed",
        "crashes": "failed",
    }
    assert f"hung for {STEP_S} s" in trials["hangs"]["reason"]
    broken = ("broke the CUDA context", "crashed its process")
    assert any(words in trials["crashes"]["reason"] for words in broken)
    assert keeper.stats["tuner_deaths"] == 2
    assert not [name for name in keeper.stats.snapshot() if name.startswith("in_process")]

    assert int(kept.sum()) == 499500
    jitd.configure(mode="strict")
    x = torch.randn(1 << 20, device="cuda")
    assert torch.equal(hazard(x), x * 2)
    assert not [name for name in jitd.stats() if name.startswith("reference:")]


# -- processes --------------------------------------------------------------------------------


def test_a_killed_tune_is_taken_up_where_it_was(cold, start):
    """A process is killed when half of the candidates are timed. The next one times the others,
    and of those it found only who is near the front, for longer."""
    builder = runtime.current().builder_at(0)
    first = start(cold, jobs=2, signatures=[LONGER])
    wait_until(lambda: progress(builder.store) >= 0.5, "half of the tune", [first])
    first.kill()
    first.wait(WAIT_S)
    assert stored(builder, LONGER) is None, "the tune was over before it could be killed"

    call = OP.parse(LONGER).call
    listening = Listening(builder.tuner())
    builder = replace(builder, tuner=lambda: listening)
    ready = builder.get_or_build(OP, call, "tune")
    (task,) = listening.tasks
    everybody = {config.name for config in task.configs}
    assert len(everybody) / 2 <= len(task.known) < len(everybody)
    timed = [t for t in listening.trials if t["status"] == "timed"]
    opening = [t["config"] for t in timed if t["timing"]["reps"] == builder.policy.rungs[0]]
    failed = {t["config"] for t in listening.trials if t["status"] in ("failed", "wrong")}
    assert sorted(opening) == sorted(everybody - task.known.keys() - failed)
    again = {t["config"]: t["timing"]["reps"] for t in timed if t["config"] in task.known}
    assert all(reps > task.known[name].timing.reps for name, reps in again.items())

    assert ready.config.name in everybody
    assert not list(builder.store.headers("timing", OP.name))
    jitd.configure(mode="strict")
    assert right(group_norm_silu, LONGER)


@pytest.mark.parametrize("tenths", TENTHS)
def test_whoever_holds_the_lock_may_be_killed(tenths, cold, start, tmp_path, card):
    """Eight processes want one cold signature. The one that tunes is killed after so many tenths;
    one of the others ends the tune, alone, and all of them launch its winner."""
    gate, tuning = tmp_path / "gate", tmp_path / "tuning"
    tuning.mkdir()
    store = runtime.current().store
    ready = [tmp_path / f"ready{n}" for n in range(PROCESSES)]
    task = {"signatures": [SIGNATURE], "gate": str(gate), "tuning": str(tuning)}
    children = [start(cold, jobs=2, ready=str(path), **task) for path in ready]
    wait_until(lambda: all(path.exists() for path in ready), "start of all processes", children)
    gate.touch()
    pid = int(wait_until(lambda: list(tuning.iterdir()), "tune", children)[0].name)
    wait_until(lambda: progress(store) >= tenths / 10, "progress", children)
    victim = next(child for child in children if child.pid == pid)
    victim.kill()
    victim.wait(WAIT_S)

    said = [answer(child) for child in children if child is not victim]
    assert len(said) == PROCESSES - 1
    winners = {one["winners"][SIGNATURE] for one in said}
    assert len(winners) == 1
    assert None not in winners
    counts = [one["stats"] for one in said]
    # None, if the last tenth was over before the signal came.
    assert sum(c.get("tunes", 0) for c in counts) in ((0, 1) if tenths == 9 else (1,))
    busy = [c["compiles"] for c in counts if c.get("compiles")]
    assert len(busy) <= 1, "two processes compiled the same"
    assert sum(busy) <= len(binaries(card))
    assert not [name for c in counts for name in c if name.startswith("reference:")]


def binaries(card):
    """The keys of the binaries of all candidates of SIGNATURE."""
    builder, call = runtime.current().builder_at(0), OP.bucket(OP.parse(SIGNATURE).call)
    return {
        binary.key.digest
        for config in OP.configs(call, card)[0]
        for binary in builder.binaries(OP, config.plan(call, card), call)
    }


# -- a quiet and a busy card ------------------------------------------------------------------


def test_a_quiet_card_is_not_called_noisy(workers, cold):
    """The canary of a tune on an otherwise idle card keeps its pace: in one of three tries, since
    nobody promises that the card is idle all the time."""
    builder, call = runtime.current().builder_at(0), OP.parse(SIGNATURE).call
    drifts = []
    for _ in range(3):
        builder.tune_again(OP, call, fresh=True)
        body = stored(builder)
        drifts.append(body["drift"])
        assert isinstance(body["drift"], float)
        assert body["drift"] >= 0
        assert body["noisy"] is (body["drift"] > builder.policy.drift)
        if not body["noisy"]:
            return
    pytest.fail(f"noisy in all tries, by {drifts}")


def test_a_busy_card_is_called_noisy(workers, cold):
    """What another process does on the card shows in the canary, and marks the winner."""
    builder, call = runtime.current().builder_at(0), OP.parse(SIGNATURE).call
    with company():
        builder.tune_again(OP, call, fresh=True)
    body = stored(builder)
    assert body["noisy"], f"the canary drifted by {body['drift']:.1%} only"


@contextmanager
def company():
    """This process keeps the card busy while another one tunes on it."""
    a = torch.randn(4096, 4096, device="cuda").bfloat16()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            for _ in range(8):
                a @ a
            torch.cuda.synchronize()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
