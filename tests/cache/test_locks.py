"""Locks between threads and processes."""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from jitd.cache import locks as locks_module
from jitd.cache.errors import LockOrderError, LockTimeout, LockUnavailable
from jitd.cache.keys import KINDS, Key
from jitd.cache.locks import ORDER, KeyLocks

HOLDER = """
import sys
from pathlib import Path
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
with KeyLocks(Path(sys.argv[1])).hold(Key.of("winner", "silu", n=1)):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""
KEY = Key.of("winner", "silu", n=1)


def is_free(root: Path, spawn: Callable) -> bool:
    """Whether a fresh process gets the lock of KEY at once."""
    child = spawn(
        """
import sys
from pathlib import Path
from jitd.cache.errors import LockTimeout
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
try:
    with KeyLocks(Path(sys.argv[1]), timeout_s=0).hold(Key.of("winner", "silu", n=1)):
        print("free")
except LockTimeout:
    print("taken")
""",
        root,
    )
    return child.line() == "free"


def test_one_process_at_a_time(root: Path, spawn: Callable) -> None:
    """While one process holds a lock another times out, and gets it when it is let go."""
    child = spawn(HOLDER, root)
    assert child.line() == "held"
    locks = KeyLocks(root, timeout_s=0)
    with pytest.raises(LockTimeout, match=r"no lock for winner/silu/.* after 0 s"), locks.hold(KEY):
        pass
    child.say("release")
    assert child.line() == "released"
    with locks.hold(KEY):
        assert not is_free(root, spawn)
    assert is_free(root, spawn)


def test_a_killed_holder_lets_go(root: Path, spawn: Callable) -> None:
    """kill -9 of the holder frees its lock at once: the kernel does it, nobody cleans up."""
    child = spawn(HOLDER, root)
    assert child.line() == "held"
    child.kill()
    with KeyLocks(root, timeout_s=5).hold(KEY):
        pass


def test_a_waiter_gets_the_lock_of_a_killed_holder(root: Path, spawn: Callable) -> None:
    """A process already waiting takes over when the holder dies."""
    child = spawn(HOLDER, root)
    assert child.line() == "held"
    taken = threading.Event()

    def wait() -> None:
        with KeyLocks(root, timeout_s=30).hold(KEY):
            taken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not taken.is_set()
    child.kill()
    assert taken.wait(30)
    waiter.join(30)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the module has logged a warning."""
    event = threading.Event()
    warn = locks_module.LOGGER.warning
    monkeypatch.setattr(locks_module.LOGGER, "warning", lambda *a: (warn(*a), event.set()))
    return event


def test_a_long_wait_is_said_and_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, said: threading.Event, caplog: Any
) -> None:
    """Who waits for a process that was stopped learns of what, and gets the lock in the end."""
    monkeypatch.setattr("jitd.cache.locks._QUIET_S", 0.05)
    taken = threading.Event()

    def wait() -> None:
        with KeyLocks(root).hold(KEY):
            taken.set()

    waiter = threading.Thread(target=wait)
    with KeyLocks(root).hold(KEY):
        waiter.start()
        assert said.wait(30)
        assert not taken.is_set()
    assert taken.wait(30)
    waiter.join(30)
    [message] = [record.getMessage() for record in caplog.records]
    assert "waiting for whoever holds the lock of winner/silu" in message
    assert "winner-" in message.rpartition("fuser")[2]


def test_threads_exclude_each_other(root: Path) -> None:
    """A lock held by one thread is not held by another of the same process."""
    outcome: list[str] = []

    def attempt() -> None:
        try:
            with KeyLocks(root, timeout_s=0).hold(KEY):
                outcome.append("taken")
        except LockTimeout:
            outcome.append("timeout")

    with KeyLocks(root).hold(KEY):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(30)
    assert outcome == ["timeout"]


def test_a_thread_may_take_again_what_it_holds(root: Path, spawn: Callable) -> None:
    """Taking a lock again, even through another object, keeps it until the outermost `with`."""
    locks = KeyLocks(root, timeout_s=0)
    with locks.hold(KEY):
        with locks.hold(KEY), KeyLocks(root, timeout_s=0).hold(KEY):
            pass
        assert not is_free(root, spawn)
    assert is_free(root, spawn)


def test_an_error_inside_lets_go(root: Path, spawn: Callable) -> None:
    """A lock is released when its body fails, and the failure is what is seen."""
    with pytest.raises(ZeroDivisionError), KeyLocks(root).hold(KEY):
        raise ZeroDivisionError
    assert is_free(root, spawn)


