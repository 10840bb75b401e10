"""Checking a runnable against a reference, by a bound that the reference sets itself.

A kernel may be about as wrong as eager is; how wrong that is, is measured against float64 on the
very inputs of the check (`bound.Bound` states it). `expect` prepares inputs, eager's outputs and
the truth once; `check` holds one runnable to them; `verify` does both.
"""

# ruff: noqa: PLC0415 - torch is imported where it is used, so that importing this stays cheap
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .bound import CHUNK_ELEMENTS, Bound, Deviation, EagerError, deviation, eager_error
from .poison import Poisoned, flat, integers_of, poisoned

if TYPE_CHECKING:
    import torch

__all__ = ["Bound", "Expected", "Verdict", "Writer", "check", "expect", "poisoned", "verify"]

Arguments = Sequence[Any]
"""Tensors and, among them, whatever else the op takes."""

Function = Callable[..., Any]
"""Arguments to a tensor, or to a sequence of tensors."""

Precision = Literal["float64", "float32"]


class Writer(Protocol):
    """A runnable as the check needs it: it fills the outputs it is given, and touches no more.

    The outputs have the shapes, strides and dtypes of the reference's and hold garbage.
    """

    def into(self, inputs: Arguments, outputs: Sequence[torch.Tensor], /) -> object: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a runnable is right, and how far off it was at worst.

    reason               why not, in one line; empty if ok
    max_abs_error        the largest |o - t|, of the output that is nearest to its bound or
                         furthest beyond; None if no error was measured (writing went wrong, or
                         no output is a float)
    eager_max_abs_error  eager's largest error in the same output
    bound                what was allowed at the element of the largest error
    differing            elements, over all outputs, whose bits are not eager's
    shapes               of the tensors among the inputs
    truth                the precision that the truth was computed in
    """

    ok: bool
    reason: str
    max_abs_error: float | None
    eager_max_abs_error: float | None
    bound: float | None
    differing: int
    shapes: tuple[tuple[int, ...], ...]
    truth: Precision


@dataclass(frozen=True, slots=True)
class Answer:
    """One output: eager's and the true one, flat in the order of memory, and eager's error.

    `error` is None for an output of integers or bools, which has to be eager's, bit for bit.
    """

    eager: torch.Tensor
    flat: torch.Tensor
    truth: torch.Tensor
    error: EagerError | None


@dataclass(frozen=True, slots=True)
class Expected:
    """Inputs with the answers to them, which candidate after candidate is held to.

    Besides the inputs it keeps eager's outputs and the truth, 10 bytes per element of bf16.
    """

    inputs: list[Any]
    answers: tuple[Answer, ...]
    truth: Precision
    fingerprint: int
    remake: Callable[[], Arguments]

    def restore(self) -> None:
        """Undo what a runnable did to its inputs, for the next one's sake."""
        self.inputs[:] = self.remake()


def pooled(draws: Sequence[Expected]) -> list[Expected]:
    """Several draws of the same inputs, each held to eager's worst error among all of them.

    Among few elements eager may by luck be much better than it usually is, and would then refuse
    what is as good as eager.
    """
    pooled_draws = []
    for draw in draws:
        answers = []
        for number, answer in enumerate(draw.answers):
            error = answer.error
            if error is not None:
                others = [d.answers[number].error or error for d in draws]
                error = replace(
                    error,
                    largest=max(other.largest for other in others),
                    rms=max(other.rms for other in others),
                )
            answers.append(replace(answer, error=error))
        pooled_draws.append(replace(draw, answers=tuple(answers)))
    return pooled_draws


def verify(
    run: Writer,
    reference: Function,
    truth: Function | None,
    make_inputs: Callable[[torch.Generator], Arguments],
    *,
    generator: torch.Generator,
    bound: Bound = Bound(),  # noqa: B008 - frozen
    chunk: int = CHUNK_ELEMENTS,
) -> Verdict:
    """Hold one runnable to fresh inputs; see `expect` and `check`."""
    expected = expect(reference, truth, make_inputs, generator=generator, chunk=chunk)
    return check(run, expected, bound=bound, chunk=chunk)


