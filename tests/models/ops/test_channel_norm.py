"""Norms over channels with SiLU: against the modules of diffusers' VAEs; the kernel by itself."""

import pytest
import torch
import torch.nn.functional as F
from jitd.jit.declare import Config
from jitd.jit.device import stand_in
from jitd.jit.interpret import Interpreted
from jitd.models.ops.channel_norm import channel_rms_norm_silu

from .cases import DTYPES, LAYOUTS, fits, laid_out, name_of, on_meta, randn
from .signed import LOOSE, made_exact, reference, signed, tensors_of, verdict_of

BY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
SHAPE = (2, 12, 3, 2, 5)


def per_channel(x, eps):
    """LTX-2's two norms and SiLU, op by op."""
    return F.silu(x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + eps))


def wan(x, gamma):
    """Wan's norm and SiLU, op by op."""
    n = F.normalize(x.float() if x.dtype != torch.float32 else x, dim=1).to(x.dtype)
    return F.silu(n * x.shape[1] ** 0.5 * gamma + 0.0)


@BY_DTYPE
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [SHAPE, (2, 12, 4, 5), (3, 12)])
def test_the_reference_is_the_modules(dtype, layout, shape):
    """Both forms have the bits of their chains of eager ops, in every layout."""
    if not fits(layout, shape):
        pytest.skip("no such layout in so few dimensions")
    x = LAYOUTS[layout](randn(*shape, dtype=dtype))
    gamma = randn(12, dtype=dtype, seed=1)
    spread = gamma.view(12, *[1] * (len(shape) - 2))
    assert torch.equal(channel_rms_norm_silu(x), per_channel(x, 1e-8))
    assert torch.equal(channel_rms_norm_silu(x, eps=1e-6), per_channel(x, 1e-6))
    assert torch.equal(channel_rms_norm_silu(x, gamma, 1e-12, form="l2"), wan(x, spread))


