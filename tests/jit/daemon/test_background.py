"""Mode `background` without a GPU: who answers, who builds, and when what is better is taken.

The daemon, its worker, its tuning process and the compiler are real; what the tuning process would
do on a GPU is a script (`scripted_tuner`).
"""

import contextlib
import itertools
import os
import signal
import threading
from pathlib import Path

import pytest
from fakes import CARD
from jitd.cache.locks import KeyLocks
from jitd.jit import background
from jitd.jit.background import Background, Daemon
from jitd.jit.build import Builder
from jitd.jit.daemon.client import DaemonTrouble
from jitd.jit.errors import NotReady
from jitd.jit.settings import Settings
from jitd.jit.sign import Call, TensorSpec
from jitd.jit.stats import Stats
from jitd.jit.toolchain import toolchain
from outside.ops import scale

from .conftest import WAIT_S, until

OP = scale.op


def call(n=4096):
    return Call({"x": TensorSpec("bf16", (n,)), "factor": 2.0})


class Local:
    """A tuner of this process, where none should be needed."""

    duty = 1.0

    def __init__(self):
        self.tuned = threading.Event()

    def start(self):
        raise NotReady("tuner_failed", "by order")


@pytest.fixture
def process(machine, monkeypatch):
    """`process(**settings)`: (builder, background) of a process that serves on the fake card."""
    monkeypatch.setenv("SCRIPT_WORKER", "scripted_card")

    def make(**settings):
        stats, read = Stats(), Settings.read(cache_dir=machine.cache_dir, **settings)
        builder = Builder(
            store=machine.store,
            locks=KeyLocks(machine.store.root, timeout_s=WAIT_S),
            pool=lambda: pytest.fail("a process that serves must not compile"),
            device=CARD,
            toolchain=toolchain(),
            stats=stats,
            tuner=Local,
        )
        return builder, Background(Daemon(read, machine.store.root, stats))

    return make


@pytest.mark.compiler
def test_from_nothing_to_the_winner(machine, process):
    """On a cold cache nothing can answer at once; the daemon, started for that, compiles and tunes
    in processes of its own, and what it stored answers for good."""
    builder, asker = process()
    assert builder.at_once(OP, call()) == (None, False)
    ready = threading.Event()
    asker.ask(builder, OP, call(), ready.set)
    assert ready.wait(WAIT_S)
    found, for_good = builder.at_once(OP, call())
    assert for_good and found.artifacts[0]["cubin"][:4] == b"\x7fELF"
    assert builder.look_up(OP, call(), "strict").config == found.config
    assert builder.stats.snapshot() == {"daemon:built": 1}
    # Another bucket has no winner yet, but the nearest one's config has a checked binary.
    nearest, for_good = builder.at_once(OP, call(100_000))
    assert (nearest.config, for_good) == (found.config, False)


@pytest.mark.compiler
def test_a_caller_in_mode_tune_waits_for_the_daemon(machine, process):
    """In mode tune a caller has the daemon build, and finds it in the store; it builds nothing."""
    machine.start()
    builder, asker = process()
    builder.elsewhere = asker.daemon.build
    ready = builder.get_or_build(OP, call(), "tune")
    assert ready.config == builder.winner(OP, call())
    assert builder.stats.snapshot() == {"daemon:built": 1}


@pytest.mark.compiler
def test_what_the_daemon_cannot_store_is_built_here(machine, process, monkeypatch):
    """A daemon on whose disk nothing has room says so after the build, instead of having callers
    look for what is not there; the process's own thread builds, and the reason is counted."""
    machine.patch.setenv("SCRIPT_FULL", "1")
    builder, asker = process()
    built = threading.Event()
    monkeypatch.setattr(builder, "settle", lambda op, call: built.set())
    told = threading.Event()
    asker.ask(builder, OP, call(), told.set)
    assert told.wait(WAIT_S) and built.is_set()
    assert builder.stats.snapshot() == {"daemon:not_stored": 1}
    assert not list(machine.store.headers("winner"))


@pytest.mark.compiler
def test_without_a_gpu_the_daemon_compiles(machine):
    """A build for a target without a card compiles the default config with the real compiler."""
    from dataclasses import replace  # noqa: PLC0415

    from jitd.jit.daemon.protocol import Status  # noqa: PLC0415

    from .conftest import told  # noqa: PLC0415

    machine.patch.setenv("SCRIPT_WORKER", "jitd.jit.daemon.worker")
    machine.patch.setenv("JITD_DAEMON_IDLE_S", "0")
    machine.start()
    client = machine.client()
    builder = Builder(
        machine.store, KeyLocks(machine.store.root), lambda: None, replace(CARD, uuid=""),
        toolchain(), Stats(), Local,
    )  # fmt: skip
    asked = background.request(OP, call(), builder, waiting=True)
    assert told(client, client.build(asked)).state == "done"
    [artifact] = machine.store.headers("artifact")
    assert (
        artifact.path
        == builder.binaries(OP, OP.default(call(), CARD).plan(call(), CARD), call())[0].key.path
    )
    assert client.ask(Status())["compiled"] == 1
    changed = replace(asked, digest="of other code")
    assert told(client, client.build(changed)).cause == "other_code"
    assert len(children(machine.pid())) == 2  # of compilers one, and the worker
    minutes = itertools.count(2)

    def let_go():
        machine.ahead(60 * next(minutes))
        return not children(machine.pid())

    until(let_go, "what has nothing to do is let go")


