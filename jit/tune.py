"""Tuning and checking on the GPU: what joins ops and binaries to `autotune`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ..autotune.policy import Policy
from ..autotune.search import Candidate, CandidateFailed, Outcome, Result, search
from ..autotune.timing import CudaTimer, copy_bandwidth
from ..autotune.verify import Expected, Verdict, expect, pooled
from ..autotune.verify import check as hold_to
from .binary import Binary
from .declare import Config, Device
from .errors import CompileError, LaunchError
from .inputs import make_inputs, sample_kinds
from .launch import Executable, Loaded
from .op import Op
from .sign import Call, Signature, TensorSpec
from .tensors import empty

log = logging.getLogger("jitd.tune")

Body = Mapping[str, Any]
Compiling = Sequence[tuple[Binary, "Body | Future[dict[str, Any]]"]]

_DRAWS, _FEW = 16, 1 << 17  # inputs of fewer elements are drawn several times
_KEPT = 4  # sets of inputs that a check holds at once: two kinds, two probes
_SEED = 20_240_229  # every process checks on the same inputs, so that they agree


@dataclass(frozen=True)
class Found:
    """What a tune found. `config` is None if no candidate was valid."""

    config: Config | None
    result: Result
    built: Sequence[tuple[Binary, Body]]
    check: Body
    floor_us: float
    eager_us: float

    def why_not(self) -> str:
        """The commonest reasons why candidates were not valid."""
        reasons = [f"{o.reason}: {o.detail}"[:200] for o in self.result.outcomes]
        return "; ".join(sorted(set(reasons), key=reasons.count, reverse=True)[:3])

    def body(
        self, device: Device, signature: Signature, dropped: Sequence[tuple[str, str]]
    ) -> dict[str, Any]:
        """The body of the winner's record."""
        config = self.config
        if config is None:
            raise ValueError("there is no winner to record")
        timings = {o.name: o.timing for o in self.result.outcomes if o.timing}
        us = timings[config.name].us
        return {
            "variant": config.variant.name,
            "params": dict(config.params),
            "config": config.name,
            "variant_digest": config.variant.digest,
            "signature": signature.text,
            "us": us,
            "eager_us": self.eager_us,
            "floor_us": self.floor_us,
            "how": timings[config.name].how,
            "device": device.name,
            "target": device.target,
            "driver": device.driver,
            "check": dict(self.check),
            "outcomes": [_outcome(outcome) for outcome in self.result.outcomes],
            "dropped": _by_reason(dropped),
            "stopped_early": self.result.stopped_early,
        }


