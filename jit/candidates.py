"""The binaries of configs to be tried: compiled in parallel, handed on as they are ready."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ..autotune.search import CandidateFailed
from .binary import Binary
from .errors import CompileError

Body = Mapping[str, Any]
Pairs = Sequence[tuple[Binary, "Body | Future[dict[str, Any]]"]]


class Arrivals:
    """Names in the order in which their binaries are ready. `close` ends a waiting iteration."""

    def __init__(self) -> None:
        self._ready: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def put(self, name: str) -> None:
        self._ready.put(name)

    def close(self) -> None:
        self._ready.put(None)

    def take(self, count: int) -> Iterator[str]:
        for _ in range(count):
            name = self._ready.get()
            if name is None:
                return
            yield name


class Candidates:
    """Candidates by name. `start(name)` gives a candidate's binaries with their artifacts, or with
    the futures of those that it has just begun to compile."""

    def __init__(self, start: Callable[[str], Pairs]) -> None:
        self._start = start
        self._pairs: dict[str, Pairs] = {}

    def begin(self, names: Sequence[str]) -> Arrivals:
        """Compile these, first come, first served. Failures arrive like the rest."""
        arrivals = Arrivals()
        for name in names:
            futures = [f for _, f in self._of(name) if isinstance(f, Future)]
            _when_all(futures, lambda name=name: arrivals.put(name))  # type: ignore[misc]
        return arrivals

    def finished(self, name: str) -> list[tuple[Binary, Body]]:
        """A candidate's binaries; compiled now if need be. Raises CandidateFailed."""
        finished = []
        for binary, body in self._of(name):
            try:
                finished.append((binary, body.result() if isinstance(body, Future) else body))
            except CompileError as error:
                raise CandidateFailed("does not compile", str(error)) from error
        return finished

    def bodies(self, name: str) -> list[Body]:
        return [body for _, body in self.finished(name)]

    def stop(self) -> None:
        """Give up what no worker has begun with."""
        for pairs in self._pairs.values():
            for _, body in pairs:
                if isinstance(body, Future):
                    body.cancel()

    def _of(self, name: str) -> Pairs:
        pairs = self._pairs.get(name)
        if pairs is None or any(isinstance(f, Future) and f.cancelled() for _, f in pairs):
            pairs = self._pairs[name] = self._start(name)
        return pairs


def _when_all(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once when all are done; at once if none is left."""
    lock, left = threading.Lock(), len(futures) + 1

    def one_less(_: object = None) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then()

    for future in futures:
        future.add_done_callback(one_less)
    one_less()
