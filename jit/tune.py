"""Tuning and checking on the GPU: what joins ops and binaries to `autotune`.

Runs where a CUDA context may break: in the tuning process (`tuner`), or, if asked to, in the
caller's own.
"""

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from ..autotune.policy import Policy
from ..autotune.search import Candidate, CandidateFailed, Outcome, search
from ..autotune.timing import CudaTimer, copy_bandwidth
from ..autotune.verify import Verdict
from .check import Checker, Runner, allowed_bytes, arguments, check_body
from .declare import Config, Device, Plan
from .errors import LaunchError
from .launch import Executable, Loaded
from .op import Op
from .sign import Call
from .task import Body, Found, Task, Trial

log = logging.getLogger("jitd.tune")

_SPILLED_BYTES = 256  # per thread: beyond it a candidate is not worth timing


class Source(Protocol):
    """Where the binaries of candidates come from."""

    def arrivals(self) -> Iterable[str]:
        """Names as their binaries are ready; may block."""

    def bodies(self, name: str) -> Sequence[Body]:
        """The artifacts of a candidate, in the order of its launches. Raises CandidateFailed."""


class Report(Protocol):
    """Who is told how a tune goes."""

    def step(self, name: str, stage: str) -> None:
        """What is begun: a candidate's name ("" if it is nobody's) and one of `prepare`, `wait`,
        `build`, `verify`, `time`, `final`."""

    def trial(self, trial: Trial) -> None:
        """What became of a candidate so far."""


def open_context(device: Device) -> None:
    """Have a CUDA context on the device, which takes most of a second."""
    torch.empty(1, device=f"cuda:{device.index}")


