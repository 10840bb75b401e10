"""The command `jitd`: the daemon in the foreground, as systemd starts it.

Exit codes: 0 it served and ended, or another daemon serves this cache; 1 it could not start.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ...cache.errors import JitdError
from ...cache.paths import default_root, open_root
from ...cache.store import Store
from .. import frames
from ..settings import Settings
from . import log
from .place import Place, lock_now, unlock
from .server import Server, more_descriptors

_FIRST_GIVEN = 3  # the descriptors that systemd passes begin here


def main(arguments: Sequence[str] | None = None, **more: Any) -> None:
    """The console script. `more` goes to the server, for tests."""
    parser = argparse.ArgumentParser(
        prog="jitd",
        description="jitd's daemon, in the foreground: compiles and tunes for all your processes.",
        epilog="Settings: JITD_* (jitctl env). In the background: jitctl daemon start. "
        "Example: JITD_DAEMON_IDLE_S=0 jitd",
    )
    parser.add_argument("--notify", type=int, metavar="FD", help=argparse.SUPPRESS)
    parser.add_argument("--detach", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quiet", action="store_true", help="log to the file alone")
    given = parser.parse_args(arguments)
    if given.detach:
        _detach()
    notify = _Notify(given.notify)
    try:
        sys.exit(serve(notify, also_stderr=not (given.quiet or given.detach), **more))
    except (JitdError, OSError) as error:
        notify.say({"error": str(error)})
        print(f"jitd: {error}", file=sys.stderr)
        sys.exit(1)


def serve(notify: "_Notify", *, also_stderr: bool, **more: Any) -> int:
    """Serve until told to stop. Raises JitdError, OSError if it cannot begin."""
    settings = Settings.read()
    place = Place.of(open_root(settings.cache_dir or default_root()), settings.daemon_dir)
    place.make()
    lock = lock_now(place.lock)
    if lock is None:
        notify.say({"lost": True})
        print(f"jitd: another daemon serves {place.cache_dir}", file=sys.stderr)
        return 0
    try:
        with contextlib.suppress(OSError):  # a full disk: only `jitctl daemon stop --kill` wants it
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        log.begin(place.log, also_stderr=also_stderr)
        more_descriptors()
        with contextlib.suppress(OSError):
            os.nice(5)  # inherited by the compile workers: whoever serves comes first
        server = Server(place, settings, Store(place.cache_dir), given=_given_socket(), **more)
        asyncio.run(_run(server, notify))
    finally:
        unlock(lock)
    return 0


async def _run(server: Server, notify: "_Notify") -> None:
    await server.run(lambda: notify.say({"ok": os.getpid()}))


class _Notify:
    """Whoever started this process waits for one message: it answers, somebody else does, or why
    not. If it dies before, the end of the stream says so."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def say(self, message: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # it does not wait any more
            frames.send(self._descriptor, message)
            os.close(self._descriptor)
        self._descriptor = None


def _detach() -> None:
    """Go on as nobody's child, so that whoever started this need not wait for its end."""
    if os.fork():
        os._exit(0)
    os.setsid()


def _given_socket() -> socket.socket | None:
    """The listening socket of systemd's socket activation, if this was started so."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    if count != "1" or pid != str(os.getpid()):
        return None
    os.set_inheritable(_FIRST_GIVEN, False)
    given = socket.socket(fileno=_FIRST_GIVEN)
    given.setblocking(False)
    return given


if __name__ == "__main__":
    main()
