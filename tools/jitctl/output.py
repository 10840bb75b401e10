"""What people and programs read: tables and JSON on stdout, notes and progress on stderr."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

_BYTES = ("B", "KB", "MB", "GB", "TB")
_AGES = ((86_400 * 365, "y"), (86_400, "d"), (3_600, "h"), (60, "min"))


def note(text: str) -> None:
    """One line on stderr, whatever line breaks the text has."""
    print(f"jitctl: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say(text: str = "") -> None:
    """A line on stdout."""
    print(text)


def say_json(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command, on stdout."""
    print(json.dumps(document, indent=1))


class NoteHandler(logging.Handler):
    """Shows jitd's warnings as notes, on whatever stderr is at that time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Print a table: drawn and wrapped to fit a terminal, in whole lines elsewhere.

    `right` names the columns that are aligned to the right: numbers.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(columns, cells, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ]
        say("  ".join(padded).rstrip())


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  (20 ms, on a terminal only)
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        drawn.add_column(
            name, justify="right" if name in right else "left", no_wrap=name in right,
            overflow="fold",
        )  # fmt: skip
    for row in rows:
        drawn.add_row(*map(Text, row))  # as Text: [bf16] would be read as markup
    Console().print(drawn)


# -- words for numbers ------------------------------------------------------------------------


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def size(number: float) -> str:
    """Bytes for people: `1.4 MB`."""
    unit = 0
    while number >= 1000 and unit < len(_BYTES) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {_BYTES[unit]}"


def age(created: float) -> str:
    """The time since a Unix time: `3 d`; `-` where it is 0, for unknown."""
    if not created:
        return "-"
    seconds = max(0.0, time.time() - created)
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


# -- progress ---------------------------------------------------------------------------------


class Steps(Protocol):
    """What `jit.warm.Progress` shows of a warmup; named here so that this imports nothing."""

    signature: str
    doing: Literal["tuning", "checking"]
    done: int
    total: int
    step: int
    steps: int


class ProgressLines(AbstractContextManager["ProgressLines"]):
    """Progress for a log: a line for each signature tuned and checked, for each tenth of the
    compiling."""

    def __init__(self, work: Literal["tune", "compile"]) -> None:
        self.work = work
        self._shown: object = None

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, steps: Steps) -> None:
        if not steps.signature:
            return
        if self.work == "tune":
            state: object = (steps.doing, steps.signature)
            before = steps.done if steps.doing == "tuning" else steps.step
            text = f"[{before + 1}/{steps.total}] {steps.doing} {steps.signature}"
        else:
            state = steps.done * 10 // max(steps.total, 10)
            text = f"[{steps.done}/{steps.total}] compiled {steps.signature}"
        if state != self._shown:
            self._shown = state
            note(text)


class ProgressBars(AbstractContextManager["ProgressBars"]):
    """Progress for a terminal: a bar for the whole and one for the signature under way."""

    def __init__(self, work: Literal["tune", "compile"]) -> None:
        from rich.console import Console  # noqa: PLC0415  (60 ms, on a terminal only)
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        unit = "signatures tuned" if work == "tune" else "binaries compiled"
        self._whole = self._bars.add_task(unit, total=None)
        self._part = self._bars.add_task("", total=None, visible=False)
        self._signature = ""
        self._has_parts = work == "tune"  # one compile has no steps to show

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def show(self, steps: Steps) -> None:
        self._bars.update(self._whole, completed=steps.done, total=steps.total)
        if steps.signature != self._signature:
            self._signature = steps.signature
            self._bars.reset(self._part, total=steps.steps or None)
        self._bars.update(
            self._part,
            description=f"{steps.doing} {steps.signature}",
            completed=steps.step,
            total=steps.steps or None,
            visible=bool(steps.signature) and self._has_parts,
        )


def progress(work: Literal["tune", "compile"]) -> ProgressBars | ProgressLines:
    """Bars on a terminal, lines elsewhere; on stderr. Use as a context manager."""
    make: Callable[[Literal["tune", "compile"]], ProgressBars | ProgressLines]
    make = ProgressBars if sys.stderr.isatty() else ProgressLines
    return make(work)
