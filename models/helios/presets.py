"""Helios' released models and the resolutions people run. Imports no torch.

A chunk is 33 frames, 9 of latents; the VAE turns 8x8 pixels into one latent pixel, and 2x2 of these
are a token. What was generated before is history: 16 older latent frames in patches four times as
large, 2 in patches twice as large, and 2 (the last one, and the first of the video) as they are.

Base denoises a chunk at its full size. Mid and Distilled begin at a quarter and go on at half the
height and width (a pyramid), always in sight of history at full size.
"""

import re
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType

__all__ = [
    "HISTORY",
    "PRESETS",
    "TEXT_TOKENS",
    "VARIANTS",
    "Size",
    "Variant",
    "chunk_shape",
    "history_tokens",
    "tokens",
    "variant_named",
]

CHUNK_FRAMES = 9  # of latents: 33 of video
TEXT_TOKENS = 512  # of a prompt, padded
_LATENT_PIXELS = 8  # pixels along a side of one latent pixel
_PATCH = 2  # latent pixels along a side of a token
_STEP = _LATENT_PIXELS * _PATCH
_PYRAMID = (4, 2, 1)  # by what height and width are divided, in the order of denoising

# Latent frames of history, and how many times larger than the chunk's its patches are.
HISTORY = MappingProxyType({"short": (2, 1), "mid": (2, 2), "long": (16, 4)})


@dataclass(frozen=True)
class Size:
    """A video's height and width in pixels.

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
        """The size written as "384x640", height first. Raises ValueError for any other text and
        for an impossible size.
        """
        match = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
        if match is None:
            raise ValueError(
                f"size {text!r} is not readable; write HEIGHTxWIDTH in pixels, such as 384x640"
            )
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class Variant:
    """A released checkpoint: by what it divides height and width of a chunk, stage by stage.

    Guidance is a forward of its own, so that every forward is of one sample. Keys of history may be
    amplified in Distilled (`is_amplify_history` of its config): that asks for no other op.
    """

    scales: tuple[int, ...]


# The first is what `jitctl warmup` takes where none is named; its last stage is all of Base.
VARIANTS = MappingProxyType(
    {"distilled": Variant(_PYRAMID), "mid": Variant(_PYRAMID), "base": Variant((1,))}
)

PRESETS = MappingProxyType({"384x640": Size(384, 640)})


def chunk_shape(size: Size, scale: int = 1) -> tuple[int, int, int]:
    """(F, h, w) of a chunk's latents, height and width divided by `scale`.

    Raises ValueError where a stage of the pyramid is not a whole number of tokens high and wide.
    """
    if any(side % (_STEP * scale) for side in (size.height, size.width)):
        raise ValueError(
            f"size {size} at 1/{scale} is no whole number of tokens: height and width must be "
            f"multiples of {_STEP * scale} there. Base has no such stage."
        )
    side = _LATENT_PIXELS * scale
    return CHUNK_FRAMES, size.height // side, size.width // side


def history_tokens(size: Size) -> int:
    """Tokens of history, the same in every stage."""
    _, height, width = chunk_shape(size)
    return sum(
        ceil(frames / factor) * ceil(height / (_PATCH * factor)) * ceil(width / (_PATCH * factor))
        for frames, factor in HISTORY.values()
    )


def tokens(size: Size, scale: int = 1) -> int:
    """Tokens of a stage: of history and of the chunk."""
    return history_tokens(size) + prod(chunk_shape(size, scale)) // _PATCH**2


def variant_named(name: str) -> Variant:
    """The variant of that name. Raises ValueError that names those there are."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}.")
    return VARIANTS[name]
