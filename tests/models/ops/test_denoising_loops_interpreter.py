"""HQ's loop with every op answered by its kernel, in Triton's interpreter."""

import jitd
import pytest
import torch
from jitd.models.ltx2.denoising.noise import draw_noise
from jitd.models.ltx2.denoising.predict import Stream
from jitd.models.ltx2.denoising.samplers import DeviceSteps, HostSteps, denoise
from jitd.models.ltx2.denoising.schedule import REFINE_RES2S

from ..ltx2 import eager_loops as eager
from ..ltx2.test_denoising import HQ, asked, clean, latents, predictor, seeded

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_the_loop_by_kernels_is_the_formulas(sampler):
    """From host numbers and from tensors; no reference answers."""
    x, sigmas = latents(), REFINE_RES2S
    noise = draw_noise(3, x[0].shape, x[1].shape, step=seeded(3), standard=True)
    streams = [Stream(one, by) for one, by in zip(x, HQ, strict=True)]
    want = {
        "euler": lambda: eager.euler(asked(), x, sigmas, HQ),
        "res2s": lambda: eager.res2s(asked(), x, sigmas, HQ, noise),
    }[sampler]()
    for steps in (HostSteps(sigmas), DeviceSteps(sigmas, "cpu")):
        ask = predictor(HQ, "arguments")
        got = denoise(ask, *streams, steps, sampler=sampler, noise=noise)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    assert jitd.stats() == {}


def test_an_image_is_kept_by_kernels():
    """Sigmas by token, and the clean latents to the bit."""
    x, (image, mask) = latents(), clean()
    streams = Stream(x[0], HQ[0], image, mask), Stream(x[1], HQ[1])
    video, _ = denoise(predictor(HQ, "configs"), *streams, HostSteps((0.9, 0.5, 0.2)))
    assert torch.equal(video[:, :4], image[:, :4])
    assert jitd.stats() == {}
