"""Locks under threads, forks, spawned processes and kills: one holder, no deadlock, none leaked."""

import multiprocessing
import random
import select
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from jitd.cache.errors import LockOrderError, LockTimeout
from jitd.cache.keys import KINDS, Key
from jitd.cache.locks import ORDER, KeyLocks

KEY = Key.of("winner", "silu", n=1)
WAIT_S = 60.0


def test_of_many_threads_one_is_inside(root: Path) -> None:
    """Sixteen threads take one key again and again: never two inside, and nobody is left out."""
    inside, most, entered = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(5):
            with KeyLocks(root, timeout_s=WAIT_S).hold(KEY):
                inside += 1
                most = max(most, inside)
                entered += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert (most, entered, inside) == (1, 80, 0)


def test_threads_that_share_one_object_exclude_each_other(root: Path) -> None:
    """What a thread holds through a KeyLocks, another may not take through the same one."""
    locks, outcome = KeyLocks(root, timeout_s=0), list[str]()

    def attempt() -> None:
        try:
            with locks.hold(KEY):
                outcome.append("taken")
        except LockTimeout:
            outcome.append("timeout")

    def run() -> None:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(WAIT_S)

    with locks.hold(KEY):
        run()
    run()
    assert outcome == ["timeout", "taken"]


FORK_OTHER_THREAD = """
import os, sys, threading
from pathlib import Path
from jitd.cache.errors import LockTimeout
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
root, key = Path(sys.argv[1]), Key.of("winner", "silu", n=1)
held, done = threading.Event(), threading.Event()
def hold():
    with KeyLocks(root).hold(key):
        held.set()
        done.wait(30)
thread = threading.Thread(target=hold)
thread.start()
held.wait(30)
from_child, to_parent = os.pipe()
from_parent, to_child = os.pipe()
def attempt(timeout_s):
    try:
        with KeyLocks(root, timeout_s=timeout_s).hold(key):
            return b"taken  "
    except LockTimeout:
        return b"timeout"
child = os.fork()
if child == 0:
    os.close(to_child)
    os.write(to_parent, attempt(0))
    os.read(from_parent, 1)  # while it waits here, it has a copy of all of its parent's descriptors
    os.write(to_parent, attempt(30))
    os._exit(0)
first = os.read(from_child, 7)
done.set()
thread.join(30)
print(first.decode(), flush=True)
sys.stdin.readline()
os.write(to_child, b".")
print(os.read(from_child, 7).decode(), flush=True)
os.waitpid(child, 0)
"""


def test_a_child_does_not_keep_the_lock_of_another_thread(root: Path, spawn: Callable) -> None:
    """Forked while another thread holds a lock, a child cannot take it; once that thread lets go
    the lock is free for everybody, although the child lives on with a copy of its descriptor."""
    parent = spawn(FORK_OTHER_THREAD, root)
    assert parent.line() == "timeout"
    with KeyLocks(root, timeout_s=0).hold(KEY):
        pass
    parent.say("go on")
    assert parent.line() == "taken"
    assert parent.exit_code() == 0


FORK_AND_DIE = """
import os, sys
from pathlib import Path
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
with KeyLocks(Path(sys.argv[1])).hold(Key.of("winner", "silu", n=1)):
    if os.fork() == 0:
        print("forked", flush=True)
        sys.stdin.readline()  # until the test closes it
        os._exit(0)
    os.wait()
"""


def test_a_dead_holders_child_does_not_keep_its_lock(root: Path, spawn: Callable) -> None:
    """kill -9 of a holder frees its lock at once, although a child that it forked lives on."""
    parent = spawn(FORK_AND_DIE, root)
    assert parent.line() == "forked"
    parent.process.kill()
    parent.process.wait(WAIT_S)
    with KeyLocks(root, timeout_s=0).hold(KEY):
        pass


