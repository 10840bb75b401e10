"""Files below a root: read whole, written whole, removed without following a link.

These functions raise plain OSError; the store decides what each failure means.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

STAMP_EVERY_S: Final = 3600.0
"""How old a file's stamp of last use may get before a read renews it."""

T = TypeVar("T")

_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FOLDER_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_PRIVATE: Final = 0o600
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def fresh(action: Callable[[], T]) -> T:
    """What `action` gives; done anew, once, where a network file system lost the file under it."""
    try:
        return action()
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.EINTR):
            raise
    return action()


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor for reading the regular file at `path`, and its status.

    Never follows a link at `path` and never waits (a pipe in a file's place would block forever):
    anything but a regular file is an OSError.
    """
    descriptor, status = open_regular(path)
    try:
        yield descriptor, status
    finally:
        os.close(descriptor)


def open_regular(path: str | Path, folder: int | None = None) -> tuple[int, os.stat_result]:
    """What `opened` gives, for a path relative to `folder`; the caller closes the descriptor."""
    descriptor = os.open(path, _READ_FLAGS, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        _refuse_irregular(status, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def read_up_to(descriptor: int, size: int) -> bytes:
    """The next `size` bytes, fewer only at the end of the file."""
    pieces: list[bytes] = []
    while size > 0 and (piece := os.read(descriptor, size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def stamp(descriptor: int, status: os.stat_result) -> None:
    """Note in the file's mtime that it was used now, at most once in `STAMP_EVERY_S`.

    Our own stamp, because many file systems are mounted without access times. Where the file cannot
    be stamped (read-only, another owner) it keeps its old one: the owner alone evicts.
    """
    if abs(time.time() - status.st_mtime) >= STAMP_EVERY_S:
        with suppress(OSError):
            os.utime(descriptor)


def make_private(folder: Path) -> None:
    """Make a folder (0700, whatever the umask) unless it is there."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():  # else another process was faster
            raise
    else:
        folder.chmod(0o700)  # whatever the umask took away


def new(path: Path) -> int:
    """A descriptor for writing a new file, which is private (0600) whatever the umask.

    Raises FileExistsError where there is one, which stays. On any other failure none is left.
    """
    descriptor = os.open(path, _NEW_FLAGS, _PRIVATE)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != _PRIVATE:
            os.fchmod(descriptor, _PRIVATE)  # the umask took some away
    except BaseException:
        with suppress(OSError):  # what went wrong first is what the caller must hear of
            path.unlink()
        with suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


def write_whole(root: Path, relative: str, data: bytes, temporaries: str) -> None:
    """Put `data` at `relative` below `root`: a reader sees the old file or all of the new one.

    Written to a private file (0600) in the folder `temporaries` of the same root, fsynced, renamed,
    and the folder fsynced where the file system can do that. On any failure the private file is
    removed, and its failure is the one that is raised. Folders are made (0700), but never the root
    itself: that one has rules of its own.
    """
    path = root / relative
    for folder in (path.parent, root / temporaries):
        _make_below(root, folder)
    temporary = root / temporaries / f"{path.name}.{os.getpid()}.{os.urandom(8).hex()}"
    descriptor = new(temporary)
    try:
        status = _write_and_close(descriptor, data)
        _publish(temporary, status, path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what the caller must hear of
            temporary.unlink()
        raise
    with suppress(OSError):  # the record is there, whole; a power cut may cost it
        _sync_folder(path.parent)


@contextmanager
def folder_below(root: Path, *names: str) -> Iterator[int]:
    """A descriptor of the folder `root/names[0]/names[1]...`, reached without following a link.

    Names used relative to it stay below the root even if somebody swaps a folder for a link.
    """
    descriptor = os.open(root, FOLDER_FLAGS)
    try:
        for name in names:
            inner = os.open(name, FOLDER_FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def remove(
    root: Path, relative: str, accept: Callable[[os.stat_result, int], bool] | None = None
) -> int | None:
    """Remove the regular file `relative` below `root`: its size, or None if nothing was removed.

    Never follows a link, never removes one, nor a folder. `accept(status, descriptor)`, if given,
    looks at the open file first and may keep it.
    """
    *names, name = relative.split("/")
    try:
        with folder_below(root, *names) as folder:
            return remove_in(folder, name, accept)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise


def remove_in(
    folder: int, name: str, accept: Callable[[os.stat_result, int], bool] | None = None
) -> int | None:
    """`remove` for a file in a folder that is open: for whoever removes many."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return None
        if accept is not None and not _is_accepted(name, folder, accept):
            return None
        os.unlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    return status.st_size


def remove_empty_folders(root: Path, relative: str) -> None:
    """Remove the folder `relative` below `root` and those above it, up to the first in use."""
    names = relative.split("/")
    while names:
        *above, name = names
        try:
            with folder_below(root, *above) as folder:
                os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            pass  # another process was faster
        except OSError:
            return  # in use, and an empty folder that stays does no harm
        names = above


def names_in(root: Path, *names: str, only_folders: bool = False) -> list[str]:
    """What is in a folder below `root`, sorted; nothing if it is not there or behind a link."""
    try:
        with folder_below(root, *names) as folder, os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not only_folders or entry.is_dir(follow_symlinks=False)
            )
    except OSError as error:
        if error.errno in NOT_THERE:
            return []
        raise


def _refuse_irregular(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _is_accepted(name: str, folder: int, accept: Callable[[os.stat_result, int], bool]) -> bool:
    descriptor = os.open(name, _READ_FLAGS, dir_fd=folder)
    try:
        return accept(os.fstat(descriptor), descriptor)
    finally:
        os.close(descriptor)


def _make_below(root: Path, folder: Path) -> None:
    if folder != root and not folder.is_dir():
        _make_below(root, folder.parent)  # mkdir(parents=True) would not give parents the mode
        make_private(folder)


def _write_and_close(descriptor: int, data: bytes) -> os.stat_result:
    """Bring `data` to the disk, and give the file's status."""
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        status = os.fstat(descriptor)
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    with suppress(InterruptedError):  # the data is on the disk, and the descriptor gone
        os.close(descriptor)
    return status


def _publish(temporary: Path, status: os.stat_result, path: Path) -> None:
    """Rename. A network file system may do it, lose the answer, and fail when it asks again."""
    try:
        temporary.replace(path)
    except OSError:
        if not _is_at(path, status):
            raise


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can promise that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