@pytest.mark.diffusers
def test_the_reference_is_diffusers():
    """The norms of diffusers' three VAEs, with SiLU behind them, have the same bits."""
    from diffusers.models.autoencoders import (  # noqa: PLC0415
        autoencoder_kl_ltx2,
        autoencoder_kl_ltx2_audio,
        autoencoder_kl_wan,
    )

    for dtype in (torch.bfloat16, torch.float32):
        x = randn(*SHAPE, dtype=dtype)
        video = autoencoder_kl_ltx2.PerChannelRMSNorm()
        audio = autoencoder_kl_ltx2_audio.LTX2AudioPixelNorm(eps=1e-6)
        theirs = autoencoder_kl_wan.WanRMS_norm(12, images=False).to(dtype)
        theirs.gamma.data = randn(12, 1, 1, 1, dtype=dtype, seed=1)
        gamma = theirs.gamma.data.view(-1)
        with torch.no_grad():
            assert torch.equal(channel_rms_norm_silu(x), F.silu(video(x)))
            assert torch.equal(channel_rms_norm_silu(x, eps=1e-6), F.silu(audio(x)))
            found = channel_rms_norm_silu(x, gamma, 1e-12, form="l2")
            assert torch.equal(found, F.silu(theirs(x)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_kept_as_promised(layout):
    """channels_last stays, all else becomes contiguous: on the CPU, on meta, and as a spec."""
    x = LAYOUTS[layout](randn(*SHAPE))
    out = channel_rms_norm_silu(x)
    assert laid_out(out) == laid_out(channel_rms_norm_silu(on_meta(x)))
    kept = layout == "channels_last"
    assert out.is_contiguous(memory_format=torch.channels_last_3d) == kept
    assert kept or out.is_contiguous()


X = torch.zeros(2, 6, 4)
BAD = {
    "2 to 5 dimensions": ((X[0, 0],), {}),
    "x is i64": ((X.long(),), {}),
    r"weight is fp32 \(4,\); allowed is fp32 \(6,\)": ((X, X[0, 0]), {}),
    "weight is bf16": ((X, X[0, :, 0].bfloat16()), {}),
    "form='max'; allowed are rms, l2": ((X,), {"form": "max"}),
    "numerics='most'; allowed are exact, fast": ((X,), {"numerics": "most"}),
    "16385 channels; allowed are 1 to 16384": ((torch.zeros(1, 16385, 1),), {}),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    """Wrong shapes, dtypes and words raise a ValueError that names them and what is allowed."""
    args, kwargs = BAD[message]
    with pytest.raises(ValueError, match=message):
        channel_rms_norm_silu(*args, **kwargs)


CASES = [
    "channel_rms_norm_silu[fp16](2x12x3x2x5)",
    "channel_rms_norm_silu[fp16](2x24x2x2x5:channels_last_3d)",
    "channel_rms_norm_silu[fp32](2x12x9, weight=fp32 12, form=l2)",
    "channel_rms_norm_silu[fp16](1x8x4x4:channels_last, weight=fp16 8, form=l2)",
    "channel_rms_norm_silu[fp16](1x12x2x8:strided(768,64,8,1))",
    "channel_rms_norm_silu[fp16](2x5x3x4:perm0213, weight=fp16 5)",
    "channel_rms_norm_silu[bf16](1x12x9, numerics=fast)",
]
WHOLE = {"CHANNELS": 32, "POSITIONS": 4, "num_warps": 1}
IN_PARTS = {"CHANNELS": 4, "POSITIONS": 8, "num_warps": 1}
TWICE = {"CHANNELS": 8, "POSITIONS": 1024, "num_warps": 1}  # more than registers would hold


@pytest.mark.parametrize("text", CASES)
def test_a_printed_signature_is_read_back(text):
    """Signatures survive printing, and so do those of their buckets."""
    op, call = signed(text)
    assert op.sign(call).text == text
    bucket = op.bucket(call)
    assert op.bucket(bucket) == bucket
    assert op.parse(op.sign(bucket).text).call == bucket
    assert all(op.bucket(one) == bucket for one in (*op.reach(bucket), *op.probes(bucket)))


def interpreted(text, params):
    op, call = signed(text)
    return Interpreted(op, call, Config(op.variants[0], params))


@BY_DTYPE
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("positions", [1, 1 << 20])
def test_every_number_of_channels_has_configs(dtype, layout, positions):
    """However few or many channels and positions, there is a default, which holds all channels if
    any config can, and there are configs, as many as a tune has time for."""
    op, device = channel_rms_norm_silu.op, stand_in("sm_90")
    for channels in (1, 2, 3, 4, 5, 8, 12, 96, 100, 512, 1000, 2048, 5000, 16384):
        call = op.parse(
            f"channel_rms_norm_silu[{name_of(dtype)}](2x{channels}x1x1x{positions}:{layout})"
        ).call
        bucket = op.bucket(call)
        assert 1 <= len(op.configs(bucket, device)[0]) <= 25, channels
        (launch,) = op.default(bucket, device).plan(bucket, device).launches
        held = launch.args["HELD"] or channels > 1024
        assert held and launch.args["CHANNELS"] < 2 * channels, channels


def bf16_numbers():
    """All of them that are normal, in float64."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(torch.bfloat16).double()
    return numbers[numbers.abs().isfinite() & (numbers.abs() >= torch.finfo(torch.bfloat16).tiny)]


def test_quotients_of_bf16_need_no_correction():
    """v times an inverse of d that is good to an ulp of fp32 rounds to bf16 as v / d does, for all
    significands: none of the quotients is near the middle between two numbers."""
    one_to_two = torch.arange(128, 256).float() / 128
    v, d = one_to_two[:, None], one_to_two[None, :]
    inverse = 1 / d
    for other in (inverse, *(torch.nextafter(inverse, torch.tensor(end)) for end in (0.0, 2.0))):
        assert torch.equal((v * other).bfloat16(), (v / d).bfloat16())


def test_silu_of_bf16_needs_no_correction():
    """Instructions that are good to a few ulps of fp32 round to bf16 as silu itself does, for every
    number down to -88.5, below which 1 + exp(-n) is inf in both, but four: those are compared with
    eager's on the card, as all are."""
    n = bf16_numbers()
    n = n[n >= -88.5]
    silu, share = n / (1 + torch.exp(-n)), 1 / (1 + torch.exp(n))  # of exp(-n) in 1 + exp(-n)
    # The exponent's rounding, ex2.approx; the sum, the inverse, the product.
    off = share * (n.abs() * 2.0**-23 + 2.0**-22) + 5 * 2.0**-24
    low, high = (silu * (1 - off)).bfloat16(), (silu * (1 + off)).bfloat16()
    near = n[(low != high) & (silu.abs() >= torch.finfo(torch.bfloat16).tiny)]
    assert sorted(near.tolist()) == [-3.046875, -(2.0**-8), 2.0**-7, 5.9375]


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("text", "params"),
    [
        *((text, WHOLE) for text in CASES),
        *((CASES[n], params) for n in (0, 1, 2) for params in (IN_PARTS, TWICE)),
    ],
)
def test_the_kernel_is_right(text, params):
    """Both forms, in every layout, are within the bound of float64, and write their output only."""
    verdict = verdict_of(text, interpreted(text, params), bound=LOOSE)
    assert verdict.ok, verdict.reason


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", ["huge", "tiny", "special"])
@pytest.mark.parametrize("text", CASES[:3])
@pytest.mark.parametrize("params", [IN_PARTS, TWICE])
def test_hard_inputs_are_survived(text, params, kind):
    """Huge and tiny values, NaN and Inf give what eager gives, squares that overflow included."""
    verdict = verdict_of(text, interpreted(text, params), bound=LOOSE, kind=kind)
    assert verdict.ok, verdict.reason


@pytest.mark.interpreter
@pytest.mark.parametrize("text", [CASES[0], CASES[1], CASES[4]])
@pytest.mark.parametrize("params", [WHOLE, IN_PARTS, TWICE])
def test_rounding_is_eagers(text, params):
    """Positions whose sums of squares are exact in any order have eager's bits."""
    tensors = tensors_of(text)
    made_exact(tensors)
    want = reference(text, *tensors)
    got = torch.empty_like(want)
    interpreted(text, params).into(tensors, [got])
    assert torch.equal(got, want)


@pytest.mark.interpreter
def test_a_mean_that_underflows_loses_no_result():
    """One channel of thousands in fp16: the mean of squares is subnormal, rounded down by a third,
    and what is divided by its root larger than that of the number of channels."""
    text = "channel_rms_norm_silu[fp16](1x4096x4, weight=fp16 4096)"
    x = torch.zeros(1, 4096, 4, dtype=torch.float16)
    for position, value in enumerate((-0.019, -0.0192, 0.0185, 0.019)):
        x[0, 7, position] = value
    weight = torch.full((4096,), 1.24, dtype=torch.float16)
    want, got = reference(text, x, weight), torch.empty_like(x)
    interpreted(text, IN_PARTS).into([x, weight], [got])
    torch.testing.assert_close(got, want, rtol=2e-3, atol=0)
