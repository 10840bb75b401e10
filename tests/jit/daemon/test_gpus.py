"""What is known of cards and their users, and how long a tune rests for them."""

import os
import subprocess
import sys

import pytest
from jitd.jit import tuner
from jitd.jit.daemon import gpus
from jitd.jit.daemon.gpus import Usage


def test_a_uuid_is_spelled_as_the_drivers_tools_do():
    """32 hexadecimal digits become GPU-8-4-4-4-12."""
    assert gpus.spelled("0123456789abcdef0123456789abcdef") == (
        "GPU-01234567-89ab-cdef-0123-456789abcdef"
    )


def test_a_machine_without_the_library_knows_nothing():
    """Without a card, or for a UUID that is none, there is no usage and no driver."""
    assert gpus.usage("card-of-the-tests") is None
    if gpus._library() is None:
        assert gpus.usage("0" * 32) is None and gpus.driver_version() == ""


def test_descendants_are_ours():
    """A process that this one started, and one that that one started, are not somebody else's; init
    and pids that do not exist are."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    grandchild = int(process.stdout.readline())
    pids = frozenset({os.getpid(), process.pid, grandchild, 1, 2**22 + 1})
    others = Usage(0, 0, 0.0, pids).others(os.getpid())
    process.communicate("\n", timeout=60)
    assert others == {1, 2**22 + 1}


@pytest.fixture
def link(monkeypatch):
    """A tuning process's end of its pipes, with a clock and a sleep that are told."""
    made = tuner._Link(-1)
    made.now, made.slept, made.sent = 100.0, [], []
    monkeypatch.setattr(tuner.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(tuner.time, "sleep", made.slept.append)
    monkeypatch.setattr(made, "send", lambda message: made.sent.append(message["step"]))
    return made


def test_a_tune_rests_between_steps(link):
    """With a duty of a quarter, a step of two seconds is followed by six of rest, for which the
    keeper is told that nothing is under way; waiting for compilers is rest already."""
    link.begin(0.25)
    link.step("", "prepare")
    link.now += 2.0
    link.step("one", "verify")
    assert link.slept == [6.0]
    assert link.sent == [["", "prepare"], ["", "wait"], ["one", "verify"]]
    link.step("", "wait")
    link.now += 50.0
    link.step("two", "verify")
    assert len(link.slept) <= 2 and link.slept[-1] <= 6.0
    link.now += 1000.0
    link.step("two", "time")
    assert link.slept[-1] == tuner._REST_S  # a slow step does not stop a tune


def test_a_tune_that_need_not_rest(link):
    """Alone on its card a tune never sleeps, and a new request does not rest for the last one."""
    link.begin(1.0)
    for stage in ("prepare", "verify", "time"):
        link.step("one", stage)
        link.now += 5.0
    link.begin(0.1)
    link.step("", "prepare")
    assert link.slept == []
