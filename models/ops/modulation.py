"""Modulation of tokens: how scale, shift and gate lie against x, and what eager makes of them.

x is (B, S, D). An operand (scale, shift, gate) is one of

    (D,)            the same for every token
    (B|1, D)        a row per sample; with `index` a table (R, D), of which token (b, s) takes row
                    index[b, s]: image-to-video has two timesteps, not one per token. An index must
                    lie within its table: a GPU does not look, unless JITD_DEBUG=1
    (B|1, F, D)     a row per frame of S/F tokens: F = 1 a row per sample, F = S a row per token

Rounding points are part of a signature (`rounding`); R rounds to x's dtype:

    each   after every operation, as a chain of eager ops in x's dtype does (LTX-2, Z-Image)
    norm   the norm, then the result: the modulation between is fp32 (SGLang's ScaleShift norms)
    once   the result only: everything before it is fp32 (Helios)
    native as each, and the statistics of an RMSNorm likewise: no fp32 on the way (SGLang's Z-Image)

`numerics="fast"` rounds once whatever `rounding` says.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...jit.sign import Call, TensorSpec
from .group_norm_problem import next_power_of_two

NUMERICS = ("exact", "fast")
ROUNDINGS = ("each", "norm", "once")
DTYPES = ("bf16", "fp16", "fp32", "fp64")
INDEX_DTYPES = ("i32", "i64")


# -- eager ------------------------------------------------------------------------------------


def wide(x: Tensor) -> Tensor:
    """x in fp32; in fp64 if it is that, so that a reference fed with fp64 gives the truth."""
    return x if x.dtype == torch.float64 else x.float()


def spread(operand: Tensor, index: Tensor | None, x: Tensor) -> Tensor:
    """An operand as it broadcasts against x (B, S, D): rows taken by index, frames repeated."""
    if operand.ndim == 1:
        return operand
    if operand.ndim == 2:
        return operand[:, None] if index is None else operand[index.long()]
    frames, tokens = operand.shape[1], x.shape[1]
    if frames in (1, tokens):
        return operand
    return operand.repeat_interleave(tokens // frames, dim=1)


def modulated(
    normed: Tensor, scale: Tensor, shift: Tensor, index: Tensor | None, dtype: torch.dtype,
    rounding: str,
) -> Tensor:  # fmt: skip
    """normed * (1 + scale) + shift in `dtype`, rounded as `rounding` says."""
    scale, shift = spread(scale, index, normed), spread(shift, index, normed)
    if rounding == "each":
        return normed * (1 + scale) + shift
    return (wide(normed) * (1 + wide(scale)) + wide(shift)).to(dtype)


def gated(x: Tensor, y: Tensor, gate: Tensor | None, index: Tensor | None, rounding: str) -> Tensor:
    """x + y * gate in x's dtype; x + y without a gate."""
    if gate is None:
        return x + y
    gate = spread(gate, index, x)
    if rounding == "each":
        return x + y * gate
    return (wide(x) + wide(y) * wide(gate)).to(x.dtype)


# -- rules over specs -------------------------------------------------------------------------


def check_tokens(
    op: str, call: Call, same: Sequence[str] = (), roundings: Sequence[str] = ROUNDINGS
) -> None:
    """Raise ValueError unless x is (B, S, D), and what `same` names is like it."""
    x: TensorSpec = call.x
    if len(x.shape) != 3:
        raise ValueError(f"{op}: x is {x.shape}; allowed is (B, S, D).")
    check_choices(op, call, roundings)
    for name in same:
        spec = call[name]
        if (spec.shape, spec.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"{op}: {name} is {spec.dtype} {spec.shape}; allowed is x's {x.dtype} {x.shape}."
            )


def check_choices(op: str, call: Call, roundings: Sequence[str] = ROUNDINGS) -> None:
    """Raise ValueError for a dtype of x, a `rounding` or a `numerics` that there is not."""
    if call.x.dtype not in DTYPES:
        raise ValueError(f"{op}: x is {call.x.dtype}; allowed are {', '.join(DTYPES)}.")
    for name, allowed in (("rounding", roundings), ("numerics", NUMERICS)):
        if name in call and call[name] not in allowed:
            raise ValueError(f"{op}: {name}={call[name]!r}; allowed are {', '.join(allowed)}.")


