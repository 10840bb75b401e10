"""How wrong a result may be, and how wrong it is: the arithmetic of the check."""

# ruff: noqa: PLC0415 - torch is imported where it is used, so that importing this stays cheap
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 1 << 26
"""Compared at a time, in float64: about 3 GB of temporaries, whatever the size of the output."""

EXPONENT_BITS = 0x7FF0000000000000
"""Of a float64. A number stripped to them is the power of two below it."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How far an output o may be from the truth t, given eager's output e on the same inputs.

        |o - t|      <=  factor * max |e - t|  +  ulps * ulp(t)        for every element
        rms (o - t)  <=  factor * rms (e - t)  +  ulps * rms ulp(t)    over each output

    ulp(t) is the spacing of the output's dtype at max(|t|, its smallest normal number). Elements
    where e is NaN or Inf count in neither; o has to be the same there, and finite elsewhere.

    Why the maximum over the tensor and not eager's error at the same element: where eager happens
    to round well, another and equally good order of summation would be refused. The maximum over
    a large tensor hardly varies. Why one ulp more: an eager that is exact (a copy, a cast) would
    leave no room for a second rounding; it is taken at the element, so that small elements gain
    nothing from large ones. Why the rms: the maximum is set by the largest elements and would let
    all the others be off by as much. The rms averages over every rounding, so it varies even
    less, and it grows at once when all of them are worse: sums kept in bf16, another eps, a part
    of a row left out.
    """

    factor: float = 1.5
    ulps: float = 1.0

    def around(self, eager_error: Any, ulp: Any) -> Any:
        """What is allowed, for an error of eager's and an ulp: numbers, or tensors of them."""
        return self.factor * eager_error + self.ulps * ulp


@dataclass(frozen=True, slots=True)
class EagerError:
    """Eager's own distance from the truth, over one output."""

    largest: float
    rms: float
    rms_ulp: float


@dataclass(frozen=True, slots=True)
class Deviation:
    """A result's distance from the truth, over one output.

    largest  the largest |o - t|, and what is `allowed` at that element
    fault    what breaks the bound, in one line; empty if nothing does
    """

    largest: float
    allowed: float
    fault: str


def eager_error(eager: torch.Tensor, truth: torch.Tensor, chunk: int) -> EagerError:
    """The error that sets the bound. Both flat. ValueError if the truth is not finite somewhere
    where eager is: nothing could be said about such an element."""
    largest = squares = ulp_squares = 0.0
    counted = unknown = 0
    for _, e, t in _chunks(chunk, eager, truth):
        finite = e.isfinite()
        unknown += int((finite & ~t.isfinite()).sum())
        off = (e.double() - t).abs()[finite]
        ulp = _ulp(t, eager.dtype)[finite]
        counted += off.numel()
        if off.numel():
            largest = max(largest, float(off.max()))
            squares += float(off.square().sum())
            ulp_squares += float(ulp.square().sum())
    if unknown:
        raise ValueError(
            f"the truth is not finite at {unknown} elements where eager is; they cannot be "
            "checked. Compute it in float64 from the first step, or choose smaller inputs"
        )
    counted = max(counted, 1)
    return EagerError(largest, math.sqrt(squares / counted), math.sqrt(ulp_squares / counted))


def deviation(
    result: torch.Tensor,
    eager: torch.Tensor,
    truth: torch.Tensor,
    *,
    own: EagerError,
    bound: Bound,
    chunk: int,
) -> Deviation:
    """Hold a result to the bound that eager's `own` error sets. All flat, of one shape."""
    largest = allowed_there = squares = 0.0
    counted = misplaced = beyond = 0
    worst_excess, worst = 0.0, ""
    for start, o, e, t in _chunks(chunk, result, eager, truth):
        finite = e.isfinite()
        same = (o == e) | (o.isnan() & e.isnan())
        misplaced += int((~same & ~(finite & o.isfinite())).sum())

        off = (o.double() - t).abs().masked_fill_(~(finite & o.isfinite()), 0.0)
        allowed = bound.around(own.largest, _ulp(t, result.dtype))
        counted += int(finite.sum())
        squares += float(off.square().sum())
        at = int(off.argmax())
        if float(off[at]) >= largest:
            largest, allowed_there = float(off[at]), float(allowed[at])

        excess = off - allowed
        beyond += int((excess > 0).sum())
        at = int(excess.argmax())
        if float(excess[at]) > worst_excess:
            worst_excess = float(excess[at])
            worst = (
                f"element {start + at} is {float(o[at]):.6g} instead of {float(t[at]):.6g}, "
                f"off by {float(off[at]):.3g}, allowed {float(allowed[at]):.3g}"
            )

    rms = math.sqrt(squares / max(counted, 1))
    allowed_rms = bound.around(own.rms, own.rms_ulp)
    if misplaced:
        fault = f"NaN or Inf differ from the reference's at {misplaced} elements"
    elif beyond:
        fault = f"{beyond} elements beyond the bound; {worst} (eager's worst {own.largest:.3g})"
    elif rms > allowed_rms:
        fault = f"rms error {rms:.3g}, allowed {allowed_rms:.3g} (eager's {own.rms:.3g})"
    else:
        fault = ""
    return Deviation(largest, allowed_there, fault)


def _ulp(truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The spacing of `dtype` at float64 values; infinite at NaN and Inf."""
    import torch

    kind = torch.finfo(dtype)
    size = truth.abs().clamp_min_(kind.smallest_normal)
    return (size.view(torch.int64) & EXPONENT_BITS).view(torch.float64).mul_(kind.eps)


def _chunks(chunk: int, *tensors: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """Start and slices of flat tensors of one length, the last of them (the truth) in float64."""
    for start in range(0, tensors[0].numel(), chunk):
        *others, truth = (tensor[start : start + chunk] for tensor in tensors)
        yield (start, *others, truth.double())
