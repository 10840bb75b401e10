"""`jitctl show`: all that is known of a winner, its landscape as a table and as a picture."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...cache.errors import JitdError
from ...cache.records import Record
from ...jit.settings import Settings
from . import folder
from .landscape import Landscape, Point
from .listing import document, figures
from .marks import drivers, marks
from .options import AsJson, Imports
from .output import age, count, microseconds, note, percent, say, say_json, table, times

_NEAREST = 3
_FORMATS = (".png", ".svg")


def show(
    signature: Annotated[
        str, typer.Argument(help="A printed signature, or a part of just one.", metavar="SIGNATURE")
    ],
    imports: Imports = None,
    top: Annotated[
        int | None,
        typer.Option(help="Only the N fastest in the table, and the winner.", min=1, metavar="N"),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw a heat map of the times, too: .png or .svg.", metavar="FILE"),
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", help="Its axis across; BLOCK if none.", metavar="NAME")
    ] = None,
    y: Annotated[
        str | None, typer.Option("--y", help="Its axis up; num_warps if none.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of one winner: key, check, and the landscape it was chosen from.

    The landscape is every config that was tried, the fastest first, the winner marked *; then those
    that were dropped before they were compiled, by their reasons. In the heat map a cell is the
    fastest of the configs that share two parameters.

    \b
    Examples:
      jitctl show 'group_norm_silu[bf16](1x1024x24576, groups=32)'
      jitctl show 24576 --top 10
      jitctl show 24576 --plot landscape.png --x BLOCK --y num_warps
    """
    if plot is None and (x or y):
        raise ValueError("--x and --y are the axes of a heat map: give --plot FILE, too.")
    if plot is not None and plot.suffix.lower() not in _FORMATS:
        raise ValueError(f"--plot {plot}: allowed are files that end in {' or '.join(_FORMATS)}.")
    settings = Settings.read()
    place = folder.cache_dir(settings)
    store = folder.open_for_reading(place, settings.cache_path)
    winners = list(store.headers("winner")) if store else []
    if store is None or not winners:
        raise JitdError(
            f"no winners in {folder.place_of(store, place)} yet. "
            "Tune some: jitctl warmup --model ltx2"
        )
    label = _matching(signature, {h.label for h in winners}, imports or ())
    found = [store.record_for(header) for header in winners if header.label == label]
    records = [record for record in found if record is not None]
    if not records:
        raise JitdError(f"the winner of {label} cannot be read. Tune it again: jitctl warmup")
    if plot is not None:
        _plot(records, plot, x, y)
    if as_json:
        winners_shown = winner_documents(records)
        say_json({"signature": label, "cache_dir": str(place), "winners": winners_shown})
    else:
        print_winners(records, top)


