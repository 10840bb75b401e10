"""The ops of models (rotary, norms, modulation, gates) against eager, torch.compile and peers."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...jit.inputs import make_inputs
from ...jit.op import OPS, Op
from ...jit.sign import Call, Passed, TensorSpec
from ...models.ops import channel_norm, gates, guidance, rotary, row_norm, steps
from .contest import Case, Function, run_cases
from .eager import EAGER
from .goals import TOKENS, OpTarget

_SEED = 20_240_229
_TORCH = "torch"
_NAME_WIDTH = 62


def function_of(op: str) -> Function:
    """The op of that name, as models call it."""
    for module in (gates, rotary, row_norm, channel_norm, guidance, steps):
        found: Function | None = getattr(module, op, None)
        if found is not None:
            return found
    raise LookupError(f"no op of tokens is called {op}.")


def call_of(target: OpTarget) -> Call:
    """The call that a row measures."""
    return OPS[target.signature.partition("[")[0]].parse(target.signature).call


def split_arguments(op: Op, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """(positional arguments, named ones) as short as they can be: what is a default is left out."""
    values = {n: v.example if isinstance(v, Passed) else v for n, v in values.items()}
    positional = [a for a in op.arguments if not a.keyword_only]
    args = [values[a.name] for a in positional]
    while positional and _is_default(args[-1], positional[-1].default):
        args.pop()
        positional.pop()
    named = {a.name: values[a.name] for a in op.arguments if a.keyword_only}
    defaults = {a.name: a.default for a in op.arguments}
    return args, {name: value for name, value in named.items() if value != defaults[name]}


def _is_default(value: Any, default: Any) -> bool:
    if value is None or default is None or default is inspect.Parameter.empty:
        return value is default
    return bool(not isinstance(value, TensorSpec | torch.Tensor) and value == default)


def arguments(target: OpTarget, call: Call, device: str) -> list[Any]:
    """Random tensors and the scalars of a call, as positional arguments."""
    op = OPS[target.signature.partition("[")[0]]
    generator = torch.Generator(device).manual_seed(_SEED)
    tensors = make_inputs(op, call, device, generator, "normal")
    values = {**call, **dict(zip(call.tensors, tensors, strict=True))}
    values |= {name: values[same] for name, same in target.shared.items()}
    return split_arguments(op, values)[0]


def cases_of(
    targets: Sequence[OpTarget], peers: Mapping[str, Mapping[str, Function]], device: str = "cuda"
) -> list[Case]:
    """The rows of the table; `peers` by op, then by name."""
    cases = []
    for target in targets:
        name = target.signature.partition("[")[0]
        function, call = function_of(name), call_of(target)
        op = function.op  # type: ignore[attr-defined]
        named = split_arguments(op, dict(call))[1]
        # Where torch has a kernel of its own, eager is faster than the reference's chain.
        fused = {_TORCH: partial(EAGER[name], **named)} if name in EAGER else {}
        cases.append(
            Case(
                name=target.what,
                function=function,
                make=partial(arguments, target, call, device),
                call=call,
                named=named,
                limits=target.limits,
                others={**fused, **peers.get(name, {})},
                facts={
                    "part": target.part,
                    "signature": target.signature,
                    "where": target.where,
                },
            )
        )
    return cases


def run(
    *,
    parts: Sequence[str],
    peers: Mapping[str, Mapping[str, Function]],
    with_compile: bool,
    quick: bool,
    json: Path | None,
) -> bool:
    """Measure and print the rows of `parts`; True if every one could be measured."""
    cases = cases_of([target for target in TOKENS if target.part in parts], peers)
    others = ["eager", "compile"] if with_compile else ["eager"]
    others += dict.fromkeys(name for case in cases for name in case.others)
    return run_cases(
        cases,
        report={"benchmark": "tokens", "parts": list(parts)},
        heading="bf16 unless said; eager: the op's reference; torch: with torch's own RMSNorm.",
        others=others,
        with_compile=with_compile,
        quick=quick,
        json=json,
        rounds=2,
        rep_ms=25.0,
        width=_NAME_WIDTH,
    )
