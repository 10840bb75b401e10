"""One block of a model at its real size: eager, compiled by torch, on jitd's ops.

`blocks.py` says which blocks.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...jit.op import OPS
from ...jit.record import record
from ...jit.runtime import current
from ...jit.stats import STATS
from .blocks import Case, Caught, bytes_beside, caught
from .calls import Refused, builder_for, note
from .eager import Eager
from .environment import environment, gpu, print_environment, write_json
from .stopwatch import CudaStopwatch, Run, Stopwatch, host_us
from .table import Column, Table, number, reason_of
from .traffic import Launched, launches, traffic

OURS = "jitd"
_OFF = 0.02  # of the length of eager's result: bf16 through a block, with sums in another order
_HOST_BATCHES = 15

Launches = Callable[[Run], Launched]
Peak = Callable[[Run], int]

COLUMNS = (
    Column("block", 34, left=True),
    Column("by", 7, left=True),
    Column("ms", 8),
    Column("x over", 6),
    Column("launches", 8),
    Column("not products", 12),
    Column("ms they take", 12),
    Column("GB they move", 12),
    Column("GB held", 7),
    Column("host ms", 7),
    Column("off %", 6),
)


@dataclass(frozen=True)
class Figures:
    """One contender at one block. `off`: its distance from eager, as a share of eager's length.

    `held_bytes`: of memory at its fullest, besides what jitd's block is given; with the result.
    """

    us: float | None
    host_us: float | None
    off: float
    kernels: Launched | None = None
    moved: Counter[str] | None = None  # of torch.compile's kernels nobody knows
    held_bytes: int | None = None

    def json(self) -> dict[str, Any]:
        return {
            "us": self.us,
            "host_us": self.host_us,
            "off": self.off,
            "launches": None if self.kernels is None else self.kernels.counts.total(),
            "products": None if self.kernels is None else self.kernels.products,
            "other_us": None if self.kernels is None else self.kernels.other_us,
            "moved_bytes": None if self.moved is None else self.moved.total(),
            "kernels": None if self.kernels is None else dict(self.kernels.counts.most_common()),
            "kernels_us": None if self.kernels is None else dict(self.kernels.us),
            "held_bytes": self.held_bytes,
            "moved_by_operator": None if self.moved is None else dict(self.moved.most_common()),
        }


def measure(
    case: Case, block: Caught, *, with_compile: bool, stopwatch: Stopwatch,
    count_launches: Launches, peak_memory: Peak, synchronize: Callable[[], Any],
) -> tuple[dict[str, Figures], dict[str, str]]:  # fmt: skip
    """(figures, why others have none), by contender. Raises Refused if jitd's answer is wrong."""
    eager = Eager(case.package)
    plain = case.as_eager(block)
    own = bytes_beside(plain, block)  # what is made once for all blocks, and held by each

    def plainly(module: nn.Module | None = None) -> Any:
        with eager():
            return plain(module)

    contenders: dict[str, Callable[[], Any]] = {"eager": plainly}
    if with_compile:
        torch.compiler.reset()
        compiled = torch.compile(plain.module, dynamic=False, fullgraph=True)
        contenders["compile"] = lambda: plainly(compiled)
    contenders[OURS] = block
    expected = plainly()
    off: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name, run in contenders.items():
        try:
            off[name] = _distance(name, run(), expected)
        except Exception as error:
            if name == OURS:
                raise
            problems[name] = reason_of(error)
    del expected
    runs = {name: run for name, run in contenders.items() if name not in problems}
    cold = stopwatch.cold(runs)
    host = host_us(runs, batches=_HOST_BATCHES, calls=1, synchronize=synchronize)
    figures = {}
    for name, run in runs.items():
        held = peak_memory(run) + (0 if name == OURS else own)
        kernels = None
        try:
            kernels = count_launches(run)
        except Exception as error:  # noqa: BLE001  (no profiler here: the times stand)
            problems[f"{name} (launches)"] = reason_of(error)
        moved = None if name == "compile" else traffic(run)
        figures[name] = Figures(
            cold.us.get(name), host.us.get(name), off[name], kernels, moved, held
        )
    return figures, problems | dict(cold.problems) | dict(host.problems)