def _attempt(root: str, outcome) -> None:
    try:
        with KeyLocks(Path(root), timeout_s=0).hold(KEY):
            outcome.send("taken")
    except LockTimeout:
        outcome.send("timeout")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_process_is_a_stranger(
    root: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process started by multiprocessing has nothing of its parent's locks."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # it imports this very file by its name
    context = multiprocessing.get_context(method)

    def run() -> str:
        here, there = context.Pipe()
        process = context.Process(target=_attempt, args=(str(root), there))
        process.start()
        there.close()
        try:
            assert here.poll(WAIT_S)
            return here.recv()
        finally:
            process.join(WAIT_S)

    with KeyLocks(root).hold(KEY):
        assert run() == "timeout"
    assert run() == "taken"


TWO_KEYS = """
import random, sys
from pathlib import Path
from jitd.cache.errors import LockOrderError
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks, ORDER
locks, chance = KeyLocks(Path(sys.argv[1]), timeout_s=60), random.Random(int(sys.argv[2]))
def taken(kind):
    return locks.lease("GPU-1") if kind == "lease" else locks.hold(Key.of(kind, "silu", n=1))
for _ in range(60):
    a, b = chance.sample(ORDER, 2)
    with taken(a):
        try:
            with taken(b):
                assert ORDER.index(a) < ORDER.index(b)
        except LockOrderError:
            assert ORDER.index(a) > ORDER.index(b)
print("done", flush=True)
"""


def test_two_keys_in_any_order_never_deadlock(root: Path, spawn: Callable) -> None:
    """Processes that take pairs of locks in random order all finish: each pair is taken in the one
    order, or refused at once."""
    children = [spawn(TWO_KEYS, root, seed) for seed in range(4)]
    assert [child.line() for child in children] == ["done"] * 4
    assert [child.exit_code() for child in children] == [0] * 4


def test_a_refused_order_takes_nothing(root: Path) -> None:
    """Being refused leaves the refused lock free and the held ones held, for every pair."""
    locks, other = KeyLocks(root, timeout_s=0), KeyLocks(root, timeout_s=0)

    def taken(locks: KeyLocks, kind: str):
        return locks.lease("G") if kind == "lease" else locks.hold(Key.of(kind, "silu", n=1))

    def in_a_thread(kind: str) -> bool:
        outcome = list[bool]()

        def attempt() -> None:
            try:
                with taken(other, kind):
                    outcome.append(True)
            except LockTimeout:
                outcome.append(False)

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(WAIT_S)
        return outcome[0]

    for later, earlier in [(b, a) for n, b in enumerate(ORDER) for a in ORDER[:n]]:
        with taken(locks, later):
            with pytest.raises(LockOrderError), taken(locks, earlier):
                pass
            assert in_a_thread(earlier)
            assert not in_a_thread(later)


SECTION = """
import os, sys
from pathlib import Path
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
locks = KeyLocks(Path(sys.argv[1]), timeout_s=60)
with locks.hold(Key.of("winner", "silu", n=1)), locks.hold(Key.of("artifact", "silu", n=1)):
    print("inside", flush=True)
    sys.stdin.readline()
"""


def test_a_queue_of_dying_holders_moves_on(root: Path, spawn: Callable) -> None:
    """Of five that want two locks each gets both as soon as the one before it is killed."""
    waiting = [spawn(SECTION, root) for _ in range(5)]
    inside = 0
    while waiting:
        ready = _first_line(waiting)
        inside += 1
        with pytest.raises(LockTimeout), KeyLocks(root, timeout_s=0).hold(KEY):
            pass
        ready.kill()
        waiting.remove(ready)
    assert inside == 5
    with KeyLocks(root, timeout_s=0).hold(KEY):
        pass


def _first_line(children: list):
    """The child that says first that it is inside; a failure if none does, or two do."""
    ready, _, _ = select.select([child.process.stdout for child in children], [], [], WAIT_S)
    assert len(ready) == 1
    [child] = [child for child in children if child.process.stdout is ready[0]]
    assert child.line() == "inside"
    return child


def test_all_kinds_have_a_fixed_number_of_lock_files(root: Path) -> None:
    """Whatever the keys, each kind has at most 256 lock files, and nothing else is there."""
    chance = random.Random(1)
    locks = KeyLocks(root, timeout_s=0)
    for kind in sorted(KINDS):
        for n in range(40):
            with locks.hold(Key.of(kind, "silu", n=n, m=chance.random())):
                pass
    names = {path.name for path in (root / "locks").iterdir()}
    allowed = {f"{kind}-{n:02x}.lock" for kind in KINDS for n in range(256)}
    assert names <= allowed
