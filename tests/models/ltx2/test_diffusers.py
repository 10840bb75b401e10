"""The upsampler against the class that it replaces."""

import pytest
import torch
from jitd.models.ltx2.upsampler import LatentUpsampler

from .tiny import BASE, VARIANTS, build, latents

pytestmark = pytest.mark.diffusers


def _theirs(variant, dtype):
    ltx2 = pytest.importorskip("diffusers.pipelines.ltx2")  # here: it takes seconds to import
    torch.manual_seed(7)
    return ltx2.LTX2LatentUpsamplerModel(**BASE, **VARIANTS[variant]).to(dtype).eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_same_bits(variant, dtype, batch):
    """With diffusers' weights, loaded strictly, the CPU gives diffusers' result bit for bit."""
    theirs, ours = _theirs(variant, dtype), build(variant, dtype=dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = latents((batch, 8, 3, 4, 6), dtype=dtype)
    with torch.no_grad():
        expected, out = theirs(x), ours(x)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_goes_back(variant):
    """A state dict of ours loads into diffusers' class, with the same shapes and dtypes."""
    theirs, ours = _theirs(variant, torch.float32), build(variant)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("variant", ["x2_20", "x1.5"])
def test_blur_kernel_is_theirs(variant):
    """The blur kernel that we build is the one that checkpoints carry, bit for bit."""
    name = "upsampler.blur_down.kernel"
    theirs, ours = _theirs(variant, torch.float32).state_dict(), build(variant).state_dict()
    assert torch.equal(ours[name], theirs[name])


def test_config_of_theirs_builds_ours():
    """Every entry of a diffusers config is an argument of ours."""
    config = {k: v for k, v in _theirs("x2_23", torch.float32).config.items() if k[0] != "_"}
    with torch.device("meta"):
        assert LatentUpsampler(**config).res_blocks[0].conv1.out_channels == 64
