"""Sizes, presets and the tokens they lead to; no torch needed."""

import subprocess
import sys

import pytest
from jitd.models import helios
from jitd.models.helios.presets import (
    PRESETS,
    VARIANTS,
    Size,
    chunk_shape,
    history_tokens,
    tokens,
    variant_named,
)

RELEASED = PRESETS["384x640"]


def test_presets_need_no_torch():
    """Presets can be listed from the package without importing torch."""
    code = (
        "import sys, jitd.models.helios as helios; helios.PRESETS, helios.VARIANTS, helios.tokens; "
        "helios.TransformerConfig(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_package_names_resolve():
    """Every public name of the package exists, and an unknown one is an AttributeError."""
    assert all(getattr(helios, name) is not None for name in helios.__all__)
    assert set(helios.__all__) <= set(dir(helios))
    with pytest.raises(AttributeError, match="nothing"):
        _ = helios.nothing


@pytest.mark.parametrize(
    ("scale", "chunk", "all_of_them"), [(4, 540, 2940), (2, 2160, 4560), (1, 8640, 11040)]
)
def test_tokens(scale, chunk, all_of_them):
    """Each stage of the pyramid has the tokens that the pipeline hands to the transformer."""
    frames, height, width = chunk_shape(RELEASED, scale)
    assert frames * height * width // 4 == chunk
    assert history_tokens(RELEASED) == 2400
    assert tokens(RELEASED, scale) == all_of_them


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("384", "384x640"),
        ("384x640x33", "384x640"),
        ("380x640", "Nearest: 384x640"),
        ("0x16", "16x16"),
    ],
)
def test_wrong_sizes(text, words):
    """A size that cannot be read, or is impossible, is refused with one that is possible."""
    with pytest.raises(ValueError, match=words):
        Size.parse(text)


def test_a_size_that_no_pyramid_has():
    """A size that stages cannot divide is one of Base alone."""
    size = Size.parse("480x832")
    assert tokens(size) == 9 * 30 * 52 + history_tokens(size)
    with pytest.raises(ValueError, match="multiples of 64 there"):
        chunk_shape(size, 4)


def test_variants():
    """Base denoises chunks at full size; the others end there, and begin at a quarter."""
    assert {name: v.scales for name, v in VARIANTS.items()} == {
        "distilled": (4, 2, 1),
        "mid": (4, 2, 1),
        "base": (1,),
    }
    with pytest.raises(ValueError, match="distilled, mid, base"):
        variant_named("large")
