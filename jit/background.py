"""Mode `background`: the caller goes on with what there is, and one thread has the rest built.

By the daemon if there is one, else by this process's own builder, in that thread. A caller's share
is one entry in a queue. What is built is announced by `then`; nobody polls, and no call that hits
pays for any of this.
"""

import contextlib
import logging
import os
import queue
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .build import Builder
from .daemon.client import Client, DaemonTrouble
from .daemon.identity import Identity
from .daemon.place import Place
from .daemon.protocol import SILENCE_S, Build, News
from .daemon.start import connect_or_start
from .errors import JitdError, NotReady
from .op import Op
from .settings import Settings
from .sign import Call
from .stats import Stats
from .task import name_of, pack_call

log = logging.getLogger("jitd")

LEFT_ALONE_S = 60.0
"""For so long a daemon that made trouble is not asked again."""

# What a daemon may say that another try elsewhere would not change.
_FINAL = {"tune_failed", "tuner_failed", "compile_failed", "wrong", "no_memory", "build_failed"}


@dataclass
class Order:
    """Something to be built, and what to do then."""

    op: Op
    call: Call
    builder: Builder
    then: list[Callable[[], None]] = field(default_factory=list)
    tried: int = 0


class Daemon:
    """This process's way to the daemon: finds or starts it, and leaves it alone after trouble."""

    def __init__(self, settings: Settings, cache_dir: Path, stats: Stats) -> None:
        self.settings, self.stats = settings, stats
        self.place = Place.of(cache_dir, settings.daemon_dir)
        self._left_alone_until = 0.0

    def __repr__(self) -> str:
        return f"<Daemon {self.settings.daemon}, at {self.place.socket}>"

    def connect(self, *, start: bool) -> Client:
        """A connection; a daemon is started for it if `start`. Raises DaemonTrouble, counted."""
        if self.settings.daemon == "off":
            raise DaemonTrouble("off", "JITD_DAEMON=off")
        if time.monotonic() < self._left_alone_until:
            raise DaemonTrouble("left_alone", f"it made trouble less than {LEFT_ALONE_S:g} s ago")
        if not start and not self.place.socket.exists():
            raise DaemonTrouble("absent", f"there is no {self.place.socket}")
        try:
            return connect_or_start(self.place, Identity.of(self.place.cache_dir), start=start)
        except DaemonTrouble as trouble:
            if trouble.cause == "absent" and not start:
                raise
            self.blame(trouble)
            raise

    def blame(self, trouble: DaemonTrouble) -> None:
        """Count why the daemon is not used, say it once for a while, and leave it alone."""
        self.stats.count(f"daemon:{trouble.cause}")
        log.warning("going on without the daemon: %s", trouble.detail)
        self._left_alone_until = time.monotonic() + LEFT_ALONE_S

    def answers(self) -> bool:
        """Whether one runs that this process can use."""
        try:
            self.connect(start=False).close()
        except DaemonTrouble:
            return False
        return True

    def build(self, builder: Builder, op: Op, call: Call) -> None:
        """Have the daemon build it, if there is one, while the caller waits.

        Returns when it is built, or when it is this process's turn to do so; with
        JITD_DAEMON=require raises DaemonTrouble in that case.
        """
        required = self.settings.daemon == "require"
        if op.reference.__module__ == "__main__":  # which no other process can import
            return
        try:
            with self.connect(start=required) as client:
                _wait_for(client, client.build(request(op, call, builder, waiting=True)))
                self.stats.count("daemon:built")
        except DaemonTrouble as trouble:
            if required:
                raise
            if trouble.cause not in ("absent", "off", "left_alone"):
                self.blame(trouble)