def check_operands(op: str, call: Call, groups: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless every operand fits x. Operands of one group are of one shape."""
    x: TensorSpec = call.x
    batch, tokens, _ = x.shape
    index: TensorSpec | None = call["index"]
    if index is not None:
        if index.dtype not in INDEX_DTYPES:
            raise ValueError(f"{op}: index is {index.dtype}; allowed are i32 and i64.")
        if index.shape != (batch, tokens):
            raise ValueError(
                f"{op}: index is {index.shape}; allowed is a row for each token, {(batch, tokens)}."
            )
    for group in groups:
        present = {name: call[name] for name in group if call[name] is not None}
        if len(present) not in (0, len(group)):
            missing = ", ".join(name for name in group if name not in present)
            raise ValueError(f"{op}: {' and '.join(present)} without {missing}; give all or none.")
        for name, spec in present.items():
            _check_operand(op, name, spec, x, index)
        if len({spec.shape for spec in present.values()}) > 1:
            shapes = ", ".join(f"{name} {spec.shape}" for name, spec in present.items())
            raise ValueError(f"{op}: {shapes}; make their shapes equal.")
        for name, spec in present.items():
            rounding = call.get("rounding")
            if rounding in ("each", "native") and spec.dtype != x.dtype:
                raise ValueError(
                    f"{op}: {name} is {spec.dtype}, x {x.dtype}; rounding={rounding!r} is eager's "
                    "chain in one dtype. Use rounding='norm' or 'once', or make them equal."
                )


def _check_operand(
    op: str, name: str, spec: TensorSpec, x: TensorSpec, index: TensorSpec | None
) -> None:
    batch, tokens, width = x.shape
    if spec.dtype not in DTYPES:
        raise ValueError(f"{op}: {name} is {spec.dtype}; allowed are {', '.join(DTYPES)}.")
    if not 1 <= len(spec.shape) <= 3 or spec.shape[-1] != width:
        raise ValueError(
            f"{op}: {name} is {spec.shape}; allowed are (D,), (B, D), (B, F, D) with D={width}, "
            "and (R, D) with index."
        )
    if len(spec.shape) > 1 and (len(spec.shape) == 3 or index is None):
        if spec.shape[0] not in (1, batch):
            raise ValueError(
                f"{op}: {name} is {spec.shape}: a batch of {spec.shape[0]} does not divide x's "
                f"{batch}; allowed are 1 and {batch}."
            )
        frames = spec.shape[1] if len(spec.shape) == 3 else 1
        if frames < 1 or tokens % frames:
            raise ValueError(
                f"{op}: {name} is {spec.shape}: {tokens} tokens do not divide into {frames} frames."
            )


def moved_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Bytes of the elements that really exist: a dimension of stride 0 counts once."""
    total = 0
    for spec in specs.values():
        elements = 1
        for size, stride in zip(spec.shape, spec.strides, strict=True):
            elements *= size if stride else 1
        total += elements * spec.nbytes // max(1, spec.numel)
    return total


def table_rows(call: Call, operands: Sequence[str]) -> int:
    """What an index stays below: the rows of the shortest table; anything where there is none."""
    present = (call.get(name) for name in operands)
    rows = [spec.shape[0] for spec in present if spec is not None and len(spec.shape) == 2]
    return min(rows, default=2**31 - 1)


def bucket_tokens(call: Call, operands: Sequence[str]) -> Call:
    """Samples and tokens up to powers of two, all contiguous; rows of a table as they are."""
    x: TensorSpec = call.x
    batch, tokens = (next_power_of_two(size) for size in x.shape[:2])
    changes: dict[str, TensorSpec] = {}
    for name, spec in call.tensors.items():
        shape = spec.shape
        if shape == x.shape:
            shape = (batch, tokens, x.shape[2])
        elif name == "index":
            shape = (batch, tokens)
        elif name in operands and len(shape) == 3:
            shape = (_sample(shape[0], batch), next_power_of_two(shape[1]), shape[2])
        elif name in operands and len(shape) == 2 and call["index"] is None:
            shape = (_sample(shape[0], batch), shape[1])
        changes[name] = TensorSpec(spec.dtype, shape)
    return call.replace(**changes)


def _sample(size: int, batch: int) -> int:
    return 1 if size == 1 else batch
