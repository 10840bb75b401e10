"""What the daemon costs: its start, its memory, a question, and a miss in mode `background`."""

import json as jsonlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...cache.locks import KeyLocks
from ...cache.paths import open_root
from ...cache.store import Store
from ...jit.background import Background, Daemon
from ...jit.build import Builder
from ...jit.daemon.client import Client
from ...jit.daemon.identity import Identity
from ...jit.daemon.place import Place
from ...jit.daemon.protocol import Shutdown, Status
from ...jit.daemon.start import connect_or_start
from ...jit.device import stand_in
from ...jit.op import OPS
from ...jit.settings import Settings
from ...jit.stats import Stats
from ...jit.toolchain import toolchain
from .table import Column, Table

_STARTS = 9
_QUESTIONS = 2000
_MISSES = 400


class _NobodyBuilds(Background):
    """The caller's share of `ask` and no more: what is asked for is not built."""

    def _work(self) -> None:
        """Nothing."""


def run(json: Path | None) -> bool:
    """Measure, print, and write `json`, if given."""
    with tempfile.TemporaryDirectory(prefix="jitd-bench-") as folder:
        root = open_root(Path(folder) / "cache")
        place = Place.of(root, Path(folder) / "d")
        figures = {**_daemon(place), **_misses(Store(root))}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    heads = [Column("what", 30, left=True), *(Column(n, 8) for n in ("p50", "p99", "unit", "n"))]
    table = Table(heads)
    for name, figure in figures.items():
        table.row([name, *_shown(figure)])
    if json is not None:
        document = {
            name: {"unit": unit, "values": values} for name, (unit, values) in figures.items()
        }
        json.write_text(jsonlib.dumps(document, indent=1) + "\n", encoding="utf-8")
    return True


def _daemon(place: Place) -> dict[str, tuple[str, list[float]]]:
    identity = Identity.of(place.cache_dir)
    starts: list[float] = []
    for _ in range(_STARTS):
        begin = time.perf_counter()
        with connect_or_start(place, identity) as client:
            facts = client.ask(Status())
            starts.append(1e3 * (time.perf_counter() - begin))
            if len(starts) < _STARTS:
                _stop(client)
    with connect_or_start(place, identity) as client:
        questions = _timed(lambda: client.ask(Status()), _QUESTIONS)
        greetings = _timed(lambda: Client(place, identity).close(), _QUESTIONS // 4)
        facts = client.ask(Status())
        _stop(client)
    return {
        "start to first answer": ("ms", starts),
        "a status": ("us", questions),
        "connect and greet": ("us", greetings),
        "memory, idle": ("MB", [facts["resident_bytes"] / 1e6]),
    }


def _stop(client: Client) -> None:
    """End the daemon and wait until its process is gone."""
    pid = client.ask(Shutdown())["pid"]
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.005)


def _misses(store: Store) -> dict[str, tuple[str, list[float]]]:
    """The caller's share of a miss that the reference answers: looking, and asking."""
    from ...models.ops import group_norm  # noqa: F401, PLC0415  (declares the op; a second)

    op = OPS["group_norm_silu"]
    stats = Stats()
    builder = Builder(
        store=store,
        locks=KeyLocks(store.root),
        pool=_none,
        device=stand_in("sm_90"),
        toolchain=toolchain(),
        stats=stats,
        tuner=_none,
    )
    asker = _NobodyBuilds(Daemon(Settings.read(daemon="off"), store.root, stats))
    texts = [f"group_norm_silu[bf16](1x1024x{64 + 64 * n}, groups=32)" for n in range(_MISSES)]
    calls = iter([op.parse(text).call for text in texts])
    builder.at_once(op, op.parse("group_norm_silu[bf16](1x512x64, groups=32)").call)  # digests

    def miss() -> None:
        call = next(calls)
        assert builder.at_once(op, call) == (None, False)
        asker.ask(builder, op, call, miss)

    return {"a miss, besides the reference": ("us", _timed(miss, _MISSES))}


def _none() -> Any:
    raise RuntimeError("nothing is built here")


def _timed(action: Callable[[], object], times: int) -> list[float]:
    """Microseconds of each."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        taken.append(1e6 * (time.perf_counter() - begin))
    return taken


def _shown(figure: tuple[str, Sequence[float]]) -> tuple[str, str, str, str]:
    unit, values = figure
    last = sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
    return f"{statistics.median(values):.1f}", f"{last:.1f}", unit, str(len(values))
