"""The token norms on the card: bits against eager, errors against float64, one binary a bucket."""

import jitd
import pytest
import torch
from jitd.models.ops import row_norm

from ..models.ops.signed import (
    Called,
    answer,
    made_balanced,
    made_exact,
    reference,
    several,
    signed,
    tensors_of,
    ulps_apart,
    verdict_of,
)
from .cases import answered_by_kernels

pytestmark = pytest.mark.gpu

# Every op, mode of an operand, rounding and layout, at widths of real models and at odd ones.
CASES = [
    "rms_norm[bf16](300x128, weight=bf16 128)",
    "rms_norm[fp16](2x77x3840, weight=fp16 3840)",
    "rms_norm[fp32](32x2560)",
    "rms_norm[bf16](5x7, weight=bf16 7)",
    "rms_norm_modulate[bf16](2x301x4096, scale=:strided(24576,4096,1))",
    "rms_norm_modulate[fp16](2x300x2048, scale=2x300x2048)",
    "rms_norm_modulate[bf16](2x300x4096, scale=2x10x4096)",
    "rms_norm_modulate[fp32](1x65x4096, weight=fp32 4096)",
    "rms_norm_modulate[bf16](2x126x2048, scale=3x2048:strided(12288,1), index=i64 2x126)",
    "rms_norm_modulate[bf16](1x126x5120, scale=fp32 2x5120, index=i32 1x126, rounding=once)",
    "rms_norm_modulate[bf16](1x126x1024, scale=fp32, rounding=norm)",
    "rms_norm_modulate[bf16](2x33x4096:unaligned)",
    "rms_norm_modulate[bf16](2x33x4096:strided(405504,12288,1))",
    "rms_norm_modulate[bf16](3x33x999)",
    "rms_norm_dual_modulate[bf16](2x126x2048)",
    "gate_residual_rms_norm_modulate[bf16](2x301x4096, gate=:strided(24576,4096,1))",
    "gate_residual_rms_norm_modulate[bf16](2x126x2048, gate=none, scale=none)",
    "gate_residual_rms_norm_modulate[bf16](2x126x4096, gate=4x4096, scale=2x1x4096, "
    "index=i64 2x126)",
    "gate_residual_rms_norm_modulate[bf16](1x126x4096, gate=fp32, scale=fp32, rounding=once)",
    "gate_residual_rms_norm_dual_modulate[bf16](2x301x4096)",
    "gate_residual_rms_norm_dual_modulate[fp32](1x77x2048)",
    "gate_residual_rms_norm_dual_modulate[fp16](1x33x16384)",
    "modulate[bf16](2x1024x4096)",
    "modulate[fp32](2x77x100, scale=2x7x100)",
]
LAYER = [
    "layer_norm_modulate[bf16](2x301x4096)",
    "layer_norm_modulate[bf16](1x126x5120, scale=fp32 2x5120, index=i64 1x126, rounding=once)",
    "layer_norm_modulate[bf16](1x126x5120, scale=none, weight=fp32 5120, bias=fp32 5120, "
    "rounding=once)",
    "layer_norm_modulate[fp32](1x77x3840)",
    "layer_norm_modulate[bf16](3x33x999, scale=fp32, rounding=norm)",
]

# Nothing behind the norm: what is an ulp of its result is one of its own.
ALONE = [
    "rms_norm[bf16](24576x4096)",
    "rms_norm[fp16](4128x3840)",
    "rms_norm[fp32](2048x2560)",
    "rms_norm[bf16](122880x128, weight=bf16 128, rounding=once)",
    "layer_norm_modulate[bf16](1x11040x5120, scale=none)",
    "layer_norm_modulate[fp16](1x4096x3840, scale=none)",
    "layer_norm_modulate[fp32](1x2048x3840, scale=none)",
]


def function_of(text):
    return getattr(row_norm, text.partition("[")[0])


def called(text, tensors):
    """The op's own answers, by its kernels."""
    found = several(answer(function_of(text), text, *tensors))
    assert answered_by_kernels()
    return found


@pytest.mark.parametrize("text", CASES)
def test_with_eagers_statistics_every_bit_is_eagers(text):
    """Rows whose sum of squares is exact in any order: residual, norm and modulation have max abs 0
    against the chain of eager ops, in `exact`."""
    jitd.configure(mode="replay")
    tensors = tensors_of(text, device="cuda")
    made_exact(tensors)
    for got, want in zip(called(text, tensors), several(reference(text, *tensors)), strict=True):
        assert got.shape == want.shape
        assert float((got.double() - want.double()).abs().max()) == 0.0


