"""The store, or, where it cannot be written, this process's memory."""

import logging
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
