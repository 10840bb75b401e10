"""What the norms of tokens demand of their arguments, and which calls share a tune and binaries."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...jit.declare import Cost, Variant
from ...jit.sign import Call, TensorSpec
from .group_norm_problem import next_power_of_two
from .modulation import (
    DTYPES,
    ROUNDINGS,
    bucket_tokens,
    check_choices,
    check_operands,
    check_tokens,
    moved_bytes,
    table_rows,
)
from .row_norm_variants import WIDEST, outputs
from .token_calls import probe_tokens, reach_tokens, smaller_tokens

NATIVE = (*ROUNDINGS, "native")
"""The roundings of the norms of Z-Image; without `native` those of all others."""

_OPERANDS = ("gate", "scale", "shift", "scale2", "shift2")
_GROUPS = (("gate",), ("scale", "shift"), ("scale2", "shift2"))


def rules(
    name: str,
    variants: Sequence[Variant],
    results: int = 1,
    *,
    roundings: Sequence[str] = ROUNDINGS,
    lowers: Callable[..., bool] | None = None,
    **implied: Callable[[Call], TensorSpec | None],
) -> dict[str, Any]:
    """What an op over rows declares beside its reference, as keywords of `op`."""
    return {
        "variants": variants,
        "outputs": outputs,
        "fake": _fake(results),
        "cost": _cost,
        "check": _check(name, roundings),
        "selects": ("rounding", "numerics"),
        "implied": implied,
        "bucket": _bucket,
        "reach": _reach,
        "probes": lambda call: probe_tokens(call, _bucket),
        "smaller": lambda call: smaller_tokens(call, _bucket),
        "lowers": lowers,
        **(
            {}
            if name == "rms_norm"
            else {"below": {"index": lambda call: table_rows(call, _OPERANDS)}}
        ),
    }


# -- what is implied --------------------------------------------------------------------------


def per_sample(call: Call) -> TensorSpec:
    """A row of operands for each sample."""
    batch, _, width = call.x.shape
    return TensorSpec(call.x.dtype, (batch, 1, width))


def like(name: str) -> Callable[[Call], Any]:
    """As another argument."""
    return lambda call: call[name]


SCALE = {"scale": per_sample, "shift": like("scale")}
SECOND = {"scale2": like("scale"), "shift2": like("scale2")}
ADDED = {"y": lambda call: TensorSpec(call.x.dtype, call.x.shape), "gate": per_sample}
GATED = {**ADDED, "scale": lambda call: call.gate or per_sample(call), "shift": like("scale")}


# -- what is refused --------------------------------------------------------------------------


def _check(name: str, roundings: Sequence[str]) -> Callable[[Call], None]:
    def check(call: Call) -> None:
        if name == "rms_norm":
            check_choices(name, call, roundings)
            if not call.x.shape:
                raise ValueError("rms_norm: x has no dimensions; allowed is (…, D).")
        else:
            check_tokens(name, call, ["y"] if "y" in call else [], roundings)
            groups = [[n for n in group if n in call] for group in _GROUPS]
            check_operands(name, call, [group for group in groups if group])
        if call.x.shape[-1] > WIDEST:
            raise ValueError(
                f"{name}: x is {call.x.shape}, rows of {call.x.shape[-1]}; allowed are up to "
                f"{WIDEST}, which a program can hold in registers."
            )
        for affine in ("weight", "bias"):
            _check_affine(name, affine, call)

    return check


def _check_affine(name: str, affine: str, call: Call) -> None:
    spec: TensorSpec | None = call.get(affine)
    if spec is None:
        return
    x: TensorSpec = call.x
    if spec.shape != x.shape[-1:]:
        raise ValueError(f"{name}: {affine} is {spec.shape}; allowed is {x.shape[-1:]}.")
    if spec.dtype not in DTYPES:
        raise ValueError(f"{name}: {affine} is {spec.dtype}; allowed are {', '.join(DTYPES)}.")
    chain = call.rounding in ("each", "native")
    if chain and "bias" not in call and spec.dtype != x.dtype:
        raise ValueError(
            f"{name}: {affine} is {spec.dtype}, x {x.dtype}; rounding={call.rounding!r} is eager's "
            "chain in one dtype. Use rounding='once', or make them equal."
        )


# -- what is returned, and what it costs ------------------------------------------------------


def _fake(count: int) -> Callable[..., Any]:
    def fake(x: Tensor, *_: object) -> Any:
        made = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count)]
        return made[0] if count == 1 else tuple(made)

    return fake


def _cost(call: Call) -> Cost:
    written = len(outputs(call)) * call.x.nbytes
    return Cost(bytes=moved_bytes(call.tensors) + written, flops=8 * call.x.numel)


# -- which calls are tuned together -----------------------------------------------------------


def _bucket(call: Call) -> Call:
    if len(call.x.shape) == 3:
        return bucket_tokens(call, _OPERANDS)
    plain = {name: TensorSpec(spec.dtype, spec.shape) for name, spec in call.tensors.items()}
    rows = next_power_of_two(call.x.numel // call.x.shape[-1]), call.x.shape[-1]
    return call.replace(**{**plain, "x": TensorSpec(call.x.dtype, rows)})


def _reach(call: Call) -> list[Call]:
    """x may begin anywhere. Rarer classes (misaligned weights, gaps between rows) are built when
    they are met: of so many ops and buckets, warming them would take as long as all the rest.
    """
    return reach_tokens(call)[:2]
