"""What processes counted, added up beside the cache they share.

One file, to which each process appends one line as it ends: appending needs no lock, and a line
that short is not torn on a local disk. Not guaranteed: that nothing is lost. A process that is
killed adds nothing, and what is added in the instant of a compaction is gone.
"""

import atexit
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import files, scan

FILE: Final = scan.COUNTERS
COMPACT_BYTES: Final = 256 << 10

_MAX_BYTES: Final = 4 << 20  # nobody reads more, whoever wrote it
_MAX_LINE: Final = 4096
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

Counts = Mapping[str, int]


def add(root: Path, counts: Counts) -> None:
    """Add these counts to those of the cache at `root`; where it cannot be written, to nothing."""
    line = json.dumps({name: n for name, n in sorted(counts.items()) if n > 0}).encode() + b"\n"
    if line == b"{}\n" or len(line) > _MAX_LINE:
        return
    with suppress(OSError):
        descriptor = os.open(root / FILE, _FLAGS | os.O_NONBLOCK, 0o600)
        try:
            os.write(descriptor, line)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size > COMPACT_BYTES:
            text = json.dumps(dict(sorted(total(root).items()))).encode() + b"\n"
            files.write_whole(root, FILE, text, "tmp")


def total(root: Path) -> Counter[str]:
    """The sums of all that was added. Lines that are none are left out."""
    counts: Counter[str] = Counter()
    with suppress(OSError), files.opened(root / FILE) as (descriptor, _):
        for line in files.read_up_to(descriptor, _MAX_BYTES).splitlines():
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
                if isinstance(found, dict) and all(type(n) is int for n in found.values()):
                    counts.update({name: n for name, n in found.items() if n > 0})
    return counts


class Tally:
    """The counts of one process, to be added to its cache's once: when it ends, or before.

    `sources` give counters that only grow; what they hold by now belongs to somebody else, except
    for what those of `own` hold, which are read, too.
    """

    def __init__(
        self, root: Path, *sources: Callable[[], Counts], own: Callable[[], Counts] = dict
    ) -> None:
        self.root = root
        self._sources = (*sources, own)
        self._before = self._counted()
        self._before.subtract(own())

    def add(self) -> None:
        """Add what was counted since the last time."""
        now = self._counted()
        counts = {name: n - self._before[name] for name, n in now.items()}
        self._before = now
        add(self.root, counts)

    def _counted(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for source in self._sources:
            counted.update(source())
        return counted


_current: Tally | None = None


def keep(tally: Tally) -> None:
    """Add this tally when the process ends; the one kept before is added now."""
    global _current  # noqa: PLW0603  (one per process is the point)
    if _current is not None:
        _current.add()
    _current = tally


def _at_exit() -> None:
    if _current is not None:
        _current.add()


def _after_fork() -> None:
    global _current  # noqa: PLW0603
    _current = None  # what its parent counted, the parent adds


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
