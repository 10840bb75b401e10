"""What happens on a miss. Compiler and GPU are fakes; store, locks and processes are real."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import jitd
import pytest
from fakes import CARD
from jitd.jit.device import stand_in
from jitd.jit.errors import NotReady
from jitd.jit.sign import Call, TensorSpec
from outside import ops
from outside.ops import ELEMENTWISE, scale

from .conftest import HERE

OP = scale.op


def call(n=4096, **changes):
    return Call({"x": TensorSpec("bf16", (n,), **changes), "factor": 2.0})


def test_a_miss_is_built_and_then_found(machine):
    """The first call tunes, compiles and stores; a second process finds all and builds nothing."""
    first = machine.process()
    ready = first.get_or_build(OP, call(), "tune")
    assert ready.config.name == "elementwise(BLOCK=2048, num_warps=8)"
    assert first.stats.snapshot() == {"compiles": 6, "tunes": 1}
    second = machine.process()
    for mode in ("tune", "replay", "strict", "background"):
        found = second.get_or_build(OP, call(), mode)
        assert found.config == ready.config
        assert found.artifacts[0]["cubin"] == ready.artifacts[0]["cubin"]
    assert second.stats.snapshot() == {}
    assert machine.tuned == ["outside_scale[bf16](4096)"]


def test_losers_are_not_kept(machine):
    """Of all candidates only the winner's binary is stored, with its check."""
    builder = machine.process()
    builder.get_or_build(OP, call(), "tune")
    kinds = [header.key.kind for header in builder.store.headers()]
    assert sorted(kinds) == ["artifact", "check", "winner"]
    labels = {header.key.kind: header.label for header in builder.store.headers()}
    assert labels["winner"] == "outside_scale[bf16](4096)"


def test_a_bucket_is_tuned_once(machine):
    """Another length of the same bucket is served by the same winner: nothing is compiled."""
    builder = machine.process()
    builder.get_or_build(OP, call(4096), "tune")
    again = machine.process()
    ready = again.get_or_build(OP, call(3001), "tune")
    assert again.stats.snapshot() == {}
    assert ready.plan.launches[0].args["n"] == 3001
    again.get_or_build(OP, call(5000), "tune")
    assert machine.tuned == ["outside_scale[bf16](4096)", "outside_scale[bf16](8192)"]


def test_another_class_of_arguments_is_compiled_and_checked(machine):
    """An unaligned input has the winner of its bucket, in a binary that is checked by itself."""
    machine.process().get_or_build(OP, call(), "tune")
    builder = machine.process()
    builder.get_or_build(OP, call(aligned=False), "replay")
    assert builder.stats["compiles"] == 1 and builder.stats["checks"] == 1
    assert machine.tuned == ["outside_scale[bf16](4096)"]


def test_strict_refuses_by_name(machine):
    """Mode strict raises an error that names signature, reason and command, and builds nothing."""
    builder = machine.process()
    with pytest.raises(jitd.ColdKernelError) as caught:
        builder.get_or_build(OP, call(), "strict")
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.signature == "outside_scale[bf16](4096)"
    assert "jitctl warmup" in error.command and error.signature in error.command
    assert "no winner is stored" in str(error) and error.command in str(error)
    assert (machine.tuned, machine.pool.compiled) == ([], [])


def test_strict_says_what_is_missing(machine):
    """With a winner but without the binary of these arguments, strict says just that."""
    machine.process().get_or_build(OP, call(), "tune")
    with pytest.raises(jitd.ColdKernelError, match="is not compiled for these arguments"):
        machine.process().get_or_build(OP, call(aligned=False), "strict")


@pytest.mark.parametrize("mode", ["tune", "replay"])
def test_nothing_is_built_while_capturing(machine, mode):
    """During a graph capture a cold signature is the reference's, a warm one the kernel's."""
    builder = machine.process()
    with pytest.raises(NotReady) as caught:
        builder.get_or_build(OP, call(), mode, capturing=True)
    assert caught.value.cause == "capturing"
    assert (machine.tuned, machine.checked, machine.pool.compiled) == ([], [], [])
    ready = builder.get_or_build(OP, call(), mode)
    assert builder.get_or_build(OP, call(), mode, capturing=True).config == ready.config


def test_capturing_in_strict_raises(machine):
    """Strict means strict: a cold signature raises during a capture, too."""
    with pytest.raises(jitd.ColdKernelError):
        machine.process().get_or_build(OP, call(), "strict", capturing=True)