def peak_memory(run: Run) -> int:
    """Bytes that one call needs at its fullest, beyond those in use before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak: int = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def cells(title: str, name: str, figures: Mapping[str, Figures]) -> list[str]:
    """A row of the table. `x over`: how many times faster jitd is."""
    one, ours = figures[name], figures.get(OURS)
    ratio = one.us / ours.us if ours and ours.us and one.us else None
    launched = others = other_us = None
    if one.kernels is not None:
        launched, other_us = one.kernels.counts.total(), one.kernels.other_us
        others = launched - one.kernels.products
    return [
        title,
        name,
        number(None if one.us is None else one.us / 1e3, 2),
        number(ratio, 2),
        number(launched, 0),
        number(others, 0),
        number(None if other_us is None else other_us / 1e3, 2),
        number(None if one.moved is None else one.moved.total() / 1e9, 2),
        number(None if one.held_bytes is None else one.held_bytes / 1e9, 2),
        number(None if one.host_us is None else one.host_us / 1e3, 2),
        number(100 * one.off, 2),
    ]


def run(*, cases: Sequence[Case], with_compile: bool, json: Path | None) -> bool:
    """Measure and print every block; True if every one could be measured."""
    device, began = gpu(), time.perf_counter()
    facts = environment(device)
    report: dict[str, Any] = {"benchmark": "block", "environment": facts, "rows": []}
    print_environment(facts)
    print(
        "One block in bf16, random weights. ms: median, cold L2. Host: the CPU's time to enqueue "
        "it. Products: matrix products, convolutions and attention; they: all other kernels; GB: "
        "what these read and write, each tensor once; held: memory at its fullest, beside weights "
        "and what jitd's block is given. Off: distance from eager.",
        flush=True,
    )
    table = Table(COLUMNS)
    stopwatch = CudaStopwatch(rounds=2, rep_ms=200.0)
    for case in cases:
        title, row = case.name, dict(case.facts)
        try:
            with torch.no_grad(), torch.cuda.device(device.index):
                block, row["get_s"] = _ready(case)
                title = f"{title}, {'x'.join(map(str, block.shape))}"
                figures, problems = measure(
                    case,
                    block,
                    with_compile=with_compile,
                    stopwatch=stopwatch,
                    count_launches=launches,
                    peak_memory=peak_memory,
                    synchronize=torch.cuda.synchronize,
                )
        except Exception as error:  # noqa: BLE001  (a block that fails must not cost the rest)
            table.failed(title, reason_of(error))
            row["failed"] = reason_of(error)
        else:
            for name in figures:
                table.row(cells(title, name, figures))
            for name, why in problems.items():
                print(f"  {name}: {why}", flush=True)
            row |= {
                "shape": list(block.shape),
                "problems": problems,
                **{name: one.json() for name, one in figures.items()},
            }
        finally:
            block = figures = None  # type: ignore[assignment]
            torch.cuda.empty_cache()
        report["rows"].append(row)
        write_json(json, report)
    note(f"all of it in {time.perf_counter() - began:.0f} s")
    return all("failed" not in row for row in report["rows"])


def _ready(case: Case) -> tuple[Caught, float]:
    """A block with its arguments on the GPU, its ops tuned, and the seconds that took."""
    begun = time.perf_counter()
    on_meta = caught(case.kind, lambda: case.forward("meta"))
    with record() as workload:
        on_meta()
    if current().settings.mode == "tune":
        builder = builder_for(torch.device("cuda"))
        for text in workload:
            op = OPS[text.partition("[")[0]]
            builder.prefetch(op, op.parse(text).call)
    block = caught(case.kind, lambda: case.forward("cuda"))
    before = STATS.snapshot()
    block()
    torch.cuda.synchronize()
    new = {n: count - before.get(n, 0) for n, count in STATS.snapshot().items()}
    answered = [name for name, count in new.items() if name.startswith("reference:") and count]
    if answered:
        raise Refused(f"not every op was answered by a kernel ({', '.join(answered)})")
    seconds = time.perf_counter() - begun
    note(
        f"{case.name}: {len(workload)} signatures, {new.get('tunes', 0)} tuned, "
        f"{new.get('compiles', 0)} compiled in {seconds:.1f} s"
    )
    return block, seconds


def _distance(name: str, answer: Any, expected: Any) -> float:
    """The length of the difference as a share of that of what was expected. Raises Refused if it is
    too long.
    """
    off = length = 0.0
    for one, other in zip(answer, expected, strict=True):
        off += float((one.double() - other.double()).square().sum())
        length += float(other.double().square().sum())
    share = float((off / length) ** 0.5)
    if not share <= _OFF:  # a NaN is refused, too
        raise Refused(f"{name} is off by {share:.2%}")
    return share
