"""The store: records below one root, shared by every process of the machine.

Guarantees: a record that is returned is whole and is the one filed under its key. A record appears
at once or not at all; readers take no lock, and of two writers one wins entirely. Any fault of what
is read is a miss, counted, logged once and moved aside. The folder may be moved, copied or mounted:
nothing in it knows its place.

Not guaranteed: that a record survives (another process may evict it between any two calls), or that
the last rename before a power cut is seen after it.
"""

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from . import files
from .errors import BadRecord, CacheWriteError
from .keys import KINDS, Key
from .records import (
    FRAME_BYTES,
    Header,
    Record,
    decode,
    decode_frame,
    decode_header,
    encode,
)

LOGGER: Final = logging.getLogger("jitd.cache")
TEMPORARIES: Final = "tmp"
QUARANTINE: Final = "quarantine"
MAX_QUARANTINED: Final = 64

_HEADER_GUESS_BYTES: Final = 4096  # one read gets frame and header of nearly every record
_GONE: Final = (errno.ENOENT, errno.ESTALE)

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

    Any number of threads may share one. `counters` counts `hits`, `misses` and `puts`,
    `bad:<cause>` for each record that was refused and `unreadable:<errno>` for each file that could
    not be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counters: Counter[str] = Counter()
        self._reported: set[str] = set()

    def __repr__(self) -> str:
        count = self.counters
        bad = sum(n for name, n in count.items() if name.startswith(("bad:", "unreadable:")))
        return (
            f"<Store at {self.root}: {count['hits']} hits, {count['misses']} misses, "
            f"{count['puts']} puts, {bad} bad files>"
        )

    def get(self, key: Key) -> Record | None:
        """The record filed under `key`, or None. A hit renews its stamp of last use.

        "Is it there" and "give it" are one step: what was there may be gone a moment later.
        """
        record = self._read(key, renew=True)
        self._count("misses" if record is None else "hits")
        return record

    def has(self, key: Key) -> bool:
        """Whether a record with an intact header is filed under `key`; its body is not read."""
        return self._read_header(key.path, key) is not None

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
    ) -> Record:
        """File `body` under `key`, replacing what is there, and return what `get` would give.

        `label` and `meta` go to the header, for listing. Raises BadValue for what msgpack cannot
        hold, CacheWriteError when the system refuses.
        """
        data = encode(key, body, label=label, meta=meta or {}, created=time.time())
        try:
            self._write(key.path, data)
        except OSError as error:
            raise _write_error(self.root / key.path, error) from error
        self._count("puts")
        return decode(data, key)

    def delete(self, key: Key) -> bool:
        """Remove the file of `key`, whatever is in it; whether there was one."""
        return self.remove_file(key.path) is not None

    def headers(self, kind: str | None = None, op: str | None = None) -> Iterator[Header]:
        """The headers of all records (of one kind, of one op), in order of their paths.

        Reads no body and renews no stamp. What cannot be read is counted, logged once and left out.
        """
        for one_kind in sorted(KINDS) if kind is None else [kind]:
            ops = self.names_in(one_kind, only_folders=True) if op is None else [op]
            for one_op in ops:
                for shard in self.names_in(one_kind, one_op, only_folders=True):
                    for name in self.names_in(one_kind, one_op, shard):
                        header = self._read_header(f"{one_kind}/{one_op}/{shard}/{name}")
                        if header is not None:
                            yield header

    def record_for(self, header: Header) -> Record | None:
        """The whole record of a listed header, or None. Counts neither hit nor miss, no stamp."""
        return self._read(header.key, renew=False)

    def remove(self, header: Header) -> int | None:
        """Remove a listed record: the bytes freed, or None if it is gone or was replaced since.

        Only ever removes the regular file that was listed, and follows no link on the way.
        """
        return self.remove_file(
            header.path,
            lambda status, _: (status.st_ino, status.st_size) == (header.inode, header.file_bytes),
        )

    def remove_file(
        self, relative: str, accept: Callable[[os.stat_result, int], bool] | None = None
    ) -> int | None:
        """Remove one regular file below the root, like `files.remove`; raises CacheWriteError."""
        try:
            return files.remove(self.root, relative, accept)
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
            return files.names_in(self.root, *names, only_folders=only_folders)
        except OSError as error:
            self._note_unreadable("/".join(names), error)
            return []

    def _read(self, key: Key, *, renew: bool) -> Record | None:
        status = None
        try:
            with files.opened(self.root / key.path) as (descriptor, status):
                data = files.read_up_to(descriptor, FRAME_BYTES)
                # One byte more than there should be, to notice a file that is too long.
                data += files.read_up_to(descriptor, decode_frame(data).file_bytes + 1 - len(data))
                record = decode(data, key)
                if renew:
                    files.stamp(descriptor, status)
        except OSError as error:
            self._note_unreadable(key.path, error)
            return None
        except BadRecord as error:
            self._note_bad(key.path, error)
            # Another version's record is not broken; the next put replaces it.
            if status is not None and error.cause != "version":
                self._quarantine(key, error, status)
            return None
        return Record(_located(record.header, status), record.body)

    def _read_header(self, relative: str, key: Key | None = None) -> Header | None:
        try:
            with files.opened(self.root / relative) as (descriptor, status):
                return _located(_header_at(descriptor, status, relative, key), status)
        except OSError as error:
            self._note_unreadable(relative, error)
        except BadRecord as error:
            self._note_bad(relative, error)
        return None

    def _write(self, relative: str, data: bytes) -> None:
        for attempt in range(3):
            try:
                files.write_whole(self.root, relative, data, TEMPORARIES)
            except FileNotFoundError:
                # A process that clears the cache took the folder away between two of our steps.
                if attempt == 2 or not self.root.is_dir():
                    raise
            else:
                return

    def _quarantine(self, key: Key, error: BadRecord, status: os.stat_result) -> None:
        """Move a bad file out of the way, for whoever wants to know what happened to it.

        Best effort. A good record that is put between our read and this rename may be moved too:
        that costs a miss.
        """
        path = self.root / key.path
        aside = self.root / QUARANTINE / f"{key.kind}-{key.op}-{key.digest}-{error.cause}"
        try:
            if path.lstat().st_ino != status.st_ino:
                return
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            path.replace(aside)
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

    def _note_bad(self, relative: str, error: BadRecord) -> None:
        self._count(f"bad:{error.cause}")
        self._report(relative, str(error))

    def _note_unreadable(self, relative: str, error: OSError) -> None:
        if error.errno not in _GONE:
            self._count(f"unreadable:{_errno_name(error)}")
            self._report(relative, f"cannot be read: {_errno_name(error)}, {error.strerror}")

    def _report(self, relative: str, what: str) -> None:
        with _COUNTING:
            if relative in self._reported:
                return
            self._reported.add(relative)
        LOGGER.warning("%s: %s; treated as a miss", self.root / relative, what)

    def _count(self, name: str) -> None:
        with _COUNTING:
            self.counters[name] += 1


def _header_at(descriptor: int, status: os.stat_result, relative: str, key: Key | None) -> Header:
    data = files.read_up_to(descriptor, _HEADER_GUESS_BYTES)
    missing = FRAME_BYTES + decode_frame(data).header_bytes - len(data)
    header = decode_header(data + files.read_up_to(descriptor, missing), status.st_size, key)
    if header.path != relative:
        raise BadRecord("key", f"the record of {header.path}")
    return header


def _write_error(path: Path, error: OSError) -> CacheWriteError:
    return CacheWriteError(
        f"cannot change {path}: {_errno_name(error)}, {error.strerror}. The cache needs a folder "
        f"that the user may write, with room in it. Run `jitctl list` to see what fills it, "
        f"`jitctl clear-cache` to make room.",
        error.errno,
    )


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")


def _located(header: Header, status: os.stat_result) -> Header:
    return replace(header, last_used=status.st_mtime, inode=status.st_ino)
