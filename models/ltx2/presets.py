"""LTX-2's released upsamplers and the resolutions people run. Imports no torch.

A size is that of the finished video, after both stages. Stage 1 denoises at half the height and
width, the upsampler doubles its latents, stage 2 refines them. The VAE turns 32x32 pixels into one
latent pixel, and 8 frames into one latent frame, the first frame excepted.
"""

import re
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

__all__ = ["DEFAULT_FRAMES", "PRESETS", "UPSAMPLERS", "Size", "latent_shape"]

DEFAULT_FRAMES = 121  # five seconds at 24 frames per second, and the one frame that stands alone
LATENT_PIXELS = 32  # pixels along a side of one latent pixel
LATENT_FRAMES = 8  # video frames in each latent frame but the first
STAGE_SCALE = 2  # what the upsampler enlarges height and width by, between the stages

_SIDE_STEP = LATENT_PIXELS * STAGE_SCALE
_RULE = (
    f"height and width must be positive multiples of {_SIDE_STEP} "
    f"({LATENT_PIXELS} pixels to a latent pixel, at half the size in stage 1), "
    f"frames {LATENT_FRAMES}*n + 1"
)


@dataclass(frozen=True)
class Size:
    """A finished video: height and width in pixels, and its number of frames.

    Every Size can be generated: an impossible one raises ValueError, which names the nearest ones
    that can.
    """

    height: int
    width: int
    frames: int = DEFAULT_FRAMES

    def __post_init__(self) -> None:
        choices = [
            _nearest(self.height, _SIDE_STEP, _SIDE_STEP),
            _nearest(self.width, _SIDE_STEP, _SIDE_STEP),
            _nearest(self.frames, LATENT_FRAMES, 1),
        ]
        if any(value not in choice for value, choice in zip(self._values, choices, strict=True)):
            near = ", ".join("x".join(map(str, values)) for values in product(*choices))
            raise ValueError(f"size {self} is impossible: {_RULE}. Nearest: {near}")

    @classmethod
    def parse(cls, text: str) -> "Size":
        """The size written as "512x768x121", as "512x768" (121 frames) or as a name in PRESETS.

        Height first. Raises ValueError for any other text and for an impossible size.
        """
        if text in PRESETS:
            return PRESETS[text]
        match = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", text, re.ASCII)
        if match is None:
            names = ", ".join(PRESETS)
            raise ValueError(
                f"size {text!r} is not readable; write HEIGHTxWIDTH or HEIGHTxWIDTHxFRAMES in "
                f"pixels, such as 512x768x121, or one of {names}"
            )
        return cls(*(int(number) for number in match.groups() if number is not None))

    @property
    def _values(self) -> tuple[int, int, int]:
        return self.height, self.width, self.frames

    def __str__(self) -> str:
        return "x".join(map(str, self._values))


def latent_shape(size: Size) -> tuple[int, int, int]:
    """(F, h, w) of the upsampler's input: stage 1's latents, half the final height and width."""
    frames = (size.frames - 1) // LATENT_FRAMES + 1
    return frames, size.height // _SIDE_STEP, size.width // _SIDE_STEP


def _nearest(value: int, step: int, least: int) -> list[int]:
    """The values least + n*step around `value`, the nearer first; `value` alone if it is one."""
    below = max(least, least + (value - least) // step * step)
    if below >= value:
        return [below]
    return sorted((below, below + step), key=lambda legal: abs(legal - value))


# Finished resolutions, by the names that `jitctl warmup` takes. The last is the high-quality
# recipe, which denoises with a second-order sampler; its sizes are those of any other recipe.
PRESETS = MappingProxyType(
    {
        "512x768": Size(512, 768),
        "704x1280": Size(704, 1280),
        "1024x1536": Size(1024, 1536),
        "1088x1920-hq": Size(1088, 1920),
    }
)

_RELEASED = {
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "rational_spatial_scale": 2.0,
}

# Arguments of LatentUpsampler, by model version: the spatial x2 upsamplers, as the conversion
# script of diffusers (scripts/convert_ltx2_to_diffusers.py) writes them.
UPSAMPLERS = MappingProxyType(
    {
        "2.0": MappingProxyType({**_RELEASED, "use_rational_resampler": True}),
        "2.3": MappingProxyType({**_RELEASED, "use_rational_resampler": False}),
    }
)
