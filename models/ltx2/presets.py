"""LTX-2's released models and the resolutions people run. Imports no torch.

A size is that of the finished video, after both stages. Stage 1 denoises at half the height and
width, the upsampler doubles its latents, stage 2 refines them. The VAE turns 32x32 pixels into one
latent pixel, and 8 frames into one latent frame, the first frame excepted. A latent pixel is a
token of the transformer.
"""

import re
from dataclasses import dataclass
from itertools import product
from math import prod
from types import MappingProxyType

__all__ = [
    "DEFAULT_FRAMES",
    "PRESETS",
    "STAGES",
    "TEXT_TOKENS",
    "TRANSFORMERS",
    "UPSAMPLERS",
    "VARIANTS",
    "Size",
    "Variant",
    "audio_tokens",
    "latent_shape",
    "variant_named",
    "video_tokens",
]

DEFAULT_FRAMES = 121  # five seconds at 24 frames per second, and the one frame that stands alone
LATENT_PIXELS = 32  # pixels along a side of one latent pixel
LATENT_FRAMES = 8  # video frames in each latent frame but the first
STAGE_SCALE = 2  # what the upsampler enlarges height and width by, between the stages
STAGES = (1, 2)
FRAMES_PER_SECOND = 24
AUDIO_PER_SECOND = 25  # tokens of audio
TEXT_TOKENS = 1024  # of a prompt, padded

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


def latent_shape(size: Size, stage: int = 1) -> tuple[int, int, int]:
    """(F, h, w) of a stage's latents: stage 1's are the upsampler's input, stage 2's its output."""
    frames = (size.frames - 1) // LATENT_FRAMES + 1
    side = LATENT_PIXELS * (STAGE_SCALE if stage == 1 else 1)
    return frames, size.height // side, size.width // side


def video_tokens(size: Size, stage: int) -> int:
    """Tokens of the video stream in a stage."""
    return prod(latent_shape(size, stage))


def audio_tokens(size: Size, frames_per_second: float = FRAMES_PER_SECOND) -> int:
    """Tokens of the audio stream, the same in both stages: 25 for each second."""
    return round(size.frames / frames_per_second * AUDIO_PER_SECOND)


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

# Arguments of LTX2Transformer, by model version: what differs from the defaults of its config.
TRANSFORMERS = MappingProxyType(
    {
        "2.0": MappingProxyType({}),
        "2.3": MappingProxyType(
            {
                "gated_attn": True,
                "cross_attn_mod": True,
                "audio_gated_attn": True,
                "audio_cross_attn_mod": True,
                "use_prompt_embeddings": False,
                "perturbed_attn": True,
            }
        ),
    }
)


@dataclass(frozen=True)
class Variant:
    """A released checkpoint and how it is run.

    version: that of TRANSFORMERS and UPSAMPLERS. batch: samples of a forward in stage 1 and in
    stage 2; two are a prompt and its negative, guided classifier-free. steps: how many forwards of
    each a run makes, without those of further guidance. recipe: how a run denoises, by its name in
    `denoising.recipes`. isolated: stage 1 makes forwards of isolated streams besides, each pass by
    itself.
    """

    version: str
    batch: tuple[int, int]
    steps: tuple[int, int]
    recipe: str
    isolated: bool = False

    @property
    def use_cross_timestep(self) -> bool:
        """Whether the other stream's sigma modulates the attention between the streams."""
        return self.version != "2.0"


# The newest first: it is what `jitctl warmup` takes where none is named.
VARIANTS = MappingProxyType(
    {
        "2.3": Variant("2.3", batch=(2, 1), steps=(30, 3), recipe="2.3-two-stage"),
        "2.3-distilled": Variant("2.3", batch=(1, 1), steps=(8, 3), recipe="2.3-distilled"),
        "2.3-hq": Variant("2.3", batch=(1, 1), steps=(29, 6), recipe="2.3-hq", isolated=True),
        "2.0": Variant("2.0", batch=(2, 1), steps=(40, 3), recipe="2.0-two-stage"),
        "2.0-distilled": Variant("2.0", batch=(1, 1), steps=(8, 3), recipe="2.3-distilled"),
    }
)


def variant_named(name: str) -> Variant:
    """The variant of that name. Raises ValueError that names those there are."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}.")
    return VARIANTS[name]
