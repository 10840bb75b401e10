"""The references of the token norms against the modules they stand for, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from jitd.jit.op import OPS
from jitd.models.ops.row_norm import (
    gate_residual_layer_norm_modulate,
    gate_residual_rms_norm_dual_modulate,
    gate_residual_rms_norm_modulate,
    layer_norm_modulate,
    layer_norm_scale,
    modulate,
    rms_norm,
    rms_norm_dual_modulate,
    rms_norm_modulate,
    rms_norm_scale,
    tanh_gate_residual_rms_norm,
)
from torch import nn

from .cases import randn

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
B, S, D = 2, 6, 24


def stream(dtype, seed=0):
    return randn(B, S, D, dtype=dtype, seed=seed)


def operand(dtype, seed, *shape):
    return randn(*(shape or (B, 1, D)), dtype=dtype, seed=seed)


def by_hand(x, eps=1e-6):
    """A norm without weight as a chain of eager ops: fp32 statistics, then x's dtype."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(x.dtype)


@DTYPES
def test_rms_norm_is_torchs(dtype):
    """With rounding="once" and a weight it is torch.nn.RMSNorm."""
    norm = nn.RMSNorm(D, eps=1e-6, dtype=dtype)
    norm.weight.data.copy_(operand(dtype, 1, D))
    x = stream(dtype)
    assert torch.equal(rms_norm(x, norm.weight.data, rounding="once"), norm(x))


@DTYPES
def test_a_chain_of_eager_ops_is_matched_bit_for_bit(dtype):
    """`each` is norm, gate and modulation computed op by op in x's dtype."""
    x, y = stream(dtype), stream(dtype, 1)
    gate, scale, shift, scale2, shift2 = (operand(dtype, seed) for seed in range(2, 7))
    residual = x + y * gate
    n = by_hand(residual)
    one, two = n * (1 + scale) + shift, n * (1 + scale2) + shift2
    dual = gate_residual_rms_norm_dual_modulate(x, y, gate, scale, shift, scale2, shift2)
    assert all(map(torch.equal, dual, (residual, one, two)))
    single = gate_residual_rms_norm_modulate(x, y, gate, scale, shift)
    assert all(map(torch.equal, single, (residual, one)))
    both = rms_norm_dual_modulate(residual, scale, shift, scale2, shift2)
    assert all(map(torch.equal, both, (one, two)))
    assert torch.equal(rms_norm_modulate(residual, scale, shift), one)
    assert torch.equal(modulate(n, scale, shift), one)
    plain = gate_residual_rms_norm_modulate(x, y)
    assert all(map(torch.equal, plain, (x + y, by_hand(x + y))))


@DTYPES
def test_layer_norm_is_eagers(dtype):
    """`each` is F.layer_norm in x's dtype, then the modulation; `once` is fp32 throughout."""
    x, weight, bias = stream(dtype), operand(dtype, 1, D), operand(dtype, 2, D)
    scale, shift = operand(dtype, 3), operand(dtype, 4)
    n = F.layer_norm(x.float(), (D,), weight.float(), bias.float(), 1e-6)
    want = n.to(dtype) * (1 + scale) + shift
    assert torch.equal(layer_norm_modulate(x, scale, shift, weight, bias), want)
    wide = F.layer_norm(x.float(), (D,), eps=1e-6) * (1 + scale.float()) + shift.float()
    once = layer_norm_modulate(x, scale.float(), shift.float(), rounding="once")
    assert torch.equal(once, wide.to(dtype))


@DTYPES
@pytest.mark.parametrize("rounding", ["each", "native"])
def test_z_images_norms_are_matched_bit_for_bit(dtype, rounding):
    """Norm, weight and scale; norm, weight, tanh of a gate and residual: op by op in x's dtype,
    with statistics in fp32 (diffusers) or in x's dtype (SGLang); of heads as of rows."""
    x, y, weight = stream(dtype), stream(dtype, 1), operand(dtype, 2, D)
    scale, gate = 1 + operand(dtype, 3), operand(dtype, 4)

    def norm(t):
        if rounding == "each":
            return by_hand(t, 1e-5) * weight
        return t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    how = {"eps": 1e-5, "rounding": rounding}
    assert torch.equal(rms_norm(x, weight, **how), norm(x))
    assert torch.equal(rms_norm_scale(x, scale, weight, **how), norm(x) * scale)
    found = tanh_gate_residual_rms_norm(x, y, gate, weight, **how)
    assert torch.equal(found, x + gate.tanh() * norm(y))
    assert torch.equal(tanh_gate_residual_rms_norm(x, y, None, weight, **how), x + norm(y))
    heads = x.unflatten(2, (3, 8))
    rows = rms_norm(heads.flatten(0, 2), weight[:8], **how)
    assert torch.equal(rms_norm(heads, weight[:8], **how), rows.view(heads.shape))


