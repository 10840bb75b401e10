"""How far every op is off from float64 in both numerics, and how many bits are not eager's."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...jit import runtime
from ...jit.check import arguments
from ...jit.inputs import make_inputs
from ...jit.op import OPS
from ...models import catalog
from ...models.ops import channel_norm, gates, group_norm, guidance, rotary, row_norm, steps
from .environment import environment, gpu, print_environment, write_json
from .table import Column, Table, reason_of

_SEED = 20_240_229
_WIDTH = 62

# One call of each op, as a model makes it, but of few tokens.
CALLS = [
    "group_norm_silu[bf16](1x512x4x16x24, groups=32)",
    "group_norm_add_silu[bf16](1x512x4x16x24, groups=32)",
    "rms_norm[bf16](512x3840, weight=bf16 3840)",
    "rms_norm[bf16](512x3840, weight=bf16 3840, rounding=native)",
    "rms_norm_scale[bf16](1x512x3840, weight=bf16 3840)",
    "rms_norm_modulate[bf16](2x512x4096)",
    "rms_norm_dual_modulate[bf16](2x512x4096)",
    "gate_residual_rms_norm_modulate[bf16](2x512x4096)",
    "gate_residual_rms_norm_dual_modulate[bf16](2x512x4096)",
    "tanh_gate_residual_rms_norm[bf16](1x512x3840, weight=bf16 3840)",
    "layer_norm_modulate[bf16](1x512x5120, scale=fp32 2x5120, index=i64 1x512, rounding=once)",
    "layer_norm_scale[bf16](1x512x3840)",
    "gate_residual_layer_norm_modulate[bf16](1x512x5120, gate=fp32 2x5120, index=i64 1x512, "
    "rounding=once)",
    "modulate[bf16](2x512x4096)",
    "gate_residual[bf16](2x512x4096)",
    "head_gate[bf16](2x512x4096, logits=2x512x32)",
    "swiglu[bf16](1x512x10240)",
    "split_rotary[bf16](2x512x4096, cos=fp32 2x32x512x64:perm0213)",
    "qk_norm_rotary[bf16](2x512x4096, q_cos=fp32 2x32x512x64:perm0213)",
    "qk_norm_rotary[bf16](1x512x5120, q_cos=fp32 1x512x256, layout=interleaved)",
    "qk_norm_rotary[bf16](1x512x3840, wq=128, q_cos=fp32 1x512x64x2, layout=complex, "
    "rounding=each)",
    "channel_rms_norm_silu[bf16](1x512x4x16x24)",
    "channel_rms_norm_silu[fp32](1x384x1x48x80, weight=fp32 384, form=l2)",
    "velocity_to_x0[bf16](1x512x128)",
    "guidance_combine[fp32](1x512x128, perturbed=none, rescale=0.45)",
    "euler_step[fp32](1x512x128)",
    "res2s_midpoint[fp32](1x512x128)",
    "res2s_step[fp32](1x512x128)",
]


@dataclass(frozen=True)
class Errors:
    """Largest distances from float64, and elements of `exact` whose bits are not eager's."""

    call: str
    eager: float
    exact: float
    fast: float
    differing: int
    elements: int


def function_of(op: str) -> Callable[..., Any]:
    """The op of that name, as models call it."""
    for module in (row_norm, gates, rotary, channel_norm, group_norm, guidance, steps):
        found: Callable[..., Any] | None = getattr(module, op, None)
        if found is not None:
            return found
    raise LookupError(f"no op is called {op}.")


def errors_of(text: str, device: str) -> Errors:
    """The errors of a printed signature on random inputs."""
    op = OPS[text.partition("[")[0]]
    call = op.parse(text).call
    tensors = make_inputs(op, call, device, torch.Generator(device).manual_seed(_SEED), "normal")
    args, named = arguments(op, call, tensors)
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    wide_args, _ = arguments(op, call, wide)
    with torch.no_grad():
        truth = _several(op.reference(*wide_args, **named))
        eager = _several(op.reference(*args, **named))
        found = {}
        for numerics in ("exact", "fast"):
            chosen = {"numerics": numerics} if "numerics" in call else {}  # some have but one
            found[numerics] = _several(function_of(op.name)(*args, **(named | chosen)))
    off = sum(int((a != b).sum()) for a, b in zip(found["exact"], eager, strict=True))
    return Errors(
        call=text,
        eager=_worst(eager, truth),
        exact=_worst(found["exact"], truth),
        fast=_worst(found["fast"], truth),
        differing=off,
        elements=sum(t.numel() for t in eager),
    )


def run(*, json: Path | None) -> bool:
    """Measure and print every op; True if every one could be measured."""
    catalog.declare_ops()
    facts = environment(gpu())
    print_environment(facts)
    runtime.configure(mode="replay")
    print("largest |result - float64|; bits: elements of exact that are not eager's.\n")
    table = Table(
        [
            Column("call", _WIDTH, left=True),
            *(Column(name, 9) for name in ("eager", "exact", "fast")),
            Column("bits", 20),
        ]
    )
    rows: list[Errors] = []
    for text in CALLS:
        try:
            one = errors_of(text, "cuda")
        except Exception as error:  # noqa: BLE001  (a row that fails is a row that says so)
            table.failed(text, reason_of(error))
            continue
        rows.append(one)
        worst = [f"{value:.3g}" for value in (one.eager, one.exact, one.fast)]
        table.row([text, *worst, f"{one.differing} of {one.elements}"])
    write_json(json, {"benchmark": "errors", **facts, "rows": [asdict(one) for one in rows]})
    return len(rows) == len(CALLS)


def _several(results: Any) -> Sequence[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else list(results)


def _worst(results: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> float:
    return max(float((a.double() - b).abs().max()) for a, b in zip(results, truth, strict=True))
