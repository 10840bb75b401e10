"""GroupNorm + SiLU against eager, torch.compile and any peer, at the shapes of `goals`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...autotune.timing import copy_bandwidth
from ...jit.tensors import DTYPES
from ...models.ops.group_norm import group_norm_add_silu, group_norm_silu
from .calls import Got, builder_for, call_of, get, hold_to, note
from .environment import environment, gpu, print_environment, write_json
from .goals import GROUP_NORM, GROUPS, Limit, Target, Verdict, judge
from .stopwatch import CudaStopwatch, Run, Stopwatch
from .table import Column, Table, number, reason_of

EPS = 1e-5
_SEED = 20_240_229
_OURS = "jitd"
_REFERENCES = ("eager", "compile")

Function = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """One shape, measured: microseconds by contender (`jitd`, `eager`, `compile`, peers)."""

    target: Target
    bytes: int
    floor_us: float
    cold_us: Mapping[str, float]
    graph_us: Mapping[str, float]
    verdicts: Sequence[Verdict]
    got: Got | None = None
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def us(self) -> float | None:
        return self.cold_us.get(_OURS)

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
            self.target.name,
            number(self.us),
            number(self.graph_us.get(_OURS)),
            number(self.gb_per_s, 0),
            number(self.floor_us),
            number(self.x_floor, 2),
            *(number(self.speedup(name), 2) for name in others),
            "; ".join(str(verdict.limit) for verdict in self.verdicts) or "-",
            "; ".join(map(str, self.verdicts)) or "-",
        ]

    def json(self) -> dict[str, Any]:
        others = [name for name in self.cold_us if name != _OURS]
        return {
            "shape": list(self.target.shape),
            "where": self.target.where,
            "bytes": self.bytes,
            "floor_us": self.floor_us,
            "cold_us": dict(self.cold_us),
            "graph_us": dict(self.graph_us),
            "gb_per_s": self.gb_per_s,
            "x_floor": self.x_floor,
            "speedup": {name: self.speedup(name) for name in others},
            "limits": [
                {"limit": str(v.limit), "word": v.limit.word, "ratio": v.ratio, "met": v.met}
                for v in self.verdicts
            ],
            "config": self.got.config if self.got else None,
            "launches": self.got.launches if self.got else None,
            "get_s": self.got.seconds if self.got else None,
            "problems": dict(self.problems),
        }


def columns(others: Sequence[str]) -> list[Column]:
    return [
        Column("shape", 17, left=True),
        Column("us", 7),
        Column("us graph", 8),
        Column("GB/s", 6),
        Column("floor us", 8),
        Column("x floor", 7),
        *(Column(f"x over {name}", 8) for name in others),
        Column("limit", 20, left=True),
        Column("reached", left=True),
    ]


def arguments(target: Target, dtype: torch.dtype, *, add: bool, device: str) -> tuple[Any, ...]:
    """Random (x, [residual,] weight, bias, groups, eps)."""
    generator = torch.Generator(device).manual_seed(_SEED)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    inputs = [random(*target.shape) for _ in range(1 + add)]
    channels = target.shape[1]
    return (*inputs, random(channels), random(channels), GROUPS, EPS)


def measure(
    target: Target,
    args: Sequence[Any],
    contenders: Mapping[str, Function],
    stopwatch: Stopwatch,
    *,
    bandwidth: float,
    limits: Sequence[Limit] = (),
    got: Got | None = None,
) -> Row:
    """Check every contender against `eager`, then time those that are right.

    `bandwidth` in bytes per second: the floor is each tensor input read and the output written
    once. What fails is left out and its reason noted. Raises Refused if jitd's own answer is wrong.
    """
    expected = contenders["eager"](*args)
    runs: dict[str, Run] = {}
    problems: dict[str, str] = {}
    for name, function in contenders.items():
        try:
            if name != "eager":
                hold_to(name, function(*args), expected)
        except Exception as error:
            if name == _OURS:
                raise
            problems[name] = reason_of(error)
        else:
            runs[name] = _bound(function, args)
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    moved = sum(t.numel() * t.element_size() for t in (*tensors, expected))
    del expected
    cold, graph = stopwatch.cold(runs), stopwatch.graph(runs)
    problems |= cold.problems
    problems |= {f"{name} (graph)": why for name, why in graph.problems.items()}
    floor_us = 1e6 * moved / bandwidth
    others = {name: us for name, us in cold.us.items() if name != _OURS}
    return Row(
        target=target,
        bytes=moved,
        floor_us=floor_us,
        cold_us=cold.us,
        graph_us=graph.us,
        verdicts=judge(limits, cold.us.get(_OURS), floor_us, others),
        got=got,
        problems=problems,
    )


def run(
    *,
    dtype: str,
    add: bool,
    peers: Mapping[str, Function],
    with_compile: bool,
    quick: bool,
    json: Path | None,
) -> bool:
    """Measure and print every shape; True if every one could be measured."""
    device = gpu()
    function = group_norm_add_silu if add else group_norm_silu
    facts = environment(device)
    others = [name for name in _REFERENCES if name != "compile" or with_compile] + list(peers)
    report: dict[str, Any] = {
        "benchmark": "group_norm",
        "op": function.op.name,  # type: ignore[attr-defined]
        "dtype": dtype,
        "groups": GROUPS,
        "quick": quick,
        "environment": facts,
        "rows": [],
    }
    with torch.no_grad(), torch.cuda.device(device.index):
        bandwidth = facts["copy_bytes_per_s"] = copy_bandwidth(device.index)
        got = _get_all(function, dtype=dtype, add=add)
        print_environment(facts)
        print(
            f"{report['op']}, {dtype}, {GROUPS} groups. us: median of do_bench (cold L2, launch "
            f"included); graph: CUDA-graph replay (hot L2). Floor: {bandwidth / 1e12:.2f} TB/s, "
            "the copy rate measured here. Best peer: the fastest of "
            f"{', '.join(others)}.",
            flush=True,
        )
        table = Table(columns(others))
        stopwatch = CudaStopwatch(rounds=1, rep_ms=10.0) if quick else CudaStopwatch()
        for target in GROUP_NORM:
            try:
                row = _row(
                    target, function, peers, stopwatch, bandwidth,
                    got=got[target], dtype=dtype, add=add, with_compile=with_compile,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001  (a row that fails must not cost the rest)
                table.failed(target.name, reason_of(error))
                failure = {"shape": list(target.shape), "failed": reason_of(error)}
                report["rows"].append(failure)
            else:
                table.row(row.cells(others))
                for name, why in row.problems.items():
                    print(f"  {name}: {why}", flush=True)
                report["rows"].append(row.json())
            write_json(json, report)
    _print_sum(report["rows"])
    return all("failed" not in row for row in report["rows"])


def _get_all(function: Function, *, dtype: str, add: bool) -> dict[Target, Got | Exception]:
    """Have every shape tuned before any is timed: compiling beside it would disturb the timing."""
    found: dict[Target, Got | Exception] = {}
    for index, target in enumerate(GROUP_NORM):
        try:
            for ahead in GROUP_NORM[index : index + 2]:
                _prefetch(function, ahead, dtype=dtype, add=add)
            args = arguments(target, DTYPES[dtype], add=add, device="cuda")
            found[target] = get(function, args)
            note(f"{target.name} {dtype}: {found[target]}")
        except Exception as error:  # noqa: BLE001  (reported in the shape's own row)
            found[target] = error
        finally:
            args = ()
            torch.cuda.empty_cache()
    seconds = sum(one.seconds for one in found.values() if isinstance(one, Got))
    note(f"all shapes in {seconds:.1f} s")
    return found


def _prefetch(function: Function, target: Target, *, dtype: str, add: bool) -> None:
    """Start to compile what a tune will need, without a tensor of its size."""
    meta = (
        torch.empty(shape, dtype=DTYPES[dtype], device="meta")
        for shape in [target.shape] * (1 + add) + [target.shape[1:2]] * 2
    )
    op = function.op  # type: ignore[attr-defined]
    builder_for(torch.device("cuda")).prefetch(op, call_of(op, (*meta, GROUPS, EPS)))


def _row(
    target: Target,
    function: Function,
    peers: Mapping[str, Function],
    stopwatch: Stopwatch,
    bandwidth: float,
    *,
    got: Got | Exception,
    dtype: str,
    add: bool,
    with_compile: bool,
) -> Row:
    if isinstance(got, Exception):
        raise got
    reference = function.op.reference  # type: ignore[attr-defined]
    contenders = {_OURS: function, "eager": reference}
    if with_compile:
        # The table has more shapes than dynamo compiles one function for; then it would give up,
        # without a word, and run eager.
        torch.compiler.reset()
        contenders["compile"] = torch.compile(reference, dynamic=False, fullgraph=True)
    try:
        return measure(
            target,
            arguments(target, DTYPES[dtype], add=add, device="cuda"),
            contenders | dict(peers),
            stopwatch,
            bandwidth=bandwidth,
            limits=target.limits if dtype == "bf16" and not add else (),
            got=got,
        )
    finally:
        torch.cuda.empty_cache()


def _bound(function: Function, args: Sequence[Any]) -> Run:
    return lambda: function(*args)


def _print_sum(rows: Sequence[Mapping[str, Any]]) -> None:
    limits = [limit for row in rows for limit in row.get("limits", ())]
    for word in ("must", "goal"):
        known = [limit for limit in limits if limit["word"] == word and limit["met"] is not None]
        if known:
            print(f"{word}: {sum(limit['met'] for limit in known)} of {len(known)} met")
