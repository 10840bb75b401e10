"""Compiling in worker processes: a pool that outlives its requests.

Workers are `python -m jitd.jit.worker` spoken to over pipes, never `multiprocessing`, whose spawn
would run the caller's `__main__` again.
"""

import atexit
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from . import frames
from .errors import CompileError, RefusedError

log = logging.getLogger("jitd.compile")

# The worker must compile what any other machine would: no GPU to adapt to, no interpreter, no
# source paths in the cubin (they would differ between install folders and double its size).
_WORKER_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TRITON_DISABLE_LINE_INFO": "1"}
_NOT_INHERITED = ("TRITON_INTERPRET", "TRITON_CACHE_MANAGER", "TRITON_KERNEL_OVERRIDE")


class Compilable(Protocol):
    """What can be compiled: a `Binary`, or one that another process described."""

    def request(self) -> dict[str, Any]:
        """What a worker is asked."""


class CompilePool:
    """`jobs` compile workers, started when first needed.

    `submit(binary) -> Future[dict]` gives what `worker.compile_one` answers; the future raises
    CompileError. A worker that crashes or exceeds `timeout_s` costs one request and is replaced.
    Use as a context manager, or `close()`. Not usable in a forked child: it makes its own.
    """

    def __init__(self, jobs: int, *, timeout_s: float = 300.0) -> None:
        self.jobs = max(1, jobs)
        self.timeout_s = timeout_s
        self.compiled = 0
        self._requests: queue.SimpleQueue[tuple[Compilable, Future[dict[str, Any]]] | None]
        self._requests = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._workers: set[_Worker] = set()
        self._idle = 0
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, binary: Compilable) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._closed:
                raise CompileError("the compile pool is closed.")
            self._requests.put((binary, future))
            if self._requests.qsize() > self._idle and len(self._threads) < self.jobs:
                thread = threading.Thread(target=self._serve, name="jitd-compile", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self) -> None:
        """Kill the workers. Requests not taken yet are cancelled, those under way fail."""
        with self._lock:
            self._closed = True
            while True:
                try:
                    waiting = self._requests.get_nowait()
                except queue.Empty:
                    break
                if waiting is not None:
                    waiting[1].cancel()
            for _ in self._threads:
                self._requests.put(None)
            for worker in list(self._workers):
                worker.process.kill()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "CompilePool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CompilePool: {len(self._threads)} of {self.jobs} workers, {self.compiled} done>"

    def _serve(self) -> None:
        """One thread drives one worker process, so that a time-out needs no event loop."""
        worker: _Worker | None = None
        try:
            while True:
                with self._lock:
                    self._idle += 1
                request = self._requests.get()
                with self._lock:
                    self._idle -= 1
                if request is None:
                    return
                binary, future = request
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    if worker is None:
                        worker = _Worker(self.timeout_s)
                        self._workers.add(worker)
                    answer = worker.ask(binary.request())
                except (frames.FrameError, OSError) as error:
                    if worker is not None:
                        self._workers.discard(worker)
                        worker.stop()
                        worker = None
                    hung = isinstance(error, frames.FrameTimeout)
                    kind = RefusedError if hung else CompileError
                    future.set_exception(kind(f"{binary}: the worker failed: {error}"))
                    continue
                if "error" in answer:
                    log.debug("%s: %s", binary, answer["detail"])
                    future.set_exception(RefusedError(f"{binary}: {answer['error']}"))
                else:
                    self.compiled += 1
                    future.set_result(answer)
        finally:
            if worker is not None:
                self._workers.discard(worker)
                worker.stop()


class _Worker:
    """One worker process with a private Triton cache that is deleted with it."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.scratch = tempfile.mkdtemp(prefix="jitd-compile-")
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        environment |= _WORKER_ENVIRONMENT | {"TRITON_CACHE_DIR": self.scratch}
        # The parent may have found jitd through a changed sys.path rather than an install.
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jitd.jit.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C stops the parent, which then stops the worker
        )
        try:
            self.ask({"path": [str(Path(p).absolute()) for p in sys.path]})
        except frames.FrameError:
            self.stop()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout  # for the type checker: both are pipes
        frames.send(self.process.stdin.fileno(), request)
        return frames.receive(self.process.stdout.fileno(), self.timeout_s)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


_shared: CompilePool | None = None
_shared_lock = threading.Lock()


def shared_pool(jobs: int, timeout_s: float) -> CompilePool:
    """The process's own pool, made at the first call (which sizes it) and closed at exit."""
    global _shared  # noqa: PLW0603  (one pool per process is the point)
    with _shared_lock:
        if _shared is None:
            _shared = CompilePool(jobs, timeout_s=timeout_s)
            atexit.register(_shared.close)
        return _shared


def _forget_after_fork() -> None:
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
