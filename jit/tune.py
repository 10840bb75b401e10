"""Tuning and checking on the GPU: what joins ops and binaries to `autotune`.

Runs where a CUDA context may break: in the tuning process (`tuner`), or, if asked to, in the
caller's own.
"""

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch

from ..autotune.policy import Policy
from ..autotune.search import Candidate, CandidateFailed, Outcome, search
from ..autotune.timing import CudaTimer, copy_bandwidth
from ..autotune.verify import Expected, Verdict, expect, pooled
from ..autotune.verify import check as hold_to
from .declare import Config, Device, Plan
from .errors import LaunchError
from .inputs import make_inputs, sample_kinds
from .launch import Executable, Loaded
from .op import Op
from .sign import Call, TensorSpec
from .task import Body, DoesNotFit, Found, Task, Trial
from .tensors import empty

log = logging.getLogger("jitd.tune")

_DRAWS, _FEW = 16, 1 << 17  # inputs of fewer elements are drawn several times
_SEED = 20_240_229  # every process checks on the same inputs, so that they agree
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
        bench = _Bench(op, torch_device, _allowed_bytes(torch_device, task.memory_share))
        bench.fit(call, task.policy.input_sets)
        sets = bench.input_sets(call, task.policy.input_sets)
        floor_us = 1e6 * op.cost(call).bytes / copy_bandwidth(torch_device)
        eager = timer.measure(_Eager(op, call, sets), task.policy.rungs[0])
        eager_us = sorted(eager.us)[len(eager.us) // 2]
        seeded = {task.default, task.stored}
        timer.warm_up()

        def build(name: str) -> _Runner:
            bodies = source.bodies(name)
            _refuse_shared(bodies, device)
            loaded[name] = [Loaded.load(body, device) for body in bodies]
            if name not in seeded:
                _refuse_spills(loaded[name])
            plan = by_name[name].plan(call, device)
            _refuse_overfull(plan, loaded[name], device)
            return _Runner(Executable(plan, loaded[name], call.tensors, device), sets)

        def verify(candidate: Candidate, runner: Any) -> Verdict:
            name = candidate.name
            verdicts[name] = bench.verdict(
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
            bench.clear()
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
        bench = _Bench(op, torch_device, _allowed_bytes(torch_device, memory_share))
        bench.fit(call, 0)
        loaded = [Loaded.load(body, device) for body in artifacts]
        try:
            verdict = bench.verdict(calls, config, loaded, device)
        except LaunchError as error:  # too large for a cooperative launch, say: a fact about it
            verdict = Verdict(False, str(error), None, None, None, 0, (), "float64")
        torch.cuda.synchronize()
        for binary in loaded:
            binary.unload()
        bench.clear()
    torch.cuda.empty_cache()
    return check_body(op, calls, verdict, loaded, device)


class _Bench:
    """Inputs, eager's answers and the truth for the calls of one op, made once each.

    `kinds` of inputs and `probing` say how much of the check there is memory for.
    """

    def __init__(self, op: Op, device: torch.device, allowed_bytes: int) -> None:
        self.op, self.device, self.allowed_bytes = op, device, allowed_bytes
        self.kinds: Sequence[str] = ("normal",)
        self.probing = False
        self._generator = torch.Generator(device).manual_seed(_SEED)
        self._expected: dict[tuple[Call, str], list[Expected]] = {}

    def fit(self, call: Call, input_sets: int) -> None:
        """Choose the fullest check that there is memory for. Raises DoesNotFit if none is."""
        kinds = sample_kinds(self.op, call)
        for self.kinds, self.probing in ((kinds, True), (kinds[:2], True), (kinds[:1], False)):
            needed = self._needed_bytes(call, input_sets)
            if needed <= self.allowed_bytes:
                return
        raise DoesNotFit(needed, self.allowed_bytes)

    def _needed_bytes(self, call: Call, input_sets: int) -> int:
        inputs = sum(spec.nbytes for spec in call.tensors.values())
        outputs = list(self.op.outputs(call).values())
        results = sum(spec.nbytes for spec in outputs)
        numel = max(spec.numel for spec in (*call.tensors.values(), *outputs))
        kept = len(self.kinds) + 2 * self.probing  # sets of inputs with eager's answer and truth
        return (
            input_sets * (inputs + results)
            + kept * (inputs + results + 8 * numel)
            + 4 * 8 * numel  # what a reference in float64 makes on its way
            + 2 * results  # the poisoned outputs
        )

    def verdict(
        self, calls: Sequence[Call], config: Config, loaded: Sequence[Loaded], device: Device
    ) -> Verdict:
        """The first bad verdict over `calls` and kinds of inputs, else that of the first call.

        All kinds at the first call; the others, which differ in size only, get normal inputs.
        """
        verdicts: list[Verdict] = []
        for call in calls if self.probing else calls[:1]:
            plan = config.plan(call, device)
            runner = _Runner(Executable(plan, loaded, call.tensors, device), [])
            for kind in self.kinds if not verdicts else self.kinds[:1]:
                for expected in self.expected(call, kind):
                    verdicts.append(hold_to(runner, expected, bound=self.op.bound))
                    if not verdicts[-1].ok:
                        return _blaming(verdicts[-1], kind, call is not calls[0] and call)
        return verdicts[0]

    def expected(self, call: Call, kind: str) -> list[Expected]:
        """What a kernel is held to; several draws of small inputs."""
        if (call, kind) not in self._expected:
            self._expected[call, kind] = self._expect(call, kind)
        return self._expected[call, kind]

    def clear(self) -> None:
        """Give the memory back."""
        self._expected.clear()

    def input_sets(self, call: Call, count: int) -> list[Any]:
        """Inputs and outputs for timing, to be used in turns; the first is that of the check."""
        generator = torch.Generator(self.device).manual_seed(_SEED + 1)
        specs = list(self.op.outputs(call).values())
        first = self.expected(call, self.kinds[0])[0]
        inputs = [[t for t in first.inputs if isinstance(t, torch.Tensor)]]
        for _ in range(count - 1):
            inputs.append(list(make_inputs(self.op, call, self.device, generator, "normal")))
        return [(one, [empty(spec, self.device) for spec in specs]) for one in inputs]

    def _expect(self, call: Call, kind: str) -> list[Expected]:
        op, device = self.op, self.device

        def reference(*tensors: torch.Tensor) -> Any:
            args, kwargs = arguments(op, call, tensors)
            return op.reference(*args, **kwargs)

        def truth(*tensors: torch.Tensor) -> Any:
            return reference(*(t.double() if t.is_floating_point() else t for t in tensors))

        def make(generator: torch.Generator) -> list[torch.Tensor]:
            return make_inputs(op, call, device, generator, kind)

        numel = max(spec.numel for spec in call.tensors.values())
        fits = 40 * numel < self.allowed_bytes and self.probing
        wide = any(spec.dtype == "fp32" for spec in call.tensors.values())
        return pooled(
            [
                expect(reference, truth if fits or wide else None, make, generator=self._generator)
                for _ in range(max(1, min(_DRAWS, _FEW // max(1, numel))))
            ]
        )


class _Runner:
    """An executable as the timer wants it (by input set) and as the check does (into outputs)."""

    def __init__(
        self,
        executable: Executable,
        sets: Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]],
    ) -> None:
        self.executable, self.sets = executable, sets

    def __call__(self, i: int) -> None:
        self.executable.into(*self.sets[i])

    def into(self, inputs: Sequence[Any], outputs: Sequence[torch.Tensor]) -> None:
        self.executable.into([t for t in inputs if isinstance(t, torch.Tensor)], outputs)


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


def _allowed_bytes(device: torch.device, share: float) -> int:
    """The GPU memory that a tune may take: a share of what is free, torch's own cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(share * (free + cached))


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


def _blaming(verdict: Verdict, kind: str, probe: Call | bool) -> Verdict:
    """A bad verdict whose reason says on which inputs."""
    where = [] if kind == "normal" else [f"{kind} inputs"]
    where += [f"at {next(iter(probe.tensors.values())).shape}"] if isinstance(probe, Call) else []
    return replace(verdict, reason=f"{verdict.reason} ({', '.join(where)})") if where else verdict


def arguments(
    op: Op, call: Call, tensors: Sequence[torch.Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    """The op's arguments with `tensors` in place of the specs of `call`."""
    rest = iter(tensors)
    args, kwargs = [], {}
    for argument in op.arguments:
        value = call[argument.name]
        if isinstance(value, TensorSpec):
            value = next(rest)
        if argument.keyword_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def check_body(
    op: Op, calls: Sequence[Call], verdict: Verdict, loaded: Sequence[Loaded], device: Device
) -> dict[str, Any]:
    """The body of a check record."""
    return {
        "ok": verdict.ok,
        "reason": verdict.reason,
        "signature": op.sign(calls[0]).text,
        "probes": [op.sign(call).text for call in calls[1:]],
        "device": device.name,
        "driver": device.driver,
        "max_abs_error": verdict.max_abs_error,
        "eager_max_abs_error": verdict.eager_max_abs_error,
        "bound": verdict.bound,
        "differing": verdict.differing,
        "truth": verdict.truth,
        "registers": [one.registers for one in loaded],
        "local_bytes": [one.local_bytes for one in loaded],
        "shared_bytes": [one.shared_bytes for one in loaded],
    }