def tune(task: Task, source: Source, report: Report, device: Device) -> Found:
    """Check and time the configs of `task` and choose; the caller holds the lease of the GPU.

    Inputs are made here: nothing is ever tuned on live tensors. Raises DoesNotFit, and
    `autotune.search.DeviceLost` where a candidate broke the CUDA context.
    """
    report.step("", "prepare")
    op, call = task.op, task.call
    by_name = {config.name: config for config in task.configs}
    probes = {c.name: calls for c, calls in zip(task.configs, task.probes, strict=True)}
    loaded: dict[str, list[Loaded]] = {}
    verdicts: dict[str, Verdict] = {}
    torch_device = torch.device("cuda", device.index)
    with torch.cuda.device(torch_device), torch.no_grad():
        timer = _timer(torch_device, task.policy)
        checker = Checker(op, torch_device, allowed_bytes(torch_device, task.memory_share))
        checker.fit(call, task.policy.input_sets)
        sets = checker.input_sets(call, task.policy.input_sets)
        floor_us = 1e6 * op.cost(call).bytes / copy_bandwidth(torch_device)
        eager = timer.measure(_Eager(op, call, sets), task.policy.rungs[0])
        eager_us = sorted(eager.us)[len(eager.us) // 2]
        seeded = {task.default, task.stored}
        timer.warm_up()

        def build(name: str) -> Runner:
            plan = by_name[name].plan(call, device)
            bodies = source.bodies(name)
            loaded[name] = admitted(plan, bodies, device, seeded=name in seeded)
            return Runner(Executable(plan, loaded[name], call.tensors, device), sets)

        def verify(candidate: Candidate, runner: Any) -> Verdict:
            name = candidate.name
            verdicts[name] = checker.verdict(
                [call, *probes[name]], by_name[name], loaded[name], device
            )
            return verdicts[name]

        def on_outcome(outcome: Outcome) -> None:
            report.trial(_trial(outcome, by_name[outcome.name], loaded.get(outcome.name)))

        try:
            result = search(
                [Candidate(name, partial(build, name)) for name in by_name],
                arrivals=_announced(source.arrivals(), report),
                verify=verify,
                timer=timer,
                policy=task.policy,
                floor_us=floor_us,
                stored=task.stored,
                default=task.default,
                known=task.known,
                alive=_alive,
                on_step=report.step,
                on_outcome=on_outcome,
            )
            check = None
            if result.winner in verdicts:
                calls = [call, *probes[result.winner]]
                taken = loaded[result.winner]
                check = check_body(op, calls, verdicts[result.winner], taken, device)
            for outcome in result.outcomes:
                on_outcome(outcome)
        finally:
            timer.forget()  # before what its graphs launch is unloaded
            checker.clear()
            sets.clear()
        torch.cuda.synchronize()
        for binary in itertools.chain.from_iterable(loaded.values()):
            binary.unload()
    torch.cuda.empty_cache()  # tuning may have taken many times what serving needs
    return Found(
        winner=result.winner,
        check=check,
        floor_us=floor_us,
        eager_us=eager_us,
        stopped_early=result.stopped_early,
        drift=result.drift,
        measured=list(result.measured),
    )


def check(
    op: Op,
    call: Call,
    config: Config,
    artifacts: Sequence[Body],
    device: Device,
    probes: Sequence[Call] = (),
    memory_share: float = 0.5,
) -> dict[str, Any]:
    """Hold the binaries of a config to the reference at `call` and `probes`.

    Gives the body of a check record. Raises DoesNotFit.
    """
    torch_device = torch.device("cuda", device.index)
    calls = [call, *probes]
    with torch.cuda.device(torch_device), torch.no_grad():
        checker = Checker(op, torch_device, allowed_bytes(torch_device, memory_share))
        checker.fit(call, 0)
        loaded = [Loaded.load(body, device) for body in artifacts]
        try:
            verdict = checker.verdict(calls, config, loaded, device)
        except LaunchError as error:  # too large for a cooperative launch, say: a fact about it
            verdict = Verdict(False, str(error), None, None, None, 0, (), "float64")
        torch.cuda.synchronize()
        for binary in loaded:
            binary.unload()
        checker.clear()
    torch.cuda.empty_cache()
    return check_body(op, calls, verdict, loaded, device)


class _Eager:
    """The reference as the timer wants it."""

    capturable = True

    def __init__(self, op: Op, call: Call, sets: Sequence[Any]) -> None:
        self.runs = [arguments(op, call, inputs) for inputs, _ in sets]
        self.reference = op.reference

    def __call__(self, i: int) -> None:
        args, kwargs = self.runs[i]
        self.reference(*args, **kwargs)


@functools.lru_cache(maxsize=4)
def _timer(device: torch.device, policy: Policy) -> CudaTimer:
    """One timer for all tunes of a process: its clocks stay up from one to the next."""
    return CudaTimer(device, policy)


def _announced(arrivals: Iterable[str], report: Report) -> Iterator[str]:
    """The arrivals; the report hears when one is waited for."""
    names = iter(arrivals)
    while True:
        report.step("", "wait")
        try:
            yield next(names)
        except StopIteration:
            return


def _alive() -> bool:
    """Whether the CUDA context still works; an illegal access breaks it for good."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def admitted(plan: Plan, bodies: Sequence[Body], device: Device, *, seeded: bool) -> list[Loaded]:
    """A candidate's binaries, loaded. Raises CandidateFailed for what is not worth trying.

    One that is `seeded` (the default, the stored winner) may spill.
    """
    _refuse_shared(bodies, device)
    loaded = [Loaded.load(body, device) for body in bodies]
    try:
        if not seeded:
            _refuse_spills(loaded)
        _refuse_overfull(plan, loaded, device)
    except CandidateFailed:
        for binary in loaded:
            binary.unload()
        raise
    return loaded


def _refuse_shared(bodies: Sequence[Body], device: Device) -> None:
    most = max(body["shared"] for body in bodies)
    if most > device.max_shared_bytes:
        raise CandidateFailed(
            "too much shared memory", f"{most} bytes, the card has {device.max_shared_bytes}"
        )


def _refuse_overfull(plan: Plan, loaded: Sequence[Loaded], device: Device) -> None:
    """A cooperative launch needs all its programs on the card at once."""
    for launch, binary in zip(plan.launches, loaded, strict=True):
        programs = math.prod(launch.grid)
        if launch.cooperative and programs > (fit := binary.resident(launch.num_warps, device)):
            raise CandidateFailed("too many programs", f"{programs}, {fit} fit on the card at once")


def _refuse_spills(loaded: Sequence[Loaded]) -> None:
    most = max(binary.local_bytes for binary in loaded)
    if most > _SPILLED_BYTES:
        raise CandidateFailed("spills", f"{most} bytes a thread, {_SPILLED_BYTES} are allowed")


def _trial(outcome: Outcome, config: Config, loaded: Sequence[Loaded] | None) -> Trial:
    if loaded is None:
        return Trial(outcome, config)
    return Trial(
        outcome,
        config,
        registers=[binary.registers for binary in loaded],
        spills=max(binary.local_bytes for binary in loaded),
    )
