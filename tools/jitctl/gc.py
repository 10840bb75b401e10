"""`jitctl gc`: evict what was not used for longest, until the cache is within bounds."""

from typing import Annotated

import typer

from ...cache.evict import Bounds, Evicted, bytes_of, evict
from ...jit.settings import Settings
from . import folder
from .clear import seconds
from .options import AsJson, WouldRemove
from .output import count, note, say, say_json, size


def gc(
    max_bytes: Annotated[
        str | None,
        typer.Option(
            help="Evict until it is no larger: 500M, 4G. Default: JITD_CACHE_MAX_BYTES.",
            metavar="SIZE",
        ),
    ] = None,
    max_files: Annotated[
        int | None,
        typer.Option(
            help="Evict until it has no more files. Default: JITD_CACHE_MAX_FILES.",
            metavar="N",
            min=0,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Evict also what was not used for so long, but no winners: 12h, 30d.",
            metavar="AGE",
        ),
    ] = None,
    dry_run: WouldRemove = False,
    as_json: AsJson = False,
) -> None:
    """Bring the cache within its bounds, and sweep what killed processes left in it.

    jitd does the same by itself when what it stores exceeds the bounds. Binaries go first, those
    that were not used for longest; checks and receipts after them; winners last. It is safe while
    others use the cache: what they use is spared or, at worst, compiled again. To remove winners
    that are not used any more: jitctl clear-cache --older-than.

    \b
    Examples:
      jitctl gc
      jitctl gc --max-bytes 500M --dry-run
      jitctl gc --older-than 30d --json
    """
    settings = Settings.read()
    bounds = Bounds(_bytes(max_bytes, settings.cache_max_bytes), _or(max_files, settings))
    older_than_s = seconds(older_than)
    place = folder.cache_dir(settings)
    store = folder.open_for_reading(place)
    evicted = Evicted()
    if store is not None:
        evicted = evict(store, bounds, older_than_s=older_than_s, dry_run=dry_run)
    removed = evicted.total
    if as_json:
        kinds = {
            kind: {"files": one.files, "bytes": one.bytes}
            for kind, one in sorted(evicted.removed.items())
        }
        say_json(
            {
                "cache_dir": str(place),
                "max_bytes": bounds.max_bytes,
                "max_files": bounds.max_files,
                "removed": {"files": removed.files, "bytes": removed.bytes, "kinds": kinds},
                "left": {"files": evicted.files, "bytes": evicted.bytes},
                "failed": evicted.failed,
                "dry_run": dry_run,
            }
        )
    else:
        for kind, one in sorted(evicted.removed.items()):
            say(f"  {kind}: {count(one.files, 'file')}, {size(one.bytes)}")
        verb = "Would remove" if dry_run else "Removed"
        what = f"{count(removed.files, 'file')}, {size(removed.bytes)}"
        say(f"{verb} {what} from {place}" if removed.files else f"Nothing to remove in {place}")
        say(f"Left: {count(evicted.files, 'file')}, {size(evicted.bytes)}")
    if evicted.failed:
        note(f"{count(evicted.failed, 'file')} could not be removed, the last: {evicted.failure}")
    if evicted.failed or not evicted.fits(bounds):
        raise typer.Exit(1)


def _bytes(text: str | None, default: int) -> int:
    """Raises ValueError for a size that cannot be read."""
    try:
        return default if text is None else bytes_of(text)
    except ValueError as error:
        raise ValueError(f"--max-bytes {text!r}: {error}.") from error


def _or(number: int | None, settings: Settings) -> int:
    return settings.cache_max_files if number is None else number
