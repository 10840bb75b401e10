"""A client's end of the daemon: one connection, one request at a time, a limit on every wait."""

import contextlib
import os
import socket
import time
import weakref
from collections import deque
from typing import Any, TypeVar

from ..errors import JitdError
from .identity import Identity
from .place import Place, PlaceRefused, connect
from .protocol import (
    ANSWERS,
    HELLO_S,
    LENGTH,
    SILENCE_S,
    Accepted,
    Beat,
    Build,
    Document,
    News,
    ProtocolError,
    Record,
    Refused,
    Wait,
    Welcome,
    decode,
    encode,
    length_of,
)

_ANSWER_S = 5.0
R = TypeVar("R", bound=Record)


class DaemonTrouble(JitdError):
    """The daemon cannot be used now. `cause` is a word for the counters, `detail` a sentence.

    absent, no_start, refused, hung, died, nonsense; or the daemon's own: mismatch, full, stopping,
    protocol, unknown.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail

    def __str__(self) -> str:
        return f"the daemon cannot be used ({self.cause}): {self.detail}"


class Client:
    """A connection that was greeted. Any trouble closes it and raises DaemonTrouble.

    Not for two threads at once. Of no use in a forked child, where it is closed.
    """

    def __init__(self, place: Place, identity: Identity) -> None:
        """Connect and greet, within HELLO_S. Raises DaemonTrouble."""
        self.place = place
        self.pushed: deque[News] = deque()
        self._socket: socket.socket | None = None
        self._bytes = bytearray()
        try:
            self._socket = connect(place, HELLO_S)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise DaemonTrouble("absent", f"nobody listens at {place.socket}") from error
        except PlaceRefused as error:
            raise DaemonTrouble("refused", str(error)) from error
        except TimeoutError as error:
            raise DaemonTrouble("hung", f"{place.socket} takes no connection") from error
        except OSError as error:
            raise DaemonTrouble("refused", f"{place.socket}: {error}") from error
        _open.add(self)
        self.welcome = self._asked(identity.hello(), Welcome, HELLO_S)

    def __repr__(self) -> str:
        state = "closed" if self._socket is None else f"pid {self.welcome.pid}"
        return f"<Client of {self.place.socket}: {state}>"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._socket is None

    def fileno(self) -> int:
        """For select, beside `has_news`."""
        if self._socket is None:
            raise DaemonTrouble("died", "the connection is closed")
        return self._socket.fileno()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- requests -----------------------------------------------------------------------------

    def build(self, build: Build) -> str:
        """Ask for a build: the key that its news will name."""
        return self._asked(build, Accepted).key

    def wait(self, key: str) -> str:
        """Stand still for a build asked for by anybody: News follow."""
        return self._asked(Wait(key), Accepted).key

    def ask(self, request: Record) -> dict[str, Any]:
        """The facts that answer a status, stats, warmup, cancel, reload, shutdown, subscribe."""
        return self._asked(request, Document).facts

    def news(self, timeout_s: float | None = SILENCE_S) -> News | None:
        """The next news; None at a sign of life. A daemon silent for `timeout_s` is hung."""
        if self.pushed:
            return self.pushed.popleft()
        record = self._receive(timeout_s)
        if isinstance(record, News):
            return record
        if isinstance(record, Beat):
            return None
        raise self._trouble("nonsense", f"a {record.name} that nobody asked for")

    @property
    def has_news(self) -> bool:
        """Whether `news` need not wait: what was read already is not seen by select."""
        if self.pushed:
            return True
        return len(self._bytes) >= LENGTH.size and (
            len(self._bytes) - LENGTH.size >= LENGTH.unpack_from(self._bytes)[0]
        )

    def _asked(self, request: Record, wanted: type[R], timeout_s: float = _ANSWER_S) -> R:
        deadline = time.monotonic() + timeout_s
        self._send(request, timeout_s)
        while True:
            record = self._receive(max(0.0, deadline - time.monotonic()))
            if isinstance(record, wanted):
                return record
            if isinstance(record, Refused):
                if not isinstance(request, Build | Wait):
                    self.close()
                raise DaemonTrouble(record.cause, record.detail)
            if isinstance(record, News):
                self.pushed.append(record)
            elif not isinstance(record, Beat):
                raise self._trouble("nonsense", f"a {record.name} to a {request.name}")

    # -- bytes --------------------------------------------------------------------------------

    def _send(self, request: Record, timeout_s: float) -> None:
        if self._socket is None:
            raise DaemonTrouble("died", "the connection is closed")
        data = encode(request)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(data)
        except TimeoutError as error:
            raise self._trouble("hung", f"it did not read for {timeout_s:g} s") from error
        except OSError as error:
            raise self._trouble("died", str(error)) from error

    def _receive(self, timeout_s: float | None) -> Record:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            length = length_of(self._read(LENGTH.size, deadline))
            record: Record = decode(self._read(length, deadline), ANSWERS)
        except ProtocolError as error:
            raise self._trouble("nonsense", str(error)) from error
        except TimeoutError as error:
            raise self._trouble("hung", f"it said nothing for {timeout_s:g} s") from error
        except OSError as error:
            raise self._trouble("died", str(error)) from error
        return record

    def _read(self, size: int, deadline: float | None) -> bytes:
        if self._socket is None:
            raise ConnectionResetError("the connection is closed")
        while len(self._bytes) < size:
            if deadline is not None and (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._socket.settimeout(None if deadline is None else left)
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise ConnectionResetError("it closed the connection")
            self._bytes += chunk
        data = bytes(self._bytes[:size])
        del self._bytes[:size]
        return data

    def _trouble(self, cause: str, detail: str) -> DaemonTrouble:
        self.close()
        return DaemonTrouble(cause, detail)


_open: "weakref.WeakSet[Client]" = weakref.WeakSet()


def _forget_after_fork() -> None:
    """Two processes on one stream would read each other's answers."""
    for client in list(_open):
        with contextlib.suppress(OSError):
            client.close()


os.register_at_fork(after_in_child=_forget_after_fork)
