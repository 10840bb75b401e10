"""Queries and keys turned in pairs: Helios' tables and Z-Image's, against what they stand for."""

import pytest
import torch
from jitd.jit.declare import Config
from jitd.jit.interpret import Interpreted
from jitd.models.ops.rotary import qk_norm_rotary
from torch import nn

from .cases import DTYPES, name_of, randn
from .signed import LOOSE, made_exact, reference, signed, tensors_of, verdict_of

BY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)

# Heads of 2 x 4, 2 x 3 and 2 x 8 channels; norms over rows and over heads; batches of tables.
CASES = [
    "qk_norm_rotary[fp16](2x5x24, wq=fp16 24, q_cos=fp32 2x5x16, layout=interleaved)",
    "qk_norm_rotary[bf16](2x5x24, k=2x3x24, wq=fp32 24, q_cos=fp32 1x5x12, "
    "k_cos=fp32 1x3x12, layout=interleaved)",
    "qk_norm_rotary[fp16](2x5x24, wq=fp16 8, q_cos=fp32 1x5x4x2, layout=complex, rounding=each)",
    "qk_norm_rotary[fp32](1x5x48, wq=none, q_cos=fp32 1x5x8x2, k_cos=none, layout=complex, "
    "rounding=native)",
    "qk_norm_rotary[fp16](1x3x18, wq=fp16 6, q_cos=fp32 1x3x3x2:strided(24,8,2,1), "
    "layout=complex, rounding=native)",
    "qk_norm_rotary[fp16](1x5x24, wq=fp16 8, q_cos=fp32 1x3x5x4:perm0213, rounding=each)",
]
TOGETHER = {"ROWS": 2, "TILES": 2, "num_warps": 1, "TOGETHER": True}
APART = {"ROWS": 1, "TILES": 1, "num_warps": 1, "TOGETHER": False}


def arguments(dtype, width, per_head):
    """q, k, weights and angles for heads of 8 channels, 5 tokens of 2 samples."""
    q, k = (randn(2, 5, width, seed=seed, dtype=dtype) for seed in (0, 1))
    wq, wk = (randn(8 if per_head else width, seed=seed, dtype=dtype) for seed in (2, 3))
    return q, k, wq, wk, randn(2, 5, 4, seed=4) * 3


@BY_DTYPE
def test_interleaved_is_helios(dtype):
    """RMSNorm over rows, then neighbours turned by the entries of [cos | sin] that Helios reads,
    which need not be of one angle."""
    q, k, wq, wk, _ = arguments(dtype, 24, per_head=False)
    table = randn(2, 5, 16, seed=4)
    outputs = qk_norm_rotary(q, k, wq, wk, table, None, table, None, layout="interleaved")
    cos, sin = table[:, :, None, 0:8:2], table[:, :, None, 9:16:2]
    for x, w, out in zip((q, k), (wq, wk), outputs, strict=True):
        n = nn.functional.rms_norm(x, (24,), w, 1e-6).unflatten(2, (3, 8))
        want = torch.empty_like(n)
        want[..., 0::2] = n[..., 0::2] * cos - n[..., 1::2] * sin
        want[..., 1::2] = n[..., 0::2] * sin + n[..., 1::2] * cos
        assert torch.equal(out, want.flatten(2))


@BY_DTYPE
@pytest.mark.parametrize("rounding", ["each", "native"])
def test_complex_is_z_image(dtype, rounding):
    """A norm of each head in eager's chain, then complex multiplication in fp32."""
    q, k, wq, wk, angles = arguments(dtype, 24, per_head=True)
    freqs = torch.polar(torch.ones_like(angles), angles)
    table = torch.view_as_real(freqs)
    outputs = qk_norm_rotary(
        q, k, wq, wk, table, None, table, None, 1e-5, layout="complex", rounding=rounding
    )
    for x, w, out in zip((q, k), (wq, wk), outputs, strict=True):
        heads = x.unflatten(2, (3, 8))
        wide = heads if rounding == "native" else heads.float()
        n = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * w
        pairs = torch.view_as_complex(n.float().reshape(2, 5, 3, 4, 2))
        turned = torch.view_as_real(pairs * freqs.unsqueeze(2)).flatten(3)
        assert torch.equal(out, turned.to(dtype).flatten(2))


X, W = torch.zeros(2, 5, 24), torch.zeros(24)
BAD = {
    "layout='whole'; allowed are split, interleaved, complex": {"layout": "whole"},
    "rounding='norm'; allowed are each, once, native": {"rounding": "norm"},
    "q_sin is given": {"layout": "complex", "q_cos": X, "q_sin": X},
    r"the table of q is fp32 \(2, 5, 24\); allowed is fp32 \(B\|1, T, R, 2\)": {
        "layout": "complex",
        "q_cos": X,
    },
    "the table of q is bf16": {"layout": "interleaved", "q_cos": X.bfloat16()},
    "do not divide into the heads of 2 x 5": {"layout": "interleaved", "q_cos": X[..., :20]},
    "and 5 tokens": {"layout": "interleaved", "q_cos": X[:, :3]},
    r"wq is \(8,\); allowed is \(24,\)": {"wq": W[:8]},
    "one norm over rows, one over heads": {
        "wq": W,
        "wk": W[:12],
        "layout": "interleaved",
        "q_cos": X,
    },
    "wq is bf16, beside fp32": {"wq": W.bfloat16(), "rounding": "each"},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    """Tables and weights of wrong shapes, dtypes and layouts raise a ValueError that says so."""
    given = {"wq": None, "wk": None} | BAD[message]
    with pytest.raises(ValueError, match=message):
        qk_norm_rotary(X, X, **given)


@pytest.mark.parametrize("text", CASES)
def test_a_printed_signature_is_read_back(text):
    """Signatures of pairs survive printing, and so do those of their buckets."""
    op, call = signed(text)
    assert op.parse(str(op.sign(call))).call == call
    bucket = op.bucket(call)
    assert op.bucket(bucket) == bucket
    assert op.parse(op.sign(bucket).text).call == bucket
    assert all(op.bucket(one) == bucket for one in op.reach(bucket))


def interpreted(text, params):
    op, call = signed(text)
    return Interpreted(op, call, Config(op.variants[0], params))


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("text", "params"),
    [*((text, APART) for text in CASES), (CASES[0], TOGETHER), (CASES[2], TOGETHER)],
)
def test_the_kernel_is_right(text, params):
    """Every layout, norm and weight is within the bound of float64."""
    verdict = verdict_of(text, interpreted(text, params), bound=LOOSE)
    assert verdict.ok, verdict.reason


@pytest.mark.interpreter
@pytest.mark.parametrize("text", [CASES[0], CASES[5]])
def test_rounding_is_eagers(text):
    """With exact statistics the bits are eager's. (The CPU's complex product is no fused one.)"""
    tensors = tensors_of(text)
    made_exact(tensors)
    want = reference(text, *tensors)
    got = [torch.empty_like(result) for result in want]
    interpreted(text, APART).into(tensors, got)
    assert all(map(torch.equal, got, want))
