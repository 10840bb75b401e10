"""The tuning process and its keeper. The process, its pipes and its deaths are real; what it would
do on a GPU is a script (`scripted_tuner`)."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from fakes import CARD
from jitd.autotune.policy import Policy
from jitd.autotune.search import CandidateFailed, Outcome, Timing
from jitd.jit import child
from jitd.jit.candidates import Candidates
from jitd.jit.child import Child
from jitd.jit.isolated import Isolated, TunerFailed
from jitd.jit.sign import Call, TensorSpec
from jitd.jit.stats import Stats
from jitd.jit.task import DoesNotFit, Task
from outside.ops import scale

from .conftest import HERE

OP = scale.op
CALL = Call({"x": TensorSpec("bf16", (4096,)), "factor": 2.0})
CONFIGS = OP.configs(CALL, CARD)[0]
NAMES = [config.name for config in CONFIGS]
WAIT_S = 60.0


class Watcher:
    """Remembers the last trial of each candidate, and when there was time to save."""

    def __init__(self):
        self.trials = {}
        self.saved = 0
        self.unsaved_at_death = None

    def trial(self, record):
        if "hung" in record["reason"] and self.unsaved_at_death is None:
            self.unsaved_at_death = len(self.trials) - self.saved
        self.trials[record["config"]] = record

    def idle(self):
        self.saved = len(self.trials)


@pytest.fixture
def tuner(tmp_path, monkeypatch):
    """`tuner(**script)`: a keeper whose children follow the script; `.log()` has what they did."""
    made = []
    monkeypatch.setattr(Child, "module", "scripted_tuner")
    monkeypatch.setattr(child, "_END_S", 0.1)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(HERE)])
    monkeypatch.setenv("SCRIPT_LOG", str(tmp_path / "log"))

    def make(step_timeout_s=WAIT_S, **script):
        words = {name.removeprefix("b"): what for name, what in script.items()}
        monkeypatch.setenv("SCRIPT", ",".join(f"{k}={v}" for k, v in words.items()))
        keeper = Isolated(CARD, step_timeout_s=step_timeout_s, memory_share=0.5, stats=Stats())
        keeper.log = lambda: [line.split(" ", 1) for line in _lines(tmp_path / "log")]
        made.append(keeper)
        return keeper

    yield make
    for keeper in made:
        keeper.close()


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []


def task(**changes):
    rest = {"policy": Policy(), "default": NAMES[1], "stored": None, "seeds": [], "known": {}}
    rest |= {"probes": [[] for _ in CONFIGS], "memory_share": 0.5, **changes}
    return Task(op=OP, call=CALL, configs=CONFIGS, **rest)


def candidates(broken=()):
    """Binaries of every config, compiled at once by a pool that pretends."""

    def start(name):
        future = Future()
        if name in broken:
            future.set_exception(CandidateFailed("does not compile", "by order"))
        else:
            future.set_result({"cubin": name.encode(), "shared": 0})
        return [(None, future)]

    return Candidates(start)


def test_a_tune_in_the_child(tuner):
    """Configs, binaries and trials cross the pipes; the default is tried first."""
    keeper, watcher = tuner(), Watcher()
    found = keeper.tune(task(), candidates(), watcher)
    assert found.measured[0] == NAMES[1] and sorted(found.measured) == sorted(NAMES)
    assert sorted(watcher.trials) == sorted(NAMES)
    assert watcher.trials[NAMES[0]]["registers"] == [32]
    assert found.winner == sorted(NAMES)[0] and found.check["ok"]


def test_what_was_tried_is_saved_before_the_next_is_over(tuner):
    """A kill while a candidate hangs finds every earlier trial saved."""
    watcher = Watcher()
    keeper = tuner(step_timeout_s=1.0, b1024="hang")
    keeper.tune(task(default=NAMES[0], seeds=NAMES[1:2]), candidates(), watcher)
    assert len(watcher.trials) == len(NAMES)
    assert watcher.unsaved_at_death == 0


def test_the_child_serves_many_requests(tuner):
    """Tunes and checks follow each other in one process: its start is paid once."""
    keeper = tuner()
    for _ in range(3):
        keeper.tune(task(), candidates(), Watcher())
    assert keeper.check(OP, CALL, CONFIGS[0], [{"cubin": b"x"}], [])["ok"]
    assert len({pid for pid, _ in keeper.log()}) == 1


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("crash", "crashed its process during verify"),
        ("lost", "broke the CUDA context during verify"),
    ],
)
def test_a_candidate_that_kills_the_child_costs_itself(tuner, fate, reason):
    """The others are timed in a fresh process, those before it are not timed again."""
    keeper, watcher = tuner(b2048=fate), Watcher()
    found = keeper.tune(task(), candidates(), watcher)
    fallen = [name for name in NAMES if "BLOCK=2048" in name]
    assert {watcher.trials[name]["status"] for name in fallen} == {"failed"}
    assert all(reason in watcher.trials[name]["reason"] for name in fallen)
    assert all(watcher.trials[n]["status"] == "timed" for n in NAMES if n not in fallen)
    assert found.winner not in fallen
    assert keeper.stats["tuner_deaths"] == 2
    verified = [what for _, what in keeper.log() if what.endswith(" verify")]
    assert len(verified) == len(set(verified)) == 4
    assert len({pid for pid, _ in keeper.log()}) == 3


def test_a_candidate_that_hangs_is_killed(tuner):
    """A candidate that does not answer within the limit costs its process and itself."""
    keeper, watcher = tuner(step_timeout_s=1.0, b512="hang"), Watcher()
    found = keeper.tune(task(), candidates(), watcher)
    hung = [name for name in NAMES if "BLOCK=512" in name]
    assert all("hung for 1 s during verify" in watcher.trials[n]["reason"] for n in hung)
    assert found.winner not in hung


@pytest.mark.parametrize("fate", ["crash", "hang"])
def test_a_check_that_kills_its_process_is_a_refusal(tuner, fate):
    """The caller lives, and the record of the check says what happened."""
    keeper = tuner(step_timeout_s=1.0, b512=fate)
    body = keeper.check(OP, CALL, CONFIGS[0], [{"cubin": b"x"}], [])
    assert body["ok"] is False and ("crashed" in body["reason"] or "hung" in body["reason"])
    assert keeper.check(OP, CALL, CONFIGS[-1], [{"cubin": b"x"}], [])["ok"]


def test_deaths_without_a_candidate_to_blame_end_the_tune(tuner):
    """A child that dies over its own preparations is tried twice, then the machine is at fault."""
    keeper, watcher = tuner(prepare="crash"), Watcher()
    with pytest.raises(TunerFailed, match="crashed its process during prepare"):
        keeper.tune(task(), candidates(), watcher)
    assert watcher.trials == {}
    assert len({pid for pid, _ in keeper.log()}) == 2


def test_an_error_of_the_engine_is_not_a_candidates(tuner):
    """What raises outside of a candidate is reported as it is; the next request is served."""
    keeper = tuner(prepare="raise")
    with pytest.raises(TunerFailed, match="RuntimeError: no such thing"):
        keeper.tune(task(), candidates(), Watcher())
    assert keeper.check(OP, CALL, CONFIGS[0], [{"cubin": b"x"}], [])["ok"]


def test_no_memory_is_said_with_its_numbers(tuner):
    """What the child cannot fit arrives as DoesNotFit, and the child goes on living."""
    keeper = tuner(prepare="no_fit")
    with pytest.raises(DoesNotFit, match=r"2\.0 GiB of GPU memory, 1\.0 GiB are allowed"):
        keeper.tune(task(), candidates(), Watcher())
    keeper.check(OP, CALL, CONFIGS[0], [{"cubin": b"x"}], [])
    assert len({pid for pid, _ in keeper.log()}) == 1


def test_a_candidate_without_a_binary_fails_there(tuner):
    """What does not compile arrives in the child as a failure with its reason."""
    watcher = Watcher()
    tuner().tune(task(), candidates(broken=NAMES[:2]), watcher)
    assert [watcher.trials[n]["reason"] for n in NAMES[:3]] == ["does not compile"] * 2 + [""]


def test_binaries_of_known_candidates_are_sent_when_needed(tuner):
    """A candidate known from before is compiled and sent only if the search asks for it."""
    known = {n: Outcome(n, "timed", "", Timing(1.0, 0.0, 5, "graph")) for n in NAMES[:2]}
    keeper = tuner(need="1")
    found = keeper.tune(task(known=known), candidates(), Watcher())
    assert sorted(found.measured) == sorted(NAMES[2:])
    assert [what for _, what in keeper.log()][-2:] == [f"{name} needed" for name in NAMES[:2]]


def test_a_child_that_cannot_start_leaves_the_work_to_the_caller(tuner, monkeypatch):
    """Without a child (no memory for its context, say) tuning happens in process, counted."""
    keeper = tuner(hello="raise")
    done = []
    monkeypatch.setattr(keeper._instead, "tune", lambda *args: done.append("tune"))
    monkeypatch.setattr(keeper._instead, "check", lambda *args: done.append("check"))
    keeper.tune(task(), candidates(), Watcher())
    keeper.check(OP, CALL, CONFIGS[0], [{"cubin": b"x"}], [])
    assert done == ["tune", "check"]
    assert keeper.stats["in_process:no_start"] == 2


def test_a_machine_without_another_process_tunes_in_this_one(tuner, monkeypatch):
    """Where no process can be started at all (no memory, no pids), start says nothing, and the
    work is done in process, counted."""

    def refused(*args, **how):
        raise OSError("Cannot allocate memory")

    keeper = tuner()
    done = []
    monkeypatch.setattr(keeper._instead, "tune", lambda *args: done.append("tune"))
    monkeypatch.setattr(subprocess, "Popen", refused)
    keeper.start()
    keeper.tune(task(), candidates(), Watcher())
    assert done == ["tune"] and keeper.stats["in_process:no_start"] == 1


def test_nonsense_from_the_child_is_its_death(tuner):
    """A child that lives on and sends garbage is killed, not waited for."""
    keeper, watcher = tuner(b512="garbage"), Watcher()
    found = keeper.tune(task(), candidates(), watcher)
    spoiled = [name for name in NAMES if "BLOCK=512" in name]
    assert all("crashed its process" in watcher.trials[name]["reason"] for name in spoiled)
    assert found.winner not in spoiled


def test_other_code_in_the_child_leaves_the_work_to_the_caller(tuner, monkeypatch):
    """An op that the child imports differently is never tuned there."""
    keeper = tuner()
    done = []
    monkeypatch.setattr(keeper._instead, "tune", lambda *args: done.append("tune"))
    monkeypatch.setitem(vars(OP), "reference_digest", "edited since")
    keeper.tune(task(), candidates(), Watcher())
    assert done == ["tune"] and keeper.stats["in_process:other_code"] == 1


def test_an_idle_child_ends_and_comes_back(tuner, monkeypatch):
    """A child that nobody asks for long gives its memory back; the next request gets another."""
    monkeypatch.setenv("SCRIPT_IDLE_S", "0.2")
    keeper = tuner()
    keeper.tune(task(), candidates(), Watcher())
    first = keeper._child.process
    assert first.wait(WAIT_S) == 0
    assert keeper.check(OP, CALL, CONFIGS[0], [{"cubin": b"x"}], [])["ok"]
    assert keeper._child.process.pid != first.pid


def test_the_child_ends_with_its_parent(tmp_path, tuner):
    """kill -9 of the parent during a candidate that hangs: the child is gone, too."""
    tuner(step_timeout_s=WAIT_S, b512="hang", b1024="hang", b2048="hang")
    program = PARENT.format(folder=str(HERE))
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child = int(parent.stdout.readline())
    wait_until(lambda: any("hang" in line for line in _lines(tmp_path / "log")))
    parent.send_signal(signal.SIGKILL)
    parent.wait(WAIT_S)
    wait_until(lambda: not running(child))
    for pipe in (parent.stdin, parent.stdout):
        pipe.close()


PARENT = """
import sys
sys.path.insert(0, {folder!r})
from fakes import CARD
from jitd.jit.child import Child
from jitd.jit.task import name_of, pack_call
from outside.ops import scale
from jitd.jit.sign import Call, TensorSpec

Child.module = "scripted_tuner"
child = Child(CARD)
assert child.greet()
call = Call({{"x": TensorSpec("bf16", (4096,)), "factor": 2.0}})
config = ["elementwise", {{"BLOCK": 512, "num_warps": 4}}]
child.send(dict(do="check", op=name_of(scale.op), call=pack_call(call), config=config,
                artifacts=[], probes=[], memory_share=0.5))
print(child.process.pid, flush=True)
sys.stdin.read()
"""


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_an_interrupt_during_a_tune_kills_the_child(tuner):
    """After Ctrl-C no answer of the interrupted tune can be taken for one of the next."""
    keeper = tuner()

    class Interrupting(Watcher):
        def trial(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeper.tune(task(), candidates(), Interrupting())
    assert keeper._child is None
    watcher = Watcher()
    keeper.tune(task(), candidates(), watcher)
    assert sorted(watcher.trials) == sorted(NAMES)
