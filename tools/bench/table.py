"""Tables that are printed row by row, so that a run that is cut short has shown what it knew."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """`width` is a least width; a longer cell pushes its row to the right, nothing is cut off."""

    title: str
    width: int = 0
    left: bool = False

    def cell(self, text: str) -> str:
        width = max(self.width, len(self.title))
        return text.ljust(width) if self.left else text.rjust(width)


class Table:
    """Prints its header at once and each row as it comes."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self._print([column.title for column in columns])
        self._print(["-" * max(column.width, len(column.title)) for column in columns])

    def row(self, cells: Sequence[str]) -> None:
        self._print(cells)

    def failed(self, first: str, reason: str) -> None:
        """A row that could not be measured: its name and one line that says why."""
        print(f"{self.columns[0].cell(first)}  failed: {first_line(reason)}", flush=True)

    def _print(self, cells: Sequence[str]) -> None:
        pairs = zip(self.columns, cells, strict=True)
        print("  ".join(column.cell(text) for column, text in pairs).rstrip(), flush=True)


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def first_line(text: object) -> str:
    """The first line of a message that says something, at most 200 characters of it."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(text).__name__


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
