"""The building process of one card: `python -m jitd.jit.daemon.worker DEVICE TARGET`.

DEVICE is a card's UUID, or "-" to compile for TARGET without one. Requests come on stdin, answers
go to stdout. It imports the ops' modules, and with them torch, which the server must not. It has a
builder like any other process, but compiles through the server, whose workers all cards share, and
tunes in a process of its own (`isolated`). It ends when the server does.

Requests, by their key `do`: `build`, `compiled` (or why not), `end`.
Answers: `progress`, `compile` (a binary), `drop` (one that is not wanted any more), and, last,
`done` or `failed` (cause, detail).
"""

import importlib
import itertools
import os
import queue
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .. import frames
from ..binary import Binary
from ..build import Builder
from ..declare import Device
from ..device import devices, stand_in
from ..errors import CompileError, JitdError, NotReady, RefusedError
from ..op import OPS, Op
from ..record import Workload
from ..runtime import Runtime
from ..settings import Settings
from ..sign import Call
from ..stats import STATS
from ..task import OtherCode, find_op, unpack_call
from ..warm import Progress, compile_for


class Pool:
    """What `CompilePool` is to a builder: binaries are asked of the server."""

    def __init__(self, link: "Link") -> None:
        self._link = link
        self._numbers = itertools.count()
        self._futures: dict[int, Future[dict[str, Any]]] = {}

    def submit(self, binary: Binary) -> Future[dict[str, Any]]:
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        self._futures[number] = future
        future.add_done_callback(lambda done: self._dropped(number, done))
        request = {**binary.request(), "name": str(binary), "digest": binary.source_digest}
        self._link.send({"compile": number, "request": request})
        return future

    def finished(self, message: Mapping[str, Any]) -> None:
        future = self._futures.pop(message["number"], None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if "error" in message:
            kind = RefusedError if message["lasting"] else CompileError
            future.set_exception(kind(message["error"]))
        else:
            future.set_result(message["answer"])

    def _dropped(self, number: int, future: Future[dict[str, Any]]) -> None:
        if future.cancelled() and self._futures.pop(number, None) is not None:
            self._link.send({"drop": number})


class Link:
    """Both pipes to the server."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._sending = threading.Lock()
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.pool = Pool(self)

    def read(self) -> None:
        """Take what comes. The end of the stream is the end of the server, and so of this: locks
        and leases go with the process, and a tune under way is in its journal."""
        while True:
            try:
                message = frames.receive(0)
            except frames.FrameError:
                os._exit(0)
            if message["do"] == "compiled":
                self.pool.finished(message)
            else:
                self.requests.put(message)

    def send(self, message: dict[str, Any]) -> None:
        with self._sending:
            try:
                frames.send(self._answers, message)
            except BrokenPipeError:
                os._exit(0)


def main() -> None:
    """Build what is asked for until told to end."""
    answers = os.dup(1)  # what a module prints must not land among the answers
    os.dup2(2, 1)
    link = Link(answers)
    threading.Thread(target=link.read, name="jitd-worker-requests", daemon=True).start()
    device, target = sys.argv[1:3]
    runtime = Runtime(Settings.read())
    while (request := link.requests.get())["do"] == "build":
        before = STATS.snapshot()
        try:
            answer: dict[str, Any] = {"done": _built(runtime, link, request, device, target)}
        except NotReady as not_ready:
            answer = {"failed": [not_ready.cause, not_ready.detail]}
        except OtherCode as error:
            answer = {"failed": ["other_code", str(error)]}
        except JitdError as error:
            answer = {"failed": ["build_failed", str(error)]}
        except Exception as error:  # noqa: BLE001  (modules of others run here)
            answer = {"failed": ["build_failed", f"{type(error).__name__}: {error}"[:2000]]}
        counts = STATS.snapshot()
        answer["counts"] = {n: c - before.get(n, 0) for n, c in counts.items()}
        link.send(answer)


def _built(
    runtime: Runtime, link: Link, request: dict[str, Any], uuid: str, target: str
) -> dict[str, Any]:
    for entry in request["path"]:
        if entry not in sys.path:
            sys.path.append(entry)
    op, call = _wanted(request)
    builder = _builder(runtime, link, _device(uuid, target))
    text = op.sign(op.bucket(call)).text
    builder.on_progress = lambda what, done, total: link.send({"progress": [done, total]})
    unstored = builder.stats["put_failed"]
    try:
        if not builder.device.uuid:
            [row] = compile_for(builder, Workload({op.sign(call).text: 1}), Progress())  # type: ignore[arg-type]
            if row.status == "failed":
                raise NotReady("compile_failed", row.detail)
            _hold_to_stored(builder, unstored)
            return {"signature": text, "config": row.config, "us": None}
        builder.tuner().duty = request["duty"]
        calls = [call] if request["call"] else [call, *op.reach(call)]
        config, *_ = [builder.settle(op, one).config.name for one in calls]
        _hold_to_stored(builder, unstored)
        body = builder.winners.body(op, call) or {}
        return {"signature": text, "config": config, "us": body.get("us")}
    finally:
        builder.artifacts.forget()


def _hold_to_stored(builder: Builder, unstored: int) -> None:
    """Raises NotReady if more could not be stored than before: nobody else will find it."""
    if builder.stats["put_failed"] > unstored:
        raise NotReady("not_stored", "the daemon cannot write the cache")


def _wanted(request: Mapping[str, Any]) -> tuple[Op, Call]:
    """The op, and the call of a client or, in a warmup, that of a printed signature."""
    if request["digest"]:
        op = find_op({"name": request["op"], **{n: request[n] for n in ("module", "digest")}})
    else:
        try:
            importlib.import_module(request["module"])
            op = OPS[request["op"]]
        except (ImportError, KeyError) as error:
            raise OtherCode(f"{request['module']} has no op {request['op']}: {error}.") from error
    if request["call"]:
        return op, unpack_call(request["call"])
    return op, op.bucket(op.parse(request["signature"]).call)


def _device(uuid: str, target: str) -> Device:
    if uuid == "-":
        return stand_in(target)
    for device in devices():
        if device.uuid == uuid:
            return device
    raise NotReady("no_device", f"the daemon does not see the card {uuid}")


def _builder(runtime: Runtime, link: Link, device: Device) -> Builder:
    builder = runtime.builder(device)
    builder.pool = lambda: link.pool  # type: ignore[assignment,return-value]
    builder.artifacts.pool = builder.pool
    return builder


if __name__ == "__main__":
    # The folder of this file would offer modules under names that are not theirs (`queue`).
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    main()
