"""Sizes, presets and the tokens they lead to; no torch needed."""

import subprocess
import sys

import pytest
from jitd.models import zimage
from jitd.models.zimage.presets import (
    CAPTIONS,
    PRESETS,
    VARIANTS,
    Size,
    image_tokens,
    tokens,
    variant_named,
)


def test_presets_need_no_torch():
    """Presets can be listed from the package without importing torch."""
    code = (
        "import sys, jitd.models.zimage as zimage; zimage.PRESETS, zimage.VARIANTS, zimage.tokens; "
        "zimage.TransformerConfig(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_package_names_resolve():
    """Every public name of the package exists, and an unknown one is an AttributeError."""
    assert all(getattr(zimage, name) is not None for name in zimage.__all__)
    assert set(zimage.__all__) <= set(dir(zimage))
    with pytest.raises(AttributeError, match="nothing"):
        _ = zimage.nothing


def test_tokens():
    """Images and captions have the tokens that the transformer sees, multiples of 32 each."""
    assert [image_tokens(size) for size in PRESETS.values()] == [1024, 4096]
    assert image_tokens(Size(720, 1280)) == 3616  # 3600, filled up
    assert (tokens(PRESETS["1024"], 512), tokens(PRESETS["1024"], 20)) == (4608, 4128)
    assert (len(CAPTIONS), CAPTIONS[0], CAPTIONS[-1]) == (16, 32, 512)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", Size(512, 512)), ("768x1360", Size(768, 1360)), ("1024x1024", Size(1024, 1024))],
)
def test_size_parses(text, size):
    """Sizes read as height and width or as the side of a square, and print as they parse."""
    assert Size.parse(text) == size == Size.parse(str(size))


@pytest.mark.parametrize(
    ("text", "words"),
    [("large", "1024x768"), ("1x2x3", "1024x768"), ("1000", "Nearest: 992x992"), ("0", "16x16")],
)
def test_wrong_sizes(text, words):
    """A size that cannot be read, or is impossible, is refused with one that is possible."""
    with pytest.raises(ValueError, match=words):
        Size.parse(text)


def test_variants():
    """Turbo runs without guidance; Base has the negative prompt beside the prompt in a batch."""
    assert {name: v.batch for name, v in VARIANTS.items()} == {"turbo": 1, "base": 2}
    with pytest.raises(ValueError, match="turbo, base"):
        variant_named("edit")
