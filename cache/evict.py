"""Keeping a cache within bounds: what was not used for longest goes first.

Works while others read, write and evict. Each file is looked at again just before it is unlinked
(inode, size, mtime), so that what was replaced or used in between stays. What is still evicted
under a reader costs that reader a miss. One evictor at a time is enough; two do no harm.
"""

import json
import logging
import math
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from . import counters, files, scan
from .clear import Cleared
from .keys import KINDS
from .records import MAGIC
from .scan import USAGE, Entry
from .store import MAX_QUARANTINED, QUARANTINE, TEMPORARIES, Store

LOGGER: Final = logging.getLogger("jitd.cache")

MAX_BYTES: Final = 4 << 30
MAX_FILES: Final = 200_000

RECENT_S: Final = 3600.0
"""What was used so lately may be wanted again at once: it goes only if nothing else of its rank
is left. Not less than `files.STAMP_EVERY_S`, by which a stamp may be late."""

TEMPORARY_S: Final = 3600.0
"""A temporary this old has lost its writer."""

QUARANTINED_S: Final = 30 * 86_400.0
JOURNAL_S: Final = 30 * 86_400.0
"""A tune that was not gone on with for so long is not gone on with."""

RANKS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("artifact", "source", "negative"), 0),
    **dict.fromkeys(("check", "receipt"), 1),
    **dict.fromkeys(("winner", "timing", "workload"), 2),
}
"""Kinds of a higher rank outlive all of a lower one. 0: made again in a second by any machine.
1: made again in a second by a GPU. 2: minutes of a GPU's time, in a few kilobytes; artifacts
weigh a hundred times as much, so that sparing winners hardly costs room."""

_USAGE_MAX_BYTES: Final = 200
_SCAN_EVERY_S: Final = 3600.0
_STEP: Final = 1 / 64
_ROOM: Final = 0.9
_DEAR: Final = 2
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class Bounds:
    """How large a cache may get, in bytes of its files and in files."""

    max_bytes: int = MAX_BYTES
    max_files: int = MAX_FILES

    def scaled(self, share: float) -> "Bounds":
        return Bounds(int(self.max_bytes * share), int(self.max_files * share))


