"""What client and daemon say to each other: frames, and one record for each request and answer.

A frame is four bytes of length and a msgpack map, whose `is` names the record. The client sends
requests and gets one answer to each, in order; `News` and `Beat` come by themselves in between.
Whatever the bytes, `decode` gives a record whose fields have their types, or raises ProtocolError.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import GenericAlias
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import msgpack

from ...cache.errors import BadRecord
from ...cache.values import count_values
from ..errors import JitdError

PROTOCOL = 1
"""Part of the socket's name and of the first message: other numbers never talk to each other."""

MAX_FRAME_BYTES = 1 << 20
MAX_VALUES = 1 << 16  # in one frame: msgpack of one byte may be an object of fifty
MAX_TEXT = 8192
LENGTH = struct.Struct(">I")

HELLO_S = 1.0  # a daemon that does not greet for so long is not waited for
BEAT_S = 5.0  # between two signs of life to whoever waits
SILENCE_S = 20.0  # after it a daemon counts as hung

State = Literal["queued", "running", "progress", "done", "failed"]
STATES: tuple[State, ...] = get_args(State)


class ProtocolError(JitdError):
    """The other end sent what the protocol does not allow; the message says what."""


@dataclass(frozen=True)
class Record:
    """What all records share. `name` is what they are called in a frame."""

    name: ClassVar[str]


# -- requests ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello(Record):
    """The first message: who asks. Answered by Welcome or Refused."""

    name: ClassVar[str] = "hello"
    protocol: int
    version: str
    code: str  # digest of jitd's source files
    toolchain: str
    cache_dir: str


@dataclass(frozen=True)
class Build(Record):
    """Have what a call needs tuned, compiled, checked and stored. Answered by Accepted, later News.

    An op is named by module and digest; `call` is packed as for the tuning process. `classes` are
    the binary keys of the call's default config: other lengths of a bucket that need no other
    binary are the same work. `device` is a card's UUID; without one, only compile for `target`.
    """

    name: ClassVar[str] = "build"
    op: str
    module: str
    digest: str
    signature: str  # the bucket's
    device: str
    target: str
    waiting: bool  # somebody stands still until it is done
    call: dict[str, Any] = field(default_factory=dict)  # empty: `signature` says all
    classes: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)  # where the client's modules come from

    @property
    def key(self) -> str:
        """Equal for all requests that one build answers."""
        parts = [self.op, self.digest, self.signature, self.device, self.target, self.classes]
        return hashlib.blake2b(msgpack.packb(parts), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Wait(Record):
    """Stand still for a build that was asked for before. Answered by Accepted, later News."""

    name: ClassVar[str] = "wait"
    key: str


@dataclass(frozen=True)
class Status(Record):
    """Ask what the daemon is doing. Answered by Document."""

    name: ClassVar[str] = "status"


@dataclass(frozen=True)
class Stats(Record):
    """Ask for the daemon's counters since it started. Answered by Document."""

    name: ClassVar[str] = "stats"


@dataclass(frozen=True)
class Warmup(Record):
    """Build the buckets of a workload when nothing else is to do. Answered by Document."""

    name: ClassVar[str] = "warmup"
    signatures: list[str]
    modules: list[str]  # of the ops, one for each signature
    device: str
    target: str
    path: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cancel(Record):
    """Take back an own request; a build under way goes on. Answered by Document."""

    name: ClassVar[str] = "cancel"
    key: str


@dataclass(frozen=True)
class Reload(Record):
    """Start afresh all processes that import modules. Answered by Document."""

    name: ClassVar[str] = "reload"


@dataclass(frozen=True)
class Shutdown(Record):
    """End, after what is under way unless `now`. Answered by Document."""

    name: ClassVar[str] = "shutdown"
    now: bool = False


@dataclass(frozen=True)
class Subscribe(Record):
    """Get News of all builds from now on. Answered by Document."""

    name: ClassVar[str] = "subscribe"


# -- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Welcome(Record):
    """The daemon is of the same code and toolchain and serves the same cache."""

    name: ClassVar[str] = "welcome"
    pid: int
    version: str


@dataclass(frozen=True)
class Refused(Record):
    """A request that is not carried out; `cause` is a word for the counters."""

    name: ClassVar[str] = "refused"
    cause: str
    detail: str


@dataclass(frozen=True)
class Accepted(Record):
    """A build that is queued or under way, and the key that News will name."""

    name: ClassVar[str] = "accepted"
    key: str


@dataclass(frozen=True)
class Document(Record):
    """Facts for people and programs: what `jitctl daemon status --json` prints."""

    name: ClassVar[str] = "document"
    facts: dict[str, Any]


@dataclass(frozen=True)
class News(Record):
    """What became of a build. `detail`: the config that won, or why there is none."""

    name: ClassVar[str] = "news"
    key: str
    signature: str
    state: str  # one of STATES
    cause: str = ""
    detail: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Beat(Record):
    """The daemon lives."""

    name: ClassVar[str] = "beat"


Request: TypeAlias = (
    Hello | Build | Wait | Status | Stats | Warmup | Cancel | Reload | Shutdown | Subscribe
)
Answer: TypeAlias = Welcome | Refused | Accepted | Document
Push: TypeAlias = News | Beat

REQUESTS: Mapping[str, type[Record]] = {kind.name: kind for kind in get_args(Request)}
ANSWERS: Mapping[str, type[Record]] = {
    kind.name: kind for kind in (*get_args(Answer), *get_args(Push))
}


def encode(record: Record) -> bytes:
    """A frame. Raises ProtocolError for a record that is too large."""
    message = {"is": record.name}
    message |= {item.name: getattr(record, item.name) for item in fields(record)}
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"a {record.name} of {len(body)} bytes; allowed are {MAX_FRAME_BYTES}. Send less."
        )
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """The bytes of the frame that four bytes announce. Raises ProtocolError."""
    (length,) = LENGTH.unpack(head)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes; allowed are 1 to {MAX_FRAME_BYTES}.")
    return int(length)


def decode(body: bytes, kinds: Mapping[str, type[Record]]) -> Any:
    """The record in a frame, one of `kinds`. Raises ProtocolError for anything else."""
    try:
        if count_values(body, MAX_VALUES) > MAX_VALUES:
            raise ProtocolError(f"a frame of more than {MAX_VALUES} values.")
        message = msgpack.unpackb(body, strict_map_key=True)
    except (BadRecord, ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a frame is no message: {error}.") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a frame holds a {type(message).__name__}, not a map.")
    name = message.pop("is", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"a message called {str(name)[:40]!r}; allowed are {', '.join(kinds)}.")
    return _record(kind, message)


def _record(kind: type[Record], message: dict[Any, Any]) -> Record:
    hints = {item.name: item.type for item in fields(kind)}
    if unknown := message.keys() - hints.keys():
        raise ProtocolError(f"a {kind.name} with {sorted(map(str, unknown))[:3]}.")
    for name, value in message.items():
        if not _fits(value, hints[name]):
            raise ProtocolError(f"a {kind.name} whose {name} is {str(value)[:80]!r}.")
    try:
        return kind(**message)
    except TypeError as error:  # a field is missing
        raise ProtocolError(f"a {kind.name} that is not whole: {error}.") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type, and no longer than a text may be."""
    if isinstance(hint, GenericAlias):
        if hint.__origin__ is list:
            return type(value) is list and all(_fits(item, hint.__args__[0]) for item in value)
        return type(value) is dict and all(type(name) is str for name in value)
    return type(value) is hint and (hint is not str or len(value) <= MAX_TEXT)
