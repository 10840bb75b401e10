"""A whole run: one stage, or two with the upsampler between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .noise import Generators, Noise, draw_noise, first_noise, hq_generators, renoised
from .predict import Predictor, Prompt, Stream, Transformer
from .recipes import Recipe, StageRecipe
from .samplers import HostSteps, denoise

__all__ = ["Clean", "Setting", "packed", "run", "run_stage", "unpacked"]

Shape = tuple[int, int, int]
"""(F, h, w) of latents."""

Clean = tuple[Tensor, Tensor]
"""Latents that are given (image-to-video) and how much of each token is not: see `Stream`."""


@dataclass(frozen=True)
class Setting:
    """What all stages of a run share.

    transformer  one for all stages, or one for each
    more         further arguments of it; sizes of the latents are added for each stage
    dtype        of what it is given; fp32 latents stay fp32 between the calls
    """

    transformer: Transformer | Sequence[Transformer]
    prompt: Prompt
    negative: Prompt | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    scale: float = 1000.0

    def of(self, stage: int) -> Transformer:
        return self.transformer if callable(self.transformer) else self.transformer[stage]


def run(
    recipe: Recipe,
    setting: Setting,
    shape: Shape,
    audio_tokens: int,
    *,
    channels: int = 128,
    generator: Generators,
    upsample: Callable[[Tensor], Tensor] | None = None,
    clean: Sequence[Clean | None] = (),
    begin: Callable[[int, StageRecipe], object] = lambda stage, recipe: None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Video latents (B, C, F, h, w) and audio latents (B, A, C) of a recipe.

    shape      of the first stage's latents; the second's follows from what `upsample` gives, whose
               argument and result are latents (B, C, F, h, w) as the transformer has them
    generator  first video, then audio noise of stage 1; then the same of stage 2
    clean      for each stage what is given of its video, or None. With one, a stage of a recipe of
               two makes a call for each pass
    begin      called before each stage, to set its LoRA

    Raises ValueError for two stages without an upsampler.
    """
    if len(recipe.stages) > 1 and upsample is None:
        raise ValueError("a recipe of two stages needs an upsampler between them: give upsample.")
    batch = setting.prompt.video.shape[0]
    device = device or setting.prompt.video.device
    noise = [
        first_noise(generator, size, device)
        for size in ((batch, _tokens(shape), channels), (batch, audio_tokens, channels))
    ]
    video, audio = noise
    for number, stage in enumerate(recipe.stages):
        if number:
            grown = upsample(unpacked(video, shape)) if upsample else unpacked(video, shape)
            shape, video = _shape_of(grown), packed(grown)
            start = stage.sigmas(_tokens(shape))[0]
            video, audio = (
                renoised(x, first_noise(generator, x.shape, device), start) for x in (video, audio)
            )
        given = clean[number] if number < len(clean) else None
        if given is not None and len(recipe.stages) > 1 and stage.split == "no":
            stage = replace(stage, split="configs")  # noqa: PLW2901
        begin(number, stage)
        video, audio = run_stage(
            stage, setting, number, shape, video, audio, given,
            standard=recipe.standard_noise, generator=generator,
        )  # fmt: skip
    return unpacked(video, shape), audio


def run_stage(
    stage: StageRecipe,
    setting: Setting,
    number: int,
    shape: Shape,
    video: Tensor,
    audio: Tensor,
    clean: Clean | None = None,
    *,
    standard: bool,
    generator: Generators,
) -> tuple[Tensor, Tensor]:
    """Latents of both streams, (B, S, C), after one stage. The noise of its steps is drawn from
    `generator`; `standard` noise from HQ's own, which begin anew with each stage.
    """
    frames, height, width = shape
    sizes = {"num_frames": frames, "height": height, "width": width}
    given, mask = clean or (None, None)
    streams = Stream(video, stage.video, given, mask), Stream(audio, stage.audio)
    steps = HostSteps(stage.sigmas(video.shape[1]), single=stage.single)
    predictor = Predictor(
        setting.of(number),
        setting.prompt,
        stage.video,
        stage.audio,
        setting.negative,
        stage.split,
        setting.dtype,
        setting.scale,
        {**setting.more, **sizes, "audio_num_frames": audio.shape[1]},
    )
    noise: Noise | None = None
    if stage.sampler == "res2s":
        step, substep = hq_generators(video.device) if standard else (generator, generator)
        noise = draw_noise(
            sum(sigma > 0 for sigma in steps.sigmas[1:]), video.shape, audio.shape,
            step=step, substep=substep, standard=standard, dtype=video.dtype, device=video.device,
        )  # fmt: skip
    return denoise(predictor, *streams, steps, sampler=stage.sampler, noise=noise)


def packed(latents: Tensor) -> Tensor:
    """Tokens (B, F*h*w, C) of latents (B, C, F, h, w), frames outermost."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def unpacked(tokens: Tensor, shape: Shape) -> Tensor:
    """Latents (B, C, F, h, w) of tokens. Raises ValueError for another number of them."""
    if tokens.shape[1] != _tokens(shape):
        raise ValueError(f"{tokens.shape[1]} tokens are no latents of {shape}.")
    return tokens.transpose(1, 2).unflatten(2, shape).contiguous()


def _tokens(shape: Shape) -> int:
    frames, height, width = shape
    return frames * height * width


def _shape_of(latents: Tensor) -> Shape:
    frames, height, width = latents.shape[2:]
    return frames, height, width
