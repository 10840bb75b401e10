"""What a call costs the CPU: torch, Triton, the bindings of the driver, and jitd's ops in parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...jit.declare import Pointer
from ...jit.dispatch import Dispatcher, ReferenceAnswer, _dispatchers
from ...jit.launch import Loaded
from ...jit.op import Op
from ...models.ops.group_norm import group_norm_silu
from . import launchers
from .calls import Refused, all_arguments, builder_for, call_of, get, hold_to, note
from .environment import environment, gpu, print_environment, write_json
from .goals import GROUPS, HOST_OP_SHARE, HOST_OP_US
from .ops import affine_silu
from .stopwatch import Run, Times, host_us
from .table import Column, Table, number, reason_of

SHAPE = (2, 64, 32, 32)
YARDSTICK = "empty_like + Triton launch"
GOAL = f"<= {HOST_OP_US:g} us, <= {HOST_OP_SHARE:g}x"

COLUMNS = (
    Column("what", 46, left=True),
    Column("us", 6),
    Column(f"x {YARDSTICK}"),
    Column("goal", len(GOAL), left=True),
    Column("reached", left=True),
)


class Contenders:
    """Runs by name, in the order of the table, and why others could not be made."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.problems: dict[str, str] = {}
        self.judged: set[str] = set()  # the names that the goal is for
        self.alive: list[object] = []  # libraries and tensors that the runs use

    def add(self, name: str, make: Callable[[], Mapping[str, Run]]) -> None:
        """The runs that `make` gives; if it raises, `name` is what failed."""
        try:
            self.runs |= make()
        except Exception as error:  # noqa: BLE001  (a row that fails must not cost the rest)
            self.problems[name] = reason_of(error)


@dataclass(frozen=True)
class Row:
    """One measured row. `met` is None where there is no goal, or nothing to hold it against."""

    name: str
    us: float | None
    ratio: float | None
    judged: bool
    problem: str | None

    @property
    def met(self) -> bool | None:
        if not self.judged or self.us is None or self.ratio is None:
            return None
        return self.us <= HOST_OP_US and self.ratio <= HOST_OP_SHARE

    def cells(self) -> list[str]:
        reached = {None: "", True: "met", False: "MISSED"}[self.met]
        return [self.name, number(self.us, 2), number(self.ratio, 2), GOAL * self.judged, reached]

    def json(self) -> dict[str, Any]:
        return {
            "what": self.name,
            "us": self.us,
            "ratio": self.ratio,
            "goal": GOAL if self.judged else None,
            "met": self.met,
            "problem": self.problem,
        }


def rows_of(contenders: Contenders, times: Times) -> list[Row]:
    """Every row of the table, failed ones last."""
    problems = contenders.problems | dict(times.problems)
    yardstick = times.us.get(YARDSTICK)
    rows = []
    for name in [*contenders.runs, *contenders.problems]:
        us = times.us.get(name)
        ratio = us / yardstick if us is not None and yardstick else None
        rows.append(Row(name, us, ratio, name in contenders.judged, problems.get(name)))
    return sorted(rows, key=lambda row: row.us is None)


def run(*, with_compile: bool, json: Path | None) -> bool:
    """Measure and print every row; True if every one could be measured."""
    device = gpu()
    facts = environment(device)
    contenders = Contenders()
    with torch.no_grad(), torch.cuda.device(device.index):
        x = torch.randn(SHAPE, dtype=torch.bfloat16, device="cuda")
        weight, bias = (torch.randn(SHAPE[1], dtype=x.dtype, device="cuda") for _ in range(2))
        contenders.add("torch", lambda: _torch(x))
        contenders.add("launches of bench_affine_silu", lambda: _launches(contenders, x))
        contenders.add("bench_affine_silu", lambda: _op(contenders, affine_silu, (x,)))
        args = (x, weight, bias, GROUPS)
        contenders.add("group_norm_silu", lambda: _op(contenders, group_norm_silu, args))
        contenders.add("torch.library", lambda: _library(contenders, x))
        contenders.add("torch.library.custom_op", lambda: _custom_op(x))
        if with_compile:
            contenders.add("torch.compile", lambda: _compiled(x))
        times = host_us(contenders.runs, synchronize=torch.cuda.synchronize)
    print_environment(facts)
    print(f"microseconds of the CPU per call, medians; x is bf16 {SHAPE}, gradients are off")
    rows = rows_of(contenders, times)
    table = Table(COLUMNS)
    for row in rows:
        if row.us is None:
            table.failed(row.name, row.problem or "")
        else:
            table.row(row.cells())
    report = {"benchmark": "host", "environment": facts, "rows": [row.json() for row in rows]}
    write_json(json, report)
    return all(row.us is not None for row in rows)


def _torch(x: torch.Tensor) -> Mapping[str, Run]:
    return {"torch.empty_like": lambda: torch.empty_like(x), "F.silu": lambda: F.silu(x)}