def tune(
    op: Op,
    call: Call,
    configs: Sequence[Config],
    compiling: Mapping[str, Compiling],
    *,
    probes: Callable[[Config], Sequence[Call]],
    device: Device,
    policy: Policy,
    default: str | None,
    stored: str | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Check and time `configs` for `call` and choose; the caller holds the lease of the GPU.

    `compiling` has, for each config by name, its binaries with their artifacts, finished or still
    being compiled; `probes` gives further calls to check them at. Inputs are made here: nothing is
    ever tuned on live tensors.
    """
    by_name = {config.name: config for config in configs}
    done: dict[str, list[tuple[Binary, Body]]] = {}
    loaded: dict[str, list[Loaded]] = {}
    verdicts: dict[str, Verdict] = {}
    runners: dict[str, _Runner] = {}
    torch_device = torch.device("cuda", device.index)
    with torch.cuda.device(torch_device), torch.no_grad():
        expectations = _Expectations(op, torch_device)
        first = expectations.of(call, sample_kinds(op, call))[0]
        sets = _input_sets(op, call, first, torch_device, policy.input_sets)

        def build(name: str) -> Callable[[], _Runner]:
            def finish() -> _Runner:
                done[name] = _finished(compiling[name])
                loaded[name] = [Loaded.load(body, device) for _, body in done[name]]
                plan = by_name[name].plan(call, device)
                executable = Executable(plan, loaded[name], call.tensors, device)
                runners[name] = _Runner(executable, sets)
                return runners[name]

            return finish

        def verify(candidate: Candidate, runner: Any) -> Verdict:
            config = by_name[candidate.name]
            verdict = _verdict(
                op, [call, *probes(config)], config, loaded[candidate.name], expectations, device
            )
            verdicts[candidate.name] = verdict
            on_progress(len(verdicts), len(configs))
            return verdict

        timer = CudaTimer(torch_device, policy)
        floor_us = 1e6 * op.cost(call).bytes / copy_bandwidth(torch_device)
        eager = timer.measure(_Eager(op, call, sets), policy.rungs[-1])
        eager_us = sorted(eager.us)[len(eager.us) // 2]
        result = search(
            [Candidate(name, build(name)) for name in by_name],
            verify=verify,
            timer=timer,
            policy=policy,
            floor_us=floor_us,
            stored=stored,
            default=default,
        )
        torch.cuda.synchronize()
        for binaries in loaded.values():
            for binary in binaries:
                binary.unload()
    winner = by_name[result.winner] if result.winner else None
    expectations.clear()
    for held in (sets, runners):
        held.clear()
    del first, timer
    torch.cuda.empty_cache()  # tuning may have taken many times what serving needs
    if winner is None:
        return Found(None, result, (), {}, floor_us, eager_us)
    calls = [call, *probes(winner)]
    verdict_body = _check_body(op, calls, verdicts[winner.name], loaded[winner.name], device)
    return Found(winner, result, done[winner.name], verdict_body, floor_us, eager_us)


def check(
    op: Op,
    call: Call,
    config: Config,
    artifacts: Sequence[Body],
    device: Device,
    probes: Sequence[Call] = (),
) -> dict[str, Any]:
    """Hold the binaries of a config to the reference at `call` and `probes`.

    Gives the body of a check record.
    """
    calls = [call, *probes]
    torch_device = torch.device("cuda", device.index)
    with torch.cuda.device(torch_device), torch.no_grad():
        loaded = [Loaded.load(body, device) for body in artifacts]
        expectations = _Expectations(op, torch_device)
        try:
            verdict = _verdict(op, calls, config, loaded, expectations, device)
        except LaunchError as error:  # too large for a cooperative launch, say: a fact about it
            verdict = Verdict(False, str(error), None, None, None, 0, (), "float64")
        torch.cuda.synchronize()
        for binary in loaded:
            binary.unload()
    del expectations
    torch.cuda.empty_cache()
    return _check_body(op, calls, verdict, loaded, device)


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
        self.runs = [_arguments(op, call, inputs) for inputs, _ in sets]
        self.reference = op.reference

    def __call__(self, i: int) -> None:
        args, kwargs = self.runs[i]
        self.reference(*args, **kwargs)


class _Expectations:
    """Inputs, eager's answers and the truth, made once for each call and kind of inputs."""

    def __init__(self, op: Op, device: torch.device) -> None:
        self.op, self.device = op, device
        self._generator = torch.Generator(device).manual_seed(_SEED)
        self._made: dict[tuple[Call, str], list[Expected]] = {}

    def of(self, call: Call, kinds: Sequence[str]) -> list[Expected]:
        """Those of each kind, several draws of small ones."""
        for kind in kinds:
            if (call, kind) not in self._made:
                self._made[call, kind] = self._expect(call, kind)
        return [expected for kind in kinds for expected in self._made[call, kind]]

    def clear(self) -> None:
        """Give the memory back."""
        self._made.clear()

    def _expect(self, call: Call, kind: str) -> list[Expected]:
        op, device = self.op, self.device

        def reference(*tensors: torch.Tensor) -> Any:
            args, kwargs = _arguments(op, call, tensors)
            return op.reference(*args, **kwargs)

        def truth(*tensors: torch.Tensor) -> Any:
            return reference(*(t.double() if t.is_floating_point() else t for t in tensors))

        free, _ = torch.cuda.mem_get_info(device)
        numel = max(spec.numel for spec in call.tensors.values())
        # float64 inputs, outputs and what eager makes on the way, for each kind of inputs and probe
        fits = 48 * numel * _KEPT < free
        wide = any(spec.dtype == "fp32" for spec in call.tensors.values())
        make = partial(_made, op, call, device, kind)
        return pooled(
            [
                expect(reference, truth if fits or wide else None, make, generator=self._generator)
                for _ in range(max(1, min(_DRAWS, _FEW // max(1, numel))))
            ]
        )


def _made(
    op: Op, call: Call, device: torch.device, kind: str, generator: torch.Generator
) -> list[torch.Tensor]:
    return make_inputs(op, call, device, generator, kind)


def _verdict(
    op: Op,
    calls: Sequence[Call],
    config: Config,
    loaded: Sequence[Loaded],
    expectations: _Expectations,
    device: Device,
) -> Verdict:
    """The first bad verdict over `calls` and kinds of inputs, else that of the first call.

    All kinds at the first call; the others, which differ in size only, get normal inputs.
    """
    verdicts = []
    for number, call in enumerate(calls):
        runner = _Runner(Executable(config.plan(call, device), loaded, call.tensors, device), [])
        for expected in expectations.of(call, sample_kinds(op, call)[: 1 if number else None]):
            verdicts.append(hold_to(runner, expected, bound=op.bound))
            if not verdicts[-1].ok:
                return verdicts[-1]
    return verdicts[0]


def _input_sets(
    op: Op, call: Call, first: Expected, device: torch.device, count: int
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Inputs and outputs for timing, to be used in turns; the first is that of the check."""
    generator = torch.Generator(device).manual_seed(_SEED + 1)
    specs = list(op.outputs(call).values())
    inputs = [[t for t in first.inputs if isinstance(t, torch.Tensor)]]
    inputs += [list(make_inputs(op, call, device, generator, "normal")) for _ in range(count - 1)]
    return [(one, [empty(spec, device) for spec in specs]) for one in inputs]


def _arguments(
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


def _finished(compiling: Compiling) -> list[tuple[Binary, Body]]:
    finished = []
    for binary, body in compiling:
        try:
            finished.append((binary, body.result() if isinstance(body, Future) else body))
        except CompileError as error:
            raise CandidateFailed("does not compile", str(error)) from error
    return finished


def _by_reason(dropped: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason -> the configs dropped for it before they were compiled."""
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped:
        reasons.setdefault(reason, []).append(name)
    return reasons


def _outcome(outcome: Outcome) -> dict[str, Any]:
    timing = asdict(outcome.timing) if outcome.timing else None
    return {
        "config": outcome.name,
        "status": outcome.status,
        "reason": outcome.reason,
        "detail": outcome.detail[:400],
        "timing": timing,
        "error": outcome.error,
    }


def _check_body(
    op: Op, calls: Sequence[Call], verdict: Verdict, loaded: Sequence[Loaded], device: Device
) -> dict[str, Any]:
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
