"""Eight processes that want the same kernel at once, beside one that wants it alone."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...jit.declare import Device
from .children import ChildFailed, answer, end, started
from .goals import TUNE_TOGETHER, Reached
from .table import Column, Table, number
from .tune import Options, Save

CHILD = f"{__package__}.tune_child"
SIGNATURE = "group_norm_silu[bf16](1x1024x16x32x48, groups=32)"
PROCESSES = 8
START_S, TIMEOUT_S = 90.0, 180.0

COLUMNS = (
    Column("processes", 16, left=True),
    Column("s", 6),
    Column("compiles", 8),
    Column("tunes", 5),
    Column("checks", 6),
    Column("reference", 9),
    Column("chosen", left=True),
)


@dataclass(frozen=True)
class Row:
    """Processes that called one cold signature together.

    seconds     from the moment when they were let go until the last one had its kernel
    reference   how many calls were answered by the reference
    winners     what each of them chose
    """

    name: str
    seconds: float
    compiles: int
    tunes: int
    checks: int
    reference: int
    winners: Sequence[str | None]

    @property
    def agreed(self) -> bool:
        return len(set(self.winners)) == 1 and None not in self.winners

    def cells(self) -> list[str]:
        chosen = (
            self.winners[0] if self.agreed else f"not the same: {sorted(map(str, self.winners))}"
        )
        counted = (self.compiles, self.tunes, self.checks, self.reference)
        return [self.name, number(self.seconds, 2), *map(str, counted), str(chosen)]

    def json(self) -> dict[str, Any]:
        return {**vars(self), "winners": list(self.winners), "agreed": self.agreed}


def row_of(name: str, began: float, answers: Sequence[dict[str, Any]]) -> Row:
    """The row of processes that were let go at `began`."""

    def total(*names: str) -> int:
        return sum(said["stats"].get(one, 0) for said in answers for one in names)

    causes = {n for said in answers for n in said["stats"] if n.startswith("reference:")}
    return Row(
        name=name,
        seconds=max(said["done_at"] for said in answers) - began,
        compiles=total("compiles"),
        tunes=total("tunes"),
        checks=total("checks"),
        reference=total(*causes),
        winners=[said["winner"] for said in answers],
    )


def goals(alone: Sequence[Row], together: Row) -> list[Reached]:
    """What the rows have to show."""
    one_s = statistics.fmean(row.seconds for row in alone)
    ratio = together.seconds / one_s
    compiles = min(row.compiles for row in alone)
    one_tune = together.tunes == 1 and together.compiles <= compiles
    return [
        Reached(
            f"{PROCESSES} processes on a cold cache, over one alone ({one_s:.1f} s)",
            f"<= {TUNE_TOGETHER:g}x",
            f"{ratio:.2f}x",
            ratio <= TUNE_TOGETHER,
        ),
        Reached(
            f"{PROCESSES} processes: one tune, one compile per binary",
            f"1 and {compiles}",
            f"{together.tunes} and {together.compiles}",
            one_tune,
        ),
        Reached(
            f"{PROCESSES} processes: the same winner in all",
            "all",
            "all" if together.agreed else f"{len(set(together.winners))} different",
            together.agreed and not together.reference,
        ),
    ]


def measure(device: Device, options: Options, save: Save) -> Sequence[Reached]:
    """one cold signature, called by one process and by eight at once"""
    print(
        f"{SIGNATURE}; torch, a CUDA context and inputs are there before the clock starts",
        flush=True,
    )
    table = Table(COLUMNS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="jitd-bench-") as scratch:
        plan = (("1", 1), (f"{PROCESSES} at once", PROCESSES), ("1 again", 1))
        for number_, (name, count) in enumerate(plan):
            rows.append(_round(name, count, Path(scratch) / str(number_)))
            table.row(rows[-1].cells())
            save({"signature": SIGNATURE, "rows": [row.json() for row in rows]})
    return goals([rows[0], rows[2]], rows[1])


def _round(name: str, count: int, folder: Path) -> Row:
    folder.mkdir()
    gate = folder / "gate"
    ready = [folder / f"ready{n}" for n in range(count)]
    own = {
        "JITD_CACHE_DIR": str(folder / "cache"),
        "JITD_MODE": "tune",
        "JITD_JOBS": str(len(os.sched_getaffinity(0))),
    }
    spec = {"do": "call", "signature": SIGNATURE, "gate": str(gate)}
    children = [started(CHILD, {**spec, "ready": str(path)}, own) for path in ready]
    try:
        deadline = time.monotonic() + START_S
        while not all(path.exists() for path in ready):
            if time.monotonic() > deadline:
                raise ChildFailed(f"a process was not ready after {START_S:g} s")
            if any(child.poll() is not None for child in children):
                break  # its answer says why
            time.sleep(0.01)
        began = time.monotonic()
        gate.touch()
        return row_of(name, began, [answer(child, TIMEOUT_S) for child in children])
    finally:
        for child in children:
            end(child)
