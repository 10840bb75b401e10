"""Between torch's tensors and jitd's specs of them."""

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

PLAIN = (torch.Tensor, torch.nn.Parameter)  # a subclass may mean anything by its data pointer


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """The spec of a tensor. One without memory (meta, fake) counts as aligned."""
    plain = type(tensor) in PLAIN and not tensor.is_meta
    aligned = tensor.data_ptr() % 16 == 0 if plain else True
    shape, strides = (tuple(int(n) for n in part) for part in (tensor.shape, tensor.stride()))
    return TensorSpec(NAMES[tensor.dtype], shape, strides, aligned)


def empty(spec: TensorSpec, device: torch.device | str) -> torch.Tensor:
    return torch.empty_strided(spec.shape, spec.strides, dtype=DTYPES[spec.dtype], device=device)


def random(
    spec: TensorSpec,
    device: torch.device | str,
    generator: torch.Generator,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> torch.Tensor:
    """Normally distributed values, `offset + scale * N(0, 1)`, in the spec's layout.

    A spec that is not aligned gets a tensor that begins 16 bytes minus one element late.
    """
    dtype = DTYPES[spec.dtype]
    if not dtype.is_floating_point:
        raise ValueError(f"random values of {spec.dtype} are not defined; give make_inputs.")
    shift = 0 if spec.aligned else 1
    extent = 1 + sum((n - 1) * s for n, s in zip(spec.shape, spec.strides, strict=True))
    flat = torch.empty(max(extent, 0) + shift, dtype=dtype, device=device)
    flat.normal_(generator=generator)
    if scale != 1.0 or offset != 0.0:
        flat.mul_(scale).add_(offset)
    return flat[shift:].as_strided(spec.shape, spec.strides)
