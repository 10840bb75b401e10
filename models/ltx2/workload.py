"""What LTX-2 asks of the ops: run the real modules, on the meta device, under `jitd.record()`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...jit.record import Workload, record
from .config import TransformerConfig
from .denoising.noise import Noise
from .denoising.predict import Predictor, Prompt, Stream
from .denoising.recipes import RECIPES
from .denoising.samplers import HostSteps, denoise
from .presets import (
    STAGES,
    TEXT_TOKENS,
    TRANSFORMERS,
    UPSAMPLERS,
    Size,
    audio_tokens,
    latent_shape,
    variant_named,
    video_tokens,
)
from .transformer import LTX2Transformer
from .upsampler import LatentUpsampler

__all__ = ["record_run", "record_stage", "run_stage", "run_step", "run_upsampler"]

IMAGE_ROWS = 2  # distinct timesteps of image-to-video: the step's, and zero for what is given


def run_upsampler(
    size: Size,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    version: str = "2.3",
    **overrides: Any,
) -> Tensor:
    """One forward of a released upsampler with random weights, batch 1, at a final `size`.

    `version` names a config of `UPSAMPLERS`; `overrides` replace entries of it (a smaller
    `mid_channels`, say). On the meta device nothing is allocated or computed. Gives the latents
    that stage 2 starts from, (1, in_channels, F, H/32, W/32). Raises ValueError for an unknown
    version.
    """
    if version not in UPSAMPLERS:
        raise ValueError(f"version is {version!r}; it must be one of {', '.join(UPSAMPLERS)}")
    config = {**UPSAMPLERS[version], **overrides}
    with torch.device(device):
        module = LatentUpsampler(**config).to(dtype).eval()
        latents = torch.randn(1, config["in_channels"], *latent_shape(size), dtype=dtype)
    with torch.no_grad():
        return module(latents)


def run_stage(
    size: Size,
    stage: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    variant: str = "2.3",
    i2v: bool = False,
    isolated: bool = False,
    **overrides: Any,
) -> tuple[Tensor, Tensor]:
    """One forward of a released transformer with random weights, at a stage of a final `size`.

    `variant` names one of `VARIANTS`, which has the batch of each stage; `overrides` replace
    entries of its config. `i2v`: the first frame is given, so that its tokens have timestep zero;
    timesteps are rows and an index. `isolated`: the streams do not hear each other. Gives the
    velocities of video and audio. Raises ValueError for an unknown variant or stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; allowed are {STAGES}.")
    chosen = variant_named(variant)
    config = {**TRANSFORMERS[chosen.version], **overrides}
    sizes = TransformerConfig(**config)
    batch, tokens, audio = chosen.batch[stage - 1], video_tokens(size, stage), audio_tokens(size)
    frames, height, width = latent_shape(size, stage)
    with torch.device(device), torch.no_grad():
        module = LTX2Transformer(**config).to(dtype).eval()
        timestep, more = torch.full((batch,), 725.0), {}
        if i2v:
            given = torch.arange(tokens) >= height * width  # row 1 is the zero of what is given
            more["timestep_index"] = (~given).int().expand(batch, -1).contiguous()
        return module(
            torch.randn(batch, tokens, sizes.in_channels, dtype=dtype),
            torch.randn(batch, audio, sizes.audio_in_channels, dtype=dtype),
            torch.randn(batch, TEXT_TOKENS, sizes.text_channels[0], dtype=dtype),
            torch.randn(batch, TEXT_TOKENS, sizes.text_channels[1], dtype=dtype),
            timestep=torch.tensor([725.0, 0.0]) if i2v else timestep,
            audio_timestep=timestep,
            sigma=timestep,
            encoder_attention_mask=torch.ones(batch, TEXT_TOKENS),
            audio_encoder_attention_mask=torch.ones(batch, TEXT_TOKENS),
            num_frames=frames,
            height=height,
            width=width,
            audio_num_frames=audio,
            use_cross_timestep=chosen.use_cross_timestep,
            isolate_modalities=isolated,
            **more,
        )


def record_stage(size: Size, stage: int, **how: Any) -> Workload:
    """The calls of one forward at full depth, recorded from models of one and of two blocks.

    All blocks make the same calls, so that the second's are those of each one further; 48 of them
    would take seconds. Arguments: those of `run_stage`.
    """

    def counts(layers: int) -> Workload:
        return _recorded(lambda: run_stage(size, stage, **{**how, "num_layers": layers}))

    config = TRANSFORMERS[variant_named(how.get("variant", "2.3")).version]
    layers = how.get("num_layers", TransformerConfig(**config).num_layers)
    one, two = counts(1).counts, counts(2).counts
    workload = Workload()
    for text in two:
        workload.add(text, one[text] + (layers - 1) * (two[text] - one[text]))
    return workload


def record_run(size: Size, *, dtype: torch.dtype, variant: str, i2v: bool = False) -> Workload:
    """What a run at a final `size` calls. A count is the calls in one forward of the upsampler, of
    stage 1 and of stage 2, and in one step of each stage: the steps of the stages,
    `Variant.steps`, are not multiplied.
    """
    chosen, how = variant_named(variant), {"dtype": dtype, "variant": variant, "i2v": i2v}
    workload = _recorded(lambda: run_upsampler(size, dtype=dtype, version=chosen.version))
    for stage in STAGES:
        workload.counts += record_stage(size, stage, **how).counts
        workload.counts += _recorded(lambda stage=stage: run_step(size, stage, **how)).counts
    if chosen.isolated:
        workload.counts += record_stage(size, 1, isolated=True, **how).counts
    return workload


def run_step(
    size: Size,
    stage: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    variant: str = "2.3",
    i2v: bool = False,
) -> tuple[Tensor, Tensor]:
    """The first step of a stage as the variant's recipe denoises, with a transformer that answers
    at once, in `dtype`. Latents are fp32. Gives those of video and audio after the step.
    """
    recipe = RECIPES[variant_named(variant).recipe].stages[stage - 1]
    channels = TransformerConfig().in_channels
    video, audio = (
        torch.zeros(1, tokens, channels, device=device)
        for tokens in (video_tokens(size, stage), audio_tokens(size))
    )

    def answer(**given: Any) -> tuple[Tensor, Tensor]:
        return given["hidden_states"].to(dtype), given["audio_hidden_states"].to(dtype)

    text = torch.zeros(1, 1, 1, device=device)
    predictor = Predictor(
        answer, Prompt(text, text), recipe.video, recipe.audio, Prompt(text, text), recipe.split
    )
    given = (video, torch.ones(1, video.shape[1], 1, device=device)) if i2v else (None, None)
    streams = Stream(video, recipe.video, *given), Stream(audio, recipe.audio)
    noise = Noise(*(x[None] for x in (video, audio) * 2))
    steps = HostSteps(recipe.sigmas(video.shape[1])[:2])
    with torch.no_grad():
        return denoise(predictor, *streams, steps, sampler=recipe.sampler, noise=noise)


def _recorded(run: Callable[[], object]) -> Workload:
    with record() as workload:
        run()
    return workload
