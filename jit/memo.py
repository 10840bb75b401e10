"""Source digests kept beside the cache: a warm process parses no source file."""

import logging
import sys
from pathlib import Path
from typing import Any

from ..cache.errors import CacheWriteError
from ..cache.keys import Key
from ..cache.store import Store
from . import source
from .source import Files, FunctionSource, Memo, Parameter

log = logging.getLogger("jitd")

SCHEMA = 1  # raised when digests come to be computed differently


class StoredMemo(Memo):
    """Keeps digests in a store, under the path of the module's file.

    Each holds size and mtime of every file that it was computed from; `source` compares them.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def get(self, module: str, name: str, path: Path) -> tuple[FunctionSource, Files] | None:
        record = self.store.get(self._key(module, name, path))
        if record is None:
            return None
        body: Any = record.body
        parameters = tuple(Parameter(**parameter) for parameter in body["parameters"])
        files = tuple((Path(path), (size, mtime)) for path, size, mtime in body["files"])
        if not all(path.exists() for path, _ in files):
            return None
        return FunctionSource(body["digest"], parameters), files

    def put(self, module: str, name: str, path: Path, source: FunctionSource, files: Files) -> None:
        body = {
            "digest": source.digest,
            "parameters": [vars(parameter) for parameter in source.parameters],
            "files": [[str(path), *stamp] for path, stamp in files],
        }
        try:
            self.store.put(self._key(module, name, path), body, label=f"{module}.{name}")
        except CacheWriteError as error:  # only a matter of speed, and the builder says it aloud
            log.debug("a source digest is not kept: %s", error)

    def _key(self, module: str, name: str, path: Path) -> Key:
        return Key.of(
            "source",
            "memo",
            schema=SCHEMA,
            module=module,
            name=name,
            path=str(path),
            python=tuple(sys.version_info[:2]),
        )


def keep_digests_in(store: Store) -> None:
    """Have `source` keep its digests in `store` from now on."""
    source.memo = StoredMemo(store)
