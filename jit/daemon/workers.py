"""The server's end of one building process: its pipes, its compiles, its death."""

import asyncio
import contextlib
import logging
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import msgpack

from .. import frames
from ..compile import CompilePool
from ..errors import CompileError

log = logging.getLogger("jitd.daemon")

_LENGTH = struct.Struct(">I")
_LINE_BYTES = 2000
_END_S = 5.0


class WorkerDied(Exception):
    """The process ended, or said nothing for too long, before it answered."""


@dataclass(frozen=True)
class Asked:
    """A binary that a worker wants compiled, as `CompilePool` takes it."""

    message: Mapping[str, Any]

    def request(self) -> dict[str, Any]:
        return {name: self.message[name] for name in ("kernel", "classes", "options", "target")} | {
            "path": self.message["path"]
        }

    def __str__(self) -> str:
        return str(self.message["name"])


class Compilers:
    """The compile workers that all building processes share.

    A compile worker imports a module once. When the source of a kernel that was compiled before has
    another digest, all of them are replaced: the old code must not be filed under the new digest.
    """

    def __init__(self, jobs: int, timeout_s: float) -> None:
        self.jobs, self.timeout_s = jobs, timeout_s
        self.compiled = 0
        self._pool = CompilePool(jobs, timeout_s=timeout_s)
        self._under_way: set[Future[dict[str, Any]]] = set()
        self._digests: dict[tuple[str, ...], str] = {}

    def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        kernel = tuple(message["kernel"])
        if self._digests.get(kernel, message["digest"]) != message["digest"]:
            self.renew()
        self._digests[kernel] = message["digest"]
        self.compiled += 1
        future = self._pool.submit(Asked(message))
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    @property
    def up(self) -> bool:
        """Whether there may be workers: they are started when something is compiled."""
        return bool(self._digests)

    def renew(self) -> None:
        """Let the workers go when they are done with what they have; others are started for more.

        Does not wait: closing a pool takes as long as its slowest compile.
        """
        old, self._pool = self._pool, CompilePool(self.jobs, timeout_s=self.timeout_s)
        waiting = list(self._under_way)
        self._digests.clear()

        def close() -> None:
            wait(waiting)
            old.close()

        threading.Thread(target=close, name="jitd-compilers-end", daemon=True).start()

    def close(self) -> None:
        self._pool.close()


class Worker:
    """One building process. `start` it, `run` requests one after the other, `end` it."""

    def __init__(
        self, module: str, device: str, target: str, path: Sequence[str], compilers: Compilers
    ) -> None:
        self.module, self.device, self.target = module, device, target
        self.path = list(path)
        self.compilers = compilers
        self.idle_since = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._compiling: dict[int, Future[dict[str, Any]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Worker for {self.device or self.target}: {self.pid or 'not started'}>"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, environment: Mapping[str, str]) -> None:
        """Raises OSError."""
        own = dict(environment)
        own["PYTHONPATH"] = os.pathsep.join(filter(None, (*sys.path, *self.path)))
        own["PYTHONUNBUFFERED"] = "1"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self.module, self.device or "-", self.target,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=own,
            start_new_session=True,  # Ctrl-C stops the server, whose end then ends this
        )  # fmt: skip
        self._tasks = [asyncio.create_task(self._log_lines(self._process.stderr))]

    async def run(
        self,
        request: Mapping[str, Any],
        on_progress: Callable[[int, int], None],
        silence_s: float,
    ) -> dict[str, Any]:
        """The answer to a build. Raises WorkerDied."""
        assert self._process and self._process.stdout
        try:
            self._send({"do": "build", **request})
            while True:
                async with asyncio.timeout(silence_s):
                    message = await _receive(self._process.stdout)
                if "compile" in message:
                    self._compile(message["compile"], message["request"])
                elif "drop" in message:
                    self._compiling.pop(message["drop"], Future()).cancel()
                elif "progress" in message:
                    on_progress(*message["progress"])
                else:
                    return message
        except TimeoutError as error:
            await self.end(now=True)
            raise WorkerDied(f"said nothing for {silence_s:g} s") from error
        except (asyncio.IncompleteReadError, ConnectionError, ValueError, KeyError) as error:
            await self.end(now=True)
            raise WorkerDied(f"ended (exit {self._process.returncode})") from error
        except asyncio.CancelledError:
            await self.end(now=True)
            raise
        finally:
            for future in self._compiling.values():
                future.cancel()
            self._compiling.clear()

    async def end(self, *, now: bool = False) -> None:
        """Let the process go; `now`, or after a moment, kill it with all that it started."""
        if self._process is None:
            return
        if self._process.returncode is None and not now:
            self._send({"do": "end"})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await self._process.wait()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        for task in self._tasks:
            task.cancel()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process and self._process.stdin
        if not self._process.stdin.is_closing():
            self._process.stdin.write(frames.pack(message))

    def _compile(self, number: int, request: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            future = self.compilers.submit({**request, "path": self.path})
        except CompileError as error:
            self._compiled(number, error, None)
            return
        self._compiling[number] = future

        def done(finished: Future[dict[str, Any]]) -> None:
            if finished.cancelled():
                return
            error = finished.exception()
            answer = None if error else finished.result()
            with contextlib.suppress(RuntimeError):  # the server is gone
                loop.call_soon_threadsafe(self._compiled, number, error, answer)

        future.add_done_callback(done)

    def _compiled(
        self, number: int, error: BaseException | None, answer: dict[str, Any] | None
    ) -> None:
        self._compiling.pop(number, None)
        message: dict[str, Any] = {"do": "compiled", "number": number}
        if error is not None:
            message |= {"error": str(error), "lasting": bool(getattr(error, "lasting", False))}
        else:
            message["answer"] = answer
        self._send(message)

    async def _log_lines(self, stream: asyncio.StreamReader | None) -> None:
        """What the process says goes to the daemon's log."""
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line without end
                continue
            if not line:
                return
            text = line[:_LINE_BYTES].decode(errors="replace").rstrip()
            log.info("worker", extra={"facts": {"pid": self.pid, "said": text}})


async def _receive(stream: asyncio.StreamReader) -> dict[str, Any]:
    """The next message of a process of ours. Raises IncompleteReadError, ValueError."""
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    if length > frames.MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    message: dict[str, Any] = msgpack.unpackb(await stream.readexactly(length))
    return message
