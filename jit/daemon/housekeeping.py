"""What nobody asks for: eviction, and warming again after an upgrade what was built before it."""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from ...cache.errors import CacheWriteError
from ...cache.keys import Key
from ...cache.store import Store
from ..settings import Settings
from .protocol import Build

log = logging.getLogger("jitd.daemon")

MAX_REMEMBERED = 2000  # signatures of one card, the latest
_OP = "jitd_daemon"


class Memory:
    """The signatures that were built for each card, with the toolchain and driver of that time."""

    def __init__(self, store: Store, toolchain: str, driver: str) -> None:
        self.store, self.toolchain, self.driver = store, toolchain, driver
        self._known: dict[str, OrderedDict[str, list[str]]] = {}
        self._unsaved: set[str] = set()

    def note(self, build: Build) -> None:
        """A build that succeeded."""
        place = f"{build.device or '-'} {build.target}"
        known = self._of(place)
        entry = [build.op, build.module]
        if known.get(build.signature) != entry:
            self._unsaved.add(place)
        known[build.signature] = entry
        known.move_to_end(build.signature)
        while len(known) > MAX_REMEMBERED:
            known.popitem(last=False)

    def save(self) -> None:
        """Write what is new. What cannot be written is lost: only a later warmup misses it."""
        for place in list(self._unsaved):
            body = {
                "toolchain": self.toolchain,
                "driver": self.driver,
                "signatures": [[text, *entry] for text, entry in self._known[place].items()],
            }
            try:
                self.store.put(_key(place), body, label=place, meta={"place": place})
            except CacheWriteError as error:
                log.warning("the workload is not kept", extra={"facts": {"why": str(error)}})
            self._unsaved.discard(place)

    def outdated(self) -> Iterator[Build]:
        """What was built under another Triton or driver than now, each once."""
        for header in list(self.store.headers("workload", _OP)):
            place = str(header.meta.get("place", ""))
            device, _, target = place.partition(" ")
            if not target:
                continue
            body = self._body(place)
            same = body.get("toolchain") == self.toolchain and body.get("driver") == self.driver
            if same or not body:
                continue
            self._of(place)
            self._unsaved.add(place)  # under the present names from now on
            for signature, op, module in body["signatures"]:
                uuid = "" if device == "-" else device
                yield Build(op, module, "", signature, uuid, target, waiting=False)

    def _of(self, place: str) -> OrderedDict[str, list[str]]:
        if place not in self._known:
            found = self._body(place).get("signatures", ())
            self._known[place] = OrderedDict((text, list(entry)) for text, *entry in found)
        return self._known[place]

    def _body(self, place: str) -> Mapping[str, Any]:
        record = self.store.get(_key(place))
        return record.body if record else {}


def tidy(store: Store, settings: Settings) -> dict[str, int]:
    """Evict down to the bounds, and sweep what killed writers left: what was removed."""
    from ...cache.evict import Bounds, evict  # noqa: PLC0415  (once an hour)

    bounds = Bounds(settings.cache_max_bytes, settings.cache_max_files)
    total = evict(store, bounds).total
    return {"files": total.files, "bytes": total.bytes}


def _key(place: str) -> Key:
    return Key.of("workload", _OP, place=place)
