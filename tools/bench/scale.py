"""How the cache scales: a look-up, listing, statistics and eviction among 1k to 100k records."""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ...cache import scan
from ...cache.evict import Bounds, evict
from ...cache.keys import Key, Value
from ...cache.paths import open_root
from ...cache.records import encode
from ...cache.store import Store
from ...jit.device import stand_in
from ...jit.settings import Settings
from ...jit.toolchain import toolchain
from ..jitctl.listing import look
from ..jitctl.stats import figures
from .environment import environment, print_versions, write_json
from .table import Column, Table, number

TARGET: Final = "sm_90"
OPS: Final = 20
KINDS: Final = (*["artifact"] * 5, "check", "check", "winner", "source", "receipt")
LOOK_UPS: Final = 2_000
ROUNDS: Final = 3
GOALS: Final = {"lookup_us": 200.0, "list_s": 2.0, "stats_s": 2.0, "gc_s": 5.0}
"""What is promised for the largest cache; `lookup_us` with a warm page cache."""


def run(*, numbers: Sequence[int], within: Path | None, json: Path | None) -> bool:
    """Measure and print; True if every goal is met at every size."""
    facts = environment(stand_in(TARGET)) | {"gpu": None}
    print_versions(facts)
    report: dict[str, Any] = {"benchmark": "cache", "environment": facts, "goals": GOALS}
    rows: list[dict[str, float]] = []
    columns = ("records", "look-up us", "list s", "stats s", "gc s", "unlink s", "MB")
    table = Table([Column(name, 9) for name in columns])
    for count in sorted(numbers):
        with tempfile.TemporaryDirectory(prefix="jitd-bench-", dir=within) as folder:
            row = measured(Path(folder) / "cache", count)
        rows.append(row)
        table.row(
            [
                str(count),
                number(row["lookup_us"]),
                number(row["list_s"], 3),
                number(row["stats_s"], 3),
                number(row["gc_s"], 3),
                number(row["unlink_s"], 3),
                number(row["bytes"] / 1e6, 0),
            ]
        )
        write_json(json, {**report, "rows": rows})
    missed = [
        f"{name} {row[name]:.3g} at {row['records']:.0f}"
        for row in rows
        for name, goal in GOALS.items()
        if row[name] > goal
    ]
    goals = ", ".join(f"{name} <= {goal:g}" for name, goal in GOALS.items())
    verdict = f"MISSED: {'; '.join(missed)}" if missed else "met"
    print(f"goals: {goals}: {verdict}", flush=True)
    return not missed


def measured(root: Path, count: int) -> dict[str, float]:
    """The figures of a cache of `count` records, which is made here.

    Eviction removes half of them. `unlink_s` is what the file system takes to remove the other half
    and their folders when nobody looks at anything: `gc_s` cannot be less.
    """
    store = Store(open_root(root))
    keys = fill(store, count)
    asked = random.Random(0).choices(keys, k=LOOK_UPS)
    for key in asked:
        store.get(key)
    times = []
    for key in asked:
        began = time.perf_counter()
        store.get(key)
        times.append(time.perf_counter() - began)
    settings = Settings.read({})
    row = {
        "records": float(count),
        "lookup_us": 1e6 * statistics.median(times),
        "list_s": _best(lambda: look(store, "winner")),
        "stats_s": _best(lambda: figures(store, settings)),
        "bytes": float(sum(entry.bytes for entry in scan.entries(store.root))),
    }
    began = time.perf_counter()
    evict(store, Bounds(1 << 50, count // 2))
    row["gc_s"] = time.perf_counter() - began
    left = [store.root / entry.path for entry in scan.entries(store.root)]
    folders = {path.parent for path in left}
    began = time.perf_counter()
    for path in left:
        path.unlink()
    for folder in folders:
        folder.rmdir()
    return {**row, "unlink_s": time.perf_counter() - began}


def fill(store: Store, count: int) -> list[Key]:
    """Write records like those of tunes, with small bodies, without fsync: their keys."""
    folders: set[str] = set()
    keys = []
    tools = toolchain()
    for index in range(count):
        op = f"op_{index % OPS}"
        parts: dict[str, Value] = {
            "schema": 1,
            "source": "0123456789abcdef" * 2,
            "classes": tuple((f"arg{n}", ("pointer", "bf16", True)) for n in range(6)),
            "options": (("num_stages", 3), ("num_warps", 4), ("number", index)),
            "target": TARGET,
            "toolchain": tools,
        }
        key = Key.of(KINDS[index // OPS % len(KINDS)], op, **parts)
        data = encode(
            key,
            {"cubin": bytes(1000)},
            label=f"{op}[bf16](1x1024x{index}, groups=32)",
            meta={"op": op, "target": TARGET},
            created=time.time(),
        )
        path = f"{store.root}/{key.path}"
        folder = path.rpartition("/")[0]
        if folder not in folders:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            folders.add(folder)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, data)
        os.close(descriptor)
        keys.append(key)
    return keys


def _best(measure: Callable[[], object]) -> float:
    """Seconds of the fastest of some rounds: the first of them warms the page cache."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        measure()
        times.append(time.perf_counter() - began)
    return min(times)
