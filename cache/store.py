"""The store: records below one root, shared by every process of the machine.

Guarantees: a record that is returned is whole and is the one filed under its key. A record appears
at once or not at all; readers take no lock, and of two writers one wins entirely. Any fault of what
is read is a miss, counted, logged once and moved aside. The folder may be moved, copied or mounted:
nothing in it knows its place. Folders behind the root are read where it has nothing, and never
written, stamped or tidied.

Not guaranteed: that a record survives (another process may evict it between any two calls), or that
the last rename before a power cut is seen after it.
"""

import errno
import heapq
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from . import files, scan
from .errors import BadRecord, CacheWriteError
from .keys import KINDS, Key
from .records import (
    FRAME_BYTES,
    Header,
    Record,
    decode,
    decode_frame,
    encode,
    refuse_misplaced,
)

LOGGER: Final = logging.getLogger("jitd.cache")
TEMPORARIES: Final = "tmp"
QUARANTINE: Final = "quarantine"
MAX_QUARANTINED: Final = 64

_PUT_ATTEMPTS: Final = 3
# Another process cleared the folder between two of our steps, or a network file system is out of
# step with its server: the same again, from the start, may well succeed.
_PUT_AGAIN: Final = (errno.ENOENT, errno.ESTALE, errno.EBUSY, errno.EINTR, errno.EEXIST)

# One lock for all stores, which a fork waits for: a child would find a lock that another thread of
# its parent held, and nobody to release it.
_COUNTING = threading.Lock()
os.register_at_fork(
    before=_COUNTING.acquire,
    after_in_parent=_COUNTING.release,
    after_in_child=_COUNTING.release,
)


