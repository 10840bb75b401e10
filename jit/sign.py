"""What a call asks for, as plain data: tensor specs, calls and signatures. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

Scalar: TypeAlias = bool | int | float | str | None

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1, "u8": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8,
    "fp8e4nv": 1, "fp8e5": 1, "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8,
    "complex64": 8, "complex128": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Passed:
    """A float that differs from call to call: what a call and a launch hold in its place.

    `name` is the op's argument. A launch takes it as a kernel's argument as it is; nothing can be
    computed from it before the launch. `example` is the value that checks and timing use.
    """

    name: str
    example: float


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its data: dtype (Triton's short name), shape, strides in elements.

    `aligned` says whether the data pointer is a multiple of 16 bytes, which decides the width of
    the loads that Triton may emit. Strides of dimensions of size 1 mean nothing and are replaced
    by canonical ones, so that equal layouts compare equal.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    aligned: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"unknown dtype {self.dtype!r}; one of {', '.join(ITEM_BYTES)}")
        strides = self.strides or contiguous_strides(self.shape)
        if len(strides) != len(self.shape):
            raise ValueError(f"{len(strides)} strides for shape {self.shape}")
        if 1 in self.shape or 0 in self.shape:
            strides = _canonical(self.shape, strides)
        object.__setattr__(self, "strides", strides)

    @cached_property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the elements moves (not the bytes of a padded storage)."""
        return self.numel * ITEM_BYTES[self.dtype]

    @cached_property
    def order(self) -> tuple[int, ...] | None:
        """Dimensions from the outermost to the innermost if the tensor is dense, else None."""
        dims = sorted(range(len(self.shape)), key=lambda d: (-self.strides[d], d))
        expected = 1
        for dim in reversed(dims):
            if self.shape[dim] != 1 and self.strides[dim] != expected:
                return None
            expected *= max(self.shape[dim], 1)
        return tuple(dims)

    @cached_property
    def layout(self) -> str:
        """The strides class: contiguous, channels_last(_3d), perm02134, or strided(…)."""
        if self.strides == contiguous_strides(self.shape):
            return "contiguous"
        for name, ndim in (("channels_last", 4), ("channels_last_3d", 5)):
            if len(self.shape) == ndim and self.strides == permuted_strides(
                self.shape, channels_last_order(ndim)
            ):
                return name
        if self.order is not None:
            return "perm" + "".join(map(str, self.order))
        return "strided(" + ",".join(map(str, self.strides)) + ")"

    def like(self, **changes: Any) -> "TensorSpec":
        """A copy with changes; a new shape without strides is contiguous."""
        if "shape" in changes and "strides" not in changes:
            changes["strides"] = ()
        return replace(self, **changes)

    @classmethod
    def with_layout(
        cls, dtype: str, shape: tuple[int, ...], layout: str, *, aligned: bool = True
    ) -> "TensorSpec":
        """The inverse of `layout`. Raises ValueError for a layout that the shape cannot have."""
        return cls(dtype, shape, _strides_of(shape, layout), aligned)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return permuted_strides(shape, tuple(range(len(shape))))


def channels_last_order(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim), 1)


def permuted_strides(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions lie in memory in `order`, outermost first."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def _strides_of(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    ndim = len(shape)
    if layout == "contiguous":
        return contiguous_strides(shape)
    if layout == {4: "channels_last", 5: "channels_last_3d"}.get(ndim):
        return permuted_strides(shape, channels_last_order(ndim))
    if layout.startswith("perm"):
        order = tuple(int(c) for c in layout.removeprefix("perm"))
        if sorted(order) == list(range(ndim)):
            return permuted_strides(shape, order)
    if layout.startswith("strided(") and layout.endswith(")"):
        strides = tuple(int(s) for s in layout[8:-1].split(","))
        if len(strides) == ndim:
            return strides
    raise ValueError(f"layout {layout!r} does not fit shape {shape}")


def _canonical(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in which dimensions of size 1 follow from their neighbours.

    Contiguous wins over channels_last where a tensor is both, as in torch.
    """
    real = [d for d, size in enumerate(shape) if size != 1]
    if 0 in shape:
        return contiguous_strides(shape)
    for order in (tuple(range(len(shape))), channels_last_order(len(shape))):
        dense = permuted_strides(shape, order)
        if all(dense[d] == strides[d] for d in real):
            return dense
    # An outer dimension of size 1 gets the stride of the next real one to its right, times size.
    fixed = list(strides)
    for dim in reversed(range(len(shape))):
        if shape[dim] == 1:
            right = dim + 1
            fixed[dim] = fixed[right] * shape[right] if right < len(shape) else 1
    return tuple(fixed)


class Call(Mapping[str, Any]):
    """The arguments of one call of an op, tensors replaced by their specs: `call.x.shape`.

    Keys are the op's parameter names in order. Plain data: what keys, plans and costs are made of.
    """

    __slots__ = ("_values",)
    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, TensorSpec | Scalar | Passed]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"no argument {name!r}; there are {list(self._values)}") from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Call({self._values})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def replace(self, **changes: TensorSpec | Scalar | Passed) -> "Call":
        return Call({**self._values, **changes})

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {n: v for n, v in self._values.items() if isinstance(v, TensorSpec)}


@dataclass(frozen=True, order=True)
class Signature:
    """What a call asks for: op, dtypes, shapes, strides class, scalars that select code.

    `text` is the printed form, `group_norm_silu[bf16](1x1024x16x32x48, groups=32)`: equal
    signatures print equally and `Op.parse` reads it back. `call` is a call that has it.
    """

    text: str
    call: Call = field(compare=False, repr=False)

    @property
    def op(self) -> str:
        return self.text.partition("[")[0]

    def __str__(self) -> str:
        return self.text