@pytest.mark.diffusers
def test_z_images_block_is_matched_bit_for_bit():
    """The norms that diffusers' own modules of Z-Image make are these."""
    from diffusers.models.normalization import RMSNorm  # noqa: PLC0415
    from diffusers.models.transformers.transformer_z_image import FinalLayer  # noqa: PLC0415

    dtype = torch.bfloat16
    norm = RMSNorm(D, eps=1e-5).to(dtype)
    norm.weight.data = operand(dtype, 2, D)
    x, y, scale, gate = stream(dtype), stream(dtype, 1), 1 + operand(dtype, 3), operand(dtype, 4)
    with torch.no_grad():
        found = rms_norm_scale(x, scale, norm.weight, eps=1e-5)
        assert torch.equal(found, norm(x) * scale)
        found = tanh_gate_residual_rms_norm(x, y, gate, norm.weight, eps=1e-5)
        assert torch.equal(found, x + gate.tanh() * norm(y))
        last = FinalLayer(D, 8).to(dtype)
        c = operand(dtype, 5, B, D)
        scale = (1.0 + last.adaLN_modulation(c)).unsqueeze(1)
        assert torch.equal(last.linear(layer_norm_scale(x, scale)), last(x, c))


@pytest.mark.diffusers
def test_helios_chain_is_matched_bit_for_bit():
    """Gated residual, FP32LayerNorm and modulation as Helios has them: fp32 between bf16 streams,
    two rows of modulation that an index spreads over tokens, an affine norm of fp32 weights."""
    from diffusers.models.normalization import FP32LayerNorm  # noqa: PLC0415

    dtype = torch.bfloat16
    x, y = stream(dtype), stream(dtype, 1)
    gate, scale, shift = (operand(torch.float32, seed, 2, D) for seed in (2, 3, 4))
    index = torch.tensor([[0, 0, 1, 1, 1, 1]]).expand(B, S)
    plain, affine = FP32LayerNorm(D, 1e-6, elementwise_affine=False), FP32LayerNorm(D, 1e-6)
    affine.weight.data, affine.bias.data = (operand(torch.float32, seed, D) for seed in (5, 6))
    with torch.no_grad():
        residual = (x.float() + y * gate[index]).type_as(x)
        want = (plain(residual.float()) * (1 + scale[index]) + shift[index]).type_as(x)
        found = gate_residual_layer_norm_modulate(
            x, y, gate, scale, shift, index=index, rounding="once"
        )
        assert torch.equal(found[0], residual)
        assert torch.equal(found[1], want)
        found = layer_norm_modulate(x, scale, shift, index=index, rounding="once")
        want = (plain(x.float()) * (1 + scale[index]) + shift[index]).type_as(x)
        assert torch.equal(found, want)
        found = layer_norm_modulate(x, weight=affine.weight, bias=affine.bias, rounding="once")
        assert torch.equal(found, affine(x.float()).type_as(x))


def test_operands_may_lie_in_every_way():
    """(D,), (B, D), (B, F, D), (1, S, D) and a table with index are the same as their expansion."""
    x, dtype = stream(torch.bfloat16), torch.bfloat16
    index = torch.tensor([[0, 2, 1, 1, 0, 2], [2, 2, 0, 1, 0, 0]])
    for shape in [(D,), (B, D), (1, D), (B, 3, D), (1, S, D), (B, S, D)]:
        scale, shift = operand(dtype, 1, *shape), operand(dtype, 2, *shape)
        full = []
        for t in (scale, shift):
            rows = t[:, None] if t.ndim == 2 else t
            framed = rows.ndim == 3 and rows.shape[1] == 3
            rows = rows[:, [0, 0, 1, 1, 2, 2]] if framed else rows
            full.append(rows.expand(B, S, D).contiguous())
        want = by_hand(x) * (1 + full[0]) + full[1]
        assert torch.equal(rms_norm_modulate(x, scale, shift), want)
    table, table2 = operand(dtype, 1, 3, D), operand(dtype, 2, 3, D)
    want = by_hand(x) * (1 + table[index]) + table2[index]
    for kind in (torch.int32, torch.int64):
        assert torch.equal(rms_norm_modulate(x, table, table2, index=index.to(kind)), want)