class Background:
    """The thread of one process that has things built. Starts at the first `ask`."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._orders: dict[str, Order] = {}
        self._unsent: list[str] = []
        self._here: list[Order] = []  # to be built by this process
        self._client: Client | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake_up = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        _all.add(self)

    def __repr__(self) -> str:
        return f"<Background: {len(self._orders)} asked of the daemon, {len(self._here)} to do>"

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._wake_up)

    def ask(self, builder: Builder, op: Op, call: Call, then: Callable[[], None]) -> None:
        """Have what `call` needs built, and call `then`, in another thread. Waits for nothing."""
        self._inbox.put(Order(op, call, builder, [then]))
        os.eventfd_write(self._wake_up, 1)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._work, name="jitd-background", daemon=True
                    )
                    self._thread.start()

    # -- the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            try:
                self._turn()
            except DaemonTrouble as trouble:
                self._give_up_on(trouble)
            except Exception:  # the thread of a serving process must not end
                log.exception("background building failed")
                self._orders.clear()

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        if not self._here and not self._unsent:
            waiting: list[int | Client] = [self._wake_up]
            waiting += [self._client] if self._client else []
            pushed = self._client is not None and self._client.has_news
            timeout_s = 0.0 if pushed else SILENCE_S if self._orders else None
            ready, _, _ = select.select(waiting, [], [], timeout_s)
            if not ready and not pushed and self._orders and self._client is not None:
                self._client.close()
                raise DaemonTrouble("hung", f"it said nothing for {SILENCE_S:g} s")
        self._take_in()
        self._send()
        self._hear()
        if self._here:
            self._build_here(self._here.pop(0))

    def _take_in(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_up)
        while not self._inbox.empty():
            order = self._inbox.get()
            build = request(order.op, order.call, order.builder, waiting=False)
            known = self._orders.get(build.key)
            if known is not None:
                known.then += order.then
            elif order.op.reference.__module__ == "__main__":
                self._here.append(order)  # no other process can import it
            else:
                self._orders[build.key] = order
                self._unsent.append(build.key)

    def _send(self) -> None:
        if not self._unsent:
            return
        if self._client is None or self._client.closed:
            self._client = None
            self._client = self.daemon.connect(start=True)
        for key in list(self._unsent):
            order = self._orders[key]
            try:
                self._client.build(request(order.op, order.call, order.builder, waiting=False))
            except DaemonTrouble as trouble:
                if self._client.closed:
                    raise
                self.daemon.stats.count(f"daemon:{trouble.cause}")
                self._here.append(self._orders.pop(key))
            self._unsent.remove(key)

    def _hear(self) -> None:
        while (client := self._client) is not None and not client.closed:
            if not client.has_news and not select.select([client], [], [], 0)[0]:
                return
            news = client.news()
            if news is not None and news.state in ("done", "failed"):
                self._told(news)

    def _told(self, news: News) -> None:
        order = self._orders.pop(news.key, None)
        if order is None:
            return
        if news.state == "done":
            self.daemon.stats.count("daemon:built")
            _announce(order)
        elif news.cause in _FINAL:
            log.info("%s is not built: %s", news.signature, news.detail)
        else:
            self.daemon.stats.count(f"daemon:{news.cause}")
            self._here.append(order)

    def _give_up_on(self, trouble: DaemonTrouble) -> None:
        """The daemon is of no use: it may have been replaced, or this process does the work."""
        established, self._client = self._client, None
        if established is not None:
            established.close()
        orders, self._orders, self._unsent = self._orders, {}, []
        if established is not None and orders:
            if trouble.cause == "died" and all(order.tried == 0 for order in orders.values()):
                # It ended, or was killed: what it published is there, the rest is asked anew.
                for order in orders.values():
                    order.tried += 1
                self._orders, self._unsent = orders, list(orders)
                return
            self.daemon.blame(trouble)
        self._here += orders.values()

    def _build_here(self, order: Order) -> None:
        if self.daemon.settings.daemon == "require":
            return  # then nothing is built without it
        signature = order.op.sign(order.call)
        tuner = order.builder.tuner()
        before, tuner.duty = tuner.duty, self.daemon.settings.daemon_duty
        try:
            order.builder.settle(order.op, order.call)
        except NotReady as not_ready:
            log.info("%s is not built: %s", signature, not_ready)
        except JitdError as error:
            log.warning("%s is not built: %s", signature, error)
        else:
            _announce(order)
        finally:
            tuner.duty = before


def request(op: Op, call: Call, builder: Builder, *, waiting: bool) -> Build:
    """What the daemon is asked for a call."""
    default = op.default(call, builder.device)
    binaries = builder.binaries(op, default.plan(call, builder.device), call) if default else []
    name = name_of(op)
    return Build(
        op=name["name"],
        module=name["module"],
        digest=name["digest"],
        signature=op.sign(op.bucket(call)).text,
        device=builder.device.uuid,
        target=builder.device.target,
        waiting=waiting,
        call=pack_call(call),
        classes=[binary.key.digest for binary in binaries],
        path=[str(Path(entry).absolute()) for entry in sys.path if entry],
    )


def _wait_for(client: Client, key: str) -> None:
    """Return when it is built. Raises NotReady if it cannot be, DaemonTrouble if not there."""
    while True:
        news = client.news()
        if news is None or news.key != key:
            continue
        if news.state == "failed":
            kind = NotReady if news.cause in _FINAL else DaemonTrouble
            raise kind(news.cause, news.detail)
        if news.state == "done":
            return


def _announce(order: Order) -> None:
    for then in order.then:
        then()


_all: "weakref.WeakSet[Background]" = weakref.WeakSet()


def _forget_after_fork() -> None:
    """The thread is the parent's, and so is what it waits for."""
    for background in list(_all):
        background._thread = None
        with contextlib.suppress(OSError):
            os.close(background._wake_up)
        background._wake_up = -1


os.register_at_fork(after_in_child=_forget_after_fork)
