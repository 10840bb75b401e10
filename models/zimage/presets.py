"""Z-Image's released models and the resolutions people run. Imports no torch.

The VAE turns 8x8 pixels into one latent pixel, and 2x2 of these are a token. The caption's tokens
follow those of the image; both are filled up to multiples of 32, so that captions of up to 512
tokens have sixteen lengths.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "CAPTIONS",
    "PRESETS",
    "VARIANTS",
    "Size",
    "Variant",
    "image_tokens",
    "latent_shape",
    "tokens",
    "variant_named",
]

CAPTIONS = tuple(range(32, 513, 32))
"""The lengths of captions, filled up."""

_FILL = 32  # tokens
_LATENT_PIXELS = 8  # pixels along a side of one latent pixel
_PATCH = 2  # latent pixels along a side of a token
_STEP = _LATENT_PIXELS * _PATCH


@dataclass(frozen=True)
class Size:
    """An image's height and width in pixels.

    Every Size can be generated: an impossible one raises ValueError, which names the nearest.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < _STEP or self.width < _STEP or self.height % _STEP or self.width % _STEP:
            near = "x".join(
                str(max(_STEP, round(side / _STEP) * _STEP)) for side in (self.height, self.width)
            )
            raise ValueError(
                f"size {self} is impossible: height and width must be positive multiples of "
                f"{_STEP} ({_LATENT_PIXELS} pixels to a latent pixel, {_PATCH} of these to a "
                f"token). Nearest: {near}"
            )

    @classmethod
    def parse(cls, text: str) -> "Size":
        """The size written as "1024x768", height first, or as a side such as "1024".

        Raises ValueError for any other text and for an impossible size.
        """
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", text, re.ASCII)
        if match is None:
            raise ValueError(
                f"size {text!r} is not readable; write HEIGHTxWIDTH in pixels, such as 1024x768, "
                "or the side of a square, such as 1024"
            )
        height, width = match.groups()
        return cls(int(height), int(width or height))

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class Variant:
    """A released checkpoint: the samples of a forward. Two are a prompt and its negative."""

    batch: int


# The first is what `jitctl warmup` takes where none is named.
VARIANTS = MappingProxyType({"turbo": Variant(1), "base": Variant(2)})

PRESETS = MappingProxyType({"512": Size(512, 512), "1024": Size(1024, 1024)})


def latent_shape(size: Size) -> tuple[int, int]:
    """(h, w) of an image's latents."""
    return size.height // _LATENT_PIXELS, size.width // _LATENT_PIXELS


def image_tokens(size: Size) -> int:
    """Tokens of an image, filled up."""
    count = (size.height // _STEP) * (size.width // _STEP)
    return count + -count % _FILL


def tokens(size: Size, caption: int) -> int:
    """Tokens of an image and its caption of so many tokens, both filled up."""
    return image_tokens(size) + caption + -caption % _FILL


def variant_named(name: str) -> Variant:
    """The variant of that name. Raises ValueError that names those there are."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}.")
    return VARIANTS[name]
