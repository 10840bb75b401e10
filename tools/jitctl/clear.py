"""`jitctl clear-cache`: remove records, and nothing that jitd did not write."""

import re
import sys
from collections import Counter
from collections.abc import Collection
from typing import Annotated

import typer

from ...cache.clear import Cleared, clear, clear_all, select
from ...cache.keys import KINDS
from ...cache.records import Header
from ...cache.store import Store
from ...jit.device import capability
from ...jit.settings import Settings
from ...models import catalog
from . import folder
from .options import Archs, AsJson, Models, Ops, WouldRemove
from .output import count, note, say, say_json, size

_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_WINNERS = frozenset({"winner", "timing"})  # tiny, and dear: only a GPU can make them again


def clear_cache(
    model: Models = None,
    op: Ops = None,
    arch: Archs = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="Only those not used for so long: 12h, 30d.", metavar="AGE"),
    ] = None,
    keep_winners: Annotated[
        bool, typer.Option("--keep-winners", help="Keep what was tuned; clear the rest.")
    ] = False,
    dry_run: WouldRemove = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove records from the cache: all of them, or those that the options select.

    Only files that jitd wrote, below a folder that is marked as its cache. It asks first; where
    there is no terminal to ask on, it wants --yes.

    \b
    Examples:
      jitctl clear-cache --dry-run
      jitctl clear-cache --older-than 30d --keep-winners
      jitctl clear-cache --model ltx2 --arch sm_90 --yes
    """
    names, targets = meant(model, op, arch)
    older_than_s = seconds(older_than)
    filtered = bool(names or targets or older_than or keep_winners)
    place = folder.cache_dir(Settings.read())
    store = folder.open_for_reading(place)

    selection: list[Header] = []
    planned = Cleared(0, 0)
    if store is not None:
        kinds = KINDS - _WINNERS if keep_winners else KINDS
        selection = select(
            store,
            kinds=kinds,
            older_than_s=older_than_s,
            predicate=lambda header: _is_meant(header, names, targets),
        )
        planned = Cleared(len(selection), sum(header.file_bytes for header in selection))
        if not filtered:
            planned = clear_all(store, dry_run=True)
    kinds_found = Counter(header.kind for header in selection)

    if dry_run or store is None or not planned.files:
        done, removed = planned, False
    else:
        if not yes:
            _ask(planned, kinds_found, store)
        done, removed = clear(store, selection) if filtered else clear_all(store), True

    if as_json:
        document = {"cache_dir": str(place), "files": done.files, "bytes": done.bytes}
        say_json({**document, "kinds": dict(sorted(kinds_found.items())), "dry_run": dry_run})
    elif not planned.files:
        say(f"Nothing to remove in {place}")
    else:
        verb = "Removed" if removed else "Would remove"
        say(f"{verb} {_described(done, kinds_found)} from {place}")


def meant(model: Models, op: Ops, arch: Archs) -> tuple[set[str], set[str]]:
    """The names of owners and the architectures that these options choose; no name: all.

    Raises ValueError for a model or an architecture that there is not.
    """
    names = {name for text in model or () for name in (text, *catalog.model(text).ops)}
    return names | set(op or ()), {f"sm_{capability(text)}" for text in arch or ()}


def owner(header: Header) -> str:
    """The op (for a receipt: the model) that a record belongs to."""
    return str(header.meta.get("op") or header.op)


def target(header: Header) -> str | None:
    """The architecture that a record is for, None if it is for none."""
    found = header.meta.get("target") or dict(header.parts).get("target")
    return str(found) if found else None


def _is_meant(header: Header, names: Collection[str], targets: Collection[str]) -> bool:
    return (not names or owner(header) in names) and (not targets or target(header) in targets)


def seconds(text: str | None) -> float | None:
    """`30d` in seconds. Raises ValueError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise ValueError(
            f"--older-than {text!r}: allowed is a number and m, h, d or w, such as 30d."
        )
    return float(int(match[1]) * _SECONDS[match[2]])


def _ask(planned: Cleared, kinds: Counter[str], store: Store) -> None:
    """Ask on the terminal. Raises ValueError where there is none, Exit at a no."""
    what = _described(planned, kinds)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(
            f"this would remove {what} from {store.root}, and there is no terminal to ask on: "
            "add --yes, or --dry-run to look first."
        )
    if not typer.confirm(f"Remove {what} from {store.root}?", err=True):
        note("nothing was removed.")
        raise typer.Exit(1)


def _described(cleared: Cleared, kinds: Counter[str]) -> str:
    parts = [count(number, kind) for kind, number in sorted(kinds.items())]
    if parts and cleared.files > kinds.total():  # what is no record, or cannot be read as one
        parts.append(count(cleared.files - kinds.total(), "other"))
    inner = ", ".join(parts)
    text = f"{count(cleared.files, 'file')}, {size(cleared.bytes)}"
    return f"{text} ({inner})" if inner else text
