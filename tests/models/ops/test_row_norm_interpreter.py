"""The kernel of the token norms in Triton's interpreter, against float64: tiny shapes."""

import pytest
import torch
from jitd.jit.declare import Config
from jitd.jit.interpret import Interpreted

from .signed import LOOSE, made_exact, reference, several, signed, tensors_of, verdict_of

pytestmark = pytest.mark.interpreter

CASES = [
    "rms_norm[bf16](7x32)",
    "rms_norm[fp16](2x3x5x24, weight=fp16 24)",
    "rms_norm[fp32](2x5x48, weight=fp32 48, rounding=once)",
    "rms_norm[bf16](5x24, weight=fp32 24, rounding=once)",
    "rms_norm[fp32](24)",
    "rms_norm_modulate[fp16](2x5x32)",
    "rms_norm_modulate[fp32](2x5x40, weight=fp32 40)",
    "rms_norm_modulate[fp16](2x6x32, scale=2x3x32)",
    "rms_norm_modulate[fp16](2x6x32, scale=1x6x32)",
    "rms_norm_modulate[bf16](2x6x32, scale=32)",
    "rms_norm_modulate[fp16](2x6x32, scale=2x32)",
    "rms_norm_modulate[fp16](2x6x32, scale=3x32, index=i64 2x6)",
    "rms_norm_modulate[bf16](2x6x32, scale=fp32 3x32, index=i32 2x6, rounding=once)",
    "rms_norm_modulate[fp16](2x6x32, scale=fp32, rounding=norm)",
    "rms_norm_modulate[fp16](2x5x32:strided(480,64,1), scale=2x1x32:strided(192,32,1))",
    "rms_norm_modulate[fp16](2x5x32:perm021)",
    "rms_norm_modulate[fp16](1x5x7, numerics=fast)",
    "rms_norm_dual_modulate[fp16](2x5x24)",
    "rms_norm_dual_modulate[fp16](2x6x24, scale2=2x6x24)",
    "gate_residual_rms_norm_modulate[fp16](2x5x32)",
    "gate_residual_rms_norm_modulate[bf16](2x5x32, gate=none, scale=none)",
    "gate_residual_rms_norm_modulate[fp16](2x5x32, gate=3x32, index=i64 2x5, scale=2x1x32)",
    "gate_residual_rms_norm_modulate[fp16](2x5x32, gate=fp32, scale=fp32, rounding=once)",
    "gate_residual_rms_norm_dual_modulate[fp32](2x5x32)",
    "gate_residual_rms_norm_dual_modulate[fp16](1x5x32, gate=2x32, scale=2x32, index=i32 1x5)",
    "layer_norm_modulate[fp16](2x5x24)",
    "layer_norm_modulate[bf16](2x5x24, weight=fp32 24, bias=fp32 24, rounding=norm)",
    "layer_norm_modulate[fp32](2x5x24, scale=none, weight=fp32 24, rounding=once)",
    "layer_norm_modulate[fp16](2x5x24, scale=fp32 2x24, index=i64 2x5, rounding=once)",
    "modulate[fp16](2x5x32)",
    "modulate[fp16](1x1x1)",
    "rms_norm[fp16](5x32, weight=fp16 32, rounding=native)",
    "rms_norm[fp16](2x3x2x16:strided(192,64,16,1), weight=fp16 16)",
    "rms_norm_scale[fp16](2x5x24, weight=fp16 24)",
    "rms_norm_scale[fp16](2x5x24, scale=fp32 3x24, index=i64 2x5, rounding=once)",
    "tanh_gate_residual_rms_norm[fp16](2x5x24, weight=fp16 24)",
    "tanh_gate_residual_rms_norm[fp16](2x5x32, gate=none, rounding=native)",
    "tanh_gate_residual_rms_norm[bf16](2x6x24, gate=fp32 2x3x24, weight=fp32 24, rounding=once)",
    "layer_norm_scale[fp16](2x5x24)",
    "gate_residual_layer_norm_modulate[fp16](2x5x24)",
    "gate_residual_layer_norm_modulate[bf16](1x5x24, gate=fp32 2x24, scale=none, index=i32 1x5, "
    "weight=fp32 24, bias=fp32 24, rounding=once)",
]
TILES = {"ROWS": 2, "STEPS": 2, "STAGES": 3, "num_warps": 1, "LANE": 8}
A_ROW = {"ROWS": 1, "STEPS": 1, "STAGES": 1, "num_warps": 1, "LANE": 4}


def interpreted(text, params):
    op, call = signed(text)
    return Interpreted(op, call, Config(op.variants[0], params))


@pytest.mark.parametrize(
    ("text", "params"), [*((text, TILES) for text in CASES), (CASES[4], A_ROW), (CASES[17], A_ROW)]
)
def test_the_kernel_is_right(text, params):
    """Every form, mode and layout is within the bound of float64, and writes its outputs only."""
    verdict = verdict_of(text, interpreted(text, params), bound=LOOSE)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("kind", ["shifted", "huge", "tiny", "special"])
@pytest.mark.parametrize("op", ["rms_norm_modulate", "layer_norm_modulate", "modulate"])
def test_hard_inputs_are_survived(op, kind):
    """A mean of 64 deviations, huge and tiny values, NaN and Inf give what eager gives."""
    text = f"{op}[fp32](2x5x64)"
    verdict = verdict_of(text, interpreted(text, TILES), bound=LOOSE, kind=kind)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        c
        for c in CASES
        if "[fp16]" in c and not any(word in c for word in ("fast", "layer", "native"))
    ],
)
def test_rounding_is_eagers(text):
    """Rows whose sums of squares are exact in any order have eager's bits: every rounding point is
    eager's. (In bf16 the interpreter cuts off what it stores, and for `native` the CPU's own rsqrt
    of fp16 rounds twice.)"""
    tensors = tensors_of(text)
    made_exact(tensors)
    want = several(reference(text, *tensors))
    got = [torch.empty_like(result) for result in want]
    interpreted(text, TILES).into(tensors, got)
    assert all(map(torch.equal, got, want))
