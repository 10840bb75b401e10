"""Blocks of VAEs in every config that diffusers allows: they have stock's bits, and are ours."""

import jitd
import pytest
import torch

from .tiny_vae import build, made, of, outcome, random, sample, there_and_back

pytestmark = pytest.mark.diffusers

# Config of ResnetBlock2D of 32 channels, what the block is given besides x, calls of ops.
RESNETS = {
    "shortcut": ({"out_channels": 64, "conv_shortcut": True}, None, 2),
    "wide conv2": ({"conv_2d_out_channels": 64}, None, 2),
    "groups": ({"groups": 8, "groups_out": 4, "eps": 1e-5}, None, 2),
    "scaled": ({"output_scale_factor": 2**0.5}, None, 2),
    "up": ({"up": True}, None, 2),
    "down": ({"down": True}, None, 2),
    "up, FIR": ({"up": True, "kernel": "fir"}, None, 2),
    "down, FIR": ({"down": True, "kernel": "fir"}, None, 2),
    "up, SDE": ({"up": True, "kernel": "sde_vp"}, None, 2),
    "temb": ({"temb_channels": 16}, (2, 16), 2),
    "temb as it is": ({"temb_channels": 16, "skip_time_act": True}, (2, 16), 2),
    "temb, projected": ({}, (2, 32, 1, 1), 2),
    "modulated": ({"temb_channels": 16, "time_embedding_norm": "scale_shift"}, (2, 16), 1),
}


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_blocks(name):
    """A ResnetBlock2D of every config has stock's bits, and no call is declined. Where a modulation
    follows the second norm, the op computes the first.
    """
    config, conditioning, ops = RESNETS[name]
    block = made(of("resnet", "ResnetBlock2D"), in_channels=32, **{"temb_channels": None} | config)
    temb = None if conditioning is None else random(*conditioning, seed=2)
    wanted = outcome(block, random(2, 32, 6, 6), temb)
    report = jitd.patch(block)
    assert torch.equal(outcome(block, random(2, 32, 6, 6), temb), wanted)
    assert (report.calls, report.declined.total()) == (1, 0)
    with jitd.record() as asked:
        block.requires_grad_(False)(random(2, 32, 6, 6), temb)
    assert sum(asked.counts.values()) == ops


