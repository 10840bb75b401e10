"""Connecting to the daemon, and starting one where there is none: exactly one, however many try."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from .. import frames
from .client import Client, DaemonTrouble
from .identity import Identity
from .place import Place, PlaceRefused, locked

START_S = 10.0
"""For all of it: waiting for others that start one, starting, greeting."""

MODULE = "jitd.jit.daemon"
_TRY_AGAIN_S = 0.02


def connect_or_start(
    place: Place, identity: Identity, *, start: bool = True, timeout_s: float = START_S
) -> Client:
    """A greeted connection; a daemon is started for it if nobody listens. Raises DaemonTrouble.

    Of N that start at once one starts a process and the others wait for it; the daemon's own lock
    sees to it that there are never two.
    """
    deadline = time.monotonic() + timeout_s
    try:
        return Client(place, identity)
    except DaemonTrouble as trouble:
        if not start or trouble.cause not in ("absent", "died", "stopping"):
            raise
    try:
        place.make()
    except (PlaceRefused, OSError) as error:
        raise DaemonTrouble("refused", str(error)) from error
    try:
        with locked(place.start_lock, deadline - time.monotonic()) as first:
            if not first:
                raise DaemonTrouble("no_start", f"somebody else starts one for {timeout_s:g} s")
            return _started(place, identity, deadline)
    except OSError as error:
        raise DaemonTrouble("no_start", f"{place.start_lock}: {error.strerror}") from error


def _started(place: Place, identity: Identity, deadline: float) -> Client:
    """Start daemons until one answers, which may be somebody else's. The caller is alone here."""
    while True:
        with contextlib.suppress(_NotYet):
            return _connected(place, identity)
        spawn(place, deadline - time.monotonic())
        with contextlib.suppress(_NotYet):
            return _connected(place, identity)
        # There is one that ends, or whose socket somebody took: it binds anew, or goes.
        if time.monotonic() > deadline:
            raise DaemonTrouble("no_start", "another daemon has the lock, and does not answer")
        time.sleep(_TRY_AGAIN_S)


class _NotYet(Exception):
    """Nobody answers, which may change."""


def _connected(place: Place, identity: Identity) -> Client:
    try:
        return Client(place, identity)
    except DaemonTrouble as trouble:
        if trouble.cause in ("absent", "died", "stopping"):
            raise _NotYet from trouble
        raise


def spawn(place: Place, timeout_s: float = START_S, module: str | None = None) -> int | None:
    """Start a daemon and wait until it answers: its pid, or None if there is one already.

    It says so through a pipe that it inherits: whatever happens to it, the wait ends. Raises
    DaemonTrouble.
    """
    reading, writing = os.pipe()
    try:
        try:
            with subprocess.Popen(
                [sys.executable, "-m", module or MODULE, "--detach", "--notify", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                cwd="/",
                env=_environment(place),
            ):
                os.close(writing)
                writing = -1
        except OSError as error:
            raise DaemonTrouble("no_start", str(error)) from error
        try:
            answer = frames.receive(reading, max(0.1, timeout_s))
        except frames.FrameTimeout as error:
            raise DaemonTrouble("no_start", f"it is not up after {timeout_s:.1f} s") from error
        except frames.FrameError as error:
            raise DaemonTrouble("no_start", f"it ended at once; see {place.log}") from error
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if "error" in answer:
        raise DaemonTrouble("no_start", str(answer["error"]))
    return answer.get("ok")


def _environment(place: Place) -> dict[str, str]:
    """The starter's, but for what is its own: the daemon serves others, too, on all cards."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment["JITD_CACHE_DIR"] = str(place.cache_dir)
    environment["JITD_DAEMON_DIR"] = str(place.folder)
    # The starter may have found jitd through a changed sys.path rather than an install.
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment
