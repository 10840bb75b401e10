"""The daemon's process: one event loop that accepts, answers, and hands work to others.

It imports no torch and runs nothing that takes long. Whatever a client sends costs at most its own
connection.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...cache.store import Store
from ..errors import JitdError
from ..settings import Settings
from . import gpus, housekeeping, requests
from .connection import FRAME_S, Connection, receive
from .facts import work_facts
from .identity import Identity
from .metrics import Metrics
from .place import Place, peer
from .protocol import (
    BEAT_S,
    PROTOCOL,
    Answer,
    Beat,
    Build,
    Cancel,
    Document,
    Hello,
    News,
    ProtocolError,
    Record,
    Refused,
    Reload,
    Shutdown,
    Stats,
    Status,
    Subscribe,
    Wait,
    Warmup,
    Welcome,
)
from .queue import Job, Priority
from .schedule import Schedule

log = logging.getLogger("jitd.daemon")

MAX_CONNECTIONS = 4000
DRAIN_S = 20.0
_TIDY_S = 3600.0
_SAVE_S = 60.0


class Server:
    """The daemon of one cache. The caller holds the lock of the place.

    `given` is a listening socket of systemd's. `clock` is monotonic; `tick_s` is how often it is
    looked at.
    """

    def __init__(
        self,
        place: Place,
        settings: Settings,
        store: Store,
        *,
        given: socket.socket | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_s: float = 1.0,
        worker: str = "jitd.jit.daemon.worker",
        look: Callable[[str], gpus.Usage | None] = gpus.usage,
    ) -> None:
        self.place, self.settings, self.store = place, settings, store
        self.identity = Identity.of(place.cache_dir)
        self.clock, self.tick_s = clock, tick_s
        self.given = given
        self.counts: Counter[str] = Counter()
        environment = {**os.environ, "JITD_CACHE_DIR": str(place.cache_dir), "JITD_DAEMON": "off"}
        self.schedule = Schedule(
            settings, environment, self._tell, self._pids, module=worker, look=look, clock=clock,
            counts=self.counts,
        )  # fmt: skip
        self.memory = housekeeping.Memory(store, self.identity.toolchain, gpus.driver_version())
        self.schedule.on_built = lambda job: self.memory.note(job.build)
        self._connections: dict[int, Connection] = {}
        self._numbers = 0
        self._stop: asyncio.Future[tuple[str, bool]] | None = None
        self._accepting: asyncio.Server | None = None
        self._bound: tuple[int, int] | None = None
        self._metrics: Metrics | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = self._active = self._tidied = self._saved = clock()

    # -- living -------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> str:
        """Serve until told to stop or idle for long; the reason. `ready` is called once it answers.

        Raises JitdError, OSError if it cannot begin.
        """
        self._stop = asyncio.get_running_loop().create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop, "signal", False)
        if self.settings.daemon_metrics:
            self._metrics = Metrics(self.settings.daemon_metrics, self.facts)
        await self._listen()
        log.info("started", extra={"facts": {"pid": os.getpid(), **self.identity.facts()}})
        ready()
        # What was built before an upgrade is built again, when nothing else is to do.
        for build in self.memory.outdated():
            requests.enqueue(self.schedule, build, 0, Priority.WARMUP)
        tick, beat = asyncio.create_task(self._ticks()), asyncio.create_task(self._beats())
        reason, now = await self._stop
        tick.cancel()
        beat.cancel()
        await self._end(reason, 0.0 if now else DRAIN_S)
        return reason

    def stop(self, reason: str, now: bool) -> None:
        if self._stop is not None and not self._stop.done():
            self._stop.set_result((reason, now))

    @property
    def stopping(self) -> bool:
        return self._stop is not None and self._stop.done()

    async def _listen(self) -> None:
        listener = self.given or self.place.bind()
        self._accepting = await asyncio.start_unix_server(self._serve, sock=listener, backlog=1024)
        self._bound = self.place.identity()

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(self.tick_s)
            try:
                await self._tick()
            except (JitdError, OSError) as error:  # tidying is no reason to end
                log.warning("housekeeping failed", extra={"facts": {"why": str(error)}})

    async def _tick(self) -> None:
        now = self.clock()
        if self.given is None and self.place.identity() != self._bound:
            # Somebody deleted the socket or put another in its place: nobody would find us.
            log.warning("the socket is not ours any more; bound anew")
            self.counts["rebinds"] += 1
            if self._accepting is not None:
                self._accepting.close()
            await self._listen()
        if self._metrics is not None:
            self._metrics.write()
        if now - self._saved >= _SAVE_S:
            self._saved = now
            self.memory.save()
        if now - self._tidied >= _TIDY_S:
            self._tidied = now
            removed = await asyncio.to_thread(housekeeping.tidy, self.store, self.settings)
            log.info("tidied", extra={"facts": removed})
        await self.schedule.rest()
        if self.schedule.busy:
            self._active = now
        idle_s = self.settings.daemon_idle_s
        if idle_s and now - self._active >= idle_s:
            self.stop("idle", False)

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for connection in list(self._connections.values()):
                if connection.wanted:
                    connection.send(Beat())

    async def _end(self, reason: str, grace_s: float) -> None:
        log.info("stopping", extra={"facts": {"why": reason}})
        if self._accepting is not None:
            self._accepting.close()
        if self.given is None and self.place.identity() == self._bound:
            self.place.socket.unlink(missing_ok=True)
        for job in self.schedule.queue.drain():
            self._tell(job, _failed(job, "daemon_stopped", f"the daemon stops: {reason}"))
        await self.schedule.finish_running(grace_s)
        for job in self.schedule.queue:
            self._tell(job, _failed(job, "daemon_stopped", f"the daemon stops: {reason}"))
        self.memory.save()
        if self._metrics is not None:
            self._metrics.close()
        for connection in list(self._connections.values()):
            connection.writer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        log.info("stopped", extra={"facts": {"pid": os.getpid()}})

    # -- one connection -----------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._numbers += 1
        pid, uid = peer(writer.get_extra_info("socket"))
        connection = Connection(self._numbers, pid, writer)
        try:
            if uid != os.geteuid():
                self.counts["refused:uid"] += 1
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                self.counts["refused:connections"] += 1
                connection.send(Refused("full", f"{MAX_CONNECTIONS} clients are connected"))
                return
            self._connections[connection.number] = connection
            await self._talk(connection, reader)
        except ProtocolError as error:
            self.counts["refused:protocol"] += 1
            connection.send(Refused("protocol", str(error)[:1000]))
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            pass  # it is gone, or as good as gone
        finally:
            self._connections.pop(connection.number, None)
            self.schedule.queue.leave(connection.number)
            writer.close()

    async def _talk(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        async with asyncio.timeout(FRAME_S):
            hello = await receive(reader)
        if not isinstance(hello, Hello):
            raise ProtocolError(f"the first message is a {hello.name}; allowed is hello.")
        if (refusal := self._refusal(hello)) is not None:
            self.counts[f"refused:{refusal.cause}"] += 1
            connection.send(refusal)
            return
        self.counts["connections"] += 1
        connection.send(Welcome(os.getpid(), self.identity.version))
        while True:
            request = await receive(reader)
            connection.send(await self._answer(connection, request))
            await connection.writer.drain()

    def _refusal(self, hello: Hello) -> Refused | None:
        """Why a client must do without this daemon, or None."""
        if hello.protocol != PROTOCOL:
            return Refused("protocol", f"protocol {hello.protocol}; here {PROTOCOL}")
        if self.stopping:
            return Refused("stopping", "the daemon stops")
        other = self.identity.difference(hello)
        if other is None:
            return None
        if self.identity.is_outdated():
            # jitd or Triton was changed under this process: the next one will be the new one.
            self.stop("upgraded", False)
        return Refused("mismatch", other)

    # -- requests -----------------------------------------------------------------------------

    async def _answer(self, connection: Connection, request: Record) -> Answer:
        if not isinstance(request, Status | Stats | Subscribe):  # looking keeps nobody awake
            self._active = self.clock()
        match request:
            case Build() if self.stopping:
                return Refused("stopping", "the daemon stops")
            case Build():
                return requests.build(self.schedule, connection, request)
            case Wait(key):
                return requests.wait(self.schedule, connection, key)
            case Warmup():
                return requests.warmup(self.schedule, connection, request)
            case Cancel(key):
                return requests.cancel(self.schedule, connection, key)
            case Status():
                return Document(self.facts())
            case Stats():
                return Document(dict(sorted(self.counts.items())))
            case Subscribe():
                connection.subscribed = True
                return Document({})
            case Reload():
                await self.schedule.renew()
                return Document({"reloaded": True})
            case Shutdown(now):
                asyncio.get_running_loop().call_soon(self.stop, "asked to", now)
                return Document({"pid": os.getpid()})
        raise ProtocolError(f"a second {request.name}.")

    def _tell(self, job: Job, news: News) -> None:
        """Pass on what became of a job to those who want it, and to those who watch."""
        for connection in list(self._connections.values()):
            if connection.subscribed or job.key in connection.wanted:
                connection.send(news)
            if news.state in ("done", "failed"):
                connection.wanted.discard(job.key)

    def _pids(self, clients: set[int]) -> set[int]:
        return {self._connections[n].pid for n in clients if n in self._connections}

    # -- facts --------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the daemon is and does, for people and programs."""
        now = self.clock()
        return {
            "healthy": not self.stopping,
            **self.identity.facts(),
            "socket": str(self.place.socket),
            "uptime_seconds": now - self._started,
            "idle_seconds": 0.0 if self.schedule.busy else now - self._active,
            "idle_exit_seconds": self.settings.daemon_idle_s,
            "connections": len(self._connections),
            **work_facts(self.schedule),
        }


def _failed(job: Job, cause: str, detail: str) -> News:
    return News(job.key, job.build.signature, "failed", cause, detail)


def more_descriptors() -> None:
    """Allow this process as many connections as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
