"""A serving loop while something is tuned on its card: what that costs the requests.

One process runs forwards of the LTX-2 upsampler at a fixed rate and times each until the card is
done. Beside it, in turn: an idle daemon; the daemon tuning, at its duty; the process itself tuning
in a thread, for comparison.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...jit import runtime
from ...jit.daemon.client import Client
from ...jit.daemon.identity import Identity
from ...jit.daemon.place import Place
from ...jit.daemon.protocol import Shutdown, Status, Warmup
from ...jit.daemon.start import connect_or_start
from ...jit.errors import NotReady
from ...jit.record import Workload, record
from ...jit.runtime import Runtime
from ...jit.settings import Settings
from ...jit.warm import buckets
from ...models.ltx2.presets import UPSAMPLERS, Size, latent_shape
from ...models.ltx2.upsampler import LatentUpsampler
from ...models.ltx2.workload import run_upsampler
from .environment import environment, gpu, print_environment, variables, write_json
from .table import Column, Table, number

SERVED = Size(512, 768)
TUNED = [Size(height, width) for height in (256, 320, 384, 448, 640, 704) for width in (512, 640)]
P50_GOAL, P95_GOAL = 1.02, 1.10

COLUMNS = (
    Column("beside the loop", 34, left=True),
    Column("p50 ms", 7), Column("p95", 7), Column("p99", 7),
    Column("p50 x", 6), Column("p95 x", 6), Column("p99 x", 6),
    Column("tunes", 5), Column("goal", left=True),
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """What the loop's forwards took, in milliseconds, and how many tunes were made beside it."""

    name: str
    ms: list[float]
    tunes: int

    def at(self, share: float) -> float:
        return sorted(self.ms)[min(len(self.ms) - 1, int(share * len(self.ms)))]


def run(*, seconds: float, rate: float, duty: float, json: Path | None) -> bool:
    """Measure; whether the daemon's phase reached the goals."""
    device = gpu()
    facts = environment(device)
    print_environment(facts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitd-serving-")))
        forward = _warm_forward(folder / "served")
        settings = Settings.read(cache_dir=folder / "tuned", daemon_dir=folder / "d")
        stack.enter_context(variables(JITD_DAEMON_DUTY=str(duty), JITD_JOBS=str(settings.jobs)))
        other = Runtime(settings)
        place = Place.of(other.store.root, folder / "d")
        identity = Identity.of(place.cache_dir)
        client = stack.enter_context(connect_or_start(place, identity))
        workload = _workload()
        phases = [Phase("an idle daemon", _loop(forward, seconds, rate), 0)]
        _ask(client, workload, device.uuid, device.target)
        tuned = _loop(forward, seconds, rate)
        phases.append(Phase(f"the daemon tunes, duty {duty:g}", tuned, _tunes(place, identity)))
        client.ask(Shutdown(now=True))
        inside = _InProcess(Runtime(settings.replace(cache_dir=folder / "inside")), workload)
        with inside:
            phases.append(Phase("this process tunes in a thread", _loop(forward, seconds, rate), 0))
        phases[-1] = Phase(phases[-1].name, phases[-1].ms, inside.tunes)
    good = _print(phases)
    if json is not None:
        document = [{"name": one.name, "ms": one.ms, "tunes": one.tunes} for one in phases]
        write_json(json, {"environment": facts, "duty": duty, "rate": rate, "phases": document})
    return good


def _warm_forward(cache_dir: Path) -> Callable[[], object]:
    """The upsampler with all that it needs tuned, in mode strict."""
    runtime.configure(cache_dir=cache_dir, mode="tune", daemon="off")
    config: dict[str, Any] = dict(UPSAMPLERS["2.3"])
    with torch.device("cuda"):
        module = LatentUpsampler(**config).to(torch.bfloat16).eval()
        latents = torch.randn(1, config["in_channels"], *latent_shape(SERVED), dtype=torch.bfloat16)

    def forward() -> object:
        with torch.no_grad():
            return module(latents)

    forward()
    torch.cuda.synchronize()
    runtime.configure(mode="strict")
    for _ in range(10):
        forward()
    torch.cuda.synchronize()
    return forward


def _loop(forward: Callable[[], object], seconds: float, rate: float) -> list[float]:
    """Milliseconds of each forward, begun `rate` times a second."""
    taken = []
    begin = time.perf_counter()
    for number_of in range(int(seconds * rate)):
        wait = begin + number_of / rate - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        started = time.perf_counter()
        forward()
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - started))
    return taken


def _workload() -> Workload:
    with record() as workload:
        for size in TUNED:
            run_upsampler(size, dtype=torch.bfloat16)
    return workload


def _ask(client: Client, workload: Workload, uuid: str, target: str) -> None:
    wanted = buckets(workload)
    client.ask(
        Warmup(
            [one.signature for one in wanted],
            [one.op.reference.__module__ for one in wanted],
            uuid,
            target,
        )
    )


def _tunes(place: Place, identity: Identity) -> int:
    with Client(place, identity) as client:
        return int(client.ask(Status())["counts"].get("tunes", 0))


class _InProcess:
    """Tunes the workload in a thread of this process, one bucket after the other, until closed."""

    def __init__(self, inside: Runtime, workload: Workload) -> None:
        self.builder = inside.builder_at(0)
        self.wanted = buckets(workload)
        self.tunes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        for bucket in self.wanted:
            if self._over.is_set():
                return
            try:
                self.builder.settle(bucket.op, bucket.call)
            except NotReady:
                continue
            self.tunes += 1


def _print(phases: list[Phase]) -> bool:
    table, idle = Table(COLUMNS), phases[0]
    good = True
    for phase in phases:
        shares = (0.50, 0.95, 0.99)
        times = [phase.at(share) for share in shares]
        ratios = [phase.at(share) / idle.at(share) for share in shares]
        goal = ""
        if phase is phases[1]:
            good = ratios[0] <= P50_GOAL and ratios[1] <= P95_GOAL
            goal = f"p50 <= {P50_GOAL:g}, p95 <= {P95_GOAL:.2f}: {'met' if good else 'MISSED'}"
        table.row(
            [
                phase.name,
                *(number(ms, 2) for ms in times),
                *(number(x, 3) for x in ratios),
                str(phase.tunes),
                goal,
            ]
        )
    return good
