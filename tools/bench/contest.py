"""Contenders at one set of arguments: held to the reference, timed in turns, judged by limits.

What the tables of ops share. A contender is jitd's op, its reference (`eager`), that compiled by
torch, and whatever else a case brings: peers, a fused function of torch's own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...autotune.timing import copy_bandwidth
from ...jit.sign import Call
from ...jit.tensors import spec_of
from ...models.ops.modulation import moved_bytes
from .calls import Got, builder_for, differing, get, hold_to, note
from .environment import environment, gpu, print_environment, write_json
from .goals import Limit, Verdict, judge
from .stopwatch import CudaStopwatch, Run, Stopwatch
from .table import Column, Table, number, reason_of

OURS = "jitd"
COPY = "copy"  # by torch, of as many bytes: what a launch and a cold L2 leave of the floor
_AHEAD = 2  # cases whose candidates are compiled while another is tuned

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One row to be: an op at one set of arguments.

    name    the row's first cell
    make    gives the positional arguments, on the GPU; `named` are the others
    call    of these arguments: what a tune needs of them, before they exist
    others  contenders besides jitd, eager and compile, called with `make`'s arguments
    facts   what the JSON says of the row besides
    """

    name: str
    function: Function
    make: Callable[[], Sequence[Any]]
    call: Call
    named: Mapping[str, Any] = field(default_factory=dict)
    limits: Sequence[Limit] = ()
    others: Mapping[str, Function] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One case, measured: microseconds by contender (`jitd`, `eager`, `compile`, others).

    `differing` elements of jitd's answer are not equal to eager's.
    """

    name: str
    bytes: int
    floor_us: float
    cold_us: Mapping[str, float]
    graph_us: Mapping[str, float]
    verdicts: Sequence[Verdict]
    differing: int = 0
    got: Got | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def us(self) -> float | None:
        return self.cold_us.get(OURS)

    @property
    def gb_per_s(self) -> float | None:
        return None if self.us is None else self.bytes / self.us / 1e3

    @property
    def x_floor(self) -> float | None:
        return None if self.us is None else self.us / self.floor_us

    def speedup(self, name: str) -> float | None:
        """How many times faster than another contender, cold L2."""
        other = self.cold_us.get(name)
        return None if self.us is None or other is None else other / self.us

    def cells(self, others: Sequence[str]) -> list[str]:
        return [
            self.name,
            number(self.us),
            number(self.graph_us.get(OURS)),
            number(self.gb_per_s, 0),
            number(self.floor_us),
            number(self.x_floor, 2),
            number(None if (x := self.speedup(COPY)) is None else 1 / x, 2),
            *(number(self.speedup(name), 2) for name in others),
            str(self.differing),
            "; ".join(str(verdict.limit) for verdict in self.verdicts) or "-",
            "; ".join(map(str, self.verdicts)) or "-",
        ]

    def json(self) -> dict[str, Any]:
        others = [name for name in self.cold_us if name not in (OURS, COPY)]
        return {
            "name": self.name,
            **self.facts,
            "bytes": self.bytes,
            "floor_us": self.floor_us,
            "cold_us": dict(self.cold_us),
            "graph_us": dict(self.graph_us),
            "gb_per_s": self.gb_per_s,
            "x_floor": self.x_floor,
            "speedup": {name: self.speedup(name) for name in others},
            "differing": self.differing,
            "limits": [
                {"limit": str(v.limit), "word": v.limit.word, "ratio": v.ratio, "met": v.met}
                for v in self.verdicts
            ],
            "config": self.got.config if self.got else None,
            "launches": self.got.launches if self.got else None,
            "get_s": self.got.seconds if self.got else None,
            "problems": dict(self.problems),
        }


def columns(others: Sequence[str], width: int = 17) -> list[Column]:
    """`width` of the first column; it holds the names."""
    return [
        Column("shape", width, left=True),
        Column("us", 7),
        Column("us graph", 8),
        Column("GB/s", 6),
        Column("floor us", 8),
        Column("x floor", 7),
        Column("x copy", 6),
        *(Column(f"x over {name}", 8) for name in others),
        Column("differing", 9),
        Column("limit", 20, left=True),
        Column("reached", left=True),
    ]


def measure(
    case: Case,
    args: Sequence[Any],
    contenders: Mapping[str, Function],
    stopwatch: Stopwatch,
    *,
    bandwidth: float,
    got: Got | None = None,
) -> Row:
    """Check every contender against `eager`, then time those that are right.

    `bandwidth` in bytes per second: the floor is each tensor input read and each output written
    once. What fails is left out and its reason noted. Raises Refused if jitd's own answer is wrong.
    """
    expected = contenders["eager"](*args)
    runs: dict[str, Run] = {}
    problems: dict[str, str] = {}
    unequal = 0
    for name, function in contenders.items():
        try:
            if name != "eager":
                answer = function(*args)
                hold_to(name, answer, expected)
                unequal = differing(answer, expected) if name == OURS else unequal
                del answer
        except Exception as error:
            if name == OURS:
                raise
            problems[name] = reason_of(error)
        else:
            runs[name] = _bound(function, args)
    moved = bytes_of(args) + bytes_of(expected)
    runs[COPY] = _copy(moved, _device_of(args))
    del expected
    cold, graph = stopwatch.cold(runs), stopwatch.graph(runs)
    problems |= cold.problems
    problems |= {f"{name} (graph)": why for name, why in graph.problems.items()}
    floor_us = 1e6 * moved / bandwidth
    others = {name: us for name, us in cold.us.items() if name not in (OURS, COPY)}
    return Row(
        name=case.name,
        bytes=moved,
        floor_us=floor_us,
        cold_us=cold.us,
        graph_us=graph.us,
        verdicts=judge(case.limits, cold.us.get(OURS), floor_us, others),
        differing=unequal,
        got=got,
        problems=problems,
        facts=case.facts,
    )


def _copy(moved: int, device: torch.device) -> Run:
    """Reads half as many bytes and writes them."""
    source = torch.empty(max(1, moved // 2), dtype=torch.uint8, device=device)
    to = torch.empty_like(source)
    return lambda: to.copy_(source)


def _device_of(args: Sequence[Any]) -> torch.device:
    """Where a call's tensors are."""
    return next(value.device for value in args if isinstance(value, torch.Tensor))


