"""Reading all that is in a cache, and saying what is wrong with it.

Reads every body, so it takes as long as reading the files does. Others may use the cache meanwhile:
what goes away under it is no fault. Foreign files and links are reported and left alone, whatever
they are: jitd removes only what it wrote.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from . import files, scan
from .errors import BadRecord
from .evict import TEMPORARY_S
from .keys import KINDS
from .locks import FOLDER as LOCKS
from .paths import MARKER, TAG
from .records import FRAME_BYTES, Record, decode, decode_frame, refuse_misplaced
from .store import QUARANTINE, TEMPORARIES, Store

Remedy = Literal["", "set aside", "removed", "chmod"]

_KNOWN_FILES: Final = (MARKER, TAG, scan.USAGE, scan.COUNTERS)
_INSIDE: Final = {
    TEMPORARIES: scan.TEMPORARY,
    QUARANTINE: scan.QUARANTINED,
    LOCKS: scan.LOCK,
}
_WRITABLE_BY_OTHERS: Final = 0o022


@dataclass(frozen=True)
class Fault:
    """Something wrong at `path` below the root.

    what    damaged, misplaced, unreadable, owner, permissions, link, foreign, temporary or version;
            the last is none: a record of another version of jitd, which that one may want
    remedy  what `repair` does about it; nothing for what somebody has to look at
    """

    path: str
    what: str
    detail: str
    remedy: Remedy = ""
    inode: int = 0

    @property
    def is_harmless(self) -> bool:
        return self.what == "version"


def verify(
    store: Store, seen: Callable[[Record], None] = lambda record: None, *, now: float | None = None
) -> Iterator[Fault]:
    """All that is wrong, in order of paths. `seen` is told each record that is good.

    A record is good if its body has its checksum, its key is that of its path, and nobody but its
    owner could have written it.
    """
    now = time.time() if now is None else now
    for name, status in _listed(store, ""):
        if name in KINDS:
            yield from _folder(store, name, status, lambda path: _ops(store, path, seen))
        elif name in _INSIDE:
            yield from _folder(store, name, status, lambda path: _inside(store, path, now))
        elif name not in _KNOWN_FILES:
            yield _foreign(name, status)
        else:
            yield from _file(name, status)


def repair(store: Store, fault: Fault) -> bool:
    """Do what `fault.remedy` says; whether it is done. Raises OSError.

    What was replaced since it was found stays.
    """
    *names, name = fault.path.split("/")
    with files.folder_below(store.root, *names) as folder:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if status.st_ino != fault.inode or stat.S_ISLNK(status.st_mode):
            return False
        if fault.remedy == "set aside":
            kind, op, _ = names
            cause = "".join(c for c in fault.what if c.isalpha())
            aside = store.root / QUARANTINE
            aside.mkdir(mode=0o700, exist_ok=True)
            os.rename(name, aside / f"{kind}-{op}-{name}-{cause}", src_dir_fd=folder)
        elif fault.remedy == "removed":
            return files.remove_in(folder, name) is not None
        elif fault.remedy == "chmod":
            with files.folder_below(store.root, *fault.path.split("/")) as descriptor:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~_WRITABLE_BY_OTHERS)
        else:
            return False
    return True


def _listed(store: Store, path: str) -> Iterator[tuple[str, os.stat_result]]:
    """(path below the root, its status) of all that is in a folder, sorted."""
    for name in store.names_in(*filter(None, path.split("/"))):
        inner = f"{path}/{name}" if path else name
        with suppress(FileNotFoundError, NotADirectoryError):
            yield inner, (store.root / inner).lstat()


def _folder(
    store: Store,
    path: str,
    status: os.stat_result,
    inside: Callable[[str], Iterator[Fault]],
) -> Iterator[Fault]:
    """The faults of what should be a folder of the cache, and of what is in it."""
    if not stat.S_ISDIR(status.st_mode):
        yield _foreign(path, status)
        return
    if not _is_trusted(status):
        yield Fault(path, "owner", f"a folder of uid {status.st_uid}", "", status.st_ino)
    elif status.st_mode & _WRITABLE_BY_OTHERS:
        yield Fault(path, "permissions", _mode(status), "chmod", status.st_ino)
    if not os.access(store.root / path, os.R_OK | os.X_OK):
        yield Fault(path, "unreadable", _mode(status), "", status.st_ino)
        return
    yield from inside(path)


def _ops(store: Store, kind: str, seen: Callable[[Record], None]) -> Iterator[Fault]:
    for op, status in _listed(store, kind):
        yield from _folder(store, op, status, lambda path: _shards(store, path, seen))


def _shards(store: Store, op: str, seen: Callable[[Record], None]) -> Iterator[Fault]:
    for shard, status in _listed(store, op):
        if stat.S_ISDIR(status.st_mode) and scan.SHARD.fullmatch(shard.rpartition("/")[2]) is None:
            yield _foreign(shard, status)
        else:
            yield from _folder(store, shard, status, lambda path: _records(store, path, seen))


def _records(store: Store, shard: str, seen: Callable[[Record], None]) -> Iterator[Fault]:
    for path, status in _listed(store, shard):
        named = scan.DIGEST.fullmatch(path.rpartition("/")[2]) is not None
        if not (named and stat.S_ISREG(status.st_mode)):
            yield _foreign(path, status)
            continue
        faults = list(_file(path, status, "set aside"))
        yield from faults
        if faults:
            continue
        try:
            seen(_read(store, path))
        except FileNotFoundError:
            continue
        except BadRecord as error:
            yield _bad(path, error, status.st_ino)
        except OSError as error:
            yield Fault(path, "unreadable", str(error.strerror), "", status.st_ino)


def _inside(store: Store, folder: str, now: float) -> Iterator[Fault]:
    for path, status in _listed(store, folder):
        if not _INSIDE[folder].fullmatch(path.rpartition("/")[2]) or not stat.S_ISREG(
            status.st_mode
        ):
            yield _foreign(path, status)
        elif folder == TEMPORARIES and now - status.st_mtime > TEMPORARY_S:
            detail = f"{status.st_size} bytes that a killed writer left"
            yield Fault(path, "temporary", detail, "removed", status.st_ino)
        elif folder == LOCKS:
            yield from _file(path, status)


def _file(path: str, status: os.stat_result, remedy: Remedy = "") -> Iterator[Fault]:
    """What is wrong with a file of the cache by its status.

    What others could write is not to be trusted, whatever its checksum says.
    """
    if not stat.S_ISREG(status.st_mode):
        yield _foreign(path, status)
    elif not _is_trusted(status):
        yield Fault(path, "owner", f"a file of uid {status.st_uid}", remedy, status.st_ino)
    elif status.st_mode & _WRITABLE_BY_OTHERS:
        yield Fault(path, "permissions", _mode(status), remedy, status.st_ino)


def _read(store: Store, path: str) -> Record:
    with files.opened(store.root / path) as (descriptor, _):
        data = files.read_up_to(descriptor, FRAME_BYTES)
        data += files.read_up_to(descriptor, decode_frame(data).file_bytes + 1 - len(data))
    record = decode(data)
    refuse_misplaced(record.key, path)
    return record


def _bad(path: str, error: BadRecord, inode: int) -> Fault:
    if error.cause == "version":
        return Fault(path, "version", error.detail, "", inode)
    what = "misplaced" if error.cause in ("key", "kind") else "damaged"
    return Fault(path, what, str(error), "set aside", inode)


def _foreign(path: str, status: os.stat_result) -> Fault:
    if stat.S_ISLNK(status.st_mode):
        return Fault(path, "link", "jitd makes none and follows none", "", status.st_ino)
    what = "folder" if stat.S_ISDIR(status.st_mode) else "file"
    return Fault(path, "foreign", f"a {what} that jitd did not put there", "", status.st_ino)


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def _mode(status: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(status.st_mode):04o}"
