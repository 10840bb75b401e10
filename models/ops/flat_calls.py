"""Calls of ops that go over tensors element by element, in memory order, whatever their shape.

Tensors of the first one's shape go along with it; one with a dimension more in front is a stack of
such, one for each step. All are contiguous or copied first.
"""

from collections.abc import Callable, Sequence

from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import VECTOR_BYTES, next_power_of_two

FLOATS = ("bf16", "fp16", "fp32", "fp64")
MAX_ELEMENTS = 1 << 30  # elements are counted in 32 bits
_SMALLEST_TUNED = 1 << 22  # elements
_BESIDE = ("table", "step", "sigmas")  # tensors that do not go along, whatever their shape


def main(call: Call) -> TensorSpec:
    """The first tensor: the others have its shape."""
    return next(iter(call.tensors.values()))


def alike(call: Call) -> dict[str, TensorSpec]:
    """The tensors that go along with the first one, itself included, stacks too."""
    shape = main(call).shape
    return {
        name: spec
        for name, spec in call.tensors.items()
        if name not in _BESIDE and shape in (spec.shape, spec.shape[1:])
    }


def stacked(call: Call, name: str) -> bool:
    """Whether that tensor is a stack, of which a step takes one."""
    spec: TensorSpec | None = call.get(name)
    return spec is not None and spec.shape != main(call).shape


def copied_first(call: Call) -> tuple[str, ...]:
    """What a plan makes contiguous first."""
    return tuple(name for name, spec in alike(call).items() if spec.layout != "contiguous")


def vector_width(call: Call, width: int | None = None) -> int:
    """VEC: elements of the widest load, of 16 bytes of the narrowest tensor, or 1.

    All or nothing, so that sizes make no more than two classes of binaries. `width`: what it must
    divide, by default the number of elements.
    """
    widest = VECTOR_BYTES // min(ITEM_BYTES[spec.dtype] for spec in alike(call).values())
    return widest if (width or main(call).numel) % widest == 0 else 1


def check_alike(op: str, call: Call, names: Sequence[str], *, stacks: Sequence[str] = ()) -> None:
    """Raise ValueError unless the tensors named are floats of the first one's shape, or None."""
    shape = main(call).shape
    for name, spec in call.tensors.items():
        if name not in (*names, *stacks):
            continue
        if spec.dtype not in FLOATS:
            raise ValueError(f"{op}: {name} is {spec.dtype}; allowed are {', '.join(FLOATS)}.")
        may_stack = name in stacks and call.get("table") is not None
        if spec.shape != shape and not (may_stack and spec.shape[1:] == shape):
            more = f" and (steps, *{shape})" if may_stack else ""
            raise ValueError(f"{op}: {name} is {spec.shape}; allowed is {shape}{more}.")


def bucket_flat(call: Call) -> Call:
    """The number of elements up to a power of two, in one dimension, everything contiguous."""
    return of_size(call, next_power_of_two(main(call).numel))


def of_size(call: Call, elements: int) -> Call:
    """The call with so many elements, in one dimension."""
    shape, tensors = main(call).shape, alike(call)
    changes = {
        name: TensorSpec(
            spec.dtype, (elements,) if spec.shape == shape else (spec.shape[0], elements)
        )
        for name, spec in tensors.items()
    }
    return call.replace(**changes)


def reach_flat(call: Call) -> list[Call]:
    """Calls of the bucket of `call` (a bucket's own) that reach its other classes.

    The first tensor, or all of them, begin between 16-byte boundaries, as slices do; and there is
    nothing to vectorise.
    """
    tensors = alike(call)
    found = [call]
    for names in (list(tensors)[:1], list(tensors)):
        found.append(call.replace(**{n: tensors[n].like(aligned=False) for n in names}))
    if main(call).numel > 2:
        found.append(of_size(call, main(call).numel - 1))
    return list(dict.fromkeys(found))


def probe_flat(call: Call) -> list[Call]:
    """About the fewest elements of the bucket of `call`, of those that share its binaries: of the
    last tile next to nothing is used.
    """
    half = next_power_of_two(main(call).numel) // 2
    fewest = of_size(call, half + vector_width(call))
    aligned = all(spec.aligned for spec in call.tensors.values())
    return [fewest] if aligned and bucket_flat(fewest) == bucket_flat(call) else []


def smaller_flat(call: Call, bucket: Callable[[Call], Call] = bucket_flat) -> Call | None:
    """The bucket of half the elements, down to where a card's caches would flatter it."""
    elements = main(call).numel
    return bucket(of_size(call, elements // 2)) if elements > _SMALLEST_TUNED else None
