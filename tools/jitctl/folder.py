"""The cache folder, as the commands open it."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...cache.errors import CacheError, CacheFolderError, CacheWriteError
from ...cache.keys import Key
from ...cache.paths import default_root, open_root
from ...cache.records import Record
from ...cache.store import Store
from ...cache.tiers import store_over
from ...jit.settings import Settings
from .output import count

_PROBE_BYTES = 4096


class CannotKeep(CacheError):
    """What was just built could not be stored; a warmup that goes on would be for nothing."""


class KeepingStore(Store):
    """A store whose `put` must succeed.

    Elsewhere a full disk costs a process nothing but the saving; a warmup is the saving.
    """

    def put(
        self,
        key: Key,
        body: Mapping[str, Any],
        *,
        label: str = "",
        meta: Mapping[str, Any] | None = None,
        created: float | None = None,
    ) -> Record:
        try:
            return super().put(key, body, label=label, meta=meta, created=created)
        except CacheWriteError as error:
            raise CannotKeep(str(error)) from error


def place_of(store: Store | None, folder: Path) -> str:
    """Where a command looked, for people."""
    behind = len(store.tiers) - 1 if store else 0
    return f"{folder} and {count(behind, 'folder')} behind it" if behind else str(folder)


def cache_dir(settings: Settings) -> Path:
    """Where the cache is or would be."""
    return settings.cache_dir or default_root()


def open_for_reading(folder: Path, behind: Sequence[Path] = ()) -> Store | None:
    """The cache in `folder` and those behind it, or None where there is nothing; never makes one.

    Raises CacheFolderError for a folder that must not be used; one behind is only left out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return store_over(Store, open_root(folder, create=False), behind)
    store = store_over(Store, folder, behind)
    return store if len(store.tiers) > 1 else None


def open_for_writing(folder: Path, behind: Sequence[Path] = ()) -> KeepingStore:
    """The cache in `folder`, made if need be, found to take a file, and those behind it.

    Raises CacheFolderError with the reason, before anything is built for nothing.
    """
    root = open_root(folder)
    try:
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise CacheFolderError(
            f"cache folder {root} cannot be written: {error.strerror}. The cache needs a folder "
            "that the user may write, with room in it. Name another with JITD_CACHE_DIR, or make "
            "room: jitctl clear-cache"
        ) from error
    return store_over(KeepingStore, root, behind)
