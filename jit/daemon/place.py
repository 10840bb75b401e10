"""Where a daemon is found: one folder of the user's (0700) with its socket, its locks and its log.

The names hold the protocol's number and a digest of the cache folder: each cache has a daemon of
its own, and daemons of two protocols never meet.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket as Socket

from ..errors import JitdError
from .protocol import PROTOCOL

_MAX_PATH = 107  # of a Unix socket, a limit of the kernel's
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_POLL_S = 0.01


class PlaceRefused(JitdError):
    """The daemon's folder must not be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Place:
    """Where the daemon of one cache is."""

    folder: Path
    cache_dir: Path

    @classmethod
    def of(cls, cache_dir: Path, folder: Path | None = None) -> "Place":
        """The place for a cache; `folder` as JITD_DAEMON_DIR says. Nothing is made yet."""
        return cls((folder or _default_folder()).absolute(), cache_dir.resolve())

    @property
    def name(self) -> str:
        digest = hashlib.blake2b(os.fsencode(self.cache_dir), digest_size=6).hexdigest()
        return f"{digest}.p{PROTOCOL}"

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"

    @property
    def lock(self) -> Path:
        """Held by the one daemon as long as it lives; the file stays."""
        return self.folder / f"{self.name}.lock"

    @property
    def start_lock(self) -> Path:
        """Held by whoever starts a daemon, until it answers."""
        return self.folder / f"{self.name}.start"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def make(self) -> None:
        """Make the folder (0700), or refuse one that others could change. Raises PlaceRefused."""
        with contextlib.suppress(FileExistsError):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700)
        self.check()
        if len(os.fsencode(self.socket)) > _MAX_PATH - 9:  # a new one is bound beside it
            raise PlaceRefused(
                f"{self.socket} is too long for a socket: at most {_MAX_PATH - 9} bytes. "
                "Name a shorter folder with JITD_DAEMON_DIR."
            )

    def check(self) -> None:
        """Raises PlaceRefused unless the folder is the user's own and nobody else's, OSError if it
        is not there."""
        status = self.folder.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or mode & 0o077:
            raise PlaceRefused(
                f"{self.folder} is no folder of the user's alone (uid {status.st_uid}, mode "
                f"{mode:04o}). Allowed is one of mode 0700. Name another with JITD_DAEMON_DIR."
            )

    def bind(self) -> Socket:
        """A listening socket in this place, in the place of a stale one. The caller has the lock.

        It appears at once and complete: nobody ever finds the name without a listener behind it.
        """
        for stale in self.folder.glob(f"{self.name}.[0-9]*"):  # of one that was killed just here
            stale.unlink(missing_ok=True)
        fresh = self.folder / f"{self.name}.{os.getpid() % 100000}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(fresh))
            fresh.chmod(0o600)
            listener.listen(1024)
            fresh.replace(self.socket)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def identity(self) -> tuple[int, int] | None:
        """Which file is at the socket's name now."""
        try:
            status = self.socket.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def connect(place: Place, timeout_s: float) -> Socket:
    """A connection to whoever listens there, who is this user. Raises OSError, PlaceRefused."""
    place.check()
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout_s)
        link.connect(str(place.socket))
        _refuse_strangers(link, place)
    except BaseException:
        link.close()
        raise
    return link


def _refuse_strangers(link: Socket, place: Place) -> None:
    uid = peer(link)[1]
    if uid != os.geteuid():
        raise PlaceRefused(f"{place.socket} is served by uid {uid}: not trusted.")


def peer(link: Socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel noted them."""
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return int(pid), int(uid)


def lock_now(path: Path) -> int | None:
    """A descriptor that holds the lock on `path`, or None if somebody has it. Raises OSError.

    The kernel lets go of it when the last process that has the descriptor is gone; it is closed
    on exec, and `forget` is for those who fork.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    _held.add(descriptor)
    return descriptor


def unlock(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[bool]:
    """Hold the lock on `path` for the `with`, after waiting at most so long; False without it."""
    deadline = time.monotonic() + timeout_s
    while (descriptor := lock_now(path)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            unlock(descriptor)


_held: set[int] = set()


def _forget_after_fork() -> None:
    """A forked child must not keep its parent's locks alive beyond the parent's death."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _default_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "jitd"
    import tempfile  # noqa: PLC0415  (10 ms)

    return Path(tempfile.gettempdir()) / f"jitd-{os.geteuid()}"