def test_a_failed_tune_is_remembered(machine):
    """When no config is right, the reason is stored, and no other process tries again."""
    machine.hopeless = True
    for _ in range(2):
        with pytest.raises(NotReady, match="off by one") as caught:
            machine.process().get_or_build(OP, call(), "tune")
        assert caught.value.cause == "tune_failed"
    assert len(machine.tuned) == 1


def test_a_failed_tune_of_other_code_is_tried_again(machine, monkeypatch):
    """What failed is forgotten when the op changes."""
    machine.hopeless = True
    with pytest.raises(NotReady):
        machine.process().get_or_build(OP, call(), "tune")
    machine.hopeless = False
    newer = replace(OP, version=2)
    assert machine.process().get_or_build(newer, call(), "tune").artifacts


def test_a_failed_check_is_remembered(machine):
    """A binary that failed the check is never given out and not checked again."""
    machine.wrong = True
    for _ in range(2):
        with pytest.raises(NotReady) as caught:
            machine.process().get_or_build(OP, call(), "replay")
        assert caught.value.cause == "wrong"
    assert machine.checked == ["elementwise(BLOCK=1024, num_warps=4)"]


def test_a_kernel_that_does_not_compile_is_the_references(machine):
    """A compile error of the config to be used is a cause, not a crash."""
    machine.pool.broken.add("scale_kernel")
    with pytest.raises(NotReady, match="it is broken") as caught:
        machine.process().get_or_build(OP, call(), "replay")
    assert caught.value.cause == "compile_failed"


def test_replay_uses_the_nearest_winner(machine):
    """Without a winner of its own a signature replays the nearest one, else the default."""
    default = machine.process().get_or_build(OP, call(64), "replay")
    assert default.config.name == "elementwise(BLOCK=1024, num_warps=4)"
    for best, n in (("BLOCK=512, num_warps=8", 4096), ("BLOCK=2048, num_warps=4", 1 << 20)):
        machine.best = f"elementwise({best})"
        machine.process().get_or_build(OP, call(n), "tune")
    near, far = (machine.process().get_or_build(OP, call(n), "replay") for n in (8192, 1 << 22))
    assert near.config.name == "elementwise(BLOCK=512, num_warps=8)"
    assert far.config.name == "elementwise(BLOCK=2048, num_warps=4)"
    assert len(machine.tuned) == 2


def test_winners_of_other_cards_do_not_count(machine):
    """A winner belongs to a card; another one tunes for itself, and tries that config early."""
    first = machine.process().get_or_build(OP, call(), "tune")
    other_card = replace(machine.process(), device=replace(CARD, name="NVIDIA H20", sm_count=78))
    other_card.get_or_build(OP, call(), "tune")
    assert machine.tasks[-1].seeds == [first.config.name] and machine.tasks[-1].stored is None
    assert len(machine.tuned) == 2
    newer_driver = replace(machine.process(), device=replace(CARD, driver="999.1"))
    newer_driver.get_or_build(OP, call(), "tune")
    assert len(machine.tuned) == 2