def children(pid):
    """The processes that any thread of a process started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            found += (task / "children").read_text().split()
    return found


def test_what_was_asked_for_survives_the_daemon(machine, process):
    """The daemon is killed while it builds: the process asks the next one, which it starts, and its
    callers are told."""
    machine.patch.setenv("SCRIPT_WORKER", "scripted_worker")
    machine.close_gate()
    builder, asker = process()
    told = threading.Event()
    asker.ask(builder, OP, call(), told.set)
    until(machine.begun, "the build is under way")
    first = machine.pid()
    machine.kill(first)
    until(lambda: machine.pid() not in (0, first), "the next daemon")
    machine.open_gate()
    assert told.wait(WAIT_S)
    assert builder.stats.snapshot() == {"daemon:built": 1}


@pytest.mark.parametrize("trouble", ["off", "frozen", "mismatch"])
def test_without_a_daemon_the_thread_builds(machine, process, monkeypatch, trouble):
    """Where the daemon is off, frozen or of another code, the process's own thread builds, the
    reason is counted, and nobody waits."""
    monkeypatch.setattr("jitd.jit.daemon.client.HELLO_S", 0.2)
    builder, asker = process(daemon="off" if trouble == "off" else "auto")
    built = threading.Event()
    monkeypatch.setattr(builder, "settle", lambda op, call: built.set())
    if trouble == "frozen":
        os.kill(machine.start(), signal.SIGSTOP)
    if trouble == "mismatch":
        machine.start()
        monkeypatch.setenv("TRITON_PTXAS_PATH", "/another")
    told = threading.Event()
    asker.ask(builder, OP, call(), told.set)
    assert told.wait(WAIT_S) and built.is_set()
    causes = {"off": {}, "frozen": {"daemon:hung": 1}, "mismatch": {"daemon:mismatch": 1}}
    assert builder.stats.snapshot() == causes[trouble]


def test_a_daemon_that_freezes_while_it_builds(machine, process, monkeypatch):
    """A daemon that says nothing for longer than it may is given up, and the thread builds."""
    machine.patch.setenv("SCRIPT_WORKER", "scripted_worker")
    monkeypatch.setattr(background, "SILENCE_S", 0.5)
    machine.close_gate()
    builder, asker = process()
    monkeypatch.setattr(builder, "settle", lambda op, call: None)
    told = threading.Event()
    asker.ask(builder, OP, call(), told.set)
    until(machine.begun, "the build is under way")
    os.kill(machine.pid(), signal.SIGSTOP)
    assert told.wait(WAIT_S)
    assert builder.stats.snapshot() == {"daemon:hung": 1}


def test_many_calls_are_one_request(machine, process):
    """Calls that need the same binaries of the same bucket are one build, and all are told."""
    machine.patch.setenv("SCRIPT_WORKER", "scripted_worker")
    machine.close_gate()
    builder, asker = process()
    told = [threading.Event() for _ in range(30)]
    for number, event in enumerate(told):
        asker.ask(builder, OP, call(4000 + number), event.set)
    until(machine.begun, "the build is under way")
    machine.open_gate()
    assert all(event.wait(WAIT_S) for event in told)
    assert len(machine.begun()) == 1


def test_required_means_required(machine, process):
    """With JITD_DAEMON=require a daemon that cannot be had is an error, in mode tune, too."""
    machine.patch.setattr("jitd.jit.daemon.start.MODULE", "no_such_module")
    builder, asker = process(daemon="require")
    with pytest.raises(DaemonTrouble, match="ended at once"):
        asker.daemon.build(builder, OP, call())


def test_a_fork_asks_for_itself(machine, process):
    """A forked child of a process whose thread is at work has a thread of its own."""
    machine.patch.setenv("SCRIPT_WORKER", "scripted_worker")
    builder, asker = process()
    told = threading.Event()
    asker.ask(builder, OP, call(), told.set)
    assert told.wait(WAIT_S)
    child = os.fork()
    if child == 0:
        try:
            mine = Background(Daemon(asker.daemon.settings, machine.store.root, Stats()))
            told = threading.Event()
            mine.ask(builder, OP, call(8192), told.set)
            os._exit(0 if told.wait(WAIT_S) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(machine.winners()) == ["outside_scale[bf16](4096)", "outside_scale[bf16](8192)"]
