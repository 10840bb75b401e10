"""`jitctl list`: what is in the cache, by headers and names of files alone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from ...cache.keys import KINDS
from ...cache.records import Header
from ...cache.scan import Entry
from ...cache.store import Store
from ...jit.settings import Settings
from . import folder, resume
from .clear import owner, target
from .marks import drivers, marks
from .options import AsJson
from .output import age, count, microseconds, percent, say, say_json, size, table, times


def list_records(
    op: Annotated[str | None, typer.Option(help="Only this op's.", metavar="OP")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help=f"Records of another kind: {', '.join(sorted(KINDS))}.", metavar="KIND"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what was tuned: config, time, share of the memory limit, speed-up over eager.

    Winners are marked `noisy` (measured on a restless card) and `stale` (under another driver than
    the one that is here): jitctl warmup --again noisy|stale tunes them again. Tunes and warmups
    that were begun and did not end come after them.

    \b
    Examples:
      jitctl list
      jitctl list --op group_norm_silu --json
      jitctl list --kind artifact
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(sorted(KINDS))}.")
    settings = Settings.read()
    place = folder.cache_dir(settings)
    store = folder.open_for_reading(place, settings.cache_path)
    wanted = kind or "winner"
    headers, counts = look(store, wanted)
    of_op = [h for h in headers if op is None or owner(h) == op]
    chosen = [h for h in of_op if h.kind == wanted]
    # What was begun elsewhere and is read-only here cannot be gone on with.
    own = [h for h in of_op if h.tier == 0]
    unfinished = [h for h in own if h.kind == "timing" or (h.kind, h.op) == resume.NOTES]
    if as_json:
        here = drivers(header.meta for header in chosen)
        records = [
            {**document(h), **({"marks": marks(h.meta, here)} if h.kind == "winner" else {})}
            for h in chosen
        ]
        begun = [document(header) for header in unfinished]
        say_json(
            {"cache_dir": str(place), "records": records, "unfinished": begun, "summary": counts}
        )
        return
    if chosen and wanted == "winner":
        _list_winners(chosen)
        say()
    elif chosen:
        rows = [
            (owner(h), h.label, target(h) or "-", size(h.file_bytes), age(h.created))
            for h in chosen
        ]
        table(("op", "what", "arch", "size", "age"), rows, right=("size", "age"))
        say()
    elif counts["records"]:
        say(f"No {wanted} records{f' of {op}' if op else ''}.")
    if kind is None:
        for header in unfinished:
            say(_unfinished(header))
    say(_summary(counts, folder.place_of(store, place)))


def look(store: Store | None, kind: str) -> tuple[list[Header], dict[str, Any]]:
    """The headers of a kind and of what was begun, and how many records of each kind there are."""
    if store is None:
        return [], _counts(())
    kinds = sorted({kind, "timing", resume.NOTES[0]})
    return [header for one in kinds for header in store.headers(one)], _counts(store.entries())


def _list_winners(headers: Sequence[Header]) -> None:
    rows = []
    here = drivers(header.meta for header in headers)
    for header in sorted(headers, key=lambda h: (h.op, h.label, h.created)):
        us, floor, eager = figures(header.meta)
        rows.append(
            (
                header.label,
                header.meta.get("config", "-"),
                microseconds(us),
                percent(floor),
                times(eager),
                " ".join(marks(header.meta, here)),
                header.meta.get("device", "-"),
                age(header.created),
            )
        )
    columns = ("signature", "config", "us", "of floor", "x eager", "", "device", "age")
    table(columns, rows, right=("us", "of floor", "x eager", "age"))


def _unfinished(header: Header) -> str:
    """What was begun and is under way, or was interrupted: the cache cannot tell which."""
    since = age(header.created)
    if header.kind != "timing":
        go_on = resume.to_go_on(header.label)
        return f"Not finished: {header.label} ({since} ago). To go on: {go_on}"
    done, of = (header.meta.get(name, "?") for name in ("done", "of"))
    where = header.meta.get("device", "an unknown card")
    return f"Not finished: tuning {header.label} on {where}, {done} of {of} ({since} ago)"


def figures(values: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """us, share of the floor, times faster than eager; None where it was not measured."""
    us, floor_us, eager_us = (values.get(name) for name in ("us", "floor_us", "eager_us"))
    if not us:
        return None, None, None
    return us, floor_us / us if floor_us else None, eager_us / us if eager_us else None


def document(header: Header) -> dict[str, Any]:
    """A header for --json."""
    us, floor_share, speedup = figures(header.meta)
    document: dict[str, Any] = {
        "kind": header.kind,
        "op": owner(header),
        "label": header.label,
        "path": header.path,
        "tier": header.tier,
        "bytes": header.file_bytes,
        "created": header.created,
        "last_used": header.last_used,
        **{name: value for name, value in header.meta.items() if name != "op"},
    }
    if header.kind == "winner":
        document |= {"us": us, "floor_share": floor_share, "speedup": speedup}
    return document


def _counts(entries: Iterable[Entry]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    total = 0
    for entry in entries:
        kinds[entry.kind] += 1
        total += entry.bytes
    return {"records": kinds.total(), "bytes": total, "kinds": dict(sorted(kinds.items()))}


def _summary(counts: Mapping[str, Any], place: str) -> str:
    if not counts["records"]:
        return f"Nothing is cached in {place} yet. Begin: jitctl warmup --model ltx2"
    kinds = ", ".join(count(number, kind) for kind, number in counts["kinds"].items())
    return f"{kinds}: {size(counts['bytes'])} in {place}"
