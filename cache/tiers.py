"""A cache with read-only ones behind it, such as one that is baked into an image."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

from .errors import CacheFolderError
from .paths import open_root
from .store import Store

LOGGER: Final = logging.getLogger("jitd.cache")

Folder = str | os.PathLike[str]
S = TypeVar("S", bound=Store)

_SAID: Final[set[str]] = set()  # a process may open its cache more than once


def store_over(kind: type[S], root: Path, behind: Iterable[Folder]) -> S:
    """A store (of a `kind`) at `root`, which `open_root` returned, with the caches `behind` it.

    One that cannot be used is left out: said in one warning and counted as `left_out`.
    """
    usable, refused = tiers_behind(root, behind)
    store = kind(root, usable)
    store.counters.update({"left_out": len(refused)} if refused else {})
    for error in refused:
        if str(error) not in _SAID:
            _SAID.add(str(error))
            LOGGER.warning("left out of the folders behind %s: %s", root, error)
    return store


def tiers_behind(
    root: Path, folders: Iterable[Folder]
) -> tuple[list[Path], list[CacheFolderError]]:
    """The caches in `folders` that may be read behind `root`, each once, and why others may not.

    A folder is held to the rules of `open_root`; one that is missing is refused, too.
    """
    usable: list[Path] = []
    refused: list[CacheFolderError] = []
    for folder in folders:
        try:
            opened = open_root(folder, create=False)
        except CacheFolderError as error:
            refused.append(error)
        else:
            if opened not in (root, *usable):
                usable.append(opened)
    return usable, refused
