"""Random arguments for checking and timing a call: plain ones, and such as show faults.

Every kind changes the first tensor only; the others are normally distributed. All tensors lie
between guard zones of NaN (`tensors.guarded`), so that whoever uses what lies beside them is seen.

    normal   N(0, 1)
    shifted  a mean of 64 standard deviations: E[x²] - mean² loses all digits there
    huge     2^40 times as large (2^10 in fp16): sums and squares in too narrow a dtype overflow,
             those in fp32 do not, over any number of elements that fits into memory
    tiny     2^-12 times as large: the variance, 6e-8, lies far below an eps of 1e-5 and near one of
             1e-7, so that the result shows which eps was added; a fifth of fp16's are subnormal
    special  normal with a NaN, an Inf and a -Inf: each has to spread as in the reference
"""

import math
from collections.abc import Sequence

import torch

from .op import Op
from .sign import Call, TensorSpec
from .tensors import random, random_below

_MANY = 1 << 27  # elements above which only the kinds are used that depend on the size of a call
_LARGE = 1 << 30  # elements above which one kind of inputs has to do: memory and time

_SHIFT, _TINY = 64.0, 2.0**-12
_HUGE = {"fp16": 2.0**10}  # of others 2^40; what is made of fp16 must stay below its 65504


def sample_kinds(op: Op, call: Call) -> Sequence[str]:
    """The kinds of inputs that a check uses, `normal` first; fewer of large tensors.

    Overflow and eps do not depend on the number of elements: large calls go without `huge` and
    `tiny`. How much a sum loses does, and so does which tile meets a NaN.
    """
    numel = max(spec.numel for spec in call.tensors.values())
    if numel > _LARGE:
        return ("normal",)
    if numel > _MANY:
        return ("normal", "shifted", "special")
    return ("normal", "shifted", "huge", "tiny", "special")


def make_inputs(
    op: Op, call: Call, device: torch.device | str, generator: torch.Generator, kind: str
) -> list[torch.Tensor]:
    """The tensor arguments of `call`, in order, random by the generator alone.

    Raises ValueError for a kind that does not exist, and for tensors of integers of which the op
    does not say what they are `below`.
    """
    (_, first), *others = call.tensors.items()
    made = [_of_kind(kind, first, device, generator)]
    for name, spec in others:
        if name in op.below:
            made.append(random_below(op.below[name](call), spec, device, generator))
        else:
            made.append(random(spec, device, generator))
    return made


def _of_kind(
    kind: str, spec: TensorSpec, device: torch.device | str, generator: torch.Generator
) -> torch.Tensor:
    match kind:
        case "normal":
            return random(spec, device, generator)
        case "shifted":
            return random(spec, device, generator, offset=_SHIFT)
        case "huge":
            return random(spec, device, generator, scale=_HUGE.get(spec.dtype, 2.0**40))
        case "tiny":
            return random(spec, device, generator, scale=_TINY)
        case "special":
            return _strewn(random(spec, device, generator), generator)
    raise ValueError(f"no kind of inputs is called {kind!r}; see `sample_kinds`.")


def _strewn(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The tensor with three special values put into it, however large it is: few enough to leave
    most rows or groups finite, which are compared with the reference as ever."""
    numel = tensor.numel()
    if numel:
        start = int(torch.randint(numel, (1,), generator=generator, device=tensor.device))
        # A third of the tensor apart: of rows or groups there are mostly more, and one in which
        # an Inf has made everything a NaN would not tell what becomes of a NaN.
        for number, value in enumerate((math.nan, math.inf, -math.inf)):
            place = (start + number * numel // 3) % numel
            tensor[_index(place, tensor.shape)] = value
    return tensor


def _index(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of the element at `place`, counted in the order of a contiguous tensor."""
    index: list[int] = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        index.insert(0, at)
    return tuple(index)
