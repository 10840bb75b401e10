"""A block or a model by several contenders: time, launches, bytes, memory, host time, distance.

`block.py` and `patch.py` say what is measured, and who contends.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch.utils._pytree import tree_leaves

from .calls import Refused, note
from .environment import environment, gpu, print_environment, write_json
from .stopwatch import CudaStopwatch, Run, Stopwatch, host_us
from .table import Column, Table, number, reason_of
from .traffic import Launched, launches, traffic

Launches = Callable[[Run], Launched]
Peak = Callable[[Run], int]

COLUMNS = (
    Column("block", 34, left=True),
    Column("by", 8, left=True),
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
LEGEND = (
    "ms: median, cold L2. Host: the CPU's time to enqueue it. Products: matrix products, "
    "convolutions and attention; they: all other kernels; GB: what these read and write, each "
    "tensor once; held: memory at its fullest, beside weights and arguments."
)


@dataclass(frozen=True)
class Contender:
    """One way to compute the same.

    run           gives tensors, or what holds some
    needed        without it nothing is measured; else its failure leaves the others
    compiled      by torch.compile, of whose kernels nobody knows what they move
    beside_bytes  of what it is given, and others are not
    first         is open around its first call, and may raise Refused
    """

    run: Run
    needed: bool = False
    compiled: bool = False
    beside_bytes: int = 0
    first: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Figures:
    """What was found of a contender. `off`: its distance from the first one, as a share of that
    one's length.

    `held_bytes`: of memory at its fullest, besides what all are given; with the result. `first_s`:
    its first call, in which it may be compiled.
    """

    us: float | None
    host_us: float | None
    off: float
    kernels: Launched | None = None
    moved: Counter[str] | None = None  # None: of torch.compile's kernels nobody knows
    held_bytes: int | None = None
    first_s: float | None = None

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
            "first_s": self.first_s,
        }


@dataclass(frozen=True)
class How:
    """How long is measured: `stopwatch`'s rounds and milliseconds, and batches of one call for the
    host's time. `off`: the largest distance that is not refused.
    """

    off: float
    rounds: int = 3
    rep_ms: float = 200.0
    # Products at full speed draw what the card may draw: its clock is down after some 100 ms.
    warmup_ms: float = 500.0
    host_batches: int = 15

    @property
    def stopwatch(self) -> CudaStopwatch:
        return CudaStopwatch(rounds=self.rounds, rep_ms=self.rep_ms, warmup_ms=self.warmup_ms)


def measure(
    contenders: Mapping[str, Contender], *, off: float, host_batches: int, stopwatch: Stopwatch,
    count_launches: Launches, peak_memory: Peak, synchronize: Callable[[], Any],
) -> tuple[dict[str, Figures], dict[str, str]]:  # fmt: skip
    """(figures, why others have none), by contender, all held to the first.

    Raises Refused if the answer of one that is needed is not the first one's, and what it raises.
    """
    expected: Any = None
    offs, first_s, problems = dict[str, float](), dict[str, float](), dict[str, str]()
    for name, one in contenders.items():
        begun = time.perf_counter()
        try:
            with one.first():
                answer = one.run()
                synchronize()
            first_s[name] = time.perf_counter() - begun
            expected = answer if expected is None else expected
            offs[name] = _distance(name, answer, expected, off)
        except Exception as error:
            if one.needed:
                raise
            problems[name] = reason_of(error)
    answer = expected = None
    runs = {name: one.run for name, one in contenders.items() if name not in problems}
    cold = stopwatch.cold(runs)
    host = host_us(runs, batches=host_batches, calls=1, synchronize=synchronize)
    figures = {}
    for name, run in runs.items():
        held = peak_memory(run) + contenders[name].beside_bytes
        kernels = None
        try:
            kernels = count_launches(run)
        except Exception as error:  # noqa: BLE001  (no profiler here: the times stand)
            problems[f"{name} (launches)"] = reason_of(error)
        moved = None if contenders[name].compiled else traffic(run)
        figures[name] = Figures(
            cold.us.get(name), host.us.get(name), offs[name], kernels, moved, held, first_s[name]
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


def cells(title: str, name: str, figures: Mapping[str, Figures], ours: str) -> list[str]:
    """A row of the table. `x over`: how many times faster the contender called `ours` is."""
    one, best = figures[name], figures.get(ours)
    ratio = one.us / best.us if best and best.us and one.us else None
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


class Case(Protocol):
    """What a benchmark measures, before any of it is made.

    name: the row's; facts: what the JSON says of it.
    """

    @property
    def name(self) -> str: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...


@dataclass
class Ready:
    """A case that can be run: contenders by name, the first one being what others are held to, the
    shape that its title names, and a note of what else the JSON is to say, filled while measured.
    """

    contenders: Mapping[str, Contender]
    shape: tuple[int, ...]
    facts: dict[str, Any]


Given = TypeVar("Given", bound=Case)


def measure_all(
    benchmark: str, about: str, cases: Iterable[Given], ready: Callable[[Given], Ready], *,
    ours: str, how: How, json: Path | None, **facts: Any,
) -> bool:  # fmt: skip
    """Measure and print every case, one after the other; True if every one could be measured.

    about: what is printed before the figures; facts: of the environment, beside those of all.
    """
    device, began = gpu(), time.perf_counter()
    environment_facts = environment(device) | facts
    report: dict[str, Any] = {"benchmark": benchmark, "environment": environment_facts, "rows": []}
    print_environment(environment_facts)
    print(f"{about} {LEGEND}", flush=True)
    table = Table(COLUMNS)
    for case in cases:
        title, row = case.name, dict(case.facts)
        made = figures = None
        begun = time.perf_counter()
        try:
            with torch.no_grad(), torch.cuda.device(device.index):
                made = ready(case)
                title = f"{title}, {'x'.join(map(str, made.shape))}"
                figures, problems = measure(
                    made.contenders,
                    off=how.off,
                    host_batches=how.host_batches,
                    stopwatch=how.stopwatch,
                    count_launches=launches,
                    peak_memory=peak_memory,
                    synchronize=torch.cuda.synchronize,
                )
        except Exception as error:  # noqa: BLE001  (a block that fails must not cost the rest)
            table.failed(title, reason_of(error))
            row["failed"] = reason_of(error)
        else:
            for name in figures:
                table.row(cells(title, name, figures, ours))
            for name, why in problems.items():
                print(f"  {name}: {why}", flush=True)
            row |= {
                "shape": list(made.shape),
                "problems": problems,
                **made.facts,
                **{name: one.json() for name, one in figures.items()},
            }
        finally:
            made = figures = None
            torch.compiler.reset()
            gc.collect()  # models and what is compiled of them refer to each other
            torch.cuda.empty_cache()
        report["rows"].append(row)
        write_json(json, report)
        note(f"{title}: {time.perf_counter() - begun:.0f} s")
    note(f"all of it in {time.perf_counter() - began:.0f} s")
    return all("failed" not in row for row in report["rows"])


def _distance(name: str, answer: Any, expected: Any, allowed: float) -> float:
    """The length of the difference as a share of that of what was expected. Raises Refused if it is
    too long.
    """
    off = length = 0.0
    for one, other in zip(tree_leaves(answer), tree_leaves(expected), strict=True):
        off += float((one.double() - other.double()).square().sum())
        length += float(other.double().square().sum())
    share = float((off / length) ** 0.5)
    if not share <= allowed:  # a NaN is refused, too
        raise Refused(f"{name} is off by {share:.2%}")
    return share