def bytes_of(text: str) -> int:
    """`500M`, `4G`, `1.5GiB` or a plain number, in bytes; K is 1024. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError("allowed is a number of bytes, or one with K, M, G or T, such as 500M")
    return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


@dataclass
class Evicted:
    """What an eviction removed and what it left.

    `removed` is by kind, or `temporary` and `quarantined`. `failed` counts files that the system
    did not let go, the last reason in `failure`.
    """

    removed: dict[str, Cleared] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    failed: int = 0
    failure: str = ""

    def fits(self, bounds: Bounds) -> bool:
        """Whether what is left is within bounds."""
        return self.files <= bounds.max_files and self.bytes <= bounds.max_bytes

    @property
    def total(self) -> Cleared:
        """All that was removed."""
        cleared = self.removed.values()
        return Cleared(sum(one.files for one in cleared), sum(one.bytes for one in cleared))

    def fail(self, path: str, error: OSError, number: int = 1) -> None:
        self.failed += number
        self.failure = f"{path}: {error.strerror}"

    def leave_out(self, entry: Entry) -> None:
        """Of what is left: it was removed, by us or by somebody else."""
        self.files -= 1
        self.bytes -= entry.bytes

    def note(self, what: str, size: int) -> None:
        before = self.removed.get(what, Cleared(0, 0))
        self.removed[what] = Cleared(before.files + 1, before.bytes + size)


class Usage(NamedTuple):
    """How much is in a cache, roughly: exact at `scanned` (Unix seconds), since then estimated."""

    bytes: int
    files: int
    scanned: float

    def fits(self, bounds: Bounds) -> bool:
        return self.bytes <= bounds.max_bytes and self.files <= bounds.max_files


def evict(
    store: Store,
    bounds: Bounds,
    *,
    shrink_to: float = 1.0,
    older_than_s: float | None = None,
    dry_run: bool = False,
    now: float | None = None,
) -> Evicted:
    """Sweep what nobody needs, then remove records until the cache is within `bounds`.

    Swept in any case: temporaries that lost their writer, old quarantine, journals of tunes given
    up, and with `older_than_s` what was not used for so long, except for rank 2. If that is not
    enough, the quarantine goes, then the lowest rank, in it what was not used for longest, the last
    hour's last of it; until `shrink_to` of the bounds, so that the next put need not evict again.
    `dry_run` only gives what would be removed. `now` is the time, for tests.

    Raises nothing for a file that cannot be removed: it is counted in `failed`.
    """
    now = time.time() if now is None else now
    everything = [*aside(store), *scan.entries(store.root)]
    evicted = Evicted(files=len(everything), bytes=sum(entry.bytes for entry in everything))
    newest = {entry.path for entry in _newest_quarantined(everything)}
    swept: list[Entry] = []
    left: list[Entry] = []
    for entry in everything:
        nobodys = _is_given_up(entry, older_than_s, now, newest)
        (swept if nobodys else left).append(entry)
    _remove(store, swept, evicted, dry_run)
    if not evicted.fits(bounds):
        left = sorted(
            (entry for entry in left if entry.kind != "temporary"),
            key=lambda entry: _order(entry, now),
        )
        goal, at = bounds.scaled(shrink_to), 0
        while at < len(left) and not evicted.fits(goal):  # again if some of them had to stay
            chosen = _enough(left[at:], evicted, goal)
            _remove(store, chosen, evicted, dry_run)
            at += len(chosen)
    if not dry_run:
        _write_usage(store, Usage(evicted.bytes, evicted.files, now))
        if evicted.total.files:
            counters.add(store.root, {"evictions": evicted.total.files})
    return evicted


class Keeper:
    """Keeps a cache within bounds as it grows: `store.after_put = Keeper(store, bounds).note`.

    A put costs two additions. Each process compares with the machine's estimate, a file of two
    numbers, at its first put and then whenever it has itself added 1/64 of a bound; once an hour at
    most the first of them all to put something counts what is really there. So the bounds may be
    passed by 1/64 for each process that writes, for an hour.
    """

    def __init__(self, store: Store, bounds: Bounds) -> None:
        self.store, self.bounds = store, bounds
        self._added = Usage(0, 0, 0.0)  # since the estimate was last written by this process
        self._looked = -math.inf

    def __repr__(self) -> str:
        return f"<Keeper of {self.store.root}: {self.bounds}>"

    def note(self, size: int, *, now: float | None = None) -> Evicted | None:
        """A record of `size` bytes was put: what was evicted therefore, None mostly."""
        now = time.time() if now is None else now
        self._added = Usage(self._added.bytes + size, self._added.files + 1, 0.0)
        small = self._added.fits(self.bounds.scaled(_STEP))
        if small and 0 <= now - self._looked < _SCAN_EVERY_S:
            return None
        self._looked = now
        try:
            return self._look(small, now)
        except OSError as error:
            LOGGER.warning("%s is not kept within its bounds: %s", self.store.root, error)
            return None

    def _look(self, small: bool, now: float) -> Evicted | None:
        usage = read_usage(self.store)
        known = usage or Usage(0, 0, now)
        estimate = Usage(
            known.bytes + self._added.bytes, known.files + self._added.files, known.scanned
        )
        if usage and 0 <= now - usage.scanned < _SCAN_EVERY_S and estimate.fits(self.bounds):
            if not small:
                self._added = Usage(0, 0, 0.0)
                _write_usage(self.store, estimate)
            return None
        # Written before the scan: the others then find a fresh estimate and need not scan, too.
        self._added = Usage(0, 0, 0.0)
        _write_usage(self.store, Usage(known.bytes, known.files, now))
        return evict(self.store, self.bounds, shrink_to=_ROOM, now=now)


def aside(store: Store) -> Iterator[Entry]:
    """What jitd put into `tmp/` and `quarantine/`: entries of kind `temporary`, `quarantined`."""
    for folder, kind, pattern in (
        (TEMPORARIES, "temporary", scan.TEMPORARY),
        (QUARANTINE, "quarantined", scan.QUARANTINED),
    ):
        for name in store.names_in(folder):
            if pattern.fullmatch(name):
                with suppress(OSError):
                    status = (store.root / folder / name).lstat()
                    if stat.S_ISREG(status.st_mode):
                        yield scan.entry_of(f"{folder}/{name}", kind, "", status)


def read_usage(store: Store) -> Usage | None:
    """The estimate of what is in the cache; None where there is none, or nothing of that kind."""
    try:
        with files.opened(store.root / USAGE) as (descriptor, _):
            found = json.loads(files.read_up_to(descriptor, _USAGE_MAX_BYTES))
        usage = Usage(int(found["bytes"]), int(found["files"]), float(found["scanned"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return usage if usage.bytes >= 0 and usage.files >= 0 else None


def _write_usage(store: Store, usage: Usage) -> None:
    text = json.dumps(usage._asdict())
    with suppress(OSError):  # only an estimate, and the hourly count needs none
        files.write_whole(store.root, USAGE, text.encode(), TEMPORARIES)


def _newest_quarantined(entries: Iterable[Entry]) -> list[Entry]:
    quarantined = [entry for entry in entries if entry.kind == "quarantined"]
    return sorted(quarantined, key=lambda entry: -entry.last_used)[:MAX_QUARANTINED]


def _is_given_up(
    entry: Entry, older_than_s: float | None, now: float, newest: Collection[str]
) -> bool:
    """Whether nobody needs it. `newest` are the paths in quarantine that number lets stay."""
    unused_s = now - entry.last_used
    if entry.kind == "temporary":
        return unused_s > TEMPORARY_S
    if entry.kind == "quarantined":
        return unused_s > QUARANTINED_S or entry.path not in newest
    if entry.kind == "timing":
        return unused_s > JOURNAL_S
    return older_than_s is not None and RANKS[entry.kind] < _DEAR and unused_s > older_than_s


def _order(entry: Entry, now: float) -> tuple[int, bool, float, str]:
    recent = abs(now - entry.last_used) < RECENT_S
    return RANKS.get(entry.kind, -1), recent, entry.last_used, entry.path


def _enough(entries: Sequence[Entry], evicted: Evicted, goal: Bounds) -> Sequence[Entry]:
    """As many of the first as must go to reach the goal."""
    number, size = evicted.files, evicted.bytes
    for index, entry in enumerate(entries):
        if number <= goal.max_files and size <= goal.max_bytes:
            return entries[:index]
        number, size = number - 1, size - entry.bytes
    return entries


def _remove(store: Store, entries: Iterable[Entry], evicted: Evicted, dry_run: bool) -> None:
    """Remove these, folder by folder: opening a folder costs more than removing a file."""
    by_folder: dict[str, list[Entry]] = {}
    for entry in entries:
        by_folder.setdefault(entry.path.rpartition("/")[0], []).append(entry)
    for path, inner in sorted(by_folder.items()):
        try:
            with files.folder_below(store.root, *path.split("/")) as folder:
                for entry in inner:
                    _remove_one(folder, entry, evicted, dry_run)
        except OSError as error:
            if error.errno not in files.NOT_THERE:
                evicted.fail(path, error, len(inner))
            else:
                for entry in inner:
                    evicted.leave_out(entry)
        if not dry_run:
            files.remove_empty_folders(store.root, path)


def _remove_one(folder: int, entry: Entry, evicted: Evicted, dry_run: bool) -> None:
    found = good = False

    def accept(status: os.stat_result, descriptor: int) -> bool:
        nonlocal found, good
        found = True
        good = entry.is_unchanged(status) and _is_ours(entry, descriptor)
        return good and not dry_run

    try:
        removed = files.remove_in(folder, entry.path.rpartition("/")[2], accept) is not None
    except OSError as error:
        evicted.fail(entry.path, error)
        return
    if removed or (dry_run and good):
        evicted.note(entry.kind, entry.bytes)
    elif found and not good:
        return  # it was used or replaced meanwhile, and stays
    evicted.leave_out(entry)


def _is_ours(entry: Entry, descriptor: int) -> bool:
    """Nothing goes that jitd did not write; what is aside or half written may begin like that."""
    return entry.kind not in KINDS or files.read_up_to(descriptor, len(MAGIC)) == MAGIC