class Store:
    """The records below `root`, a folder that `paths.open_root` returned.

    `behind` are further such folders, read-only, that are searched in order for what the root does
    not have, or not intact: what is found in one hides what is in those after it. `tiers` are all.
    Only the root is ever changed: removing a record shows again what it hid.

    Any number of threads may share one. `counters` counts `hits` (of them `hits_behind`), `misses`
    and `puts`, `bad:<cause>` for each record that was refused and `unreadable:<errno>` for each
    file that could not be read.
    """

    def __init__(self, root: Path, behind: Sequence[Path] = ()) -> None:
        self.root = root
        self.tiers: Final = (root, *behind)
        self.counters: Counter[str] = Counter()
        self._reported: set[Path] = set()
        self.after_put: Callable[[int], object] = _nothing
        """Told the size of each record that was put; keeps the cache within bounds (`evict`)."""

    def __repr__(self) -> str:
        count = self.counters
        bad = sum(n for name, n in count.items() if name.startswith(("bad:", "unreadable:")))
        behind = f" and {len(self.tiers) - 1} behind it" if len(self.tiers) > 1 else ""
        return (
            f"<Store at {self.root}{behind}: {count['hits']} hits, {count['misses']} misses, "
            f"{count['puts']} puts, {bad} bad files>"
        )

    def snapshot(self) -> dict[str, int]:
        """The counters as they are now."""
        with _COUNTING:
            return dict(self.counters)

    def get(self, key: Key) -> Record | None:
        """The record filed under `key`, or None. A hit renews its stamp of last use.

        "Is it there" and "give it" are one step: what was there may be gone a moment later.
        """
        record = self._read(key.path, key, renew=True)
        self._count("misses" if record is None else "hits")
        if record is not None and record.header.tier:
            self._count("hits_behind")
        return record

    def has(self, key: Key) -> bool:
        """Whether a record with an intact header is filed under `key`; its body is not read."""
        return self._read_header(key.path) is not None

    def is_intact(self, relative: str) -> bool:
        """Whether the record at a path (`Key.path`) has an intact header that names this path."""
        return self._read_header(relative) is not None

    def put(
        self,
        key: Key,
        body: Mapping[str, Any],
        *,
        label: str = "",
        meta: Mapping[str, Any] | None = None,
        created: float | None = None,
    ) -> Record:
        """File `body` under `key`, replacing what is there, and return what `get` would give.

        `label`, `meta` and `created` (Unix seconds; now, if none; 0 for what was made nobody knows
        when) go to the header, for listing. Raises BadValue for what msgpack cannot
        hold, CacheWriteError when the system refuses.
        """
        created = time.time() if created is None else created
        data = encode(key, body, label=label, meta=meta or {}, created=created)
        try:
            self._write(key.path, data)
        except OSError as error:
            raise _write_error(self.root / key.path, error) from error
        self._count("puts")
        self.after_put(len(data))
        return decode(data, key)

    def delete(self, key: Key) -> bool:
        """Remove the root's file of `key`, whatever is in it; whether there was one."""
        return self.remove_file(key.path) is not None

    def headers(self, kind: str | None = None, op: str | None = None) -> Iterator[Header]:
        """The headers of all records (of one kind, of one op), in order of their paths.

        Reads no body and renews no stamp. What cannot be read is counted, logged once and left out.
        """
        kinds = KINDS if kind is None else [kind]
        walks = [self._headers_at(tier, kinds, op) for tier in range(len(self.tiers))]
        last = ""
        for path, header in walks[0] if len(walks) == 1 else heapq.merge(*walks, key=_by_path):
            if path != last:  # a record in an earlier tier hides it
                last = path
                yield header

    def _headers_at(
        self, tier: int, kinds: Collection[str], op: str | None
    ) -> Iterator[tuple[str, Header]]:
        root = self.tiers[tier]
        note = self._noting(root)
        for relative, found in scan.headers(root, kinds, op, note):
            if isinstance(found, Header):
                yield relative, replace(found, tier=tier) if tier else found
            elif isinstance(found, BadRecord):
                self._note_bad(root / relative, found)
            else:
                note(relative, found)

    def entries(self) -> Iterator[scan.Entry]:
        """The files of all records by name and status, for counting: none is opened, in no order.

        A damaged one counts like any other. What an earlier tier hides is left out.
        """
        hidden: set[str] = set()
        for root in self.tiers:
            for entry in scan.entries(root, note=self._noting(root)):
                if entry.path not in hidden:
                    yield entry
                if len(self.tiers) > 1:
                    hidden.add(entry.path)

    def record_for(self, header: Header) -> Record | None:
        """The whole record of a listed header, or None. Counts neither hit nor miss, no stamp.

        Unlike listing, it looks whether the digest is that of the parts.
        """
        return self._read(header.path)

    def remove(self, header: Header) -> int | None:
        """Remove a listed record: the bytes freed, or None if it is gone or was replaced since.

        Only ever removes the regular file that was listed, and follows no link on the way. What
        lies behind the root stays.
        """
        if header.tier:
            return None
        return self.remove_file(
            header.path, lambda status, descriptor: _is_listed(header, status, descriptor)
        )

    def remove_file(
        self, relative: str, accept: Callable[[os.stat_result, int], bool] | None = None
    ) -> int | None:
        """Remove one regular file below the root, like `files.remove`; raises CacheWriteError."""
        try:
            return files.fresh(lambda: files.remove(self.root, relative, accept))
        except OSError as error:
            raise _write_error(self.root / relative, error) from error

    def sweep_temporaries(self, older_than_s: float) -> int:
        """Remove what killed writers left in `tmp/`, if older; returns the number of files."""
        removed = 0
        for name in self.names_in(TEMPORARIES):
            size = self.remove_file(
                f"{TEMPORARIES}/{name}",
                lambda status, _: time.time() - status.st_mtime > older_than_s,
            )
            removed += size is not None
        return removed

    def names_in(self, *names: str, only_folders: bool = False) -> list[str]:
        """What is in a folder below the root, sorted; one that cannot be read counts as empty."""
        try:
            return files.fresh(lambda: files.names_in(self.root, *names, only_folders=only_folders))
        except OSError as error:
            self._note_unreadable(self.root.joinpath(*names), error)
            return []

    def _read(self, path: str, key: Key | None = None, *, renew: bool = False) -> Record | None:
        for tier, root in enumerate(self.tiers):
            try:
                record, status = files.fresh(partial(_record_at, root, path, key, tier, renew))
            except OSError as error:
                self._note_unreadable(root / path, error)
                continue
            if isinstance(record, Record):
                return record
            self._note_bad(root / path, record)
            # Another version's record is not broken; the next put replaces it.
            if tier == 0 and record.cause != "version":
                self._quarantine(path, record, status)
        return None

    def _read_header(self, relative: str) -> Header | None:
        for tier, root in enumerate(self.tiers):
            try:
                return files.fresh(partial(_header_at, root, relative, tier))
            except OSError as error:
                self._note_unreadable(root / relative, error)
            except BadRecord as error:
                self._note_bad(root / relative, error)
        return None

    def _write(self, relative: str, data: bytes) -> None:
        for attempt in range(1, _PUT_ATTEMPTS + 1):
            try:
                files.write_whole(self.root, relative, data, TEMPORARIES)
            except OSError as error:
                lasting = error.errno not in _PUT_AGAIN or not self.root.is_dir()
                if lasting or attempt == _PUT_ATTEMPTS:
                    raise
            else:
                return

    def _quarantine(self, relative: str, error: BadRecord, status: os.stat_result) -> None:
        """Move a bad file out of the way, for whoever wants to know what happened to it.

        Best effort. A good record that is put between our read and this rename is put back.
        """
        path = self.root / relative
        kind, op, _, digest = relative.split("/")
        aside = self.root / QUARANTINE / f"{kind}-{op}-{digest}-{error.cause}"
        try:
            if not _is_same(path.lstat(), status):
                return
            files.make_private(aside.parent)
            path.replace(aside)
            if not _is_same(aside.lstat(), status):
                with suppress(FileExistsError):  # an even later one
                    os.link(aside, path)
                aside.unlink()
            self._trim_quarantine()
        except OSError as failure:
            LOGGER.debug("cannot move %s aside: %s", path, failure)

    def _trim_quarantine(self) -> None:
        folder = self.root / QUARANTINE
        ages: list[tuple[float, str]] = []
        for name in self.names_in(QUARANTINE):
            with suppress(FileNotFoundError):  # another process trims too
                ages.append(((folder / name).lstat().st_mtime, name))
        for _, name in sorted(ages)[: max(0, len(ages) - MAX_QUARANTINED)]:
            files.remove(self.root, f"{QUARANTINE}/{name}")

    def _noting(self, root: Path) -> scan.Note:
        return lambda relative, error: self._note_unreadable(root / relative, error)

    def _note_bad(self, path: Path, error: BadRecord) -> None:
        self._count(f"bad:{error.cause}")
        self._report(path, str(error))

    def _note_unreadable(self, path: Path, error: OSError) -> None:
        if error.errno != errno.ENOENT:
            self._count(f"unreadable:{_errno_name(error)}")
            self._report(path, f"cannot be read: {_errno_name(error)}, {error.strerror}")

    def _report(self, path: Path, what: str) -> None:
        with _COUNTING:
            if path in self._reported:
                return
            self._reported.add(path)
        LOGGER.warning("%s: %s; treated as a miss", path, what)

    def _count(self, name: str) -> None:
        with _COUNTING:
            self.counters[name] += 1


