"""The transformer against the class that it replaces: the same bits, on the CPU.

Every op answers by its reference here, which takes eager's steps one by one; so do the modules.
"""

import pytest
import torch
from jitd.models.ltx2.config import TransformerConfig
from jitd.models.ltx2.transformer import LTX2Transformer

from .small import BASE, TOKENS, VARIANTS, build, inputs, run

pytestmark = pytest.mark.diffusers

DTYPES = [torch.float32, torch.bfloat16]
ALL, MIXED, NONE = ([0.0, 0.0], [0.0, 1.0], [1.0, 1.0])
PERTURBED = {
    "off": {},
    "every sample": {"spatio_temporal_guidance_blocks": [1]},
    "every sample by mask": {"spatio_temporal_guidance_blocks": [0, 1], "perturbation_mask": ALL},
    "one sample": {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": MIXED},
    "no sample": {"spatio_temporal_guidance_blocks": [0], "perturbation_mask": NONE},
}


def _theirs(variant, dtype=torch.float32):
    diffusers = pytest.importorskip("diffusers")  # here: it takes seconds to import
    torch.manual_seed(7)
    model = diffusers.LTX2VideoTransformer3DModel(**BASE, **VARIANTS[variant])
    return model.to(dtype).eval()


def _both(variant, dtype):
    theirs, ours = _theirs(variant, dtype), build(variant, dtype=dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _assert_same(theirs, ours, given, **more):
    expected = run(theirs, given, return_dict=False, **more)
    for out, wanted in zip(run(ours, given, **more), expected, strict=True):
        assert torch.equal(out, wanted)
        assert out.stride() == wanted.stride()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timesteps", ["sample", "token"])
@pytest.mark.parametrize("isolated", [False, True])
def test_same_bits(variant, dtype, timesteps, isolated):
    """With diffusers' weights, loaded strictly, video and audio are diffusers' bit for bit: a
    timestep for each sample or for each token, streams that meet or are isolated.
    """
    given = inputs(variant, dtype=dtype, timesteps=timesteps)
    _assert_same(*_both(variant, dtype), given, isolate_modalities=isolated)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", PERTURBED)
def test_perturbed(variant, dtype, where):
    """Perturbed attention gives the same bits, in no, one or every sample; in 2.0 it is ignored."""
    more = dict(PERTURBED[where])
    if "perturbation_mask" in more:
        more["perturbation_mask"] = torch.tensor(more["perturbation_mask"], dtype=dtype)
    _assert_same(*_both(variant, dtype), inputs(variant, dtype=dtype), **more)


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("cross", [False, True])
def test_either_timestep_between_streams(variant, cross):
    """Attention between the streams is modulated by the stream's own timestep or by the other's
    sigma, whichever is asked for, and these differ.
    """
    given = inputs(variant) | {"use_cross_timestep": cross}
    given["sigma"], given["audio_sigma"] = given["sigma"] * 0.5, given["sigma"] * 0.25
    given["audio_timestep"] = given["audio_timestep"] * 0.75
    _assert_same(*_both(variant, torch.float32), given)


def test_masks_coords_and_keyframes():
    """A self-attention mask, coordinates given, and the keyframe embedding give the same bits."""
    theirs, ours = _both("2.5", torch.float32)
    for model in (theirs, ours):
        torch.manual_seed(3)
        torch.nn.init.normal_(model.keyframes_abs_pos_embedding)
    given = inputs("2.5")
    coords = theirs.rope.prepare_video_coords(2, 3, 4, 5, device="cpu", fps=30.0)
    audio = theirs.audio_rope.prepare_audio_coords(2, 6, device="cpu", shift=2)
    more = {
        "video_coords": coords,
        "audio_coords": audio,
        "video_self_attention_mask": torch.rand(2, TOKENS, TOKENS).round(),
        "video_keyframes_mask": (torch.arange(TOKENS) < 20).float().expand(2, -1).unsqueeze(-1),
    }
    _assert_same(theirs, ours, given, **more)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_goes_back(variant):
    """A state dict of ours loads into diffusers' class, with the same names, shapes and dtypes."""
    theirs, ours = _theirs(variant), build(variant)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_config_of_theirs_builds_ours():
    """Every entry of a diffusers config is an argument of ours, with the same default but that of
    rope_type, which no released model has.
    """
    theirs = pytest.importorskip("diffusers").LTX2VideoTransformer3DModel
    with torch.device("meta"):
        config = {k: v for k, v in theirs(num_layers=1).config.items() if k[0] != "_"}
        assert len(LTX2Transformer(**{**config, "rope_type": "split"}).transformer_blocks) == 1
    defaults = vars(TransformerConfig(num_layers=1))
    assert {k for k in defaults if defaults[k] != config[k]} == {"rope_type"}
    assert defaults.keys() == config.keys()


@pytest.mark.parametrize("frames", [1, 3])
def test_rotary_tables_are_theirs(frames):
    """Tables of both streams, and of attention between them, are diffusers' bit for bit, and lie
    token by token in memory as theirs do; ours are made once for all samples.
    """
    theirs, ours = _both("2.3", torch.float32)
    spans = theirs.rope.prepare_video_coords(2, frames, 4, 5, device="cpu")
    audio = theirs.audio_rope.prepare_audio_coords(2, 6, device="cpu")
    pairs = [
        (theirs.rope(spans), ours.rotary.tables(spans[:1])),
        (theirs.cross_attn_rope(spans[:, :1]), ours.rotary.cross_tables(spans[:1])),
        (theirs.audio_rope(audio), ours.audio_rotary.tables(audio[:1])),
        (theirs.cross_attn_audio_rope(audio[:, :1]), ours.audio_rotary.cross_tables(audio[:1])),
    ]
    for expected, made in pairs:
        for wanted, table in zip(expected, made, strict=True):
            assert torch.equal(table.expand_as(wanted), wanted)
            assert table.stride()[1:] == wanted.stride()[1:]
