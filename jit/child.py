"""The keeper's end of one tuning process: its pipes, its greeting, its death."""

import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from . import frames
from .declare import Device

_END_S = 5.0  # from closing its pipe to being gone; the driver tidies up after a fault
_START_S = 180.0  # importing torch and making a context, on a busy machine


class Died(Exception):
    """The child is gone; `name` is the candidate to blame, "" if there is none."""

    def __init__(self, name: str, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.name, self.detail = name, detail


class Child:
    """One tuning process and its pipes."""

    module = "jitd.jit.tuner"

    def __init__(self, device: Device) -> None:
        self.greeted = False
        self.tunes = 0
        environment = dict(os.environ)
        # The parent may have found jitd through a changed sys.path rather than an install.
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        environment["PYTHONUNBUFFERED"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, str(device.index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C stops the parent, whose end then ends the child
        )
        self._sending = threading.Lock()
        self._failure = ""
        try:
            self.send({"do": "hello", "path": [str(Path(p).absolute()) for p in sys.path]})
        except Died as died:
            self._failure = str(died)

    def greet(self) -> bool:
        """Wait until it has a CUDA context."""
        try:
            while "ready" not in (message := self.receive(_START_S)):
                if "error" in message:
                    self._failure = message["error"]
                    return False
        except frames.FrameError as error:
            self._failure = str(error)
            return False
        self.greeted = True
        return True

    def last_words(self) -> str:
        return self._failure or "it ended"

    def send(self, message: dict[str, Any]) -> None:
        """Raises Died if it is gone."""
        assert self.process.stdin  # for the type checker: it is a pipe
        with self._sending:
            try:
                frames.send(self.process.stdin.fileno(), message)
            except (OSError, ValueError) as error:  # ValueError: the pipe is closed
                raise Died("", f"ended: {error}") from error

    def receive(self, timeout_s: float | None) -> dict[str, Any]:
        assert self.process.stdout
        return frames.receive(self.process.stdout.fileno(), timeout_s)

    def has_more(self) -> bool:
        """Whether a message waits."""
        assert self.process.stdout
        return bool(select.select([self.process.stdout.fileno()], [], [], 0)[0])

    def ended(self) -> int:
        """Its exit code, once its end of the pipe is closed or nothing sensible comes from it."""
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
