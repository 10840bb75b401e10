"""Holding binaries to the reference: inputs, eager's answers, the truth, and memory for them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..autotune.verify import Expected, Verdict, expect, pooled
from ..autotune.verify import check as hold_to
from .declare import Config, Device
from .inputs import make_inputs, sample_kinds
from .launch import Executable, Loaded
from .op import Op
from .sign import Call, Passed, TensorSpec
from .task import DoesNotFit
from .tensors import empty

# Inputs of fewer than _FEW elements are drawn up to _DRAWS times: eager's worst error is that of a
# few large elements. What is beyond it is held to that of up to _MORE draws before it is wrong.
_FEW, _DRAWS, _MORE = 1 << 17, 16, 96
_SEED = 20_240_229  # every process checks on the same inputs, so that they agree


class Checker:
    """Inputs, eager's answers and the truth for the calls of one op, made once each.

    `kinds` of inputs and `probing` say how much of the check there is memory for.
    """

    def __init__(self, op: Op, device: torch.device, allowed_bytes: int) -> None:
        self.op, self.device, self.allowed_bytes = op, device, allowed_bytes
        self.kinds: Sequence[str] = ("normal",)
        self.probing = False
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
            runner = Runner(Executable(plan, loaded, call.tensors, device), [])
            for kind in self.kinds if not verdicts else self.kinds[:1]:
                verdicts.append(self._held(runner, call, kind))
                if not verdicts[-1].ok and self._drawn(call, _MORE) > self._drawn(call, _DRAWS):
                    more = self._expect(call, kind, _MORE)  # the same ones first
                    self._expected[call, kind] = more[: self._drawn(call, _DRAWS)]
                    verdicts[-1] = self._held(runner, call, kind)
                if not verdicts[-1].ok:
                    return _blamed(verdicts[-1], kind, call is not calls[0] and call)
        return verdicts[0]

    def _held(self, runner: "Runner", call: Call, kind: str) -> Verdict:
        """The first bad verdict over the draws of a kind, else that of the first."""
        verdicts = []
        for expected in self.expected(call, kind):
            verdicts.append(hold_to(runner, expected, bound=self.op.bound))
            if not verdicts[-1].ok:
                return verdicts[-1]
        return verdicts[0]

    @staticmethod
    def _drawn(call: Call, most: int) -> int:
        """How often inputs are drawn."""
        numel = max(spec.numel for spec in call.tensors.values())
        return max(1, min(most, _FEW // max(1, numel)))

    def expected(self, call: Call, kind: str) -> list[Expected]:
        """What a kernel is held to; several draws of small inputs."""
        if (call, kind) not in self._expected:
            self._expected[call, kind] = self._expect(call, kind, _DRAWS)
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

    def _expect(self, call: Call, kind: str, most: int) -> list[Expected]:
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
        generator = torch.Generator(device).manual_seed(_SEED)
        return pooled(
            [
                expect(reference, truth if fits or wide else None, make, generator=generator)
                for _ in range(self._drawn(call, most))
            ]
        )


class Runner:
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


def allowed_bytes(device: torch.device, share: float) -> int:
    """The GPU memory that a tune may take: a share of what is free, torch's own cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(share * (free + cached))


def arguments(
    op: Op, call: Call, tensors: Sequence[torch.Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    """The op's arguments with `tensors` in place of the specs of `call`, and examples of scalars
    that vary.
    """
    rest = iter(tensors)
    args, kwargs = [], {}
    for argument in op.arguments:
        value = call[argument.name]
        if isinstance(value, TensorSpec):
            value = next(rest)
        elif isinstance(value, Passed):
            value = value.example
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


def _blamed(verdict: Verdict, kind: str, probe: Call | bool) -> Verdict:
    """A bad verdict whose reason says on which inputs."""
    where = [] if kind == "normal" else [f"{kind} inputs"]
    where += [f"at {next(iter(probe.tensors.values())).shape}"] if isinstance(probe, Call) else []
    return replace(verdict, reason=f"{verdict.reason} ({', '.join(where)})") if where else verdict
