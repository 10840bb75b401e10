"""Random arguments for checking and timing a call."""

from collections.abc import Sequence

import torch

from .op import Op
from .sign import Call, TensorSpec
from .tensors import random

_LARGE = 1 << 30  # elements above which one kind of inputs has to do: memory and time


def sample_kinds(op: Op, call: Call) -> Sequence[str]:
    """The kinds of inputs that a check uses: `normal`, and `shifted` with a large mean.

    A shifted input shows statistics that cancel: E[x²] - mean² loses all digits there.
    """
    numel = max(spec.numel for spec in call.tensors.values())
    return ("normal",) if numel > _LARGE else ("normal", "shifted")


def make_inputs(
    op: Op, call: Call, device: torch.device | str, generator: torch.Generator, kind: str
) -> list[torch.Tensor]:
    """The tensor arguments of `call`, in order, normally distributed.

    `shifted` gives the first one a mean of 64 standard deviations.
    """
    made: list[torch.Tensor] = []
    for argument in op.tensors:
        spec = call[argument.name]
        if isinstance(spec, TensorSpec):
            offset = 64.0 if kind == "shifted" and not made else 0.0
            made.append(random(spec, device, generator, offset=offset))
    return made