def expect(
    reference: Function,
    truth: Function | None,
    make_inputs: Callable[[torch.Generator], Arguments],
    *,
    generator: torch.Generator,
    chunk: int = CHUNK_ELEMENTS,
) -> Expected:
    """Make inputs, and what has to come out of them.

    reference    eager, in the dtype of the inputs. It decides shapes, dtypes and strides.
    truth        the same in float64, from the same inputs. None: the reference itself with its
                 float inputs in float32, for tensors whose float64 would not fit into memory.
    make_inputs  returns the arguments, random by the generator alone. To include what reveals a
                 fault is its business: a NaN and an Inf, rows of tiny variance, odd sizes.

    ValueError if the truth cannot serve as one: of another shape, not finite where eager is, or
    no more precise than a float32 output; or if an output of the reference is not dense.
    """
    import torch

    state = generator.get_state()

    def remake() -> Arguments:
        return make_inputs(torch.Generator(generator.device).set_state(state))

    with torch.no_grad():
        inputs = list(make_inputs(generator))
        outputs = _several(reference(*inputs))
        if truth is not None:
            truths = _several(truth(*inputs))
        else:
            truths = _several(reference(*(_upcast(value) for value in inputs)))
            if any(o.dtype in (torch.float32, torch.float64) for o in outputs):
                raise ValueError("a float32 output needs a truth in float64; pass `truth`")
        answers = tuple(_answer(o, t, chunk) for o, t in zip(outputs, truths, strict=True))
    precision: Precision = "float32" if truth is None else "float64"
    return Expected(inputs, answers, precision, _fingerprint(inputs), remake)


def check(
    run: Writer,
    expected: Expected,
    *,
    bound: Bound = Bound(),  # noqa: B008 - frozen
    chunk: int = CHUNK_ELEMENTS,
) -> Verdict:
    """Run twice on poisoned outputs and say whether every demand is met.

    Nothing is written beside the outputs, nothing in them left unwritten, both runs agree in
    every bit, NaN and Inf are where eager has them, errors keep the bound, inputs are unchanged.
    What the runnable raises, is raised.
    """
    import torch

    faults: list[str] = []
    measured: list[tuple[EagerError, Deviation]] = []
    differing = 0
    with torch.no_grad():
        outputs = [
            [poisoned(answer.eager, second) for answer in expected.answers]
            for second in (False, True)
        ]
        for attempt in outputs:
            run.into(expected.inputs, [output.tensor for output in attempt])
        for number, (answer, one, two) in enumerate(zip(expected.answers, *outputs, strict=True)):
            off = int((one.bits() != answer.flat.view(integers_of(answer.flat))).sum())
            differing += off
            fault = _misconduct(one, two)
            if not fault and answer.error is None:
                fault = f"{off} elements differ from the reference's" if off else ""
            elif not fault and answer.error is not None:
                result = one.bits().view(answer.flat.dtype)
                found = deviation(
                    result, answer.flat, answer.truth, own=answer.error, bound=bound, chunk=chunk
                )
                measured.append((answer.error, found))
                fault = found.fault
            if fault:
                faults.append(f"output {number}: {fault}")
        if _fingerprint(expected.inputs) != expected.fingerprint:
            faults.append("an input was written to")
            expected.restore()

    own, worst = max(measured, key=lambda it: it[1].largest - it[1].allowed, default=(None, None))
    return Verdict(
        ok=not faults,
        reason="; ".join(faults),
        max_abs_error=worst.largest if worst else None,
        eager_max_abs_error=own.largest if own else None,
        bound=worst.allowed if worst else None,
        differing=differing,
        shapes=tuple(tuple(value.shape) for value in expected.inputs if _is_tensor(value)),
        truth=expected.truth,
    )


def _misconduct(one: Poisoned, two: Poisoned) -> str:
    """What is wrong with two runs before any number is looked at; empty if nothing is."""
    if overrun := one.overrun() + two.overrun():
        return f"{overrun} elements written beside it"
    unwritten = (one.bits() == one.pattern) & (two.bits() == two.pattern)
    if missing := int(unwritten.sum()):
        return f"{missing} of {unwritten.numel()} elements left unwritten"
    if unequal := int((one.bits() != two.bits()).sum()):
        return f"{unequal} elements differ between two runs on the same inputs"
    return ""


def _answer(eager: torch.Tensor, truth: torch.Tensor, chunk: int) -> Answer:
    import torch

    if truth.shape != eager.shape:
        raise ValueError(f"the truth has shape {tuple(truth.shape)}, eager {tuple(eager.shape)}")
    if truth.stride() != eager.stride():
        aligned = torch.empty_strided(
            eager.shape, eager.stride(), dtype=truth.dtype, device=truth.device
        )
        truth = aligned.copy_(truth)
    flat_eager, flat_truth = flat(eager), flat(truth)
    floating = eager.dtype.is_floating_point
    error = eager_error(flat_eager, flat_truth, chunk) if floating else None
    return Answer(eager, flat_eager, flat_truth, error)


def _several(outputs: Any) -> tuple[torch.Tensor, ...]:
    return (outputs,) if _is_tensor(outputs) else tuple(outputs)


def _upcast(value: Any) -> Any:
    return value.float() if _is_tensor(value) and value.dtype.is_floating_point else value


def _fingerprint(inputs: Arguments) -> int:
    """The sum of all bits as integers: enough to notice an accidental write."""
    import torch

    tensors = (value for value in inputs if _is_tensor(value))
    return sum(int(t.view(integers_of(t)).sum(dtype=torch.int64)) for t in tensors)


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
