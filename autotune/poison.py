"""Outputs that tell on whoever leaves them unwritten or writes beside them."""

# ruff: noqa: PLC0415 - torch is imported where it is used, so that importing this stays cheap
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GUARD_ELEMENTS = 1 << 16
"""Before and after the output: more than one block of any kernel, and a multiple of 512 bytes in
every dtype, so that the output is aligned as a fresh allocation is."""

PATTERNS: dict[int, tuple[int, int]] = {
    1: (0x25, 0x5A),
    2: (0x7FA5, 0x7F9A),
    4: (0x7FA5A5A5, 0x7F9A9A9A),
    8: (0x7FF5A5A5A5A5A5A5, 0x7FF59A9A9A9A9A9A),
}
"""Two bit patterns for each item size. From two bytes on they are NaNs in every float format of
that size, with a payload that arithmetic does not produce."""


@dataclass(frozen=True, slots=True)
class Poisoned:
    """An output filled with a pattern, between two guard zones filled with the same."""

    tensor: torch.Tensor
    pattern: int
    _buffer: torch.Tensor

    def overrun(self) -> int:
        """How many elements of the guard zones were written to."""
        guards = (self._buffer[:GUARD_ELEMENTS], self._buffer[-GUARD_ELEMENTS:])
        return sum(int((guard != self.pattern).sum()) for guard in guards)

    def bits(self) -> torch.Tensor:
        """The output as integers, flat, in the order of memory."""
        return self._buffer[GUARD_ELEMENTS:-GUARD_ELEMENTS]


def poisoned(like: torch.Tensor, second: bool = False) -> Poisoned:
    """An unwritten output with the shape, strides, dtype and device of a dense tensor.

    No single pattern is beyond suspicion: the truth may happen to have those bits. So a run is
    repeated on the `second` one; an element that holds the poison both times was not written.
    """
    import torch

    pattern = PATTERNS[like.element_size()][second]
    nbytes = like.element_size() * (like.numel() + 2 * GUARD_ELEMENTS)
    raw = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
    buffer = raw.view(integers_of(like)).fill_(pattern)
    tensor = raw.view(like.dtype).as_strided(like.shape, like.stride(), GUARD_ELEMENTS)
    return Poisoned(tensor, pattern, buffer)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor as one dimension, in the order of memory, without a copy.

    ValueError if its strides leave holes or name an element twice.
    """
    stride = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and step != stride and tensor.numel():
            raise ValueError(
                f"strides {tuple(tensor.stride())} of shape {tuple(tensor.shape)} are not dense; "
                "a reference has to return a dense tensor, contiguous in some order"
            )
        stride *= size
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def integers_of(tensor: torch.Tensor) -> torch.dtype:
    """The integer dtype as wide as an element."""
    import torch

    by_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return by_size[tensor.element_size()]