def _launches(contenders: Contenders, x: torch.Tensor) -> Mapping[str, Run]:
    """The test kernel through Triton, and its stored binary through everything else."""
    note(f"bench_affine_silu: {get(affine_silu, (x,))}")
    builder = builder_for(x.device)
    op: Op = affine_silu.op  # type: ignore[attr-defined]
    ready = builder.get_or_build(op, call_of(op, (x,)), "replay")
    (step,), (artifact,) = ready.plan.launches, ready.artifacts
    y = torch.empty_like(x)
    one = launchers.OneLaunch(
        artifact=artifact,
        loaded=Loaded.load(artifact, builder.device),
        launch=step,
        tensors={"x": x, "y": y},
        stream=torch._C._cuda_getCurrentRawStream(builder.device.index),
    )
    contenders.alive.append(one)

    def checked(launch: Run) -> Run:
        """The run, if it writes what the op does: a launch that does nothing is quick."""
        y.fill_(float("nan"))
        launch()
        hold_to("the launch", y, affine_silu(x))
        return launch

    def triton() -> tuple[Run, Callable[[torch.Tensor], None], Run]:
        from .kernels import affine_silu_kernel  # noqa: PLC0415  (imports Triton)

        values = {
            name: one.tensors[value.name] if isinstance(value, Pointer) else value
            for name, value in step.args.items()
        }
        constexprs = {"BLOCK": values.pop("BLOCK")}
        return launchers.by_triton(
            affine_silu_kernel, step.grid, values, constexprs, num_warps=step.num_warps
        )

    def triton_launch() -> Mapping[str, Run]:
        launch, into, _ = triton()
        return {
            "Triton kernel[grid](...), 8 arguments": checked(launch),
            YARDSTICK: lambda: into(torch.empty_like(x)),
        }

    def cuda_core() -> Mapping[str, Run]:
        prepared, each = launchers.by_cuda_core(one)
        return {
            "cuda.core launch, prepared": checked(prepared),
            "cuda.core launch, data_ptr and ctypes each": checked(each),
        }

    contenders.add("Triton kernel[grid](...)", triton_launch)
    for name, make in (
        ("Triton CompiledKernel.run", lambda: triton()[2]),
        ("cuda.bindings cuLaunchKernel, prepared", lambda: launchers.by_launch_kernel(one)),
        ("cuda.bindings cuLaunchKernelEx, prepared", lambda: launchers.by_launch_kernel_ex(one)),
        ("ctypes cuLaunchKernelEx, prepared", lambda: launchers.by_ctypes(one)),
    ):
        contenders.add(name, lambda name=name, make=make: {name: checked(make())})  # type: ignore[misc]
    contenders.add("cuda.core launch", cuda_core)
    return {}


def _op(
    contenders: Contenders, function: Callable[..., Any], args: Sequence[Any]
) -> Mapping[str, Run]:
    """A whole op, and its parts: the look-up until there is a hit, the output, the launch."""
    op: Op = function.op  # type: ignore[attr-defined]
    got = get(function, args)
    note(f"{op.name}: {got}")
    values = all_arguments(op, args)
    served = _dispatchers[op.name]
    hit = served.table[served.facts_of(*values)]
    if isinstance(hit, ReferenceAnswer):
        raise Refused(f"{op.name} is answered by {hit}")
    inputs = [value for value in args if isinstance(value, torch.Tensor)]
    output = hit(*inputs)
    hold_to(op.name, output, op.reference(*args))
    # A guard with a table of its own, in which a hit does nothing.
    alone = Dispatcher(op)
    guard = alone.guard()
    alone.table[alone.facts_of(*values)] = lambda *tensors: None
    shape, strides = tuple(output.shape), tuple(output.stride())
    allocate = partial(
        torch.empty_strided, shape, strides, dtype=output.dtype, device=output.device
    )
    name = f"{op.name}, {got.launches} launch{'es' * (got.launches > 1)}"
    if got.launches == 1:
        contenders.judged.add(f"{name}: whole call")
    return {
        f"{name}: guard": lambda: guard(*args),
        f"{name}: allocation": allocate,
        f"{name}: allocation and launch": lambda: hit(*inputs),
        f"{name}: whole call": lambda: function(*args),
    }


def _library(contenders: Contenders, x: torch.Tensor) -> Mapping[str, Run]:
    """An operator of torch around as little as possible."""
    library = torch.library.Library("jitd_bench", "FRAGMENT")
    contenders.alive.append(library)
    library.define("like(Tensor x) -> Tensor")
    library.impl("like", torch.empty_like, x.device.type.upper())
    operator = torch.ops.jitd_bench.like.default
    return {"torch.library define + impl of empty_like": lambda: operator(x)}


def _custom_op(x: torch.Tensor) -> Mapping[str, Run]:
    def like(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    operator = torch.library.custom_op("jitd_bench::custom_like", like, mutates_args=())
    return {"torch.library.custom_op of empty_like": lambda: operator(x)}


def _compiled(x: torch.Tensor) -> Mapping[str, Run]:
    import torch._inductor.config as inductor  # noqa: PLC0415  (seconds; only where it is wanted)

    inductor.compile_threads = 1  # a pool of workers takes longer to start than this to compile
    function = torch.compile(lambda tensor: F.silu(tensor) * 2, dynamic=False, fullgraph=True)
    function(x)
    return {"a tiny torch.compile'd function": lambda: function(x)}