def bytes_of(values: Any) -> int:
    """Bytes of the tensors among arguments or results, each once, however often it is given."""
    values = (values,) if isinstance(values, torch.Tensor) else values
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return moved_bytes({str(id(t)): spec_of(t) for t in tensors})


def run_cases(
    cases: Sequence[Case],
    *,
    report: dict[str, Any],
    heading: str,
    others: Sequence[str],
    with_compile: bool,
    quick: bool,
    json: Path | None,
    rounds: int = 3,
    rep_ms: float = 40.0,
    width: int = 17,
) -> bool:
    """Measure and print every case; True if every one could be measured.

    `report` is completed (environment, rows) and written to `json` after each row.
    """
    device, began = gpu(), time.perf_counter()
    facts = environment(device)
    report |= {"quick": quick, "environment": facts, "rows": []}
    with torch.no_grad(), torch.cuda.device(device.index):
        bandwidth = facts["copy_bytes_per_s"] = copy_bandwidth(device.index)
        got = get_all(cases)
        print_environment(facts)
        print(
            f"{heading} us: median of do_bench (cold L2, launch included); graph: CUDA-graph "
            f"replay (hot L2). Floor: {bandwidth / 1e12:.2f} TB/s, the copy rate measured here. "
            "Copy: torch's, of as many bytes, timed as the others are. "
            f"Differing: elements that are not equal to eager's. Best peer: the fastest of "
            f"{', '.join(others)}.",
            flush=True,
        )
        table = Table(columns(others, width))
        stopwatch = CudaStopwatch(rounds=1 if quick else rounds, rep_ms=10.0 if quick else rep_ms)
        for case, one in zip(cases, got, strict=True):
            try:
                row = _row(case, one, stopwatch, bandwidth, with_compile=with_compile)
            except Exception as error:  # noqa: BLE001  (a row that fails must not cost the rest)
                table.failed(case.name, reason_of(error))
                failure = {"name": case.name, **case.facts, "failed": reason_of(error)}
                report["rows"].append(failure)
            else:
                table.row(row.cells(others))
                for name, why in row.problems.items():
                    print(f"  {name}: {why}", flush=True)
                report["rows"].append(row.json())
            write_json(json, report)
    _print_sum(report["rows"])
    note(f"all of it in {time.perf_counter() - began:.0f} s")
    return all("failed" not in row for row in report["rows"])


def get_all(cases: Sequence[Case]) -> list[Got | Exception]:
    """Have every case tuned before any is timed: compiling beside it would disturb the timing."""
    found: list[Got | Exception] = []
    for index, case in enumerate(cases):
        args: Sequence[Any] = ()
        try:
            for ahead in cases[index : index + _AHEAD]:
                _prefetch(ahead)
            args = case.make()
            found.append(get(case.function, args, case.named))
            note(f"{case.name}: {found[-1]}")
        except Exception as error:  # noqa: BLE001  (reported in the case's own row)
            found.append(error)
        finally:
            args = ()
            torch.cuda.empty_cache()
    seconds = sum(one.seconds for one in found if isinstance(one, Got))
    note(f"all shapes in {seconds:.1f} s")
    return found


def _prefetch(case: Case) -> None:
    """Start to compile what a tune will need, without a tensor of its size."""
    op = case.function.op  # type: ignore[attr-defined]
    builder_for(torch.device("cuda")).prefetch(op, case.call)


def _row(
    case: Case, got: Got | Exception, stopwatch: Stopwatch, bandwidth: float, *, with_compile: bool
) -> Row:
    if isinstance(got, Exception):
        raise got
    reference = case.function.op.reference  # type: ignore[attr-defined]
    contenders = {
        OURS: _with(case.function, case.named),
        "eager": _with(reference, case.named),
    }
    if with_compile:
        # A table has more shapes than dynamo compiles one function for; then it would give up,
        # without a word, and run eager.
        torch.compiler.reset()
        compiled = torch.compile(reference, dynamic=False, fullgraph=True)
        contenders["compile"] = _with(compiled, case.named)
    try:
        args = case.make()
        contenders |= case.others
        return measure(case, args, contenders, stopwatch, bandwidth=bandwidth, got=got)
    finally:
        torch.cuda.empty_cache()


def _with(function: Function, named: Mapping[str, Any]) -> Function:
    return (lambda *args: function(*args, **named)) if named else function


def _bound(function: Function, args: Sequence[Any]) -> Run:
    return lambda: function(*args)


def _print_sum(rows: Sequence[Mapping[str, Any]]) -> None:
    limits = [limit for row in rows for limit in row.get("limits", ())]
    for word in ("must", "goal"):
        known = [limit for limit in limits if limit["word"] == word and limit["met"] is not None]
        if known:
            print(f"{word}: {sum(limit['met'] for limit in known)} of {len(known)} met")
