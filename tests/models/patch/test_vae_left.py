"""Sites of VAEs that are left, and calls that go to the stock forward: each with its reason."""

from copy import deepcopy

import jitd
import pytest
import torch
from torch import nn

from .tiny_vae import build, made, of, outcome, random, sample, there_and_back

pytestmark = pytest.mark.diffusers


def alike(one, other):
    return one == other if isinstance(one, str) else torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.scale. is deprecated")
@pytest.mark.parametrize(
    ("config", "args", "kwargs", "cause"),
    [
        ({}, (None, 1.0), {}, "scale"),
        ({}, (None,), {"scale": 1.0}, "scale"),
        ({"temb_channels": 16}, (None,), {}, "temb"),
        ({"temb_channels": 16, "time_embedding_norm": "scale_shift"}, (None,), {}, "temb"),
    ],
)
def test_calls_that_a_resnet_block_declines(config, args, kwargs, cause):
    """The deprecated argument, and no conditioning where it is due, have stock's outcome."""
    block = made(of("resnet", "ResnetBlock2D"), in_channels=32, **{"temb_channels": None} | config)
    x = random(1, 32, 4, 4)
    wanted = outcome(block, x, *args, **kwargs)
    report = jitd.patch(block)
    assert alike(outcome(block, x, *args, **kwargs), wanted)
    assert report.declined == {cause: 1}


def test_timestep_conditioning_is_left():
    """Blocks and a decoder with a modulation between norm and SiLU are left, and say so; those of
    the encoder have none, and are not.
    """
    model = build("video 2.3", timestep_conditioning=True)
    report = jitd.patch(model)
    assert {site.path.partition(".")[0] for site in report.left} == {"decoder"}
    assert {site.path.partition(".")[0] for site in report.patched} == {"encoder"}
    assert all("modulation by the timestep" in site.left for site in report.left)
    with torch.no_grad():
        out = model.decode(random(1, 8, 2, 2, 2), torch.tensor([0.05]))
    assert out.sample.isfinite().all()


def test_group_norms_of_an_audio_vae_are_left():
    """An audio VAE with GroupNorm, which is no released one, is left with the reason."""
    cls = of("autoencoders.autoencoder_kl_ltx2_audio", "LTX2AudioResnetBlock")
    report = jitd.patch(made(cls, 32, temb_channels=0, norm_type="group", causality_axis="none"))
    assert report.sites[0].left == "norm1: a GroupNorm, not LTX2AudioPixelNorm"


def test_a_cache_without_an_index_is_declined():
    """Stock counts in a list that all calls share then; nobody else can."""
    for name, count in (("WanResidualBlock", 2), ("WanEncoder3d", 24)):
        cls = of("autoencoders.autoencoder_kl_wan", name)
        block = made(cls, 8, 8) if count == 2 else made(cls, dim=8, num_res_blocks=1)
        stock = deepcopy(block)
        x = random(1, 8 if count == 2 else 3, 1, 16, 16)
        report = jitd.patch(block)
        assert outcome(block, x, [None] * count).shape == outcome(stock, x).shape
        assert report.declined["feat_idx"] >= 1


def test_what_the_ops_do_not_compute_is_left():
    """Another activation, a norm of another class, without weights, with a bias, over another
    dimension: each is left with its reason.
    """
    resnet = of("resnet", "ResnetBlock2D")
    how = {"in_channels": 32, "temb_channels": None}
    gelu, plain = made(resnet, **how, non_linearity="gelu"), made(resnet, **how)
    plain.norm2 = nn.GroupNorm(32, 32, affine=False)
    other = made(resnet, **how)
    other.norm1 = nn.BatchNorm2d(32)
    spatial = made(of("autoencoders.vae", "Decoder"), norm_type="spatial", block_out_channels=(32,))
    wan = made(of("autoencoders.autoencoder_kl_wan", "WanResidualBlock"), 8, 8)
    norm = of("autoencoders.autoencoder_kl_wan", "WanRMS_norm")
    wan.norm1 = norm(8, images=False, bias=True)
    last = deepcopy(wan)
    last.norm1 = norm(8, channel_first=False)
    video = made(of("autoencoders.autoencoder_kl_ltx2", "LTX2VideoResnetBlock3d"), 8)
    video.norm2.channel_dim = 2
    left = [
        jitd.patch(module).sites[0].left
        for module in (gelu, plain, other, spatial, wan, last, video)
    ]
    assert left == [
        "nonlinearity: GELU(approximate='none'), not SiLU()",
        "norm2: no weight and bias",
        "norm1: a BatchNorm2d, not GroupNorm",
        "conv_norm_out: a SpatialNorm, not GroupNorm",
        "norm1: with a bias",
        "norm1: channels are last",
        "norm2: over dimension 2, not channels",
    ]


@pytest.mark.parametrize("name", ["video 2.3", "audio", "wan 2.1", "kl"])
def test_float64_is_declined(name):
    """A VAE in float64 has stock's bits: the ops have no kernels for it."""
    model, x = build(name, dtype=torch.float64), sample(name, dtype=torch.float64)
    wanted = there_and_back(model, x)
    report = jitd.patch(model)
    assert all(map(torch.equal, there_and_back(model, x), wanted))
    assert set(report.declined) == {"dtype"}


def test_norms_of_another_dtype_are_declined():
    """Wan's norms in fp32 between convolutions in bf16 promote what is behind them: stock's."""
    cls = of("autoencoders.autoencoder_kl_wan", "WanResidualBlock")
    block = made(cls, 8, 8)
    block.norm2.bfloat16()
    wanted = outcome(block, random(1, 8, 2, 4, 4))
    report = jitd.patch(block)
    assert torch.equal(outcome(block, random(1, 8, 2, 4, 4)), wanted)
    assert report.declined == {"dtype": 1}


@pytest.mark.parametrize("child", ["norm1", "nonlinearity"])
def test_hooks_on_what_is_not_called(child):
    """A hook on a norm or an activation is called: the call goes to the stock forward."""
    block = made(of("autoencoders.autoencoder_kl_ltx2", "LTX2VideoResnetBlock3d"), 8)
    report, seen = jitd.patch(block), []
    getattr(block, child).register_forward_hook(lambda *given: seen.append(given))
    outcome(block, random(1, 8, 2, 4, 4))
    assert seen
    assert report.declined == {"hook": 1}


def test_latent_embeds_are_declined():
    """A decoder that is given latents to condition its norms raises as stock does."""
    decoder = made(of("autoencoders.vae", "Decoder"), block_out_channels=(32,))
    given = random(1, 3, 4, 4), random(1, 32, 1, 1)
    wanted = outcome(decoder, *given)
    report = jitd.patch(decoder)
    assert isinstance(wanted, str)
    assert outcome(decoder, *given) == wanted
    assert report.sites[0].declined == {"latent_embeds": 1}
