"""`jitctl list` and `jitctl show`: what is in the cache, by the cache alone."""

import difflib
import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...cache.errors import JitdError
from ...cache.keys import KINDS
from ...cache.records import Header, Record
from ...jit.settings import Settings
from ...models import catalog
from . import folder
from .clear import owner, target
from .output import (
    age,
    count,
    microseconds,
    percent,
    say,
    say_json,
    size,
    table,
    times,
)

_NEAREST = 3


def list_records(
    op: Annotated[str | None, typer.Option(help="Only this op's.", metavar="OP")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help=f"Records of another kind: {', '.join(sorted(KINDS))}.", metavar="KIND"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List what was tuned: config, time, share of the memory limit, speed-up over eager.

    \b
    Examples:
      jitctl list
      jitctl list --op group_norm_silu --json
      jitctl list --kind artifact
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(sorted(KINDS))}.")
    place = folder.cache_dir(Settings.read())
    store = folder.open_for_reading(place)
    headers = list(store.headers()) if store else []
    wanted = kind or "winner"
    chosen = [h for h in headers if h.kind == wanted and (op is None or owner(h) == op)]
    if as_json:
        records = [_document(header) for header in chosen]
        say_json({"cache_dir": str(place), "records": records, "summary": _counts(headers)})
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
    elif headers:
        say(f"No {wanted} records{f' of {op}' if op else ''}.")
    say(_summary(headers, place))


def show(
    signature: Annotated[
        str, typer.Argument(help="A printed signature, or a part of just one.", metavar="SIGNATURE")
    ],
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import", help="Module that declares ops outside jitd. Repeatable.", metavar="MODULE"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show all that is known of one winner: key, timings, error, registers, what was dropped.

    \b
    Examples:
      jitctl show 'group_norm_silu[bf16](1x1024x24576, groups=32)'
      jitctl show 24576
    """
    place = folder.cache_dir(Settings.read())
    store = folder.open_for_reading(place)
    winners = list(store.headers("winner")) if store else []
    if store is None or not winners:
        raise JitdError(f"no winners in {place} yet. Tune some: jitctl warmup --model ltx2")
    label = _matching(signature, {h.label for h in winners}, imports or ())
    found = [store.record_for(header) for header in winners if header.label == label]
    records = [record for record in found if record is not None]
    if not records:
        raise JitdError(f"the winner of {label} cannot be read. Tune it again: jitctl warmup")
    if as_json:
        documents = [
            {**_document(r.header), "key": dict(r.header.parts), **r.body} for r in records
        ]
        say_json({"signature": label, "cache_dir": str(place), "winners": documents})
        return
    for number, record in enumerate(records):
        if number:
            say()
        _show(record)


# -- list -------------------------------------------------------------------------------------


def _list_winners(headers: Sequence[Header]) -> None:
    rows = []
    for header in sorted(headers, key=lambda h: (h.op, h.label, h.created)):
        us, floor, eager = _figures(header.meta)
        rows.append(
            (
                header.label,
                header.meta.get("config", "-"),
                microseconds(us),
                percent(floor),
                times(eager),
                header.meta.get("device", "-"),
                age(header.created),
            )
        )
    columns = ("signature", "config", "us", "of floor", "x eager", "device", "age")
    table(columns, rows, right=("us", "of floor", "x eager", "age"))


def _figures(values: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """us, share of the floor, times faster than eager; None where it was not measured."""
    us, floor_us, eager_us = (values.get(name) for name in ("us", "floor_us", "eager_us"))
    if not us:
        return None, None, None
    return us, floor_us / us if floor_us else None, eager_us / us if eager_us else None


def _document(header: Header) -> dict[str, Any]:
    us, floor_share, speedup = _figures(header.meta)
    document: dict[str, Any] = {
        "kind": header.kind,
        "op": owner(header),
        "label": header.label,
        "path": header.path,
        "bytes": header.file_bytes,
        "created": header.created,
        "last_used": header.last_used,
        **{name: value for name, value in header.meta.items() if name != "op"},
    }
    if header.kind == "winner":
        document |= {"us": us, "floor_share": floor_share, "speedup": speedup}
    return document


def _counts(headers: Iterable[Header]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    total = 0
    for header in headers:
        kinds[header.kind] += 1
        total += header.file_bytes
    return {"records": kinds.total(), "bytes": total, "kinds": dict(sorted(kinds.items()))}


def _summary(headers: Sequence[Header], place: Path) -> str:
    if not headers:
        return f"Nothing is cached in {place} yet. Begin: jitctl warmup --model ltx2"
    counts = _counts(headers)
    kinds = ", ".join(count(number, kind) for kind, number in counts["kinds"].items())
    return f"{kinds}: {size(counts['bytes'])} in {place}"


# -- show -------------------------------------------------------------------------------------


def _matching(asked: str, labels: set[str], imports: Sequence[str]) -> str:
    """The one label that `asked` names. Raises JitdError if none does, ValueError if several do."""
    if asked in labels:
        return asked
    bucket = _bucket(asked, imports)
    if bucket in labels:
        return bucket
    found = sorted(label for label in labels if asked in label)
    if len(found) == 1:
        return found[0]
    if found:
        some = "; ".join(found[:_NEAREST])
        raise ValueError(f"{asked!r} is in {len(found)} signatures: {some}. Give more of one.")
    near = difflib.get_close_matches(bucket or asked, labels, _NEAREST, cutoff=0.0)
    raise JitdError(f"nothing is tuned for {asked!r}. Nearest: {'; '.join(near)}. See: jitctl list")


def _bucket(asked: str, imports: Sequence[str]) -> str:
    """The signature whose winner answers `asked`, if that is a whole signature. Imports torch."""
    if not asked.endswith(")"):
        return ""
    from ...jit.op import OPS  # noqa: PLC0415  (only for a signature that is no bucket's)

    catalog.declare_ops()
    for name in imports:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--import {name}: {error}.") from error
    op = OPS.get(asked.partition("[")[0])
    if op is None:
        return ""
    return op.sign(op.bucket(op.parse(asked).call)).text


def _show(record: Record) -> None:
    body = record.body
    us, floor_share, speedup = _figures(body)
    check = body.get("check", {})
    say(record.header.label)
    say()
    rows: list[tuple[str, object]] = [
        ("config", body["config"]),
        ("time", f"{microseconds(us)} us ({body.get('how', '?')})"),
        ("floor", f"{microseconds(body.get('floor_us'))} us: {percent(floor_share)} of it reached"),
        ("eager", f"{microseconds(body.get('eager_us'))} us: {times(speedup)}"),
        ("error", _error(check)),
        ("registers", _joined(check.get("registers"))),
        ("local memory", f"{_joined(check.get('local_bytes'))} bytes per thread (spills included)"),
        ("shared memory", f"{_joined(check.get('shared_bytes'))} bytes"),
        ("driver", body.get("driver", "-")),
        ("age", age(record.header.created)),
        *((f"key: {name}", _brief(value)) for name, value in record.header.parts),
    ]
    table(("", ""), rows)
    say()
    outcomes = sorted(body.get("outcomes", ()), key=_by_time)
    lines = [_outcome(outcome, body["config"]) for outcome in outcomes]
    columns = ("config", "", "us", "spread", "reps", "how", "error", "status")
    table(columns, lines, right=("us", "spread", "reps", "error"))
    if body.get("stopped_early"):
        say("The search stopped early: the winner is at the floor.")
    if body.get("dropped"):
        say()
        reasons = Counter(reason for _, reason in body["dropped"])
        say(f"Dropped before compiling: {count(reasons.total(), 'config')}")
        for reason, number in reasons.most_common():
            say(f"  {number} x {reason}")


def _error(check: Mapping[str, Any]) -> str:
    error, bound = check.get("max_abs_error"), check.get("bound")
    if error is None:
        return "not measured"
    eager = check.get("eager_max_abs_error")
    text = f"{error:.3g} at most"
    text += f", {bound:.3g} allowed" if bound is not None else ""
    text += f", {eager:.3g} by eager" if eager is not None else ""
    truth, differing = check.get("truth", "?"), check.get("differing", "?")
    return f"{text} (against {truth}); {differing} values are not eager's to the bit"


def _by_time(outcome: Mapping[str, Any]) -> tuple[bool, float, str]:
    timing = outcome.get("timing")
    return timing is None, timing["us"] if timing else 0.0, outcome["config"]


def _outcome(outcome: Mapping[str, Any], winner: str) -> tuple[object, ...]:
    timing, error = outcome.get("timing") or {}, outcome.get("error")
    return (
        outcome["config"],
        "winner" if outcome["config"] == winner else "",
        microseconds(timing.get("us")),
        percent(timing.get("spread")),
        timing.get("reps", "-"),
        timing.get("how", "-"),
        "-" if error is None else f"{error:.3g}",
        f"{outcome['status']}: {outcome['reason']}" if outcome["reason"] else outcome["status"],
    )


def _joined(values: Sequence[object] | None) -> str:
    return ", ".join(map(str, values)) if values else "-"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
