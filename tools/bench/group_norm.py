"""GroupNorm + SiLU against eager, torch.compile and any peer, at the shapes of `goals`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...jit.tensors import DTYPES
from ...models.ops.group_norm import group_norm_add_silu, group_norm_silu
from .calls import call_of
from .contest import Case, Function, run_cases
from .goals import GROUP_NORM, GROUPS, Target

EPS = 1e-5
_SEED = 20_240_229
_REFERENCES = ("eager", "compile")


def arguments(target: Target, dtype: torch.dtype, *, add: bool, device: str) -> tuple[Any, ...]:
    """Random (x, [residual,] weight, bias, groups, eps)."""
    generator = torch.Generator(device).manual_seed(_SEED)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    inputs = [random(*target.shape) for _ in range(1 + add)]
    channels = target.shape[1]
    return (*inputs, random(channels), random(channels), GROUPS, EPS)


def cases_of(
    targets: Sequence[Target],
    peers: Mapping[str, Function],
    *,
    dtype: str,
    add: bool,
    device: str = "cuda",
) -> list[Case]:
    """The rows of the table. Goals are for bf16 without a residual."""
    function = group_norm_add_silu if add else group_norm_silu
    op = function.op  # type: ignore[attr-defined]
    cases = []
    for target in targets:
        meta = (
            torch.empty(shape, dtype=DTYPES[dtype], device="meta")
            for shape in [target.shape] * (1 + add) + [target.shape[1:2]] * 2
        )
        cases.append(
            Case(
                name=target.name,
                function=function,
                make=partial(arguments, target, DTYPES[dtype], add=add, device=device),
                call=call_of(op, (*meta, GROUPS, EPS)),
                limits=target.limits if dtype == "bf16" and not add else (),
                others=peers,
                facts={"shape": list(target.shape), "where": target.where},
            )
        )
    return cases


def run(
    *,
    dtype: str,
    add: bool,
    peers: Mapping[str, Function],
    with_compile: bool,
    quick: bool,
    json: Path | None,
) -> bool:
    """Measure and print every shape; True if every one could be measured."""
    op = (group_norm_add_silu if add else group_norm_silu).op  # type: ignore[attr-defined]
    return run_cases(
        cases_of(GROUP_NORM, peers, dtype=dtype, add=add),
        report={"benchmark": "group_norm", "op": op.name, "dtype": dtype, "groups": GROUPS},
        heading=f"{op.name}, {dtype}, {GROUPS} groups.",
        others=[name for name in _REFERENCES if name != "compile" or with_compile] + list(peers),
        with_compile=with_compile,
        quick=quick,
        json=json,
    )