@pytest.mark.parametrize("text", [text for text in LAYER if "[fp32]" not in text])
def test_of_balanced_rows_every_bit_is_eagers(text):
    """A LayerNorm over rows whose statistics no order of sums moves far enough to be seen: max abs
    0 against eager in 16 bits, in `exact`. Its mean is never exact in eager, whose sums divide."""
    jitd.configure(mode="replay")
    tensors = tensors_of(text, device="cuda")
    made_exact(tensors)
    made_balanced(tensors[0])
    (got,), (want,) = called(text, tensors), several(reference(text, *tensors))
    assert float((got.double() - want.double()).abs().max()) == 0.0


@pytest.mark.parametrize("text", ALONE)
def test_a_norm_alone_is_within_one_ulp_of_eagers(text, record_property):
    """Over random rows no element of a norm is more than an ulp from eager's in 16 bits, and few
    are at all; in fp32, where the deviation itself differs in its last bits, not more than four."""
    jitd.configure(mode="replay")
    tensors = tensors_of(text, device="cuda")
    (got,), (want,) = called(text, tensors), several(reference(text, *tensors))
    apart, differing = ulps_apart(got, want), int((got != want).sum())
    record_property("ulps", apart)
    print(f"{apart:.2g} ulp, differing: {differing} of {got.numel()}: {text}")
    assert apart <= (4 if got.dtype == torch.float32 else 1)


@pytest.mark.parametrize("text", CASES + LAYER)
def test_whole_norms_are_as_right_as_eager(text, record_property):
    """Over random rows errors are within the verifier's bound of float64; few bits are not eager's,
    and their number is reported."""
    jitd.configure(mode="replay")
    verdict = verdict_of(text, Called(function_of(text), text), device="cuda")
    assert verdict.ok, verdict.reason
    assert answered_by_kernels()
    record_property("differing", verdict.differing)
    op, call = signed(text)
    elements = sum(spec.numel for spec in op.outputs(call).values())
    print(f"differing: {verdict.differing} of {elements}: {text}")
    if call.x.dtype != "fp32":
        assert verdict.differing <= max(4, 2e-3 * elements)


@pytest.mark.parametrize("text", CASES[4:9] + LAYER[:2])
def test_fast_is_within_the_bound(text):
    """`fast` rounds once, and is as near to float64 as eager is."""
    jitd.configure(mode="replay")
    text = text.removesuffix(")") + ", numerics=fast)"
    verdict = verdict_of(text, Called(function_of(text), text), device="cuda")
    assert verdict.ok, verdict.reason


def test_a_new_number_of_tokens_compiles_nothing():
    """After one length of a bucket the others launch the same binaries: no compile, no check."""
    jitd.configure(mode="replay")
    made = []
    for tokens in (257, 258, 300, 333, 511, 512):
        text = f"gate_residual_rms_norm_modulate[bf16](2x{tokens}x1024)"
        called(text, tensors_of(text, device="cuda"))
        made.append({k: jitd.stats().get(k, 0) for k in ("compiles", "checks")})
    assert made == [made[0]] * len(made)
    assert made[0]["compiles"] > 0


def test_a_winner_of_a_tune_serves_and_is_right():
    """A tuned op is answered by its winner, within the bound."""
    text = "gate_residual_rms_norm_dual_modulate[bf16](2x126x2048)"
    verdict = verdict_of(text, Called(function_of(text), text), device="cuda")
    assert verdict.ok, verdict.reason
    assert jitd.stats()["tunes"] == 1


def test_more_than_two_to_the_31_elements(much_memory):
    """The last rows of a tensor of 2.15e9 elements are right: offsets are counted in 64 bits."""
    jitd.configure(mode="replay")
    tokens, width = 262_144, 8200
    x = torch.empty(1, tokens, width, dtype=torch.bfloat16, device="cuda").normal_()
    scale, shift = (torch.randn(1, 1, width, device="cuda").bfloat16() for _ in range(2))
    out = row_norm.rms_norm_modulate(x, scale, shift)
    assert answered_by_kernels()
    for part in (slice(0, 4), slice(261_880, 261_888), slice(tokens - 4, tokens)):
        want = row_norm.rms_norm_modulate.op.reference(x[:, part], scale, shift)
        torch.testing.assert_close(out[:, part], want, rtol=2e-2, atol=2e-2)


def test_under_capture():
    """A captured graph replays the kernel, with the results of the call."""
    jitd.configure(mode="replay")
    text = "rms_norm_modulate[bf16](2x64x2048)"
    x, scale, shift = tensors_of(text, device="cuda")
    (want,) = called(text, (x, scale, shift))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = row_norm.rms_norm_modulate(x, scale, shift)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)