def _record_at(
    root: Path, path: str, key: Key | None, tier: int, renew: bool
) -> tuple[Record | BadRecord, os.stat_result]:
    """What a file holds, or why not what it should, and the status of the file that was read."""
    with files.opened(root / path) as (descriptor, status):
        try:
            data = files.read_up_to(descriptor, FRAME_BYTES)
            # No more than there is, whatever the frame claims; and one byte more than there should
            # be, to notice a file that is too long.
            wanted = min(decode_frame(data).file_bytes, status.st_size) + 1
            record = decode(data + files.read_up_to(descriptor, wanted - len(data)), key)
            refuse_misplaced(record.key, path)
        except BadRecord as error:
            return error, status
        if renew and tier == 0:
            files.stamp(descriptor, status)
        return Record(_located(record.header, status, tier), record.body), status


def _is_listed(header: Header, status: os.stat_result, descriptor: int) -> bool:
    """Whether an open file is still the record that was listed."""
    if (status.st_ino, status.st_size) != (header.inode, header.file_bytes):
        return False
    try:  # the inode alone says little: ext4 gives the number of a replaced file to the next one
        return scan.header_in(descriptor, status, header.path).created == header.created
    except BadRecord:
        return False


def _header_at(root: Path, path: str, tier: int) -> Header:
    with files.opened(root / path) as (descriptor, status):
        header = scan.header_in(descriptor, status, path)
    return replace(header, tier=tier) if tier else header


def _by_path(found: tuple[str, Header]) -> list[str]:
    return found[0].split("/")


def _nothing(_size: int) -> None:
    """What happens after a put where nobody keeps bounds."""


def _write_error(path: Path, error: OSError) -> CacheWriteError:
    return CacheWriteError(
        f"cannot change {path}: {_errno_name(error)}, {error.strerror}. The cache needs a folder "
        f"that the user may write, with room in it. Run `jitctl list` to see what fills it, "
        f"`jitctl clear-cache` to make room.",
        error.errno,
    )


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")


def _located(header: Header, status: os.stat_result, tier: int) -> Header:
    return replace(header, last_used=status.st_mtime, inode=status.st_ino, tier=tier)


def _is_same(a: os.stat_result, b: os.stat_result) -> bool:
    """Whether two looks at a path saw the same file: inode numbers alone are used again."""
    return os.path.samestat(a, b) and (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
