"""The released pipelines: their stages, schedules and guidance. Imports no torch.

Source: SGLang's LTX2Pipeline, LTX2TwoStagePipeline and LTX2TwoStageHQPipeline; the HQ preset is
LTX_2_3_HQ_PARAMS of Lightricks' LTX-2.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .guidance import NONE, Guidance
from .schedule import DISTILLED, REFERENCE_TOKENS, REFINE, REFINE_RES2S, shifted

__all__ = ["RECIPES", "Recipe", "StageRecipe"]

_BLOCKS = (28,)  # whose self-attention is perturbed
_VIDEO = Guidance(cfg=3.0, stg=1.0, rescale=0.7, modality=3.0, stg_blocks=_BLOCKS)
_AUDIO = Guidance(cfg=7.0, stg=1.0, rescale=0.7, modality=3.0, stg_blocks=_BLOCKS)


@dataclass(frozen=True)
class StageRecipe:
    """One stage.

    schedule  "tokens": shifted by the stage's own; "reference": by REFERENCE_TOKENS; or sigmas
    split     a call of the transformer for each pass, see `predict.Split`
    single    see `res2s_coefficients`
    lora      strength of the distilled LoRA
    """

    sampler: Literal["euler", "res2s"] = "euler"
    steps: int = 3
    schedule: Literal["tokens", "reference"] | tuple[float, ...] = REFINE
    video: Guidance = NONE
    audio: Guidance = NONE
    split: Literal["no", "configs", "arguments"] = "no"
    single: bool = False
    lora: float = 0.0

    def sigmas(self, tokens: int) -> tuple[float, ...]:
        """The schedule of a video of so many tokens."""
        if isinstance(self.schedule, tuple):
            return self.schedule
        return shifted(self.steps, tokens if self.schedule == "tokens" else REFERENCE_TOKENS)


@dataclass(frozen=True)
class Recipe:
    """A pipeline: one stage at full size, or two with the upsampler between them."""

    stages: tuple[StageRecipe, ...]
    standard_noise: bool = False  # HQ's, from generators of its own


_LTX2 = StageRecipe(steps=40, schedule="tokens", video=Guidance(cfg=4.0), audio=Guidance(cfg=4.0))
_GUIDED = StageRecipe(steps=30, schedule="reference", video=_VIDEO, audio=_AUDIO)
_DISTILLED = StageRecipe(steps=8, schedule=DISTILLED)
_REFINED = StageRecipe(lora=1.0)
_HQ = StageRecipe(
    sampler="res2s",
    steps=15,
    schedule="tokens",
    video=Guidance(cfg=3.0, rescale=0.45, modality=3.0),
    audio=Guidance(cfg=7.0, rescale=1.0, modality=3.0),
    split="arguments",
    single=True,
    lora=0.25,
)
_HQ_REFINED = StageRecipe(sampler="res2s", schedule=REFINE_RES2S, split="arguments", lora=0.5)

RECIPES = MappingProxyType(
    {
        "2.0": Recipe((_LTX2,)),
        "2.0-two-stage": Recipe((_LTX2, _REFINED)),
        "2.3": Recipe((_GUIDED,)),
        "2.3-two-stage": Recipe((_GUIDED, _REFINED)),
        "2.3-distilled": Recipe((_DISTILLED, StageRecipe())),
        "2.3-hq": Recipe((_HQ, _HQ_REFINED), standard_noise=True),
    }
)
