"""What JITD_DEBUG=1 looks at before each call: values that no kernel checks. It costs a wait for
the device, so that it is off by default.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .op import Op
from .sign import Call


def check_values(op: Op, call: Call, tensors: Sequence[torch.Tensor | None]) -> None:
    """Raise ValueError if an integer lies outside of what the op says it is `below`.

    tensors: the op's tensor arguments in order. Nothing is looked at while a CUDA graph is being
    captured, which a read of values would break.
    """
    if not op.below or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return
    for argument, tensor in zip(op.tensors, tensors, strict=True):
        if argument.name not in op.below or tensor is None or not tensor.numel() or tensor.is_meta:
            continue
        limit = op.below[argument.name](call)
        outside = (tensor < 0) | (tensor >= limit)
        if bool(outside.any()):
            at = tuple(outside.nonzero()[0].tolist())
            raise ValueError(
                f"{op.name}: {argument.name} has {int(outside.sum())} values outside of its table, "
                f"{int(tensor[at])} at {at}; allowed are 0 to {limit - 1}."
            )


class Checked:
    """A prepared answer, with a look at the values in front of it."""

    def __init__(self, op: Op, call: Call, answer: Callable[..., Any]) -> None:
        self.op, self.call, self.answer = op, call, answer

    def __call__(self, *given: Any) -> Any:
        check_values(self.op, self.call, given[: len(self.op.tensors)])  # then scalars that vary
        return self.answer(*given)
