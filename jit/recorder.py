"""JITD_RECORD: a file that gets each signature of a process as it is first asked for.

What is asked for again is in the tables of the ops, and costs nothing for this.
"""

import logging
import os
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from .errors import JitdError
from .record import HEADER, Workload, as_line
from .stats import Stats

log = logging.getLogger("jitd")

MOST: Final = 1 << 16
"""Signatures that one file may hold: a program whose every call has another one must not fill a
disk."""

_MOST_BYTES: Final = MOST << 10
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
# Not blocking: a pipe in the file's place must not be waited for.


class Recorder:
    """Appends signatures to the file at `path`, in which `{pid}` is the process's own.

    Any number of processes may share a file: each appends whole lines, one write each, and what was
    there when it began it does not repeat. Killed at any moment, a process leaves a file that
    `Workload.load` reads. Not guaranteed: that a signature is there once (two processes may find it
    in the same instant), that lines survive a crash of the machine, and anything on a network file
    system that several machines append to.

    Nothing is ever raised: what cannot be written is counted (`record:unwritten`), said once, and
    tried again with the next signature.
    """

    def __init__(self, path: str, stats: Stats) -> None:
        self.path = path
        self._stats = stats
        self._looked = False  # into the file, for what it has
        self._known: set[str] = set()
        self._waiting: dict[str, None] = {}
        self._lock = threading.Lock()
        self._complained = False

    def __repr__(self) -> str:
        return f"<Recorder: {len(self._known)} signatures, to {self.path}>"

    def note(self, signature: str) -> None:
        """See to it that the file has this signature."""
        if signature in self._known:
            return
        with self._lock:
            if signature in self._known:
                return
            path = Path(self.path.replace("{pid}", str(os.getpid())))
            try:
                self._write(path, signature)
            except (OSError, JitdError) as error:
                self._stats.count("record:unwritten")
                self._complain(path, error)

    def _write(self, path: Path, signature: str) -> None:
        """Append it, and what is waiting. Raises OSError and JitdError; all of it waits then, but
        for what a full file does not get.
        """
        if len(self._known) >= MOST:
            raise JitdError(f"it holds {MOST} signatures, and gets no more")
        self._known.add(signature)
        self._waiting[signature] = None
        if not self._looked:
            there = _opened(path)
            self._known |= there
            self._waiting = {text: None for text in self._waiting if text not in there}
            self._looked = True
        try:
            _append(path, "".join(map(as_line, self._waiting)).encode())
        except FileNotFoundError:  # somebody took it away: the next signature begins another
            self._looked, self._waiting = False, dict.fromkeys(self._known)
            raise
        self._stats.count("record:written", len(self._waiting))
        self._waiting.clear()

    def _complain(self, path: Path, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            reason = (isinstance(error, OSError) and error.strerror) or error
            log.warning("JITD_RECORD: signatures cannot be written to %s: %s", path, reason)


def _opened(path: Path) -> set[str]:
    """The signatures in the file, which is made if there is none, its first line in it.

    Raises OSError, and JitdError for a file that is another.
    """
    if not path.exists():
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(HEADER)
            with suppress(FileExistsError):  # another process was quicker
                os.link(aside, path)
        finally:
            Path(aside).unlink()
    descriptor = _regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if not size:  # as mktemp leaves it
            os.write(descriptor, HEADER.encode())
    finally:
        os.close(descriptor)
    if size > _MOST_BYTES:
        raise JitdError(f"it has {size} bytes already")
    there = Workload.load(path)
    if not there.marks:
        raise JitdError("it is a workload with numbers of calls, and stays one")
    return set(there)


def _append(path: Path, lines: bytes) -> None:
    descriptor = _regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # what came before was cut short
        if os.write(descriptor, lines) < len(lines):
            raise OSError(None, "there is no room for all of it")
    finally:
        os.close(descriptor)


def _regular(path: Path) -> int:
    """A descriptor of the file. Raises OSError for anything but a file, too."""
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "it is no file")
    return descriptor
