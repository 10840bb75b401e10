"""The same configs of one kernel, tuned by `@triton.autotune` and by jitd."""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...autotune.policy import Policy
from ...autotune.timing import CudaTimer
from ...cache.paths import open_root
from ...cache.store import Store
from ...jit.build import Builder
from ...jit.compile import CompilePool
from ...jit.declare import Config, Device
from ...jit.isolated import Isolated
from ...jit.op import Op
from ...jit.runtime import builder_of
from ...jit.settings import Settings
from ...jit.stats import Stats
from .children import answer, started
from .goals import TUNE_SPEEDUP, Reached
from .ops import rms_norm
from .table import Column, Table, number, reason_of
from .trials import Trials
from .tune import Options, Save

CHILD = f"{__package__}.tune_child"
ROWS, LENGTH = 4096, 4096
"""Of RMSNorm in bf16: about 20 us on an H200."""

OP: Op = rms_norm.op  # type: ignore[attr-defined]
REPS = 100
TIMEOUT_S = 240.0
SETTLE_S = 1.0
"""After a tune: a compile that was under way when the winner was found is then over."""

COLUMNS = (
    Column("tuned by", 48, left=True),
    Column("s", 7),
    Column("x faster", 8),
    Column("goal", 6),
    Column("reached", 7, left=True),
    Column("us", 7),
    Column("winner", left=True),
)

TRITON, WARM, FIRST = (
    "@triton.autotune",
    "jitd, workers and child up",
    "jitd, their start included",
)


@dataclass(frozen=True)
class Tuned:
    """seconds: of the whole tune. us: of its winner, measured beside the others' winners."""

    name: str
    seconds: float
    config: str
    notes: Mapping[str, Any]
    us: float | None = None


def rows_of(tuned: Sequence[Tuned]) -> list[list[str]]:
    """The cells of the table."""
    theirs = next((one.seconds for one in tuned if one.name == TRITON), None)
    rows = []
    for one in tuned:
        ratio = None if theirs is None or one.name == TRITON else theirs / one.seconds
        judged = one.name == WARM and ratio is not None
        rows.append(
            [
                one.name,
                number(one.seconds, 2),
                number(ratio, 1),
                f">= {TUNE_SPEEDUP:g}x" if judged else "",
                ("met" if ratio >= TUNE_SPEEDUP else "MISSED") if judged and ratio else "",
                number(one.us, 2),
                one.config,
            ]
        )
    return rows


def goals(tuned: Sequence[Tuned], configs: int) -> list[Reached]:
    """What the tunes have to show."""
    seconds = {one.name: one.seconds for one in tuned}
    ratio = seconds[TRITON] / seconds[WARM] if {TRITON, WARM} <= seconds.keys() else None
    return [
        Reached(
            f"tuning {configs} configs, times faster than @triton.autotune",
            f">= {TUNE_SPEEDUP:g}x",
            "-" if ratio is None else f"{ratio:.1f}x",
            None if ratio is None else ratio >= TUNE_SPEEDUP,
        )
    ]


def measure(device: Device, options: Options, save: Save) -> Sequence[Reached]:
    """against @triton.autotune (its default timing), the same configs, cold caches"""
    bf16, fp16 = (OP.parse(f"bench_rms_norm[{t}]({ROWS}x{LENGTH})").call for t in ("bf16", "fp16"))
    configs = OP.configs(bf16, device)[0]
    tuned: list[Tuned] = []
    settings = Settings.read()
    with (
        tempfile.TemporaryDirectory(prefix="jitd-bench-") as scratch,
        CompilePool(settings.jobs) as pool,
        torch.cuda.device(device.index),
        torch.no_grad(),
    ):
        isolated = Isolated(
            device, step_timeout_s=30, memory_share=settings.tune_memory_share, stats=Stats()
        )

        def builder(folder: str) -> Builder:
            store = Store(open_root(Path(scratch) / folder))
            made = builder_of(store, device, settings, lambda: pool, Stats())
            return replace(made, tuner=lambda: isolated)

        try:
            # In fp16, with other binaries: what it starts is up for the tune in bf16, and nothing
            # else is.
            tuned.append(_by_jitd(FIRST, builder("first"), fp16))
            time.sleep(SETTLE_S)
            ours = builder("ours")
            tuned.append(_by_jitd(WARM, ours, bf16))
        finally:
            isolated.close()
        save({"configs": len(configs), "tuned": [asdict(one) for one in tuned]})
        tuned.append(_by_triton(configs, Path(scratch) / "triton"))
        save({"tuned": [asdict(one) for one in tuned]})
        try:
            tuned[1:] = _side_by_side(ours, bf16, tuned[1:])
        except Exception as error:  # noqa: BLE001  (the seconds are worth having without)
            print(f"the winners could not be timed: {reason_of(error)}", flush=True)
    print(
        f"RMSNorm, {ROWS} rows of {LENGTH}, bf16 (the first signature: fp16), {len(configs)} "
        f"configs, {settings.jobs} workers. us: cold L2, the winners in turns.",
        flush=True,
    )
    table = Table(COLUMNS)
    for cells in rows_of([tuned[2], tuned[1], tuned[0]]):
        table.row(cells)
    for one in tuned[:2]:
        statuses = ", ".join(f"{count} {status}" for status, count in one.notes["statuses"].items())
        early = "; stopped early, near the floor" if one.notes["stopped_early"] else ""
        print(f"{one.name}: {statuses}{early}", flush=True)
    extra_s = tuned[0].seconds - tuned[1].seconds
    print(f"the first signature's extra, for starting: {extra_s:.2f} s", flush=True)
    save({"tuned": [asdict(one) for one in tuned], "first_extra_s": extra_s})
    return goals(tuned, len(configs))


def _by_jitd(name: str, builder: Builder, call: Any) -> Tuned:
    """One tune by the way that a call takes, into an empty cache."""
    began = time.perf_counter()
    config = builder.tune_again(OP, call, fresh=True)
    seconds = time.perf_counter() - began
    body = builder.winners.body(OP, call) or {}
    status = [outcome["status"] for outcome in body.get("outcomes", ())]
    notes = {
        "statuses": {one: status.count(one) for one in sorted(set(status))},
        "stopped_early": body.get("stopped_early"),
        "drift": body.get("drift"),
        "stats": builder.stats.snapshot(),
    }
    return Tuned(name, seconds, config.name, notes)


def _by_triton(configs: Sequence[Config], cache: Path) -> Tuned:
    """A fresh process with an empty Triton cache."""
    spec = {
        "do": "autotune",
        "rows": ROWS,
        "length": LENGTH,
        "dtype": "bfloat16",
        "configs": [dict(config.params) for config in configs],
    }
    said = answer(started(CHILD, spec, {"TRITON_CACHE_DIR": str(cache)}), TIMEOUT_S)
    chosen = next(config for config in configs if dict(config.params) == said["params"])
    return Tuned(TRITON, said["seconds"], chosen.name, {})


def _side_by_side(builder: Builder, call: Any, tuned: Sequence[Tuned]) -> list[Tuned]:
    """The same with the times of their winners, taken in turns."""
    names = list(dict.fromkeys(one.config for one in tuned))
    timer = CudaTimer(builder.device.index, Policy())
    with Trials(builder, OP, call, Policy(), only=names) as trials:
        table = timer.interleaved([trials.runner(name) for name in names], REPS)
        timer.forget()
    us = {name: statistics.median(samples.us) for name, samples in zip(names, table, strict=True)}
    return [replace(one, us=us[one.config]) for one in tuned]
