"""Z-Image's transformer against the class that it replaces: the same bits, on the CPU.

Every op answers by its reference here, which takes eager's steps one by one; so do the modules.
"""

import pytest
import torch
from jitd.models.zimage.config import TransformerConfig
from jitd.models.zimage.rope import caption_table, image_table

from .small import BASE, BATCHES, build, inputs, run

pytestmark = pytest.mark.diffusers

DTYPES = [torch.float32, torch.bfloat16]


def _both(dtype=torch.float32, **changes):
    diffusers = pytest.importorskip("diffusers")  # here: it takes seconds to import
    theirs = diffusers.ZImageTransformer2DModel(**{**BASE, **changes}).to(dtype).eval()
    ours = build(dtype=dtype, **changes)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours = build(dtype=dtype, **changes)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _assert_same(theirs, ours, given, **more):
    with torch.no_grad():
        (expected,) = theirs(**given, **more, return_dict=False)
    outs = run(ours, {**given, **more})
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)
        assert out.stride() == wanted.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_same_bits(dtype, batch):
    """With diffusers' weights, loaded strictly, every image is diffusers' bit for bit: one sample,
    samples alike, captions of several lengths, images of several sizes.
    """
    _assert_same(*_both(dtype), inputs(BATCHES[batch], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_timesteps_of_the_models_dtype(dtype):
    """Timesteps may have the model's dtype, too: they are scaled in it, as diffusers does."""
    given = inputs(BATCHES["two alike"], dtype=dtype)
    _assert_same(*_both(dtype), given | {"t": given["t"].to(dtype)})


def test_other_patches():
    """A model with two kinds of patches gives the same bits with either."""
    theirs, ours = _both(all_patch_size=(2, 4), all_f_patch_size=(1, 1))
    for side in (2, 4):
        _assert_same(theirs, ours, inputs(BATCHES["three"]), patch_size=side)


def test_state_dicts_are_theirs():
    """Either state dict loads into the other class, with the same names, shapes and dtypes."""
    theirs, ours = _both(torch.bfloat16)
    wanted = {name: (v.shape, v.dtype) for name, v in theirs.state_dict().items()}
    assert {name: (v.shape, v.dtype) for name, v in ours.state_dict().items()} == wanted


def test_config_of_theirs_builds_ours():
    """Every entry of a diffusers config is an argument of ours, with the same default."""
    theirs = pytest.importorskip("diffusers").ZImageTransformer2DModel
    with torch.device("meta"):
        config = {k: v for k, v in theirs(n_layers=1).config.items() if k[0] != "_"}
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    assert vars(TransformerConfig(**tuples)) == vars(TransformerConfig(n_layers=1))


def test_rotary_tables_are_theirs():
    """Tables of captions and images are diffusers' complex numbers bit for bit."""
    module = pytest.importorskip("diffusers.models.transformers.transformer_z_image")
    theirs = module.RopeEmbedder(256.0, [32, 48, 48], [1024, 512, 512])
    axes, cpu = ((32, 48, 48), 256.0), torch.device("cpu")
    caption = torch.zeros(480, 3, dtype=torch.int32)
    caption[:, 0] = torch.arange(1, 481)
    table = caption_table(480, axes, cpu)
    assert torch.equal(table, torch.view_as_real(theirs(caption)))
    places = torch.cartesian_prod(torch.tensor([481]), torch.arange(5), torch.arange(64, 70))
    places = torch.cat([places - torch.tensor([0, 0, 64]), torch.zeros(2, 3, dtype=torch.int64)])
    table = image_table((1, 5, 6), 481, 32, axes, cpu)
    assert torch.equal(table, torch.view_as_real(theirs(places)))
