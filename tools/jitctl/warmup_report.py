"""What `jitctl warmup` says of what it did: a table for each device or arch, and the next step."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .output import count, microseconds, note, percent, say, table, times

if TYPE_CHECKING:
    from ...jit.warm import Row
    from .wanted import Request
    from .warming import Outcome

__all__ = ["report"]


def report(outcome: "Outcome", request: "Request", place: str, *, dry_run: bool) -> None:
    """Print one outcome; `place` is the folder of its cache."""
    rows, where, wanted = outcome.rows, str(outcome.device), request.wanted
    if not outcome.device.uuid:
        where = f"{outcome.device.target} (as if on an {outcome.device.name})"
    if outcome.from_receipt:
        say(f"{wanted.name} for {where}: nothing to do, all of it is in {place}")
    else:
        say(f"{wanted.name} for {where}, in {place}")
    say()
    _rows(rows, request.work, dry_run=dry_run)
    say()
    for row in rows:
        if row.status == "failed":
            note(f"failed: {row.signature}: {row.detail}")
    if not dry_run:
        say(_next(outcome, request, place))


def _rows(rows: Sequence["Row"], work: str, *, dry_run: bool) -> None:
    first = [(row.signature, row.calls, row.config or "-") for row in rows]
    columns: tuple[str, ...]
    rest: list[tuple[str, ...]]
    if dry_run:
        columns, rest = ("missing",), [(row.detail,) for row in rows]
    elif work == "tune":
        columns = ("status", "us", "of floor", "x eager")
        rest = [
            (row.status, microseconds(row.us), percent(row.floor_share), times(row.speedup))
            for row in rows
        ]
    else:
        columns, rest = ("status", "binaries"), [(row.status, _binaries(row)) for row in rows]
    table(
        ("signature", "calls", "config", *columns),
        [(*one, *other) for one, other in zip(first, rest, strict=True)],
        right=("calls", "us", "of floor", "x eager", "binaries"),
    )


def _binaries(row: "Row") -> str:
    return "-" if row.status == "failed" else row.detail.removesuffix(" binaries")


def _next(outcome: "Outcome", request: "Request", place: str) -> str:
    """What to do now, in one line."""
    command = request.wanted.command
    if outcome.failed:
        return (
            f"{count(outcome.failed, 'signature')} of {len(outcome.rows)} failed; there the "
            f"reference answers, and a model still runs. {_anew(outcome, request)}"
        )
    if request.work == "tune":
        return (
            f"Warm on {outcome.device.name}. To run without ever compiling or tuning: "
            "JITD_MODE=strict python your_program.py"
        )
    if outcome.device.uuid:
        return f"Compiled. {count(len(outcome.rows), 'signature')} to tune: {command}"
    return (
        f"Next: bring {place} to a machine with an {outcome.device.target} card, such as "
        f"{outcome.device.name}, by copy, mount or jitctl export, and run `{command}` there: "
        f"{count(len(outcome.rows), 'signature is', 'signatures are')} left to tune and check."
    )


def _anew(outcome: "Outcome", request: "Request") -> str:
    """What may be done for a signature that failed: the failure is remembered."""
    if request.work == "compile":
        return "Warm again when its code has changed."
    signature = next(row.signature for row in outcome.rows if row.status == "failed")
    words = ["jitctl", "tune", signature, "--again"]
    words += [word for name in request.wanted.imports for word in ("--import", name)]
    return f"To try one anew: {shlex.join(words)}"
