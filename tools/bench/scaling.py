"""How compiling the candidates of a tune scales with the number of workers."""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...cache.paths import open_root
from ...cache.store import Store
from ...jit.binary import Binary
from ...jit.build import Builder
from ...jit.compile import CompilePool
from ...jit.declare import Device
from ...jit.errors import CompileError
from ...jit.runtime import builder_of
from ...jit.settings import Settings
from ...models.ops.group_norm import group_norm_silu
from .goals import Reached
from .ops import affine_silu
from .table import Column, Table, number
from .tune import Options, Save

SIGNATURE = "group_norm_silu[bf16](1x512x16x8x12, groups=32)"
BINARIES = 32
"""Of the candidates of SIGNATURE: a multiple of every number of workers."""

WORKERS = (1, 2, 4, 8, 16)
TIMEOUT_S = 300.0

COLUMNS = (
    Column("workers", 7),
    Column("start s", 7),
    Column("compile s", 9),
    Column("x over 1", 8),
    Column("with start s", 12),
    Column("x over 1", 8),
    Column("failed", 6),
)


@dataclass(frozen=True)
class Row:
    """start_s: until every worker has compiled one small kernel. compile_s: all binaries, by
    workers that are up."""

    workers: int
    start_s: float
    compile_s: float
    failed: int

    @property
    def whole_s(self) -> float:
        return self.start_s + self.compile_s

    def cells(self, first: "Row") -> list[str]:
        return [
            str(self.workers),
            number(self.start_s, 2),
            number(self.compile_s, 2),
            number(first.compile_s / self.compile_s, 2),
            number(self.whole_s, 2),
            number(first.whole_s / self.whole_s, 2),
            str(self.failed),
        ]

    def json(self, first: "Row") -> dict[str, Any]:
        return {
            **asdict(self),
            "whole_s": self.whole_s,
            "speedup": first.compile_s / self.compile_s,
            "speedup_with_start": first.whole_s / self.whole_s,
        }


def counts(cores: int) -> list[int]:
    """The numbers of workers to measure: no more than there are cores."""
    return [n for n in WORKERS if n <= cores] or [1]


def measure(device: Device, options: Options, save: Save) -> Sequence[Reached]:
    """compile workers over the candidates of one signature"""
    with tempfile.TemporaryDirectory(prefix="jitd-bench-") as scratch:
        builder = _builder(Path(scratch) / "jitd", device)
        small = binaries(builder, affine_silu, "bench_affine_silu[bf16](4096)")[0]
        every = binaries(builder, group_norm_silu, SIGNATURE)
    chosen = spread(every, BINARIES)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(
        f"{len(chosen)} of {len(every)} binaries of {SIGNATURE}; {cores} cores, load {load:.1f}",
        flush=True,
    )
    save({"signature": SIGNATURE, "binaries": len(chosen), "cores": cores, "load": load})
    table = Table(COLUMNS)
    rows: list[Row] = []
    for workers in counts(cores):
        rows.append(_row(workers, small, chosen))
        table.row(rows[-1].cells(rows[0]))
        save({"rows": [row.json(rows[0]) for row in rows]})
    return []


def binaries(builder: Builder, function: Any, signature: str) -> list[Binary]:
    """The distinct binaries of all candidates of a signature, in canonical order."""
    op = function.op
    call = op.bucket(op.parse(signature).call)
    found: dict[str, Binary] = {}
    for config in op.configs(call, builder.device)[0]:
        for binary in builder.binaries(op, config.plan(call, builder.device), call):
            found.setdefault(binary.key.digest, binary)
    return list(found.values())


def spread(every: Sequence[Binary], most: int) -> list[Binary]:
    """At most so many, from all over the sequence: neighbours are alike, and cost alike."""
    count = min(most, len(every))
    return [every[i * len(every) // count] for i in range(count)]


def _row(workers: int, small: Binary, chosen: Sequence[Binary]) -> Row:
    with CompilePool(workers, timeout_s=TIMEOUT_S) as pool:
        begin = time.monotonic()
        _failures([pool.submit(small) for _ in range(workers)])  # one each: all are busy starting
        started = time.monotonic()
        failed = _failures([pool.submit(binary) for binary in chosen])
        return Row(workers, started - begin, time.monotonic() - started, failed)


def _failures(futures: Sequence[Future[dict[str, Any]]]) -> int:
    """Wait for all; how many do not compile."""
    failed = 0
    for future in futures:
        try:
            future.result(TIMEOUT_S)
        except CompileError:
            failed += 1
    return failed


def _builder(folder: Path, device: Device) -> Builder:
    """One that names binaries and compiles none."""

    def no_pool() -> CompilePool:
        raise AssertionError("the pools are measured one by one")

    return builder_of(Store(open_root(folder)), device, Settings.read(), no_pool)