def test_locks_are_taken_in_order(root: Path) -> None:
    """winner, artifact, lease is allowed; any step back, or two of a kind, is a mistake."""
    locks = KeyLocks(root, timeout_s=0)
    artifact, other = Key.of("artifact", "silu", n=1), Key.of("artifact", "silu", n=2)
    assert artifact.digest[:2] != other.digest[:2]
    with locks.hold(KEY), locks.hold(artifact), locks.lease("GPU-1"):
        pass
    with locks.hold(artifact):
        with pytest.raises(LockOrderError, match="winner"), locks.hold(KEY):
            pass
        with pytest.raises(LockOrderError, match="one lock of a kind"), locks.hold(other):
            pass
    with locks.lease("GPU-1"), pytest.raises(RuntimeError), locks.hold(artifact):
        pass
    with locks.hold(artifact), locks.lease("GPU-1"):  # nothing is left of the failures
        pass
    assert set(ORDER) == KINDS | {"lease"}


def test_leases_are_by_name(root: Path) -> None:
    """Each GPU has its own lease, whatever characters its name has; none leaves the folder."""
    names = ["GPU-0a1b", "MIG/1/2", "../../escape"]
    for name in names:
        with KeyLocks(root, timeout_s=0).lease(name):
            pass
    assert sorted(path.name for path in (root / "locks").iterdir()) == [
        "lease-GPU-0a1b.lock",
        "lease-MIG_1_2.lock",
        "lease-______escape.lock",
    ]


FORK = """
import os, subprocess, sys
from pathlib import Path
from jitd.cache.errors import LockTimeout
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
root, key = Path(sys.argv[1]), Key.of("winner", "silu", n=1)
with KeyLocks(root).hold(key):
    child = os.fork()
    if child == 0:
        try:
            with KeyLocks(root, timeout_s=0).hold(key):
                print("the child believes it holds the lock", flush=True)
        except LockTimeout:
            print("the child holds nothing", flush=True)
    if child:
        os.waitpid(child, 0)
        print("child gone", flush=True)
        sys.stdin.readline()
if child:
    print("parent released", flush=True)
"""


def test_a_forked_child_holds_nothing(root: Path, spawn: Callable) -> None:
    """A child forked under a lock cannot take it; leaving its copy of the `with` and exiting, it
    does not release the lock either: that is the parent's."""
    parent = spawn(FORK, root)
    assert parent.line() == "the child holds nothing"
    assert parent.line() == "child gone"
    assert not is_free(root, spawn)
    parent.say("release")
    assert parent.line() == "parent released"
    assert is_free(root, spawn)


def test_a_folder_without_flock_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flock is missing there is no lock, instead of one that would survive kill -9."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(LockUnavailable, match="flock"), KeyLocks(root, timeout_s=0).hold(KEY):
        pass


def test_a_soft_lock_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filelock that turns soft by itself (3.24 to 3.29) is found out and let go."""
    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    with pytest.raises(LockUnavailable, match="no flock"), KeyLocks(root, timeout_s=0).hold(KEY):
        pass
    assert [*(root / "locks").iterdir()] == []


def test_an_unusable_lock_folder_is_told(root: Path) -> None:
    """Where no lock file can be made the error says so and names the file."""
    (root / "locks").write_text("")
    with pytest.raises(LockUnavailable, match="locks"), KeyLocks(root, timeout_s=0).hold(KEY):
        pass


@pytest.mark.parametrize(
    "number",
    [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EMFILE, errno.EIO, errno.ESTALE],
    ids=lambda number: errno.errorcode[number],
)
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_lock_that_the_system_refuses_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A read-only folder, a full disk, no descriptor left: LockUnavailable at once, no waiting."""
    from filelock import FileLock  # noqa: PLC0415, F401  (its import opens files)

    def failing(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(LockUnavailable), KeyLocks(root, timeout_s=5).hold(KEY):
            pass
    with KeyLocks(root, timeout_s=0).hold(KEY):
        pass


@pytest.mark.timeout(30)
@pytest.mark.parametrize("gone", ["locks", "."])
def test_a_lock_folder_that_goes_away_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Nobody waits for ever where the folder, or the whole cache, is removed meanwhile."""
    real, went = os.open, []

    def late(path: Any, *arguments: int, **options: int) -> int:
        if Path(os.fsdecode(path)).parent == root / "locks" and not went:
            went.append(gone)
            shutil.rmtree(root / gone)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(LockUnavailable, match="No such file"), KeyLocks(root).hold(KEY):
        pass
    assert went
    assert root.exists() == (gone == "locks")


def test_the_number_of_lock_files_is_fixed(root: Path) -> None:
    """However many keys there are, a kind has at most 256 lock files."""
    locks = KeyLocks(root, timeout_s=0)
    for n in range(600):
        with locks.hold(Key.of("winner", "silu", n=n)):
            pass
    assert len([*(root / "locks").iterdir()]) <= 256


def test_locks_say_what_they_are(root: Path) -> None:
    """The repr says where and how long they wait."""
    assert repr(KeyLocks(root)) == f"<KeyLocks at {root / 'locks'}, waiting for ever>"
    assert repr(KeyLocks(root, timeout_s=2.5)) == f"<KeyLocks at {root / 'locks'}, waiting 2.5 s>"
