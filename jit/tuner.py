"""The tuning process: `python -m jitd.jit.tuner INDEX`. Requests on stdin, answers on stdout.

It owns a CUDA context of its own, so that a candidate that hangs or reads where it must not costs
this process and not the caller. What it knows of a task comes through the pipe; it opens no cache
and takes no lock. It ends when its parent does, and by itself after IDLE_S without a request.

Requests, by their key `do`:
    tune     a packed Task; binaries follow
    binaries of one candidate, or why there are none
    check    a config's binaries at some calls
Answers:
    step     [name, stage] begun; the parent's clock runs from here
    need     the name of a candidate whose binaries were not sent
    trial    what became of a candidate so far
    found, checked, or why not: lost (the context is broken), no_fit, other_code, error
"""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import frames
from .task import Body, DoesNotFit, OtherCode, Task, Trial, config_of, find_op, unpack_call

IDLE_S = 60.0
_REST_S = 30.0  # at most at once, so that a slow step does not stop a tune


def main() -> None:
    """Answer requests until stdin closes or nobody asks for long."""
    answers = os.dup(1)  # what a kernel prints must not land among the answers
    os.dup2(2, 1)
    link = _Link(answers)
    threading.Thread(target=link.read, name="jitd-tuner-requests", daemon=True).start()
    while True:
        request = link.request(IDLE_S)
        if request is None:
            return
        try:
            answer = _answer(request, link)
        except DoesNotFit as error:
            answer = {"no_fit": [error.needed_bytes, error.allowed_bytes]}
        except OtherCode as error:
            answer = {"other_code": str(error)}
        except Exception as error:  # noqa: BLE001  (the parent decides what it means)
            answer = _failure(error)
        link.send(answer)
        if "lost" in answer or "error" in answer:
            return  # the context may be broken: the next request gets a fresh process


class _Link:
    """Both pipes. Requests wait in one queue, binaries in the table of the tune under way."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.binaries: _Binaries | None = None
        self.duty = 1.0
        self._began: float | None = None  # the step under way, if it is one that uses the GPU

    def read(self) -> None:
        """Take what comes; the end of the stream is the end of the parent, and so of this."""
        while True:
            try:
                message = frames.receive(0)
            except frames.FrameError:
                os._exit(0)  # the main thread may be waiting for a GPU that never answers
            if message["do"] == "tune":
                self.binaries = message["source"] = _Binaries(self, message)
            if message["do"] == "binaries":
                # Another tune has candidates of the same names: what comes late must not mix in.
                if self.binaries is not None and self.binaries.tune == message["tune"]:
                    self.binaries.put(message)
            else:
                self._requests.put(message)

    def request(self, timeout_s: float) -> dict[str, Any] | None:
        try:
            return self._requests.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def send(self, answer: dict[str, Any]) -> None:
        try:
            frames.send(self._answers, answer)
        except BrokenPipeError:
            os._exit(0)

    def begin(self, duty: float) -> None:
        """A new request, whose steps keep to this share of the time."""
        self.duty, self._began = duty, None

    def step(self, name: str, stage: str) -> None:
        """Say what is begun, after a rest where others want the GPU, too."""
        rest_s = self._rest_s()
        if rest_s:
            self.send({"step": ["", "wait"]})  # for which the parent holds no clock
            time.sleep(rest_s)
        self._began = None if stage == "wait" else time.monotonic()
        self.send({"step": [name, stage]})

    def _rest_s(self) -> float:
        """What the last step took, as often as it takes to keep to the duty."""
        if self.duty >= 1 or self._began is None:
            return 0.0
        return min((time.monotonic() - self._began) * (1 / self.duty - 1), _REST_S)

    def trial(self, trial: Trial) -> None:
        self.send({"trial": trial.record()})


class _Binaries:
    """The binaries that the parent sends for one tune, as `tune.Source` wants them."""

    def __init__(self, link: _Link, request: dict[str, Any]) -> None:
        self.tune: int = request["number"]
        self._coming: int = request["coming"]
        self._link = link
        self._came: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._kept: dict[str, dict[str, Any]] = {}
        self._passed: list[str] = []  # came while another was waited for

    def put(self, message: dict[str, Any]) -> None:
        self._came.put(message)

    def arrivals(self) -> Iterator[str]:
        for _ in range(self._coming):
            yield self._passed.pop(0) if self._passed else self._next()

    def bodies(self, name: str) -> list[Body]:
        from ..autotune.search import CandidateFailed  # noqa: PLC0415

        if name not in self._kept:
            self._link.send({"need": name})
            self._link.step(name, "wait")
            while (came := self._next()) != name:
                self._passed.append(came)
            self._link.step(name, "build")
        message = self._kept.pop(name)
        if "failed" in message:
            raise CandidateFailed(*message["failed"])
        bodies: list[Body] = message["bodies"]
        return bodies

    def _next(self) -> str:
        message = self._came.get()
        name: str = message["of"]
        self._kept[name] = message
        return name


def _answer(request: dict[str, Any], link: _Link) -> dict[str, Any]:
    for entry in request.get("path", ()):
        if entry not in sys.path:
            sys.path.append(entry)
    link.begin(1.0)
    link.step("", "prepare")
    from . import tune  # noqa: PLC0415  (torch)
    from .device import devices  # noqa: PLC0415

    device = devices()[int(sys.argv[1])]
    link.begin(request.get("duty", 1.0))  # importing torch uses no GPU: no rest for that
    if request["do"] == "hello":
        tune.open_context(device)
        return {"ready": True}
    if request["do"] == "tune":
        found = tune.tune(Task.unpack(request["task"]), request["source"], link, device)
        return {"found": found.pack()}
    op = find_op(request["op"])
    config = config_of(op, *request["config"])
    link.step(config.name, "verify")
    body = tune.check(
        op,
        unpack_call(request["call"]),
        config,
        request["artifacts"],
        device,
        [unpack_call(call) for call in request["probes"]],
        request["memory_share"],
    )
    return {"checked": body}


def _failure(error: Exception) -> dict[str, Any]:
    from ..autotune.search import DeviceLost  # noqa: PLC0415

    if isinstance(error, DeviceLost):
        return {"lost": [error.name, error.stage, error.detail]}
    detail = "".join(traceback.format_exception(error))
    return {"error": f"{type(error).__name__}: {error}"[:2000], "detail": detail[-8000:]}


if __name__ == "__main__":
    # The folder of this file would offer modules under names that are not theirs.
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    main()
