"""Walking all records below a root: one descriptor per folder, one open per file, no link followed.

What the store lists, eviction weighs and `verify` reads goes through here. It holds at most five
descriptors at a time and must stay in step with the layout `<kind>/<op>/<2 hex>/<digest>`.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from . import files
from .errors import BadRecord
from .keys import KINDS
from .records import FRAME_BYTES, Header, decode_frame, decode_listed

USAGE: Final = "usage.json"
COUNTERS: Final = "counters.jsonl"
"""The files that stand beside the folders of the kinds; all else there is locks and markers."""

SHARD: Final = re.compile(r"[0-9a-f]{2}")
DIGEST: Final = re.compile(r"[0-9a-f]{40}")
TEMPORARY: Final = re.compile(
    rf"([0-9a-f]{{40}}|{re.escape(USAGE)}|{re.escape(COUNTERS)})\.[0-9]+\.[0-9a-f]{{16}}"
)
QUARANTINED: Final = re.compile(rf"({'|'.join(sorted(KINDS))})-.+-[0-9a-f]{{40}}-[a-z]+")
LOCK: Final = re.compile(r"[A-Za-z0-9_-]+\.lock")
"""The names of records' folders and files, and of what is in `tmp/`, `quarantine/`, `locks/`."""

_HEADER_GUESS_BYTES: Final = 4096  # one read gets frame and header of nearly every record

Note: TypeAlias = Callable[[str, OSError], None]
"""Told of each folder that cannot be read, by its path below the root."""


class Entry(NamedTuple):
    """A record's file, by its name and status alone; whether it is intact is not known."""

    path: str
    kind: str
    op: str
    bytes: int
    last_used: float
    mtime_ns: int
    inode: int

    def is_unchanged(self, status: os.stat_result, _descriptor: int = -1) -> bool:
        """Whether the file is still the one that was seen: not replaced, not used since."""
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        return seen == (self.inode, self.bytes, self.mtime_ns)


def shards(
    root: Path, kinds: Iterable[str] = KINDS, op: str | None = None, note: Note | None = None
) -> Iterator[tuple[str, int]]:
    """(`<kind>/<op>/<shard>`, its descriptor) of each folder that may hold records, by path.

    The descriptor is closed when the next one is asked for. What is not there is left out.
    """
    with _folder(str(root), None, "", note) as top:
        if top is None:
            return
        for kind in sorted(kinds):
            with _folder(kind, top, kind, note) as of_kind:
                if of_kind is None:
                    continue
                for one_op in _folders_in(of_kind, kind, note) if op is None else [op]:
                    path = f"{kind}/{one_op}"
                    with _folder(one_op, of_kind, path, note) as of_op:
                        for shard in [] if of_op is None else _folders_in(of_op, path, note):
                            with _folder(shard, of_op, f"{path}/{shard}", note) as folder:
                                if folder is not None:
                                    yield f"{path}/{shard}", folder


def headers(
    root: Path, kinds: Iterable[str] = KINDS, op: str | None = None, note: Note | None = None
) -> Iterator[tuple[str, Header | BadRecord | OSError]]:
    """(path, header or why there is none) of every file where records lie, in order of paths.

    Reads no body and renews no stamp.
    """
    for path, folder in shards(root, kinds, op, note):
        for name in _names_in(folder, path, note):
            relative = f"{path}/{name}"
            found: Header | BadRecord | OSError
            try:
                found = files.fresh(partial(_header, name, folder, relative))
            except (BadRecord, OSError) as error:
                found = error
            yield relative, found


def entries(root: Path, kinds: Iterable[str] = KINDS, note: Note | None = None) -> Iterator[Entry]:
    """Every regular file that has a record's place and name, without opening it."""
    for path, folder in shards(root, kinds, None, note):
        kind, op, shard = path.split("/")
        if SHARD.fullmatch(shard) is None:
            continue
        with os.scandir(folder) as found:
            for one in found:
                if DIGEST.fullmatch(one.name) is None:
                    continue
                try:
                    status = one.stat(follow_symlinks=False)
                except OSError as error:
                    if note is not None and error.errno not in files.NOT_THERE:
                        note(f"{path}/{one.name}", error)
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield entry_of(f"{path}/{one.name}", kind, op, status)


def entry_of(path: str, kind: str, op: str, status: os.stat_result) -> Entry:
    size, used, used_ns = status.st_size, status.st_mtime, status.st_mtime_ns
    return Entry(path, kind, op, size, used, used_ns, status.st_ino)


def header_in(descriptor: int, status: os.stat_result, path: str) -> Header:
    """The header of an open record file that lies at `path` below its root, as for listing.

    Raises BadRecord.
    """
    data = os.read(descriptor, _HEADER_GUESS_BYTES)
    if len(data) < status.st_size:
        missing = FRAME_BYTES + decode_frame(data).header_bytes - len(data)
        data += files.read_up_to(descriptor, missing)
    return decode_listed(data, status.st_size, path, last_used=status.st_mtime, inode=status.st_ino)


def _header(name: str, folder: int, path: str) -> Header:
    descriptor, status = files.open_regular(name, folder)
    try:
        return header_in(descriptor, status, path)
    finally:
        os.close(descriptor)


def _names_in(folder: int, path: str, note: Note | None) -> list[str]:
    def names() -> list[str]:
        with os.scandir(folder) as found:
            return sorted(one.name for one in found)

    return _listed(names, path, note)


def _folders_in(folder: int, path: str, note: Note | None) -> list[str]:
    def names() -> list[str]:
        with os.scandir(folder) as found:
            return sorted(one.name for one in found if one.is_dir(follow_symlinks=False))

    return _listed(names, path, note)


def _listed(names: Callable[[], list[str]], path: str, note: Note | None) -> list[str]:
    """The names, none where the folder cannot be read."""
    try:
        return files.fresh(names)
    except OSError as error:
        if note is not None and error.errno not in files.NOT_THERE:
            note(path, error)
        return []


@contextmanager
def _folder(name: str, above: int | None, path: str, note: Note | None) -> Iterator[int | None]:
    """A descriptor of a folder, None where there is none or it cannot be read."""
    try:
        descriptor = files.fresh(partial(os.open, name, files.FOLDER_FLAGS, dir_fd=above))
    except OSError as error:
        if note is not None and error.errno not in files.NOT_THERE:
            note(path, error)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
