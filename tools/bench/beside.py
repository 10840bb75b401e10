"""What a daemon beside a process costs its calls: the host's time of a hit with one and without.

A hit runs the same code either way. With a daemon the process has a thread more, which waits for
news on a socket. Rounds with and without take turns.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...jit import runtime
from ...jit.daemon.client import Client
from ...jit.daemon.identity import Identity
from ...jit.daemon.place import Place
from ...jit.daemon.protocol import Shutdown
from ...jit.stats import STATS
from ...models.ops.group_norm import group_norm_silu
from .calls import Refused, get, note
from .environment import environment, gpu, print_environment, variables, write_json
from .goals import DAEMON_SHARE, GROUPS
from .host import SHAPE
from .ops import affine_silu
from .stopwatch import host_us
from .table import Column, Table, number

_ROUNDS = 8
_BATCHES = 100
_COLD = 300  # elements of the first call that nothing is built for, twice as many the next time
_WAIT_S = 120.0

COLUMNS = (
    Column("whole call, us of the CPU", 26, left=True),
    Column("without", 8),
    Column("with", 8),
    Column("with / without"),
    Column("goal", left=True),
)


def run(*, json: Path | None) -> bool:
    """Measure and print; whether a daemon costs no more than the goal."""
    device = gpu()
    facts = environment(device)
    with (
        tempfile.TemporaryDirectory(prefix="jitd-beside-") as name,
        variables(
            JITD_DAEMON_DUTY="1.0"
        ),  # this process is one that the daemon would step back for
        torch.no_grad(),
        torch.cuda.device(device.index),
    ):
        folder = Path(name)
        place = Place.of(folder / "cache", folder / "d")
        runtime.configure(cache_dir=folder / "cache", mode="tune", daemon="off")
        x = torch.randn(SHAPE, dtype=torch.bfloat16, device="cuda")
        weight, bias = (torch.randn(SHAPE[1], dtype=x.dtype, device="cuda") for _ in range(2))
        ops = {
            "bench_affine_silu": (affine_silu, (x,)),
            "group_norm_silu": (group_norm_silu, (x, weight, bias, GROUPS)),
        }
        for what, (function, args) in ops.items():
            note(f"{what}: {get(function, args)}")
        found: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in ops}
        for number_of in range(_ROUNDS):
            runtime.configure(mode="strict", daemon="off")
            _measure(ops, found, 0)
            runtime.configure(mode="background", daemon="auto", daemon_dir=folder / "d")
            _ask(x.flatten()[: _COLD << number_of])
            _measure(ops, found, 1)
        with Client(place, Identity.of(place.cache_dir)) as client:
            client.ask(Shutdown(now=True))
    print_environment(facts)
    table, good, rows = Table(COLUMNS), True, []
    for what, both in found.items():
        without, beside = (statistics.median(times) for times in both)
        met = beside / without <= DAEMON_SHARE
        good = good and met
        goal = f"<= {DAEMON_SHARE:g}x: {'met' if met else 'MISSED'}"
        table.row([what, number(without, 2), number(beside, 2), number(beside / without, 3), goal])
        rows.append({"what": what, "without_us": both[0], "with_us": both[1], "met": met})
    write_json(json, {"benchmark": "beside", "environment": facts, "rows": rows})
    return good


def _ask(cold: torch.Tensor) -> None:
    """Call what nothing is built for, so that the daemon is asked, until it has built it."""
    before, deadline = STATS["daemon:built"], time.monotonic() + _WAIT_S
    while STATS["daemon:built"] == before:
        if time.monotonic() > deadline:
            raise Refused(f"the daemon has built nothing in {_WAIT_S:g} s")
        affine_silu(cold)
        time.sleep(0.01)


def _measure(
    ops: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]],
    found: dict[str, tuple[list[float], list[float]]],
    place: int,
) -> None:
    runs = {what: (lambda f=f, a=a: f(*a)) for what, (f, a) in ops.items()}
    times = host_us(runs, batches=_BATCHES, synchronize=torch.cuda.synchronize)
    for what, us in times.us.items():
        found[what][place].append(us)
