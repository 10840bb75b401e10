"""The note of a warmup under way: what `jitctl warmup --resume` goes on with after a Ctrl-C.

One record for each request that began and did not come to its end; the same request, run to its
end, removes it. It is written before the first kernel is built, so `kill -9` leaves it, too.
"""

import itertools
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...cache.errors import JitdError
from ...cache.keys import Key
from ...cache.records import Header
from ...cache.store import Store
from .output import note

if TYPE_CHECKING:
    from .wanted import Request

NOTES = ("workload", "resume")
"""Kind and op of the records."""


@dataclass(frozen=True)
class Interrupted:
    """A request that did not come to its end, and the Unix time of its beginning."""

    request: "Request"
    began: float


def begin(store: Store, request: "Request", target: str, began: float | None) -> None:
    """Note what is about to be done. `began` is that of the request that this one goes on with."""
    body: dict[str, Any] = {**request.document(), "began": time.time() if began is None else began}
    meta = {"op": request.wanted.name, "target": target}
    store.put(_key(request), body, label=request.command, meta=meta)


def end(store: Store, request: "Request") -> None:
    """Forget what has been done."""
    store.delete(_key(request))


def last(store: Store) -> Interrupted | None:
    """The request that was last begun and not ended.

    One that cannot be asked for again, because its model or its file is gone, is passed over with a
    note; where there is no other, JitdError says so.
    """
    from .wanted import Request  # noqa: PLC0415  (40 ms that `list` does not need)

    failures = []
    for header in sorted(notes(store), key=lambda header: header.created, reverse=True):
        record = store.record_for(header)
        if record is None:
            continue
        try:
            request = Request.of(record.body)
        except ValueError as error:
            failures.append(f"cannot resume `{header.label}`: {error}")
            continue
        for failure in failures:
            note(failure)
        return Interrupted(request, record.body["began"])
    if failures:
        raise JitdError("; ".join(failures))
    return None


def to_go_on(command: str) -> str:
    """What resumes an interrupted command: with its --import, which no note says for the user."""
    words = shlex.split(command)
    names = [name for word, name in itertools.pairwise(words) if word == "--import"]
    return shlex.join(
        ["jitctl", "warmup", "--resume", *(w for name in names for w in ("--import", name))]
    )


def notes(store: Store) -> list[Header]:
    """The headers of all requests that did not come to their end; their labels are commands."""
    return list(store.headers(*NOTES))


def _key(request: "Request") -> Key:
    return Key.of(*NOTES, request=request.identity)
