"""The store, or, where it cannot be written, this process's memory."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..cache.errors import CacheWriteError
from ..cache.keys import Key
from ..cache.records import Header
from ..cache.store import Store
from .stats import Stats

log = logging.getLogger("jitd")

Body = Mapping[str, Any]


class Shelf:
    """Bodies by key. What cannot be written is kept for this process, counted, and said once."""

    def __init__(self, store: Store, stats: Stats) -> None:
        self.store, self.stats = store, stats
        self._unsaved: dict[str, Body] = {}

    def get(self, key: Key) -> Body | None:
        unsaved = self._unsaved.get(key.digest)  # newer than what it could not replace
        if unsaved is not None:
            return unsaved
        record = self.store.get(key)
        return None if record is None else record.body

    def has(self, key: Key) -> bool:
        """Whether something is filed under a key, perhaps unreadable. Quicker than `get`."""
        return key.digest in self._unsaved or any(
            os.path.lexists(f"{root}/{key.path}") for root in self.store.tiers
        )

    def has_any(self, kind: str, op: str) -> bool:
        """Whether anything of a kind may be filed for an op."""
        if self._unsaved:
            return True
        return any(os.path.lexists(f"{root}/{kind}/{op}") for root in self.store.tiers)

    def put(self, key: Key, body: Body, label: str, meta: Body) -> Body:
        try:
            record = self.store.put(key, body, label=label, meta=meta)
        except CacheWriteError as error:
            if not self.stats["put_failed"]:
                log.warning("the cache cannot be written, this process keeps its own: %s", error)
            self.stats.count("put_failed")
            self._unsaved[key.digest] = body
            return body
        self._unsaved.pop(key.digest, None)
        return record.body

    def drop(self, key: Key) -> None:
        """Forget what is filed under a key."""
        self._unsaved.pop(key.digest, None)
        try:
            self.store.delete(key)
        except CacheWriteError as error:
            log.warning("%s stays in the cache: %s", key, error)

    def headers(self, kind: str, op: str) -> Iterator[Header]:
        yield from self.store.headers(kind, op)


class GlancingShelf(Shelf):
    """A shelf that lists anew only now and then, for those who must not wait."""

    EVERY_S = 5.0

    def __init__(self, store: Store, stats: Stats) -> None:
        super().__init__(store, stats)
        self._listed: dict[tuple[str, str], tuple[float, list[Header]]] = {}

    def headers(self, kind: str, op: str) -> Iterator[Header]:
        seen, found = self._listed.get((kind, op), (-self.EVERY_S, []))
        now = time.monotonic()
        if now - seen >= self.EVERY_S:
            found = list(super().headers(kind, op))
            self._listed[kind, op] = now, found
        yield from found
