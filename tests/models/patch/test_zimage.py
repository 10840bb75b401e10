"""diffusers' Z-Image, patched, against itself: the same bits, on the CPU.

Every op answers by its reference here, which takes eager's steps one by one; so do the recipes.
"""

import re
from collections import Counter

import jitd
import pytest
import torch
from jitd.models.patch import patch, unpatch
from torch._dynamo.utils import counters

from ..zimage.small import BASE, BATCHES, build, inputs, recorded
from . import tiny_zimage

pytestmark = pytest.mark.diffusers
pytest.importorskip("diffusers")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OMNI = {"siglip_feat_dim": 20, "in_channels": 16}


def run(model, given):
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def assert_same(model, given):
    """Hold a model to its bits and strides before it was patched, all of it by recipes."""
    wanted, before = run(model, given), {n: v.clone() for n, v in model.state_dict().items()}
    report = patch(model)
    for out, want in zip(run(model, given), wanted, strict=True):
        assert torch.isfinite(want).all()
        assert torch.equal(out, want)
        assert out.stride() == want.stride()
    assert report.left == ()  # nor was any left because it differed
    assert not report.declined
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    return report


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_same_bits(dtype, batch):
    """One sample, samples alike, captions of several lengths, images of several sizes: results are
    stock's bit for bit, every site answers, parameters stay as they are.
    """
    report = assert_same(tiny_zimage.transformer(dtype), inputs(BATCHES[batch], dtype=dtype))
    assert all(site.calls for site in report.sites)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_that_are_given(dtype):
    """With images beside the one that is denoised tokens are noisy or not, and have rows of two
    timesteps: the same bits from two rows a sample and an index.
    """
    model, given = tiny_zimage.transformer(dtype, **OMNI), tiny_zimage.omni(dtype)
    report = assert_same(model, given)
    assert all(site.calls for site in report.sites)
    # A norm and a gate in refiners and in layers, and the last norm.
    assert sum("index=i32" in text for text in recorded(model, given)) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_pipeline(dtype):
    """Two prompts of different lengths, guided: the same images, all of the transformer by recipes;
    the VAE's attentions, of the same class, have another processor and keep it.
    """
    pytest.importorskip("transformers")
    made, given = tiny_zimage.pipeline(dtype=dtype)
    wanted = tiny_zimage.generate(made, given)
    report = patch(made)
    images = tiny_zimage.generate(made, given)
    assert torch.isfinite(wanted).all()
    assert torch.equal(images, wanted)
    assert {site.path.split(".")[0] for site in report.left} <= {"vae"}
    assert not report.declined
    assert all(site.calls for site in report.patched if site.path.startswith("transformer"))


@pytest.mark.parametrize("batch", [name for name in BATCHES if name != "two alike"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_asks_for_what_our_own_transformer_does(batch, device):
    """The same signatures and counts, for real and on meta, but for where tables lie and for the
    norm in front of captions, which a patched model leaves to diffusers: what was warmed up for
    the one serves the other. But samples alike have one table in ours, and two in diffusers'.
    """
    dtype = torch.bfloat16
    model, ours = tiny_zimage.transformer(dtype, device), build(dtype=dtype, device=device)
    given = inputs(BATCHES[batch], dtype=dtype, device=device)
    patch(model, verify="never")
    wanted = recorded(ours, given)
    captions = f"x{BASE['cap_feat_dim']}, "
    of_captions = [text for text in wanted if captions in text]
    assert len(of_captions) == 1
    del wanted[of_captions[0]]
    assert wherever(recorded(model, given)) == wherever(wanted)


def wherever(counts):
    """Signatures with their counts, whatever the strides of their tensors."""
    found = Counter()
    for text, count in counts.items():
        found[re.sub(r":strided\([\d,]*\)", "", text)] += count
    return found


def test_a_feed_forward_and_a_last_layer_by_themselves():
    """Parts of a model can be patched: a feed-forward, and the last layer."""
    model = tiny_zimage.transformer(torch.bfloat16)
    x, timestep = torch.randn(2, 32, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    (last,) = model.all_final_layer.values()
    for part, given in ((model.layers[0].feed_forward, (x,)), (last, (x, timestep))):
        with torch.no_grad():
            wanted = part(*given)
            report = patch(part)
            assert torch.equal(part(*given), wanted)
        assert report.calls == 1
        assert unpatch(part) == 1


@pytest.mark.parametrize("cause", ["dtype", "rotary", "arguments", "timestep"])
def test_calls_that_are_left_to_the_stock_forwards(cause):
    """Weights of another dtype, no angles, arguments that nobody knows: stock's results and errors,
    and a count of the cause.
    """
    model = tiny_zimage.transformer()
    block, attention = model.layers[0], model.layers[0].attention
    x, angles = torch.randn(1, 32, 64), torch.randn(1, 32, 8, 2)
    angles, timestep = torch.view_as_complex(angles), torch.randn(1, 64)
    part, given = {
        "dtype": (block, {"x": x, "attn_mask": None, "freqs_cis": angles, "adaln_input": timestep}),
        "rotary": (attention, {"hidden_states": x}),
        "arguments": (attention, {"hidden_states": x, "freqs_cis": angles, "scale": 2.0}),
        "timestep": (block, {"x": x, "attn_mask": None, "freqs_cis": angles}),
    }[cause]
    if cause == "dtype":
        block.ffn_norm2.weight.data = block.ffn_norm2.weight.data.double()
    report = patch(part)
    with torch.no_grad():
        if cause == "timestep":
            with pytest.raises(TypeError):
                part(**given)
        else:
            out = part(**given)
            unpatch(part)
            assert torch.equal(out, part(**given))
    assert report.declined[cause] == 1


def test_compiles_with_masks():
    """torch.compile takes the blocks of a patched transformer in one graph each, also with captions
    of two lengths and dynamic shapes, and with the same result.
    """
    torch.compiler.reset()
    counters.clear()
    model = tiny_zimage.transformer(torch.bfloat16)
    given = inputs(BATCHES["captions of two lengths"], dtype=torch.bfloat16)
    patch(model)
    wanted = run(model, given)
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager", dynamic=True)
    for out, want in zip(run(model, given), wanted, strict=True):
        assert torch.equal(out, want)
    assert not counters["graph_break"]
    assert "patch:mismatch" not in jitd.stats()
