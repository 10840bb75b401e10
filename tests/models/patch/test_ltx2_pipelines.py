"""Whole tiny pipelines of LTX-2, patched, against themselves: the same bits, on the CPU."""

import jitd
import pytest
import torch
from jitd.tools.examples import tiny
from jitd.tools.examples.ltx2_two_stage import two_stages

from . import tiny_ltx2

pytestmark = pytest.mark.diffusers

DTYPES = [torch.float32, torch.bfloat16]


def patched_gives_the_same(task, *pipelines):
    """Hold what a task gives with patched pipelines to what it gives with stock ones; reports."""
    wanted = task()
    reports = [jitd.patch(pipeline) for pipeline in pipelines]
    outs = task()
    for report in reports:
        assert report.left == ()  # nor was any left because it differed
        assert not report.declined
        assert all(site.calls for site in report.sites if "vae" not in site.path)  # latents
    for out, want in zip(outs, wanted, strict=True):
        assert torch.isfinite(want).all()
        assert torch.equal(out, want)
    return reports


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_two_stages(version, dtype):
    """Text to video and audio in two stages with the latent upsampler between them: the first
    guided, for 2.3 by perturbed and isolated forwards, too.
    """
    pipe, given = tiny_ltx2.pipeline(version, dtype=dtype)
    upsampler = tiny.ltx2_upsampler(pipe, version)
    patched_gives_the_same(lambda: two_stages(pipe, upsampler, given), pipe, upsampler)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_image_to_video(version):
    """With a given first frame timesteps differ from token to token."""
    pipe, given = tiny_ltx2.pipeline(version, i2v=True)
    patched_gives_the_same(lambda: tiny_ltx2.latents(pipe, given), pipe)


def test_guidance_calls_what_it_should():
    """With prompt, perturbation and modality guidance a step is a forward of two samples, a
    perturbed and an isolated one; text connectors are asked once.
    """
    pipe, given = tiny_ltx2.pipeline("2.3")
    (report,) = patched_gives_the_same(lambda: tiny_ltx2.latents(pipe, given), pipe)
    calls = {site.path: site.calls for site in report.sites}
    layer = "transformer.transformer_blocks.1"
    assert calls[layer] == calls[f"{layer}.attn1"] == 3 * 2
    assert calls[f"{layer}.audio_to_video_attn"] == 2 * 2
    assert calls["connectors.video_connector.transformer_blocks.0.attn1"] == 1
