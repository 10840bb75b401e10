"""Locks between processes, so that one builds what many want.

Locks save work; they never make anything right. Records are whole without them, and on a network
file system, where they may do nothing, two processes at worst build the same thing twice.

The files are `locks/<kind>-<2 hex>.lock` and are never removed. Keys share them by the first digits
of their digest: a fixed number of files, at the price of an occasional wait for a stranger.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import LockOrderError, LockTimeout, LockUnavailable
from .files import make_private
from .keys import Key

FOLDER: Final = "locks"
ORDER: Final = (
    "receipt",
    "workload",
    "winner",
    "timing",
    "negative",
    "artifact",
    "check",
    "source",
    "lease",
)
"""A thread that holds a lock of one kind takes only locks of later kinds: no cycle, no deadlock."""

_POLL_S: Final = 0.02
_QUIET_S = 60.0  # a wait that is longer is said

LOGGER: Final = logging.getLogger("jitd.cache")


@dataclass(eq=False)
class _Hold:
    """One lock that a thread holds. `name` says what was asked for, in messages."""

    kind: str
    path: Path
    name: str
    lock: Any
    depth: int = 1


class _Holds(threading.local):
    """The locks of this thread of this process, in the order taken."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._holds: list[_Hold] = []

    def current(self) -> list[_Hold]:
        if self._pid != os.getpid():  # a forked child holds none of its parent's locks
            self._pid = os.getpid()
            self._holds = []
        return self._holds


_HOLDS = _Holds()


class KeyLocks:
    """Locks for the keys of the cache at `root`.

    `timeout_s` is how long to wait: None for ever, 0 not at all. A lock is released on leaving its
    `with`, and by the kernel at once when its holder dies. A thread may take again what it holds;
    a forked child holds nothing.

    Both methods raise LockTimeout, LockUnavailable where the folder takes no locks, and
    LockOrderError against `ORDER` or for a second lock of the same kind.
    """

    def __init__(self, root: Path, *, timeout_s: float | None = None) -> None:
        self.root = root
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        wait = "waiting for ever" if self.timeout_s is None else f"waiting {self.timeout_s:g} s"
        return f"<KeyLocks at {self.root / FOLDER}, {wait}>"

    @contextmanager
    def hold(self, key: Key) -> Iterator[None]:
        """Be the only one, of all threads and processes, to build what `key` names."""
        with self._hold(key.kind, f"{key.kind}-{key.digest[:2]}", key.path):
            yield

    @contextmanager
    def lease(self, name: str) -> Iterator[None]:
        """Be the only one to use a thing, such as a GPU, which is named by its UUID."""
        with self._hold("lease", f"lease-{re.sub('[^A-Za-z0-9_-]', '_', name)[:200]}", name):
            yield

    @contextmanager
    def _hold(self, kind: str, file_name: str, name: str) -> Iterator[None]:
        path = self.root / FOLDER / f"{file_name}.lock"
        holds = _HOLDS.current()
        hold = next((one for one in holds if one.path == path), None)
        if hold is not None:
            hold.depth += 1
        else:
            _refuse_wrong_order(kind, name, holds)
            hold = _Hold(kind, path, name, self._acquired(path, name))
            holds.append(hold)
        try:
            yield
        finally:
            hold.depth -= 1
            # In a child forked inside the `with`, the lock is still the parent's.
            if hold.depth == 0 and hold in _HOLDS.current():
                _HOLDS.current().remove(hold)
                hold.lock.release()

    def _acquired(self, path: Path, name: str) -> Any:
        from filelock import FileLock, SoftFileLock, Timeout  # noqa: PLC0415 - 35 ms, on a miss only

        try:
            make_private(path.parent)
            # fallback_to_soft came with filelock 3.30. Older ones ignore the argument: 3.24 to 3.29
            # turn soft by themselves, which is refused below (a soft lock is a file that survives
            # kill -9), and before 3.24 they raise NotImplementedError. 3.30 is also the first whose
            # locks know that they were inherited: with older ones, a forked child that exits
            # normally releases its parent's lock.
            lock = FileLock(path, mode=0o600, poll_interval=_POLL_S, fallback_to_soft=False)
            if self.timeout_s is None:
                _wait_for_ever(lock, name)
            else:
                lock.acquire(timeout=self.timeout_s)
        except Timeout:
            raise LockTimeout(
                f"no lock for {name} after {self.timeout_s:g} s: another process holds {path}. "
                f"Allowed: waiting longer, or doing without. Run `fuser {path}` to see who."
            ) from None
        except (OSError, NotImplementedError) as error:
            raise _unavailable(path, str(error)) from error
        if isinstance(lock, SoftFileLock):
            lock.release()
            raise _unavailable(path, "the file system has no flock")
        return lock


def _wait_for_ever(lock: Any, name: str) -> None:
    """Acquire, and say so if it takes long: who holds it may have been stopped, and never end."""
    from filelock import Timeout  # noqa: PLC0415 - as above

    try:
        lock.acquire(timeout=_QUIET_S)
    except Timeout:
        LOGGER.warning(
            "waiting for whoever holds the lock of %s, for %g s so far; `fuser %s` tells who",
            name, _QUIET_S, lock.lock_file,
        )  # fmt: skip
        lock.acquire(timeout=-1)


def _unavailable(path: Path, reason: str) -> LockUnavailable:
    return LockUnavailable(
        f"cannot lock {path}: {reason}. Locks need a writable cache folder on a file system with "
        f"flock. Put the cache on a local disk."
    )


def _refuse_wrong_order(kind: str, name: str, holds: list[_Hold]) -> None:
    for held in holds:
        if ORDER.index(held.kind) >= ORDER.index(kind):
            raise LockOrderError(
                f"lock of {name} ({kind}) wanted while holding {held.name} ({held.kind}). "
                f"Allowed: one lock of a kind, in the order {', '.join(ORDER)}. "
                f"Release {held.name} first."
            )
