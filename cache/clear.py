"""Choosing records and removing them. Nothing is removed that jitd did not write."""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from . import files
from .keys import KINDS
from .paths import open_root
from .records import MAGIC, Header
from .scan import COUNTERS, DIGEST, QUARANTINED, SHARD, TEMPORARY, USAGE
from .store import QUARANTINE, TEMPORARIES, Store

Accept: TypeAlias = Callable[[os.stat_result, int], bool]
"""Looks at an open file, and says whether it may go."""


@dataclass(frozen=True)
class Cleared:
    """How many files were removed, and their size in bytes."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes} bytes"


def select(
    store: Store,
    *,
    op: str | None = None,
    ops: Collection[str] | None = None,
    kinds: Collection[str] | None = None,
    older_than_s: float | None = None,
    predicate: Callable[[Header], bool] | None = None,
) -> list[Header]:
    """The headers of the records that meet every condition given; of all records without any.

    `op` and `ops` add up. `older_than_s` counts from the last use, not from the making. Records
    behind the root are left out: they are not the store's to remove.
    """
    wanted = None if op is None and ops is None else {*(ops or ()), *([op] if op else ())}
    before = None if older_than_s is None else time.time() - older_than_s
    return [
        header
        for header in _listed(store, wanted, kinds)
        if header.tier == 0
        and (before is None or header.last_used < before)
        and (predicate is None or predicate(header))
    ]


def clear(store: Store, selection: Iterable[Header]) -> Cleared:
    """Remove the selected records. One that was replaced since it was listed stays."""
    cleared: list[int] = []
    for header in selection:
        if (size := store.remove(header)) is not None:
            cleared.append(size)
            files.remove_empty_folders(store.root, header.path.rpartition("/")[0])
    return Cleared(len(cleared), sum(cleared))


def clear_all(store: Store, *, dry_run: bool = False) -> Cleared:
    """Remove every record, readable or not, all that is in `tmp/` and `quarantine/`, and what was
    counted.

    A file goes only if it lies where jitd puts such files, has such a name, is a regular file and,
    for a record, begins like one. Links are neither followed nor removed; locks stay, because their
    holders hold them. `dry_run` removes nothing and gives what would be removed. Raises
    CacheFolderError if the root is not marked as a cache.
    """
    open_root(store.root, create=False)
    cleared: list[int] = []
    for folder, pattern in ((TEMPORARIES, TEMPORARY), (QUARANTINE, QUARANTINED)):
        cleared += _clear_folder(store, folder, pattern, None, dry_run)
    for kind in sorted(KINDS):
        for op in store.names_in(kind, only_folders=True):
            for shard in store.names_in(kind, op, only_folders=True):
                if SHARD.fullmatch(shard):
                    cleared += _clear_folder(
                        store, f"{kind}/{op}/{shard}", DIGEST, _begins_like_record, dry_run
                    )
    for name in (USAGE, COUNTERS):  # last: until now, the estimate was of what is there
        cleared += _clear_files(store, [name], None, dry_run)
    return Cleared(len(cleared), sum(cleared))


def _listed(
    store: Store, ops: Collection[str] | None, kinds: Collection[str] | None
) -> Iterator[Header]:
    for kind in sorted(KINDS if kinds is None else kinds):
        for op in [None] if ops is None else sorted(ops):
            yield from store.headers(kind, op)


def _clear_folder(
    store: Store, folder: str, pattern: re.Pattern[str], accept: Accept | None, dry_run: bool
) -> list[int]:
    """Remove the files that have such names, and the folder if that empties it: their sizes."""
    names = store.names_in(*folder.split("/"))
    paths = [f"{folder}/{name}" for name in names if pattern.fullmatch(name)]
    sizes = _clear_files(store, paths, accept, dry_run)
    if not dry_run:
        files.remove_empty_folders(store.root, folder)
    return sizes


def _clear_files(
    store: Store, paths: Iterable[str], accept: Accept | None, dry_run: bool
) -> list[int]:
    """Remove these files, in a dry run only look at them: the sizes of those that were there."""
    spared: list[int] = []

    def spare(status: os.stat_result, descriptor: int) -> bool:
        if accept is None or accept(status, descriptor):
            spared.append(status.st_size)
        return False

    sizes = [store.remove_file(path, spare if dry_run else accept) for path in paths]
    return spared if dry_run else [size for size in sizes if size is not None]


def _begins_like_record(_status: os.stat_result, descriptor: int) -> bool:
    return files.read_up_to(descriptor, len(MAGIC)) == MAGIC
