"""`jitctl warmup` of a model as people run it: a fresh process on a cold cache, and again."""

import json as jsonlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...jit.declare import Device
from .children import ChildFailed, environment_with
from .goals import Reached
from .table import Column, Table, number
from .tune import Options, Save

MODULE = f"{__name__.partition('.')[0]}.tools.jitctl"
COMMAND = ("warmup", "--model", "ltx2")
TIMEOUT_S = 420.0

COLUMNS = (
    Column("cache", 6, left=True),
    Column("s", 7),
    Column("tuned", 5),
    Column("known", 5),
    Column("failed", 6),
    Column("compiles", 8),
    Column("checks", 6),
)


@dataclass(frozen=True)
class Row:
    """One run: wall seconds of the process, signatures by what became of them, counters."""

    cache: str
    seconds: float
    tuned: int
    known: int
    failed: int
    compiles: int
    checks: int

    def cells(self) -> list[str]:
        counted = (self.tuned, self.known, self.failed, self.compiles, self.checks)
        return [self.cache, number(self.seconds, 2), *map(str, counted)]


def row_of(cache: str, seconds: float, document: Mapping[str, Any]) -> Row:
    """The row of what `jitctl warmup --json` printed."""
    rows = [row for target in document["targets"] for row in target["rows"]]
    status = [row["status"] for row in rows]
    stats = document["stats"]
    return Row(
        cache=cache,
        seconds=seconds,
        tuned=status.count("tuned"),
        known=status.count("known"),
        failed=status.count("failed"),
        compiles=stats.get("compiles", 0),
        checks=stats.get("checks", 0),
    )


def measure(device: Device, options: Options, save: Save) -> Sequence[Reached]:
    """jitctl warmup --model ltx2, wall time of the process"""
    table = Table(COLUMNS)
    rows: list[Row] = []
    documents: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="jitd-bench-") as scratch:
        for cache in ("cold", "warm"):
            seconds, document = _run(Path(scratch) / "cache")
            rows.append(row_of(cache, seconds, document))
            documents.append(document)
            table.row(rows[-1].cells())
            save({"rows": [asdict(row) for row in rows], "said": documents})
    return []


def _run(cache_dir: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds and the JSON of one warmup. Raises ChildFailed if it printed none."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULE, *COMMAND, "--json"],
            env=environment_with({"JITD_CACHE_DIR": str(cache_dir)}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"jitctl warmup took more than {TIMEOUT_S:g} s") from error
    seconds = time.monotonic() - began
    try:
        document: dict[str, Any] = jsonlib.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no word"]
        raise ChildFailed(f"jitctl warmup: {said[-1]}") from None
    return seconds, document
