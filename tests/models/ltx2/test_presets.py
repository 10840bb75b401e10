"""Sizes, presets and the shapes they lead to; no torch needed."""

import subprocess
import sys

import pytest
from jitd.models import ltx2
from jitd.models.ltx2.denoising.recipes import RECIPES
from jitd.models.ltx2.presets import (
    PRESETS,
    TRANSFORMERS,
    UPSAMPLERS,
    VARIANTS,
    Size,
    audio_tokens,
    latent_shape,
    variant_named,
    video_tokens,
)


def test_presets_need_no_torch():
    """Presets can be listed from the package without importing torch."""
    code = (
        "import sys, jitd.models.ltx2 as ltx2; ltx2.PRESETS, ltx2.VARIANTS, ltx2.latent_shape; "
        "ltx2.TransformerConfig(**ltx2.TRANSFORMERS['2.3']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_package_names_resolve():
    """Every public name of the package exists, and an unknown one is an AttributeError."""
    assert all(getattr(ltx2, name) is not None for name in ltx2.__all__)
    assert set(ltx2.__all__) <= set(dir(ltx2))
    with pytest.raises(AttributeError, match="nothing"):
        _ = ltx2.nothing


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("512x768", (16, 8, 12)),
        ("704x1280", (16, 11, 20)),
        ("1024x1536", (16, 16, 24)),
        ("1088x1920-hq", (16, 17, 30)),
    ],
)
def test_preset_latents(name, shape):
    """Each preset's stage-1 latents have the shape that the pipeline hands to the upsampler."""
    assert latent_shape(PRESETS[name]) == shape


def test_every_preset_is_covered():
    """No preset can be added without stating its latent shape in the test above."""
    assert set(PRESETS) == {"512x768", "704x1280", "1024x1536", "1088x1920-hq"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512x768", Size(512, 768, 121)),
        ("512x768x121", Size(512, 768)),
        ("64x128x1", Size(64, 128, 1)),
        ("1088x1920-hq", Size(1088, 1920)),
    ],
)
def test_size_parses(text, size):
    """Sizes read as height, width and frames, 121 by default, or as a preset's name."""
    assert Size.parse(text) == size


@pytest.mark.parametrize("size", [Size(512, 768, 97), *PRESETS.values()])
def test_size_prints_as_it_parses(size):
    """A printed size parses to itself."""
    assert Size.parse(str(size)) == size


@pytest.mark.parametrize("text", ["", "512", "512x", "512x768x121x1", "-64x64", "512 x 768", "fhd"])
def test_unreadable_size(text):
    """Text that is no size is refused, with what would be one."""
    with pytest.raises(ValueError, match="512x768x121"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("512x736x121", "Nearest: 512x704x121, 512x768x121"),
        ("500x768x121", "Nearest: 512x768x121, 448x768x121"),
        ("1080x1920", "Nearest: 1088x1920x121, 1024x1920x121"),
        ("512x768x120", "Nearest: 512x768x121, 512x768x113"),
        ("512x768x0", "Nearest: 512x768x1"),
        ("0x20x1", "Nearest: 64x64x1"),
        ("720x768x124", "Nearest: 704x768x121, 704x768x129, 768x768x121, 768x768x129"),
    ],
)
def test_impossible_size_names_the_nearest(text, nearest):
    """An impossible size says what was given, what is allowed and the nearest that are."""
    with pytest.raises(ValueError, match="multiples of 64") as caught:
        Size.parse(text)
    assert str(caught.value).startswith(f"size {text}")
    assert str(caught.value).endswith(nearest)


def test_released_configs():
    """The released upsamplers differ in the layout of their spatial stage alone."""
    old, new = UPSAMPLERS["2.0"], UPSAMPLERS["2.3"]
    assert {key for key in old if old[key] != new[key]} == {"use_rational_resampler"}
    assert (new["in_channels"], new["mid_channels"], new["num_blocks_per_stage"]) == (128, 1024, 4)


@pytest.mark.parametrize(
    ("name", "stage1", "stage2"),
    [
        ("512x768", 1536, 6144),
        ("704x1280", 3520, 14080),
        ("1024x1536", 6144, 24576),
        ("1088x1920-hq", 8160, 32640),
    ],
)
def test_tokens(name, stage1, stage2):
    """Each preset has the tokens that pipelines hand to the transformer in its two stages."""
    size = PRESETS[name]
    assert (video_tokens(size, 1), video_tokens(size, 2)) == (stage1, stage2)
    assert audio_tokens(size) == 126


def test_variants():
    """Every variant names released configs and a recipe of two stages; distilled ones run 8 + 3
    forwards of one sample, the others guide stage 1 with a negative prompt, beside the prompt in
    one batch; HQ's passes are forwards of their own.
    """
    for name, variant in VARIANTS.items():
        assert variant.version in TRANSFORMERS and variant.version in UPSAMPLERS
        distilled = name.endswith("distilled")
        apart = distilled or name.endswith("-hq")
        assert variant.batch == ((1, 1) if apart else (2, 1))
        assert len(RECIPES[variant.recipe].stages) == 2
        assert not distilled or variant.steps == (8, 3)
        assert variant.use_cross_timestep == name.startswith("2.3")


def test_unknown_variant():
    """An unknown variant is refused with those there are."""
    with pytest.raises(ValueError, match=r"'1\.0'.*2\.3, 2\.3-distilled, 2\.3-hq, 2\.0"):
        variant_named("1.0")
