"""How far a patched module may be from its stock forward.

A module cannot be held to float64, as an op is (autotune/bound.py), on live weights that may be
quantised, offloaded or adapted. Its ops have passed that check, on this card, before they serve.
What is left to find is gross: a recipe that does not fit this release or config, a wrong argument,
a layout. So what is asked for each tensor of the results, o of ours and s of stock, is

    mean |o - s|  <=      t * mean |s|
    max  |o - s|  <=  8 * t * max  |s|      t: bf16 2^-6, fp16 2^-9, fp32 2^-14, fp64 2^-40

and the same shape and dtype, and NaN and Inf at the same places. t is two units in the last place
of a 16-bit dtype: two evaluations that round at different places, each within its bound, differ
by a third of one on average. In fp32 it is that of TF32 products, half a unit of theirs in one of
eight: a bit that flips before a matrix product is TF32's there. Means of absolute values, since a
few channels hundreds of times as large as the others, as these models have, would rule a square.
Integers, bools and what is no tensor have to be equal.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Agreement", "agreement"]

TOLERANCE = {
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
    torch.float32: 2.0**-14,
    torch.float64: 2.0**-40,
}
_LARGEST = 8.0  # times as far as the mean may be
_ELEMENTS = 1 << 26  # compared at a time: half a GB of temporaries


@dataclass(frozen=True)
class Agreement:
    """share  of the bound that was reached, at worst; 0: the same bits
    fault  what breaks it, in one line; empty if nothing does"""

    share: float = 0.0
    fault: str = ""


def agreement(ours: Any, stock: Any) -> Agreement:
    """Hold the results of a module to those of its stock forward: tensors, or what holds some."""
    if isinstance(stock, Tensor):
        return _of_tensors(ours, stock)
    if type(ours) is not type(stock):
        return Agreement(fault=f"it returned a {_name(ours)} instead of a {_name(stock)}")
    if not isinstance(stock, list | tuple | Mapping):
        return Agreement(fault="" if ours is stock or ours == stock else f"{ours} != {stock}")
    mine, theirs = _items(ours), _items(stock)
    if mine.keys() != theirs.keys():
        return Agreement(fault=f"it returned {len(mine)} results instead of {len(theirs)}")
    found = [agreement(mine[name], theirs[name]) for name in mine]
    faults = [
        f"result {name}: {it.fault}" for name, it in zip(mine, found, strict=True) if it.fault
    ]
    return Agreement(max((it.share for it in found), default=0.0), "; ".join(faults))


def _of_tensors(ours: Any, stock: Tensor) -> Agreement:
    if not isinstance(ours, Tensor):
        return Agreement(fault=f"it returned a {_name(ours)} instead of a tensor")
    if ours.shape != stock.shape or ours.dtype != stock.dtype or ours.device != stock.device:
        return Agreement(fault=f"it is {_kind(ours)} instead of {_kind(stock)}")
    if torch.equal(ours, stock):
        return Agreement()
    tolerance = TOLERANCE.get(stock.dtype)
    if tolerance is None:
        if stock.is_complex():
            return _of_tensors(torch.view_as_real(ours), torch.view_as_real(stock))
        return Agreement(fault=f"{int((ours != stock).sum())} elements differ")
    total_off = total = largest_off = largest = 0.0
    for o, s in _pieces(ours, stock):
        finite = s.isfinite() & o.isfinite()
        same = (o == s) | (o.isnan() & s.isnan())
        if not bool((finite | same).all()):
            return Agreement(fault="NaN or Inf are at other places than stock's")
        off = (o - s).abs().masked_fill_(~finite, 0)
        size = s.abs().masked_fill_(~finite, 0)
        total_off += float(off.sum(dtype=torch.float64))
        total += float(size.sum(dtype=torch.float64))
        largest_off = max(largest_off, float(off.max()))
        largest = max(largest, float(size.max()))
    mean_share = _share(total_off, tolerance * total)
    largest_share = _share(largest_off, _LARGEST * tolerance * largest)
    fault = ""
    if max(mean_share, largest_share) > 1:
        n = stock.numel()
        fault = (
            f"it is off by {total_off / n:.3g} on average and {largest_off:.3g} at most, of values "
            f"of {total / n:.3g} and {largest:.3g}; {tolerance:.2g} of the average is allowed, and "
            f"{_LARGEST:g} times that of the largest"
        )
    return Agreement(max(mean_share, largest_share), fault)


def _pieces(ours: Tensor, stock: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in slices along their longest dimension, in fp32 at least."""
    wide = torch.promote_types(stock.dtype, torch.float32)
    if stock.numel() <= _ELEMENTS:
        yield ours.to(wide), stock.to(wide)
        return
    dim = max(range(stock.ndim), key=lambda d: stock.shape[d])
    count = -(-stock.numel() // _ELEMENTS)
    for o, s in zip(ours.chunk(count, dim), stock.chunk(count, dim), strict=True):
        yield o.to(wide), s.to(wide)


def _share(value: float, allowed: float) -> float:
    if value == 0:
        return 0.0
    return value / allowed if allowed else float("inf")


def _items(results: Any) -> dict[Any, Any]:
    return dict(results) if isinstance(results, Mapping) else dict(enumerate(results))


def _name(value: Any) -> str:
    return type(value).__name__


def _kind(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} on {tensor.device}"
