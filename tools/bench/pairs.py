"""Tunes of GroupNorm + SiLU, repeated, against a long measurement of every config."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...autotune.search import search
from ...autotune.timing import CudaTimer, copy_bandwidth
from ...cache.paths import open_root
from ...cache.store import Store
from ...jit.build import Builder
from ...jit.compile import CompilePool
from ...jit.declare import Device
from ...jit.op import Op
from ...jit.runtime import builder_of
from ...jit.settings import Settings
from ...jit.sign import Call
from ...jit.stats import Stats
from ...models.ops.group_norm import group_norm_add_silu, group_norm_silu
from .calls import note
from .goals import Reached
from .picks import Picks, goals
from .table import Column, Table, number, reason_of
from .trials import Trials
from .tune import Options, Save

SIGNATURES = (
    # The released upsampler of LTX-2: both sizes of a 512x768 video (the larger one is also the
    # smaller one of 1024x1536) and of a 1088x1920 one.
    "group_norm_silu[bf16](1x1024x16x16x24, groups=32)",
    "group_norm_silu[bf16](1x1024x16x32x48, groups=32)",
    "group_norm_silu[bf16](1x1024x16x17x30, groups=32)",
    "group_norm_silu[bf16](1x1024x16x34x60, groups=32)",
    "group_norm_add_silu[bf16](1x1024x16x16x24, residual=:perm02134, groups=32)",
    "group_norm_add_silu[bf16](1x1024x16x32x48, residual=:perm02134, groups=32)",
    "group_norm_add_silu[bf16](1x1024x16x17x30, residual=:perm02134, groups=32)",
    "group_norm_add_silu[bf16](1x1024x16x34x60, residual=:perm02134, groups=32)",
    # With half the channels, and in other dtypes.
    "group_norm_silu[fp16](1x512x16x32x48, groups=32)",
    "group_norm_silu[fp32](1x1024x16x16x24, groups=32)",
    "group_norm_add_silu[fp32](1x512x16x32x48, groups=32)",
    # Images: UNets and VAEs, contiguous and channels_last.
    "group_norm_silu[bf16](1x128x512x512, groups=32)",
    "group_norm_silu[bf16](2x64x32x32, groups=32)",
    "group_norm_silu[bf16](4x1280x8x8, groups=32)",
    "group_norm_silu[bf16](16x320x64x64, groups=32)",
    "group_norm_silu[bf16](2x1280x32x32, groups=32)",
    "group_norm_silu[fp32](8x320x64x64, groups=32)",
    "group_norm_silu[bf16](1x512x64x64:channels_last, groups=32)",
    "group_norm_silu[bf16](1x256x128x128:channels_last, groups=32)",
    "group_norm_silu[bf16](1x128x512x512:channels_last, groups=32)",
    "group_norm_silu[fp16](1x256x256x256:channels_last, groups=32)",
    "group_norm_silu[fp32](1x256x128x128:channels_last, groups=32)",
    "group_norm_add_silu[bf16](1x512x128x128:channels_last, groups=32)",
)

REPS = 60
"""Of each config in the long measurement."""

FINAL_REPS = 100
"""Of the picks and the fastest of the long measurement, in turns."""

FASTEST = 5
"""So many of the long measurement are measured again beside the picks."""

BATCH = 15
"""Configs that take turns, beside one that is in every batch and shows what the clocks do."""

LEAST_REPEATS = 3
COMPILE_S = 400.0

COLUMNS = (
    Column("tuned for", 66, left=True),
    Column("configs", 7),
    Column("valid", 5),
    Column("best us", 7),
    Column("first %", 7),
    Column("worst %", 7),
    Column("same", 6),
    Column("kept", 6),
    Column("s a tune", 8),
    Column("drift %", 7),
)


@dataclass(frozen=True)
class Row:
    """One signature, tuned again and again.

    long_us    every valid config in the long measurement
    seconds    of each search, compiling and checking not included
    drifts     of each search
    """

    signature: str
    configs: int
    refused: dict[str, str]
    picks: Picks
    long_us: dict[str, float]
    seconds: Sequence[float]
    drifts: Sequence[float]

    def cells(self) -> list[str]:
        picks = self.picks
        return [
            self.signature,
            str(self.configs),
            str(self.configs - len(self.refused)),
            number(picks.best_us, 2),
            number(100 * picks.first_regret, 2),
            number(100 * picks.worst_regret, 2),
            f"{picks.same}/{len(picks.empty)}",
            f"{picks.kept}/{len(picks.with_stored)}",
            number(statistics.median(self.seconds), 2),
            number(100 * statistics.median(self.drifts), 1),
        ]

    def json(self) -> dict[str, Any]:
        return {
            "signature": self.signature,
            "configs": self.configs,
            "refused": self.refused,
            **self.picks.json(),
            "long_us": self.long_us,
            "search_seconds": list(self.seconds),
            "drifts": list(self.drifts),
        }


def measure(device: Device, options: Options, save: Save) -> Sequence[Reached]:
    """repeated tunes against each other and against a long measurement"""
    end = time.monotonic() + options.seconds
    settings = Settings.read()
    rows: list[Row] = []
    failed: dict[str, str] = {}
    with (
        TemporaryDirectory(prefix="jitd-bench-") as scratch,
        torch.cuda.device(device.index),
        torch.no_grad(),
    ):
        store = Store(open_root(Path(scratch) / "jitd"))
        with CompilePool(settings.jobs) as pool:
            builder = builder_of(store, device, settings, lambda: pool, Stats())
            asked = [_parsed(text) for text in SIGNATURES]
            _compile_all(builder, asked)
            print(
                "first: the regret of the first pick, worst: of any; same: from an empty store; "
                "kept: with the best one stored. In shuffled orders, all compiled and checked "
                f"before. {REPS} repetitions of each config, then {FINAL_REPS} of the picks and "
                f"the {FASTEST} fastest, in turns.",
                flush=True,
            )
            table = Table(COLUMNS)
            timer = CudaTimer(device.index, builder.policy)
            for index, (op, call) in enumerate(asked):
                began = time.monotonic()
                until = began + max(0.0, end - began) / (len(asked) - index)
                try:
                    row = _row(builder, op, call, timer, options.repeats, until)
                except Exception as error:  # noqa: BLE001  (a pair must not cost the rest)
                    failed[SIGNATURES[index]] = reason_of(error)
                    table.failed(SIGNATURES[index], reason_of(error))
                else:
                    rows.append(row)
                    table.row(row.cells())
                finally:
                    timer.forget()
                    torch.cuda.empty_cache()
                save({"rows": [row.json() for row in rows], "pairs_failed": failed})
    reached = goals([row.picks for row in rows])
    if failed:
        measured = f"{len(rows)} of {len(asked)}"
        reached.append(Reached("pairs measured", "all", measured, None))
    return reached


def _parsed(text: str) -> tuple[Op, Call]:
    functions = {"group_norm_silu": group_norm_silu, "group_norm_add_silu": group_norm_add_silu}
    op: Op = functions[text.partition("[")[0]].op  # type: ignore[attr-defined]
    return op, op.bucket(op.parse(text).call)


def _compile_all(builder: Builder, asked: Sequence[tuple[Op, Call]]) -> None:
    """Before anything is timed: compiling beside it would disturb the timing."""
    began = time.monotonic()
    started: list[Future[Any]] = []
    for op, call in asked:
        for config in op.configs(call, builder.device)[0]:
            for binary in builder.binaries(op, config.plan(call, builder.device), call):
                compilation = builder.artifacts.start(binary)
                if isinstance(compilation, Future):
                    started.append(compilation)
    distinct = set(started)
    _, late = wait(distinct, timeout=COMPILE_S)
    seconds = time.monotonic() - began
    note(f"{len(distinct)} binaries compiled in {seconds:.1f} s, {len(late)} are not ready")


def _row(builder: Builder, op: Op, call: Call, timer: CudaTimer, repeats: int, until: float) -> Row:
    floor_us = 1e6 * op.cost(call).bytes / copy_bandwidth(builder.device.index)
    seconds: list[float] = []
    drifts: list[float] = []
    with Trials(builder, op, call, builder.policy) as trials:
        if not trials.valid:
            raise RuntimeError(f"none of {len(trials.configs)} configs is valid")
        shuffled = random.Random(op.sign(call).text)

        def tune(stored: str | None) -> str:
            timer.forget()
            began = time.monotonic()
            result = search(
                trials.candidates(),
                arrivals=_arrivals(trials, stored, shuffled),
                verify=trials.verify,
                timer=timer,
                policy=builder.policy,
                floor_us=floor_us,
                stored=stored,
                default=trials.default,
            )
            seconds.append(time.monotonic() - began)
            drifts.append(result.drift)
            if result.winner is None:
                raise RuntimeError("a tune found no winner")
            return result.winner

        first = tune(None)
        long_us = long_measurement(trials.valid, trials.runner, timer, first)
        ranking = sorted(long_us, key=lambda name: long_us[name])
        stored, now = ranking[0], time.monotonic()
        empty = [first, *_repeated(lambda: tune(None), repeats - 1, (now + until) / 2)]
        with_stored = _repeated(lambda: tune(stored), repeats, until)
        timer.forget()
        names = sorted({*empty, *with_stored, *ranking[:FASTEST]})
        table = timer.interleaved([trials.runner(name) for name in names], FINAL_REPS)
        timer.forget()
    us = {name: statistics.median(samples.us) for name, samples in zip(names, table, strict=True)}
    picks = Picks(us, empty, stored, with_stored)
    text = op.sign(call).text
    return Row(text, len(trials.configs), trials.refused, picks, long_us, seconds, drifts)


def _arrivals(trials: Trials, stored: str | None, shuffled: random.Random) -> list[str]:
    """As a tune asks for them, the rest in any order: so do compilers get ready."""
    early = [name for name in dict.fromkeys((stored, trials.default)) if name in trials.configs]
    rest = [name for name in trials.configs if name not in early]
    shuffled.shuffle(rest)
    return [str(name) for name in (*early, *rest)]


def _repeated(tune: Callable[[], str], most: int, until: float) -> list[str]:
    """What so many tunes pick; fewer if time is short."""
    picks: list[str] = []
    while len(picks) < most and (len(picks) < LEAST_REPEATS or time.monotonic() < until):
        picks.append(tune())
    return picks


def long_measurement(
    names: Sequence[str], runner: Callable[[str], Any], timer: Any, anchor: str
) -> dict[str, float]:
    """Microseconds of every config, REPS of each, batch by batch.

    The anchor takes turns with each batch. What it varies from one to the next is the clocks'
    doing and is divided out; since it is fast, it also makes every batch be timed by one method.
    """
    beside = runner(anchor)
    ratios: dict[str, float] = {anchor: 1.0}
    anchor_us: list[float] = []
    for batch in _batches([name for name in names if name != anchor] or [anchor]):
        runs = [runner(name) for name in batch]
        own, *others = timer.interleaved([beside, *runs], REPS)
        anchor_us.append(statistics.median(own.us))
        for name, run, samples in zip(batch, runs, others, strict=True):
            ratios.setdefault(name, statistics.median(samples.us) / anchor_us[-1])
            timer.forget(run)
    return {name: ratio * statistics.median(anchor_us) for name, ratio in ratios.items()}


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), BATCH):
        yield names[start : start + BATCH]
