"""What a fresh process waits for before its first kernels, with a warm cache."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import ChildFailed, answer, started
from .environment import environment, gpu, print_environment, write_json
from .goals import GROUP_NORM, GROUPS, START_FIRST_MS, START_FURTHER_MS
from .table import Column, Table, first_line, number

CHILD = f"{__package__}.start_child"
TIMEOUT_S = 300.0

_SMALL = [list(target.shape) for target in GROUP_NORM[:4] if target.shape != (1, 512, 16, 32, 48)]
FIRST, FURTHER = _SMALL[0], _SMALL[1:]
DTYPES = ["bfloat16", "float16", "float32"]
"""Of the elementwise op: a binary each, so that each first call has one to load."""

COLUMNS = (
    Column("milliseconds, median of the processes", 56, left=True),
    Column("ms", 7),
    Column("least", 7),
    Column("most", 7),
    Column("goal", 8),
    Column("reached", left=True),
)


@dataclass(frozen=True)
class Row:
    """One figure over all processes; in each it is the mean of what the process measured."""

    name: str
    ms: Sequence[float]
    goal: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.median <= self.goal

    def cells(self) -> list[str]:
        return [
            self.name,
            number(self.median),
            number(min(self.ms)),
            number(max(self.ms)),
            "" if self.goal is None else f"<= {self.goal:g}",
            {None: "", True: "met", False: "MISSED"}[self.met],
        ]

    def json(self) -> dict[str, Any]:
        return {
            "what": self.name,
            "median_ms": self.median,
            "ms": list(self.ms),
            "goal_ms": self.goal,
            "met": self.met,
        }


_ROWS = (
    ("torch_ms", "import torch, first torch kernel done", None),
    ("jitd_first_ms", "jitd: from there to the first tuned kernel done", START_FIRST_MS),
    ("jitd_import_ms", "  of it importing the op", None),
    ("jitd_norm_ms", "jitd: each further signature, group_norm_silu", START_FURTHER_MS),
    ("jitd_elementwise_ms", "jitd: each further signature, elementwise", START_FURTHER_MS),
    ("triton_first_ms", "Triton, warm disk cache: from there to its first kernel", None),
    ("triton_import_ms", "  of it importing triton", None),
    ("triton_further_ms", "Triton, warm disk cache: each further specialisation", None),
)  # fmt: skip


def rows_of(answers: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table's rows from what the processes answered; a figure that none has is left out."""
    rows = []
    for key, name, goal in _ROWS:
        values = [answer[key] for answer in answers if key in answer]
        ms = [statistics.fmean(v) if isinstance(v, list) else float(v) for v in values]
        if ms:
            rows.append(Row(name, ms, goal))
    return rows


def run(*, processes: int, cache_dir: Path | None, json: Path | None) -> bool:
    """Warm the caches, measure fresh processes, print; True if every one could be measured."""
    device = gpu()
    facts = environment(device)
    answers: list[dict[str, Any]] = []
    problems: list[str] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitd-bench-")))
        folders = (cache_dir or scratch / "jitd", scratch / "triton")
        began = time.monotonic()
        try:
            _child(*folders, measure=False)
            print(f"warmed in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            for _ in range(processes):
                answers.append(_child(*folders, measure=True))
        except ChildFailed as error:
            problems.append(str(error))
    problems += sorted({a["triton_problem"] for a in answers if "triton_problem" in a})
    rows = rows_of(answers)
    print_environment(facts)
    print(
        f"{len(answers)} fresh processes, warm cache, mode strict, PATH empty; "
        "no Triton was imported and nothing built before Triton's own rows",
        flush=True,
    )
    table = Table(COLUMNS)
    for row in rows:
        table.row(row.cells())
    for problem in problems:
        print(f"failed: {first_line(problem)}", flush=True)
    report = {
        "benchmark": "start",
        "environment": facts,
        "processes": answers,
        "rows": [row.json() for row in rows],
        "problems": problems,
    }
    write_json(json, report)
    return not problems


def _child(cache_dir: Path, triton_dir: Path, *, measure: bool) -> dict[str, Any]:
    """What one fresh process answers. Raises ChildFailed."""
    spec = {
        "first": FIRST,
        "further": FURTHER,
        "dtypes": DTYPES,
        "groups": GROUPS,
        "path": os.environ.get("PATH", ""),
        "measure": measure,
    }
    variables = {
        "JITD_CACHE_DIR": str(cache_dir.absolute()),
        "JITD_MODE": "strict" if measure else "tune",
        "TRITON_CACHE_DIR": str(triton_dir.absolute()),
    }
    if measure:
        variables["PATH"] = ""
    return answer(started(CHILD, spec, variables), TIMEOUT_S)
