"""Each family's pipeline, run once by its own code on the meta device."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import absent
from .building import class_named, scheduler_of
from .folder import Folder
from .sizes import Size

__all__ = ["Asked", "run"]

_DISTILLED = {
    "guidance_scale": 1.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
}
_STAGE_2 = {"sigmas": [0.909375], "noise_scale": 0.909375}


@dataclass(frozen=True)
class Asked:
    """What is run: a size, one of the family's variants (`recording.py`), of an image or not, with
    prompts of so many tokens, in a dtype."""

    size: Size
    variant: str
    i2v: bool
    prompt_tokens: Sequence[int]
    dtype: torch.dtype


def run(folder: Folder, models: Mapping[str, nn.Module], asked: Asked) -> None:
    """Run the folder's pipeline, one step of each stage, with stand-ins for what it lacks.

    Raises ValueError for a size or a config that the pipeline refuses.
    """
    {"ltx2": _ltx2, "helios": _helios, "zimage": _zimage}[folder.family](folder, models, asked)


def _ltx2(folder: Folder, models: Mapping[str, nn.Module], asked: Asked) -> None:
    """Stage 1, the upsampler and stage 2 if there is one, then the decoders."""
    size, two = asked.size, "latent_upsampler" in models
    parts = {**_ltx2_stand_ins(models, asked.dtype), **models}
    upsampler = parts.pop("latent_upsampler", None)
    name = "LTX2ImageToVideoPipeline" if asked.i2v else "LTX2Pipeline"
    scheduler = scheduler_of(folder, "FlowMatchEulerDiscreteScheduler")
    scheduler.index_for_timestep = lambda *args: 0  # the real one looks for it on the device
    pipe = _pipeline(name, scheduler=scheduler, tokenizer=None, **parts)
    given: dict[str, Any] = {
        "num_frames": size.frames,
        "use_cross_timestep": bool(pipe.transformer.config.get("cross_attn_mod")),
        "spatio_temporal_guidance_blocks": [0],
        **_ltx2_prompts(models.get("connectors"), asked),
    }
    shape = {"height": size.height, "width": size.width}
    small = {side: n // 2 for side, n in shape.items()} if two else shape
    kinds = [_with_audio(_DISTILLED)] if asked.variant != "guided" else []
    if asked.variant != "distilled" and "transformer" in models:
        kinds.insert(0, {})
    seen = "pt" if "vae" in models else "latent"
    latents = audio = None
    for number, kind in enumerate(kinds, 1):
        last = not two and number == len(kinds)
        step = {"sigmas": [0.9], **given, **small, **kind, **_image(small, asked)}
        latents, audio = _called(pipe, output_type=seen if last else "latent", **step)
    if upsampler is None:
        return
    enlarge = _pipeline("LTX2LatentUpsamplePipeline", vae=pipe.vae, latent_upsampler=upsampler)
    (latents,) = _called(enlarge, latents=latents, output_type="latent", **small)
    step = {**given, **shape, **_with_audio(_DISTILLED), **_STAGE_2, **_image(shape, asked)}
    _called(pipe, latents=latents, audio_latents=audio, output_type=seen, **step)


def _ltx2_stand_ins(models: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, nn.Module]:
    channels = _first(models, ("transformer", "in_channels"), ("vae", "latent_channels"),
                      ("latent_upsampler", "in_channels"), default=128)  # fmt: skip
    audio = _first(models, ("transformer", "audio_in_channels"), default=0)
    if not audio and "audio_vae" in models:
        vae = models["audio_vae"]
        audio = vae.config.latent_channels * vae.config.mel_bins // vae.mel_compression_ratio
    audio = audio or 128
    text = audio_text = 8
    if "transformer" in models:
        c = models["transformer"].config
        text, audio_text = c.cross_attention_dim, c.audio_cross_attention_dim
        if c.get("use_prompt_embeddings", True):
            text = audio_text = c.caption_channels
    return {
        "transformer": absent.LTX2Transformer(dtype, channels, audio),
        "connectors": absent.Connectors(dtype, text, audio_text),
        "vae": absent.VAE(dtype),
        "audio_vae": absent.AudioVAE(dtype, audio),
        "vocoder": absent.Vocoder(dtype),
        "text_encoder": absent.TextEncoder(dtype),
    }


def _ltx2_prompts(connectors: nn.Module | None, asked: Asked) -> dict[str, Any]:
    width, tokens = 8, max(asked.prompt_tokens)
    if connectors is not None:
        width = connectors.config.caption_channels * connectors.config.text_proj_in_factor
    embeds, mask = _empty(1, tokens, width, dtype=asked.dtype), _empty(1, tokens, dtype=torch.int64)
    prompts = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
    return prompts | {f"negative_{name}": value for name, value in prompts.items()}


def _with_audio(scales: Mapping[str, float]) -> dict[str, float]:
    return {**scales, **{f"audio_{name}": value for name, value in scales.items()}}


def _helios(folder: Folder, models: Mapping[str, nn.Module], asked: Asked) -> None:
    """One chunk, which is decoded: all chunks ask for the same."""
    pyramid = asked.variant == "pyramid"
    name = "HeliosPyramidPipeline" if pyramid else "HeliosPipeline"
    channels = _first(models, ("vae", "z_dim"), default=16)
    stand_ins = {
        "transformer": absent.Transformer(asked.dtype, in_channels=channels, patch_size=(1, 2, 2)),
        "vae": absent.VAE(
            asked.dtype,
            z_dim=1,
            latents_mean=[0.0],
            latents_std=[1.0],
            scale_factor_temporal=4,
            scale_factor_spatial=8,
        ),
        "text_encoder": absent.TextEncoder(asked.dtype),
    }
    if folder.scheduler or pyramid:
        scheduler = scheduler_of(folder, "HeliosDMDScheduler")
    else:
        flat = {"stages": 1, "stage_range": [0, 1], "use_dynamic_shifting": True}
        scheduler = class_named("HeliosScheduler")(**flat)
    # Steps read numbers off the device, and change no layout that a model sees.
    scheduler.step = lambda noise, t, latents, **more: (latents,)
    more = dict(folder.index) if folder.pipeline == name else {}
    pipe = _pipeline(name, tokenizer=None, scheduler=scheduler, **{**stand_ins, **models}, **more)
    pipe.sample_block_noise = lambda *shape, **how: _empty(*shape[:5], dtype=torch.float32)
    width = _first(models, ("transformer", "text_dim"), default=8)
    shape = {"height": asked.size.height, "width": asked.size.width}
    _called(
        pipe,
        num_frames=1,
        num_inference_steps=1,
        pyramid_num_inference_steps_list=[1, 1, 1],
        guidance_scale=1.0,  # guidance is another forward, which asks for the same
        prompt_embeds=_empty(1, max(asked.prompt_tokens), width, dtype=asked.dtype),
        output_type="latent",
        **shape,
        **_image(shape, asked),
    )


def _zimage(folder: Folder, models: Mapping[str, nn.Module], asked: Asked) -> None:
    """An image for each length of captions, guided or not; one of them is decoded."""
    transformer = absent.Transformer(asked.dtype)
    transformer.in_channels = _first(models, ("vae", "latent_channels"), default=16)
    stand_ins = {
        "transformer": transformer,
        "vae": absent.VAE(asked.dtype, block_out_channels=(0, 0, 0, 0)),
        "text_encoder": absent.TextEncoder(asked.dtype),
    }
    scheduler = scheduler_of(folder, "FlowMatchEulerDiscreteScheduler")
    parts = {**stand_ins, **models}
    if "vae" in models and models["vae"].config.get("shift_factor") is None:
        models["vae"].register_to_config(shift_factor=0.0)  # a VAE by itself, of other models
    pipe = _pipeline("ZImagePipeline", tokenizer=None, scheduler=scheduler, **parts)
    width = _first(models, ("transformer", "cap_feat_dim"), default=8)
    scales = {"all": (0.0, 5.0), "guided": (5.0,), "distilled": (0.0,)}[asked.variant]
    lengths = asked.prompt_tokens if "transformer" in models else asked.prompt_tokens[:1]
    calls = [(scale, length) for scale in scales for length in lengths]
    for number, (scale, length) in enumerate(calls, 1):
        last = number == len(calls) and "vae" in models
        _called(
            pipe,
            height=asked.size.height,
            width=asked.size.width,
            num_inference_steps=1,
            sigmas=[0.9],
            guidance_scale=scale,
            cfg_truncation=None,
            prompt_embeds=[_empty(length, width, dtype=asked.dtype)],
            negative_prompt_embeds=[_empty(min(lengths), width, dtype=asked.dtype)],
            output_type="pt" if last else "latent",
        )


def _first(models: Mapping[str, nn.Module], *places: tuple[str, str], default: int) -> int:
    """The first of these entries of configs that there is."""
    found = [getattr(models[part].config, name) for part, name in places if part in models]
    return found[0] if found else default


def _pipeline(name: str, **parts: Any) -> Any:
    cls = class_named(name)
    known = inspect.signature(cls.__init__).parameters
    pipe = cls(**{part: value for part, value in parts.items() if part in known})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _called(pipe: Any, **given: Any) -> Any:
    """What the pipeline gives; arguments that its release does not know are left out."""
    known = inspect.signature(pipe.__call__).parameters
    return pipe(return_dict=False, **{name: v for name, v in given.items() if name in known})


def _image(shape: Mapping[str, int], asked: Asked) -> dict[str, Any]:
    if not asked.i2v:
        return {}
    from PIL import Image  # noqa: PLC0415  (diffusers brings it)

    blank = Image.new("RGB", (shape["width"], shape["height"]))
    return {"image": blank, "image_crf": 0}  # not compressed first, which takes another package


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
