"""Between torch's tensors and jitd's specs of them."""

import math
from collections.abc import Mapping

import torch

from .sign import TensorSpec

DTYPES: Mapping[str, torch.dtype] = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16,
    "i32": torch.int32, "i64": torch.int64, "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2, "fp16": torch.float16, "bf16": torch.bfloat16,
    "fp32": torch.float32, "fp64": torch.float64, "complex64": torch.complex64,
    "complex128": torch.complex128,
}  # fmt: skip
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

GUARD_ELEMENTS = 1 << 15
"""Before and after a guarded tensor: more than one block of any kernel, and a multiple of 512 bytes
in every dtype, so that the tensor is aligned as a fresh allocation is."""

PLAIN = (torch.Tensor, torch.nn.Parameter)  # a subclass may mean anything by its data pointer


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """The spec of a tensor. One without memory (meta, fake) counts as aligned."""
    plain = type(tensor) in PLAIN and not tensor.is_meta
    aligned = tensor.data_ptr() % 16 == 0 if plain else True
    shape, strides = (tuple(int(n) for n in part) for part in (tensor.shape, tensor.stride()))
    return TensorSpec(NAMES[tensor.dtype], shape, strides, aligned)


def empty(spec: TensorSpec, device: torch.device | str) -> torch.Tensor:
    return torch.empty_strided(spec.shape, spec.strides, dtype=DTYPES[spec.dtype], device=device)


def guarded(spec: TensorSpec, device: torch.device | str) -> torch.Tensor:
    """A tensor in the spec's layout that is NaN, as is what lies beside it and in its holes.

    There are GUARD_ELEMENTS before and after it. A dtype that has no NaN gets its largest number.
    The tensor begins at a multiple of 16 bytes; one element later if the spec is not aligned.
    """
    dtype = DTYPES[spec.dtype]
    begin = GUARD_ELEMENTS + (0 if spec.aligned else 1)
    memory = torch.full(
        (begin + _extent(spec) + GUARD_ELEMENTS,), _nothing(dtype), dtype=dtype, device=device
    )
    return memory.as_strided(spec.shape, spec.strides, begin)


def random(
    spec: TensorSpec,
    device: torch.device | str,
    generator: torch.Generator,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> torch.Tensor:
    """Normally distributed values, `offset + scale * N(0, 1)`, in a `guarded` tensor."""
    if not DTYPES[spec.dtype].is_floating_point:
        raise ValueError(f"random values of {spec.dtype} are not defined; allowed are floats.")
    tensor = guarded(spec, device)
    values = _each_once(tensor, spec).normal_(generator=generator)
    if scale != 1.0 or offset != 0.0:
        values.mul_(scale).add_(offset)
    return tensor


def random_below(
    limit: int, spec: TensorSpec, device: torch.device | str, generator: torch.Generator
) -> torch.Tensor:
    """Integers from 0 to `limit` - 1, each as likely, in a `guarded` tensor."""
    tensor = guarded(spec, device)
    _each_once(tensor, spec).random_(0, limit, generator=generator)
    return tensor


def _nothing(dtype: torch.dtype) -> float | int:
    """What shows that somebody used it."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _extent(spec: TensorSpec) -> int:
    """Elements from the first to the last in memory, holes included."""
    if 0 in spec.shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(spec.shape, spec.strides, strict=True))


def _each_once(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A view of what `tensor` of that spec covers in which nothing is seen twice, so that it can
    be written to. Views that overlap other than by expanding get their holes written to as well.
    """
    dims = sorted((s, n) for n, s in zip(spec.shape, spec.strides, strict=True) if n > 1 and s)
    reach = 1
    for stride, size in dims:
        if stride < reach:
            return tensor.as_strided((_extent(spec),), (1,))
        reach += (size - 1) * stride
    if spec.order is not None:  # dense: one run of memory is the quickest to fill
        return tensor.as_strided((spec.numel,), (1,))
    shape = [n if s else min(n, 1) for n, s in zip(spec.shape, spec.strides, strict=True)]
    return tensor.as_strided(shape, spec.strides)