def files_of(machine, kind):
    return [path for path in (machine.root / kind).rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["artifact", "check", "winner"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_record_is_built_again(machine, kind, damage):
    """Any damage to any record is a miss: it is made anew, and the next process finds it."""
    ready = machine.process().get_or_build(OP, call(), "tune")
    [path] = files_of(machine, kind)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": data[:-9], "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    again = machine.process().get_or_build(OP, call(), "tune")
    assert again.config == ready.config
    assert again.artifacts[0]["cubin"] == ready.artifacts[0]["cubin"]
    last = machine.process()
    last.get_or_build(OP, call(), "strict")
    assert last.stats.snapshot() == {}


def test_a_changed_variant_drops_only_its_own_winner(machine, monkeypatch):
    """A winner whose variant's code changed is no winner; it is tuned again."""
    machine.process().get_or_build(OP, call(), "tune")
    changed = replace(ELEMENTWISE)
    monkeypatch.setitem(changed.__dict__, "digest", "other code")
    op = replace(OP, variants=(changed,))
    machine.process().get_or_build(op, call(), "tune")
    assert len(machine.tuned) == 2


def test_a_store_that_cannot_be_written_still_serves(machine, caplog):
    """With a cache that refuses writes a process keeps what it builds, and says so once."""
    builder = machine.process()
    (machine.root / "tmp").write_text("in the way: no temporary file can be made here")
    ready = builder.get_or_build(OP, call(), "tune")
    assert ready.artifacts[0]["cubin"]
    assert builder.stats["put_failed"] >= 3
    assert sum("cannot be written" in r.message for r in caplog.records) == 1
    assert builder.get_or_build(OP, call(), "strict").config == ready.config
    assert len(machine.tuned) == 1
    assert files_of(machine, "winner") == []


def test_no_locks_is_no_reason_to_fail(machine, caplog):
    """Where no lock can be taken, things are built without, which is counted."""
    builder = machine.process()
    (machine.root / "locks").write_text("in the way: no lock file can be made here")
    assert builder.get_or_build(OP, call(), "tune").artifacts
    assert builder.stats["unlocked"] >= 1


def test_compilations_of_a_process_are_shared(machine):
    """Prefetching and tuning compile each candidate once."""
    builder = machine.process()
    builder.prefetch(OP, call())
    builder.get_or_build(OP, call(), "tune")
    assert len(machine.pool.compiled) == len(set(machine.pool.compiled)) == 6


RACE = """
import sys, time
from pathlib import Path
import fakes
from fakes import Machine
from jitd.jit.sign import Call, TensorSpec
from outside.ops import scale

root, log = map(Path, sys.argv[1:])
machine = Machine.plug_in(root, setattr)

def tuning():
    with log.open("a") as file:
        file.write("tune\\n")
    time.sleep(1.0)  # long enough for the others to arrive

machine.on_tune = tuning
builder = machine.process()
print("ready", flush=True)
sys.stdin.readline()
call = Call({"x": TensorSpec("bf16", (4096,)), "factor": 2.0})
ready = builder.get_or_build(scale.op, call, "tune")
print(ready.config.name, ready.artifacts[0]["cubin_digest"], flush=True)
"""


def test_processes_that_race_build_once(tmp_path):
    """Three real processes that miss at once tune once, and all launch the same binary."""
    log = tmp_path / "log"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "cache"), str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"},
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(set(answers)) == 1 and answers[0].startswith("elementwise(")
    assert log.read_text() == "tune\n"


def test_killed_while_tuning_leaves_nothing_locked(tmp_path, machine):
    """A process that is killed in the middle of a tune frees its locks; the next one tunes."""
    root = tmp_path / "machine"
    log = tmp_path / "log"
    victim = subprocess.Popen(
        [sys.executable, "-c", RACE.replace("1.0", "600"), str(root), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert victim.stdout.readline() == "ready\n"
    victim.stdin.write("go\n")
    victim.stdin.flush()
    _wait_for(log)
    victim.kill()
    victim.communicate(timeout=60)
    assert machine.process().get_or_build(OP, call(), "tune").artifacts
    assert machine.tuned == ["outside_scale[bf16](4096)"]


def _wait_for(path):
    import time  # noqa: PLC0415

    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path} in 60 s"
        time.sleep(0.02)


def test_stand_ins_only_compile(machine):
    """A builder for a card that is not there compiles; it is refused an unknown target."""
    builder = replace(machine.process(), device=stand_in("sm_80"))
    config = OP.default(call(), builder.device)
    binaries = builder.binaries(OP, config.plan(call(), builder.device), call())
    done = []
    builder.artifacts.compile_all([*binaries, *binaries], lambda binary, error: done.append(error))
    assert done == [None]
    builder.artifacts.compile_all(binaries, lambda binary, error: done.append(error))
    assert (done, builder.stats["compiles"]) == ([None, None], 1)
    with pytest.raises(ValueError, match=r"unknown target 'sm_42'. Known are sm_75"):
        stand_in("sm_42")


def test_a_failed_compile_is_told_and_the_others_go_on(machine):
    """compile_all reports each failure beside its binary and stores the rest."""
    builder = machine.process()
    machine.pool.broken.add("scale_kernel")
    plan = ops.plan(call(), {"BLOCK": 1024, "num_warps": 4}, CARD)
    done = []
    builder.artifacts.compile_all(
        builder.binaries(OP, plan, call()), lambda b, error: done.append(error)
    )
    assert len(done) == 1 and "it is broken" in done[0]
    assert files_of(machine, "artifact") == []