def test_many_samples_are_upsampled_contiguously():
    """From 64 samples on, a block in channels-last upsamples contiguous tensors, as stock does."""
    block = made(of("resnet", "ResnetBlock2D"), in_channels=32, temb_channels=None, up=True)
    x = random(64, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    wanted = outcome(block, x, None)
    jitd.patch(block)
    out = outcome(block, x, None)
    assert torch.equal(out, wanted)
    assert out.stride() == wanted.stride()


@pytest.mark.parametrize(
    ("changes", "noise"),
    [
        ({}, False),
        ({"in_channels": 8, "out_channels": 16}, False),  # stock's noise is as wide as the input
        ({"dropout": 0.5}, False),
        ({}, True),
        ({"dropout": 0.5}, True),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_video_blocks(changes, noise, causal):
    """A block of the video VAE has stock's bits: causal or not, with a shortcut, and with noise of
    the generator that it is given, which is left in stock's state.
    """
    cls = of("autoencoders.autoencoder_kl_ltx2", "LTX2VideoResnetBlock3d")
    block = made(cls, **{"in_channels": 8} | changes, inject_noise=noise)
    x, found = random(2, 8, 3, 4, 4), []
    for patched in (False, True):
        if patched:
            report = jitd.patch(block, verify="never")
        generator = torch.Generator().manual_seed(3)
        found.append((outcome(block, x, None, generator, causal), generator.get_state()))
    assert all(map(torch.equal, *found))
    assert (report.calls, report.declined.total()) == (1, 0)


def test_noise_of_the_default_generator_is_verified():
    """Without a generator both forwards of a first call draw the same noise, once for who calls."""
    cls = of("autoencoders.autoencoder_kl_ltx2", "LTX2VideoResnetBlock3d")
    block, x = made(cls, 8, inject_noise=True), random(2, 8, 3, 4, 4)
    found = []
    for patched in (False, True):
        if patched:
            report = jitd.patch(block)
        torch.manual_seed(3)
        found.append((outcome(block, x), torch.get_rng_state()))
    assert all(map(torch.equal, *found))
    assert [*report.sites[0].verified.values()] == [0.0]


def test_a_decoder_with_noise():
    """A decoder that injects noise has stock's bits from the same seed."""
    model = build("video 2.3", decoder_inject_noise=(True,) * 5)
    x = sample("video 2.3")
    torch.manual_seed(3)
    wanted = there_and_back(model, x)
    report = jitd.patch(model)
    torch.manual_seed(3)
    assert all(map(torch.equal, there_and_back(model, x), wanted))
    assert (len(report.left), report.declined.total()) == (0, 0)


@pytest.mark.parametrize("temb", [None, (2, 12)])
@pytest.mark.parametrize(
    "config", [{}, {"out_channels": 16}, {"out_channels": 16, "conv_shortcut": True}]
)
def test_audio_blocks(config, temb):
    """A block of the audio VAE has stock's bits, with a timestep's embedding and without."""
    cls = of("autoencoders.autoencoder_kl_ltx2_audio", "LTX2AudioResnetBlock")
    block = made(cls, in_channels=8, temb_channels=12, norm_type="pixel", **config)
    args = random(2, 8, 5, 6), None if temb is None else random(*temb)
    wanted = outcome(block, *args)
    report = jitd.patch(block)
    assert torch.equal(outcome(block, *args), wanted)
    assert (report.calls, report.declined.total()) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "latent"),
    [
        ({"mel_bins": None}, (1, 2, 3, 4)),
        ({"causality_axis": "width"}, (2, 2, 3, 4)),
        ({"causality_axis": "none"}, (2, 2, 3, 4)),
        ({"mel_bins": 20, "causality_axis": "none"}, (1, 2, 3, 4)),
        ({"mel_bins": 12, "output_channels": 1}, (1, 2, 3, 4)),
        ({"mid_block_add_attention": True}, (1, 2, 3, 4)),
        ({"attn_resolutions": (8, 16)}, (1, 2, 3, 4)),
    ],
)
def test_audio_decoders(changes, latent):
    """Spectrograms are cut and filled up as stock does; attentions are called."""
    model = build("audio", **changes)
    wanted = outcome(model.decode, random(*latent), return_dict=False)[0]
    report = jitd.patch(model)
    out = outcome(model.decode, random(*latent), return_dict=False)[0]
    assert torch.equal(out, wanted)
    assert out.stride() == wanted.stride()
    assert report.calls == 1 + sum("decoder." in site.path for site in report.sites)


@pytest.mark.parametrize("attribute", ["give_pre_end", "tanh_out"])
def test_attributes_of_an_audio_decoder(attribute):
    """Attributes that no config sets, but diffusers reads, are read."""
    decoder = build("audio").decoder
    setattr(decoder, attribute, True)
    wanted = outcome(decoder, random(1, 2, 3, 4))
    jitd.patch(decoder)
    assert torch.equal(outcome(decoder, random(1, 2, 3, 4)), wanted)


@pytest.mark.parametrize("dims", [(8, 8), (8, 16)])
def test_caches_of_wan(dims):
    """Chunks of one frame, of two and three leave in cache and index what stock leaves there,
    and give its bits.
    """
    cls = of("autoencoders.autoencoder_kl_wan", "WanResidualBlock")
    block = made(cls, *dims)
    found = []
    for patched in (False, True):
        if patched:
            report = jitd.patch(block)
        cache, outs = [None, None, None], []
        for frames, seed in ((1, 1), (2, 2), (1, 3), (3, 4)):
            index = [1]
            outs.append(outcome(block, random(2, 8, frames, 4, 4, seed=seed), cache, index))
            assert index == [3]
            outs += [kept.clone() for kept in cache[1:]]
        assert cache[0] is None
        found.append(outs)
    assert all(map(torch.equal, *found))
    assert (report.calls, report.declined.total()) == (4, 0)


def test_frames_that_lie_one_by_one():
    """Behind an upsampler frames lie outside channels: they are given to the op as samples, and the
    result has stock's bits and strides.
    """
    cls = of("autoencoders.autoencoder_kl_wan", "WanResidualBlock")
    block = made(cls, 8, 8)
    x = random(2, 3, 8, 4, 4).transpose(1, 2)
    wanted = outcome(block, x)
    jitd.patch(block, verify="never")
    with jitd.record() as asked:
        out = outcome(block, x)
    assert torch.equal(out, wanted)
    assert out.stride() == wanted.stride()
    assert any("(6x8x4x4," in str(key) for key in asked.counts)