def winner_documents(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Winners for --json: header, key and the whole body."""
    here = drivers(record.body for record in records)
    return [
        {
            **document(r.header),
            "key": dict(r.header.parts),
            **r.body,
            "marks": marks(r.body, here),
        }
        for r in records
    ]


def print_winners(records: Sequence[Record], top: int | None = None) -> None:
    """Winners for people, with their landscapes."""
    here = drivers(record.body for record in records)
    for number, record in enumerate(records):
        if number:
            say()
        _print_facts(record, here)
        say()
        _print_landscape(record.body, top)


# -- finding it -------------------------------------------------------------------------------


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
    from .wanted import declare_ops  # noqa: PLC0415  (the same)

    declare_ops(imports)
    op = OPS.get(asked.partition("[")[0])
    if op is None:
        return ""
    return op.sign(op.bucket(op.parse(asked).call)).text


# -- facts ------------------------------------------------------------------------------------


def _print_facts(record: Record, here: Mapping[str, str]) -> None:
    body = record.body
    us, floor_share, speedup = figures(body)
    check = body.get("check") or {}
    say(record.header.label)
    rows: list[tuple[str, object]] = [
        ("config", body["config"]),
        ("time", f"{microseconds(us)} us ({body.get('how', '?')})"),
        ("floor", f"{microseconds(body.get('floor_us'))} us: {percent(floor_share)} of it reached"),
        ("eager", f"{microseconds(body.get('eager_us'))} us: {times(speedup)}"),
        *_reservations(record, here),
        ("error", _error(check)),
        ("registers", _joined(check.get("registers"))),
        ("local memory", f"{_joined(check.get('local_bytes'))} bytes per thread (spills included)"),
        ("shared memory", f"{_joined(check.get('shared_bytes'))} bytes"),
        ("device", body.get("device", "-")),
        ("driver", body.get("driver") or "-"),
        ("age", age(record.header.created)),
        *((f"key: {name}", _brief(value)) for name, value in record.header.parts),
    ]
    table(("", ""), rows)


def _reservations(record: Record, here: Mapping[str, str]) -> list[tuple[str, object]]:
    """What is to be known before the times are believed."""
    body, rows = record.body, list[tuple[str, object]]()
    words = marks(body, here)
    if "noisy" in words:
        rows.append(("noisy", f"{_drift(body)}. To tune again: jitctl warmup --again noisy"))
    if "stale" in words:
        driver = here[body["device"]]
        rows.append(
            (
                "stale",
                f"measured under driver {body['driver']}, here is {driver}. "
                "To tune again: jitctl warmup --again stale",
            )
        )
    measured = body.get("tuned_at") or record.header.label
    if measured != record.header.label:
        rows.append(("tuned at", f"{measured}: the bucket itself did not fit into memory"))
    return rows


def _drift(body: Mapping[str, Any]) -> str:
    drift = body.get("drift")
    return "the card was restless" + (
        "" if drift is None else f": the same measurement drifted by {100 * drift:.1f} %"
    )


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


# -- landscape --------------------------------------------------------------------------------


def _print_landscape(body: Mapping[str, Any], top: int | None) -> None:
    landscape = Landscape.of(body)
    ranking = landscape.ranking
    shown = [
        point
        for rank, point in enumerate(ranking)
        if top is None or rank < top or point.config == landscape.winner
    ]
    columns = (
        "", "config", "us", "x best", "of floor", "spread", "reps", "how", "error", "registers",
        "spills", "status",
    )  # fmt: skip
    table(
        columns,
        [_line(point, landscape) for point in shown],
        right=("us", "x best", "of floor", "spread", "reps", "error", "registers", "spills"),
    )
    if len(shown) < len(ranking):
        say(f"... and {count(len(ranking) - len(shown), 'config')} more: without --top")
    if body.get("stopped_early"):
        say("The search stopped early: the winner is at the floor.")
    if landscape.dropped:
        say()
        total = sum(len(names) for names in landscape.dropped.values())
        say(f"Dropped before compiling: {count(total, 'config')}")
        by_size = sorted(landscape.dropped.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        table(
            ("", "reason", "such as"),
            [(f"{len(names)} x", reason, names[0]) for reason, names in by_size],
            right=("",),
        )


def _line(point: Point, landscape: Landscape) -> tuple[object, ...]:
    us, best, floor = point.us, landscape.best_us, landscape.floor_us
    return (
        "*" if point.config == landscape.winner else "",
        point.config,
        "-" if us is None else f"{us:.2f}",
        times(us / best if us and best else None),
        percent(floor / us if us and floor else None),
        percent(point.spread),
        _or_dash(point.reps),
        point.how or "-",
        "-" if point.error is None else f"{point.error:.3g}",
        _joined(point.registers),
        "-" if point.spills is None else f"{point.spills} B",
        _brief(": ".join(filter(None, (point.status, point.reason, point.detail)))),
    )


def _plot(records: Sequence[Record], path: Path, x: str | None, y: str | None) -> None:
    from . import heatmap  # noqa: PLC0415  (only where a picture is asked for)

    newest = max(records, key=lambda record: record.header.created)
    device = newest.body.get("device", "")
    landscape = Landscape.of(newest.body)
    heatmap.draw(landscape, path, title=newest.header.label, device=device, x=x, y=y)
    which = f"the newest of {len(records)} winners" if len(records) > 1 else "the landscape"
    note(f"drew {which}, on {device or 'an unknown card'}, into {path}")


def _joined(values: Sequence[object] | None) -> str:
    return ", ".join(map(str, values)) if values else "-"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _brief(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:100]}…"
