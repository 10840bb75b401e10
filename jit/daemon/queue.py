"""What is to be built, in which order: for each card, the most urgent first, fair between clients.

Plain data: no clock, no socket. One job answers all who ask for the same key.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from .protocol import Build

MAX_QUEUED = 4096


class Priority(IntEnum):
    """The lower, the sooner."""

    WAITING = 0  # somebody stands still
    BACKGROUND = 1  # somebody runs on something slower meanwhile
    WARMUP = 2  # nobody misses it yet


@dataclass(eq=False)
class Job:
    """One build, and who wants it."""

    number: int
    build: Build
    priority: Priority
    clients: set[int] = field(default_factory=set)
    running: bool = False
    attempts: int = 0
    done: int = 0
    total: int = 0
    not_before: float = 0.0  # put off: its card is busy or full

    @property
    def key(self) -> str:
        return self.build.key

    @property
    def place(self) -> str:
        """Whose turn it is: one thing at a time on each card, or for each target without one."""
        return self.build.device or self.build.target


class QueueFull(Exception):
    """Nothing more is accepted for now."""


class Queue:
    """All jobs that are queued or running."""

    def __init__(self, most: int = MAX_QUEUED) -> None:
        self.most = most
        self._jobs: dict[str, Job] = {}
        self._served: Counter[int] = Counter()  # jobs begun for each client, since it is known
        self._number = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        """Running ones first, then in the order in which they would be taken in one place."""
        return iter(
            sorted(self._jobs.values(), key=lambda job: (not job.running, *self._rank(job)))
        )

    def __repr__(self) -> str:
        running = sum(job.running for job in self._jobs.values())
        return f"<Queue: {running} running, {len(self) - running} queued>"

    def add(self, build: Build, client: int, priority: Priority) -> Job:
        """The job of a build, which may be under way already. Raises QueueFull for a new one."""
        job = self._jobs.get(build.key)
        if job is None:
            if len(self._jobs) >= self.most:
                raise QueueFull
            self._number += 1
            job = self._jobs[build.key] = Job(self._number, build, priority)
        if client not in self._served:
            # Who comes late is not owed what others had before.
            self._served[client] = min((self._served[c] for c in self._active()), default=0)
        job.clients.add(client)
        job.priority = min(job.priority, priority)
        return job

    def find(self, key: str) -> Job | None:
        return self._jobs.get(key)

    def places(self) -> set[str]:
        """Where something is queued."""
        return {job.place for job in self._jobs.values() if not job.running}

    def take(self, place: str, now: float = 0.0) -> Job | None:
        """The next job for a place, which runs from now on; None if there is none (yet)."""
        ready = [
            job
            for job in self._jobs.values()
            if job.place == place and not job.running and job.not_before <= now
        ]
        if not ready:
            return None
        job = min(ready, key=self._rank)
        job.running = True
        for client in job.clients:
            self._served[client] += 1
        return job

    def put_back(self, job: Job, not_before: float = 0.0) -> None:
        """Run it later."""
        job.running, job.not_before = False, not_before

    def finish(self, job: Job) -> None:
        self._jobs.pop(job.key, None)

    def leave(self, client: int) -> None:
        """A client is gone. What it asked for is still built: others will ask for it."""
        for job in self._jobs.values():
            job.clients.discard(client)
            if not job.clients:
                job.priority = max(job.priority, Priority.BACKGROUND)
        del self._served[client]

    def cancel(self, key: str, client: int) -> bool:
        """Take a client off a job, which goes if it was the last and it is not running."""
        job = self._jobs.get(key)
        if job is None or client not in job.clients:
            return False
        job.clients.discard(client)
        if not job.clients and not job.running:
            self.finish(job)
        return True

    def drain(self) -> list[Job]:
        """Take out all that is not running."""
        queued = [job for job in self._jobs.values() if not job.running]
        for job in queued:
            self.finish(job)
        return queued

    def _active(self) -> set[int]:
        return {client for job in self._jobs.values() for client in job.clients} & set(self._served)

    def _rank(self, job: Job) -> tuple[int, int, int]:
        served = min((self._served[client] for client in job.clients), default=0)
        return job.priority, served, job.number
