"""Who builds what, and when: takes jobs from the queue to the workers, one at a time on each card.

Serving comes first: on a card that others use a tune rests most of the time, and on one without
free memory it waits.
"""

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..settings import Settings
from . import gpus
from .protocol import News
from .queue import Job, Priority, Queue
from .workers import Compilers, Worker, WorkerDied

log = logging.getLogger("jitd.daemon")

MIN_FREE_BYTES = 2 << 30  # a CUDA context and the smallest tune
PUT_OFF_S = 30.0
KEEP_S = 60.0  # a worker without work, for what may come next
_ATTEMPTS = 2
_SILENCE_S = 120.0  # beyond what one compile may take


@dataclass
class Finished:
    """A job that is over, for `status` and `top`."""

    signature: str
    place: str
    state: str
    cause: str
    detail: str
    us: float | None
    seconds: float
    ended: float  # Unix time

    def facts(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class Schedule:
    """The queue and the workers. `tell(job, news)` is called at each turn of a job's fate.

    `look(uuid)` says how a card is used; `clock` is monotonic.
    """

    settings: Settings
    environment: Mapping[str, str]
    tell: Callable[[Job, News], None]
    pids: Callable[[set[int]], set[int]] = lambda clients: set()
    module: str = "jitd.jit.daemon.worker"
    look: Callable[[str], gpus.Usage | None] = gpus.usage
    clock: Callable[[], float] = time.monotonic
    queue: Queue = field(default_factory=Queue)
    workers: dict[str, Worker] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    recent: deque[Finished] = field(default_factory=lambda: deque(maxlen=50))
    on_built: Callable[[Job], None] = lambda job: None
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _compiled_at: float = 0.0

    def __post_init__(self) -> None:
        self.compilers = Compilers(self.settings.jobs, self.settings.compile_timeout_s)

    def kick(self) -> None:
        """Have somebody at work wherever something is queued."""
        for place in self.queue.places():
            if place not in self._running:
                self._running[place] = asyncio.create_task(self._serve(place))

    @property
    def busy(self) -> bool:
        return bool(len(self.queue))

    async def finish_running(self, grace_s: float) -> None:
        """Wait for what is under way, at most so long, and let all workers go."""
        running = [task for task in self._running.values() if not task.done()]
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        workers, self.workers = list(self.workers.values()), {}
        await asyncio.gather(*(worker.end(now=True) for worker in workers))
        await asyncio.to_thread(self.compilers.close)

    async def rest(self) -> None:
        """Let go of workers that had nothing to do for a while, and of the compile workers."""
        for place, worker in list(self.workers.items()):
            if place not in self._running and self.clock() - worker.idle_since > KEEP_S:
                del self.workers[place]
                await worker.end()
        if self._running or self.compilers.busy:
            self._compiled_at = self.clock()
        elif self.compilers.up and self.clock() - self._compiled_at > KEEP_S:
            self.compilers.renew()

    async def renew(self) -> None:
        """Start all processes that import modules afresh, each when its work is done."""
        for place in list(self.workers):
            if place not in self._running:
                await self.workers.pop(place).end()
            else:
                self.workers[place].path = []
                self._stale.add(place)
        self.compilers.renew()

    _stale: set[str] = field(default_factory=set)

    # -- one place ----------------------------------------------------------------------------

    async def _serve(self, place: str) -> None:
        """Run the jobs of a place until none is left."""
        try:
            while (job := self.queue.take(place, self.clock())) is not None:
                began = self.clock()
                try:
                    news, us = await self._run(job)
                except asyncio.CancelledError:
                    self.queue.put_back(job)
                    raise
                except Exception as error:  # one job's trouble must not keep the others waiting
                    log.exception("a build went wrong here")
                    await self._forget_worker(place)
                    news, us = self._news(job, "failed", "daemon_error", repr(error)[:1000]), None
                if news is None:
                    continue
                self.queue.finish(job)
                self.counts[news.state if not news.cause else f"failed:{news.cause}"] += 1
                seconds = self.clock() - began
                self.recent.appendleft(
                    Finished(
                        news.signature[:300], place, news.state, news.cause, news.detail[:200], us,
                        seconds, time.time(),
                    )
                )  # fmt: skip
                log.info("built", extra={"facts": self.recent[0].facts()})
                if news.state == "done":
                    self.on_built(job)
                self.tell(job, news)
        finally:
            self._running.pop(place, None)
            if place in self.workers:
                self.workers[place].idle_since = self.clock()
        if place in self.queue.places():  # put off: look again later
            asyncio.get_running_loop().call_later(PUT_OFF_S, self.kick)

    async def _run(self, job: Job) -> tuple[News | None, float | None]:
        """What became of a job; None if it is put off."""
        duty = 1.0
        usage = self.look(job.build.device) if job.build.device else None
        if usage is not None:
            if usage.free_bytes < MIN_FREE_BYTES:
                return self._without_memory(job, usage), None
            duty = self.duty(job, usage)
        self.tell(job, self._news(job, "running"))
        while True:
            job.attempts += 1
            try:
                answer = await self._attempt(job, duty)
            except (WorkerDied, OSError) as died:
                self.counts["worker_deaths"] += 1
                log.warning("a worker died", extra={"facts": {"of": job.place, "how": str(died)}})
                if job.attempts >= _ATTEMPTS:
                    return self._news(job, "failed", "worker_died", f"the worker {died}"), None
                continue
            for name, count in answer["counts"].items():
                self.counts[name] += count
            if "done" in answer:
                done = answer["done"]
                return self._news(job, "done", "", done["config"]), done["us"]
            cause, detail = answer["failed"]
            if cause == "other_code" and job.attempts < _ATTEMPTS:
                # The worker imported the modules before they were changed, or from elsewhere.
                await self._forget_worker(job.place)
                continue
            return self._news(job, "failed", cause, str(detail)[:4000]), None

    async def _attempt(self, job: Job, duty: float) -> dict[str, Any]:
        build = job.build
        worker = self.workers.get(job.place)
        if worker is not None and (not worker.alive or job.place in self._stale):
            await self._forget_worker(job.place)
            worker = None
        if worker is None:
            worker = Worker(self.module, build.device, build.target, build.path, self.compilers)
            await worker.start(self.environment)
            self.workers[job.place] = worker
            self.counts["workers_started"] += 1
        worker.path = list(dict.fromkeys((*worker.path, *build.path)))

        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total
            self.tell(job, self._news(job, "progress"))

        request = {
            "op": build.op, "module": build.module, "digest": build.digest, "call": build.call,
            "signature": build.signature, "path": build.path, "duty": duty,
        }  # fmt: skip
        return await worker.run(request, progress, self.settings.compile_timeout_s + _SILENCE_S)

    async def _forget_worker(self, place: str) -> None:
        self._stale.discard(place)
        worker = self.workers.pop(place, None)
        if worker is not None:
            await worker.end()

    def duty(self, job: Job, usage: gpus.Usage) -> float:
        """The share of the time that a tune may use its card: all of it unless others are there.

        Who stands still for this very job does not count.
        """
        others = usage.others(os.getpid())
        if job.priority is Priority.WAITING:
            others -= self.pids(job.clients)
        return self.settings.daemon_duty if others else 1.0

    def _without_memory(self, job: Job, usage: gpus.Usage) -> News | None:
        free, needed = (n / 2**30 for n in (usage.free_bytes, MIN_FREE_BYTES))
        detail = f"the card has {free:.1f} GiB free; tuning needs {needed:.1f}"
        self.counts["put_off"] += 1
        if job.priority is Priority.WAITING:
            return self._news(job, "failed", "no_memory", detail)
        self.queue.put_back(job, self.clock() + PUT_OFF_S)
        self.tell(job, self._news(job, "queued", "no_memory", detail))
        return None

    def _news(self, job: Job, state: str, cause: str = "", detail: str = "") -> News:
        signature = job.build.signature
        return News(job.key, signature, state, cause, detail, job.done, job.total)
