"""Which predictions a step asks for, and how they are weighed. Imports no torch.

Source: MultiModalGuider of Lightricks' LTX-2 and SGLang's LTX-2 pipelines, whose names the
perturbations have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["NONE", "Guidance", "Pass", "checked_passes", "passes_of", "perturbation_configs"]


@dataclass(frozen=True)
class Guidance:
    """How one stream is guided; see `guidance_combine` for what the scales do.

    cfg        away from the negative prompt; 1 is none
    stg        away from a prediction with the self-attention of `stg_blocks` perturbed; 0 is none
    modality   away from a prediction in which the streams do not hear each other; 1 is none
    rescale    how far to scale the result to the spread of the conditional prediction
    skip_step  steps after each guided one that reuse its prediction instead of asking
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] = ()
    skip_step: int = 0

    def skips(self, step: int) -> bool:
        """Whether this step reuses the last prediction."""
        return step % (self.skip_step + 1) != 0


NONE = Guidance()


@dataclass(frozen=True)
class Pass:
    """One prediction: under which prompt, and how it is perturbed.

    name: "cond", "neg", "perturbed" or "modality"; only "neg" has the negative prompt.
    """

    name: str
    video_blocks: tuple[int, ...] = ()
    audio_blocks: tuple[int, ...] = ()
    isolated: bool = False

    @property
    def negative(self) -> bool:
        return self.name == "neg"

    @property
    def plain(self) -> bool:
        """Whether nothing is perturbed."""
        return not (self.video_blocks or self.audio_blocks or self.isolated)

    @property
    def config(self) -> dict[str, Any]:
        """What a batch of passes is told of one sample of this one."""
        return {
            "skip_video_self_attn_blocks": list(self.video_blocks),
            "skip_audio_self_attn_blocks": list(self.audio_blocks),
            "skip_a2v_cross_attn": self.isolated,
            "skip_v2a_cross_attn": self.isolated,
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """What a call of this pass alone is told: only what is perturbed."""
        told: dict[str, Any] = {}
        if self.video_blocks:
            told["skip_video_self_attn_blocks"] = list(self.video_blocks)
        if self.audio_blocks:
            told["skip_audio_self_attn_blocks"] = list(self.audio_blocks)
        if self.isolated:
            told |= {"disable_a2v_cross_attn": True, "disable_v2a_cross_attn": True}
        return told


def passes_of(video: Guidance, audio: Guidance) -> tuple[Pass, ...]:
    """The passes that two streams' guidance needs, in order: cond, neg, perturbed, modality."""
    found = [Pass("cond")]
    if video.cfg != 1 or audio.cfg != 1:
        found.append(Pass("neg"))
    if video.stg != 0 or audio.stg != 0:
        found.append(Pass("perturbed", video.stg_blocks, audio.stg_blocks))
    if video.modality != 1 or audio.modality != 1:
        found.append(Pass("modality", isolated=True))
    return tuple(found)


def checked_passes(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes. Raises ValueError without a "cond", and for one that there is twice or is not."""
    names = [one.name for one in passes]
    known = ("cond", "neg", "perturbed", "modality")
    if "cond" not in names:
        raise ValueError(f"passes are {names}; one must be 'cond', which the others are held to.")
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(f"passes are {names}; allowed is each of {list(known)} once.")
    return tuple(passes)


def perturbation_configs(passes: Sequence[Pass], batch: int) -> list[Mapping[str, Any]]:
    """One for each sample of a batch of all passes, pass by pass."""
    return [one.config for one in passes for _ in range(batch)]