BAD = {
    "index is .*allowed is a row for each token": dict(
        scale=(3, D), shift=(3, D), index=torch.zeros(B, S - 1, dtype=torch.int64)
    ),
    "index is fp32; allowed are i32 and i64": dict(
        scale=(3, D), shift=(3, D), index=torch.zeros(B, S)
    ),
    "a batch of 3 does not divide x's 2": dict(scale=(3, 1, D), shift=(3, 1, D)),
    "6 tokens do not divide into 4 frames": dict(scale=(B, 4, D), shift=(B, 4, D)),
    "make their shapes equal": dict(scale=(B, 1, D), shift=(D,)),
    r"scale is \(2, 1, 23\)": dict(scale=(B, 1, D - 1), shift=(B, 1, D - 1)),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused_by_name(message):
    """Operands and indices of a wrong shape raise a ValueError that names them."""
    given = {
        name: torch.zeros(value) if isinstance(value, tuple) else value
        for name, value in BAD[message].items()
    }
    with pytest.raises(ValueError, match=message):
        rms_norm_modulate(stream(torch.float32), **given)


def test_other_bad_arguments_are_refused():
    """x of two dimensions, dtypes that `each` cannot mix, weights and roundings of no kind."""
    x, half = stream(torch.float32), stream(torch.bfloat16)
    scale = operand(torch.float32, 1)
    with pytest.raises(ValueError, match=r"allowed is \(B, S, D\)"):
        rms_norm_modulate(x[0], scale, scale)
    with pytest.raises(ValueError, match="rounding='each' is eager's chain"):
        rms_norm_modulate(half, scale, scale)
    with pytest.raises(ValueError, match="rounding='twice'; allowed are each, norm, once"):
        rms_norm(x, rounding="twice")
    with pytest.raises(ValueError, match=r"weight is \(23,\)"):
        rms_norm(x, torch.ones(23))
    with pytest.raises(ValueError, match="rows of 16385; allowed are up to 16384"):
        rms_norm(torch.zeros(2, 16385))
    with pytest.raises(ValueError, match="rounding='native'; allowed are each, norm, once"):
        layer_norm_modulate(x, rounding="native")
    with pytest.raises(ValueError, match="rounding='native' is eager's chain"):
        rms_norm_scale(half, scale, rounding="native")
    with pytest.raises(ValueError, match="6 tokens do not divide into 4 frames"):
        tanh_gate_residual_rms_norm(x, x, torch.zeros(B, 4, D))
    with pytest.raises(ValueError, match="tensors are on cpu, meta; allowed is one device"):
        rms_norm_scale(x, scale.to("meta"))
    with pytest.raises(ValueError, match="scale without shift"):
        layer_norm_modulate(x, scale)
    with pytest.raises(ValueError, match="y is bf16"):
        gate_residual_rms_norm_modulate(x, half)


@pytest.mark.parametrize(
    "text",
    [
        "rms_norm[bf16](122880x128, weight=bf16 128, rounding=once)",
        "rms_norm_modulate[bf16](2x6144x4096, scale=:strided(24576,4096,1))",
        "gate_residual_rms_norm_modulate[bf16](2x6144x4096, gate=none, scale=none)",
        "gate_residual_rms_norm_dual_modulate[bf16](1x24576x4096, gate=2x4096, scale=1x1x4096, "
        "index=i64 1x24576)",
        "layer_norm_modulate[bf16](1x11040x5120, scale=fp32 2x5120, index=i64 1x11040, "
        "rounding=once)",
    ],
)
def test_a_printed_signature_is_read_back(text):
    """Signatures of the norms survive printing, and those of their buckets, too."""
    op = OPS[text.partition("[")[0]]
    call = op.parse(text).call
    assert op.sign(call).text == text
    bucket = op.bucket(call)
    assert op.bucket(bucket) == bucket
    assert op.parse(op.sign(bucket).text).call == bucket
