"""Tiny pipelines of diffusers with random weights, made without a network.

Their classes, and the code that runs, are those of the released models; only sizes differ
(`configs.py`). Each function gives a pipeline and the arguments of a call; prompts are embeddings,
since no text encoder is small. Importing this imports no diffusers.
"""

import inspect
import json
import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models.pipelines.building import class_named, made
from ...models.pipelines.folder import FAMILIES, Part
from . import configs

__all__ = ["helios", "ltx2", "ltx2_upsampler", "save_configs", "zimage"]

_KEPT = {"scheduler", *(part for family in FAMILIES.values() for part in family.parts)}


class _NoTextEncoder(nn.Module):  # type: ignore[misc]  # torch is not followed
    """What a pipeline asks of its text encoder when prompts are embeddings."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device


def ltx2(
    version: str = "2.3",
    *,
    i2v: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Any, dict[str, Any]]:
    """LTX-2, 2.0 or 2.3, guided as by default; 2 steps of 9 frames, of a given first one if i2v.

    Its latents are of 2x3: a side of one, or two alike, would hide a layout.
    """
    models = _models(configs.LTX2[version], dtype)
    scheduler = class_named("FlowMatchEulerDiscreteScheduler")()
    name = "LTX2ImageToVideoPipeline" if i2v else "LTX2Pipeline"
    pipe = _pipeline(name, device, scheduler=scheduler, **models, **_no_text(dtype))
    mask = torch.ones(1, 8, dtype=torch.int64, device=device)
    given: dict[str, Any] = {
        "prompt_embeds": _random(1, 8, 72, seed=1, dtype=dtype).to(device),
        "negative_prompt_embeds": _random(1, 8, 72, seed=2, dtype=dtype).to(device),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
        "height": 64,
        "width": 96,
        "num_frames": 9,
        "num_inference_steps": 2,
        "spatio_temporal_guidance_blocks": [1],
        "use_cross_timestep": version == "2.3",
        "return_dict": False,
    }
    if i2v:
        given["image"] = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
        if "image_crf" in inspect.signature(pipe.__call__).parameters:
            given["image_crf"] = 0  # not compressed as a video first, which takes another package
    return pipe, given


def ltx2_upsampler(pipe: Any, version: str = "2.3") -> Any:
    """The pipeline that doubles height and width of the latents that `ltx2`'s gives."""
    models = _models({"latent_upsampler": configs.LTX2_UPSAMPLERS[version]}, pipe.transformer.dtype)
    return _pipeline("LTX2LatentUpsamplePipeline", str(pipe.device), vae=pipe.vae, **models)


def helios(
    *, pyramid: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """Helios: Distilled with its pyramid of three sizes, or Base; one chunk. Its VAE is in fp32."""
    models = _models(configs.HELIOS, dtype, vae_dtype=torch.float32)
    given: dict[str, Any] = {
        "prompt_embeds": _random(1, 16, 32, seed=1, dtype=dtype).to(device),
        "negative_prompt_embeds": _random(1, 16, 32, seed=2, dtype=dtype).to(device),
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "return_dict": False,
    }
    own: dict[str, Any] = {}
    if pyramid:
        name, own = "HeliosPyramidPipeline", {"is_distilled": True}
        # gamma 1/3 makes a covariance that cannot be factored in fp32.
        scheduler = class_named("HeliosDMDScheduler")(gamma=0.3)
        given |= {"pyramid_num_inference_steps_list": [1, 1, 1], "guidance_scale": 1.0}
    else:
        name, flat = "HeliosPipeline", {"stages": 1, "stage_range": [0, 1]}
        scheduler = class_named("HeliosScheduler")(**flat, use_dynamic_shifting=True)
        given |= {"num_inference_steps": 2}
    parts = {**models, **_no_text(dtype), **own}
    return _pipeline(name, device, scheduler=scheduler, **parts), given


def zimage(
    *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """Z-Image, guided; 2 steps of one image."""
    models = _models(configs.ZIMAGE, dtype)
    with torch.no_grad():  # what random weights leave as it came: padding
        models["transformer"].x_pad_token.fill_(1.0)
        models["transformer"].cap_pad_token.fill_(1.0)
    scheduler = class_named("FlowMatchEulerDiscreteScheduler")(shift=3.0)
    given: dict[str, Any] = {
        "prompt_embeds": [_random(16, 32, seed=1, dtype=dtype).to(device)],
        "negative_prompt_embeds": [_random(16, 32, seed=2, dtype=dtype).to(device)],
        "height": 128,
        "width": 128,
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "return_dict": False,
    }
    pipe = _pipeline("ZImagePipeline", device, scheduler=scheduler, **models, **_no_text(dtype))
    return pipe, given


def save_configs(pipe: Any, folder: Path, *others: Any) -> Path:
    """The config files of a pipeline, and of models of `others`, as `save_pretrained` leaves them,
    without weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": type(pipe).__name__}
    index["_diffusers_version"] = metadata.version("diffusers")
    scalars = {k: v for k, v in pipe.config.items() if isinstance(v, bool | int | float)}
    for name, part in {**pipe.components, **_components(others)}.items():
        if name in _KEPT and part is not None:
            part.save_config(folder / name)
        if name in pipe.components:
            known = name in _KEPT and part is not None
            index[name] = ["diffusers", type(part).__name__] if known else [None, None]
    text = json.dumps(index | scalars, indent=2)
    (folder / "model_index.json").write_text(text + "\n", encoding="utf-8")
    return folder


def _models(
    parts: Mapping[str, Part], dtype: torch.dtype, *, vae_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Models by name; the same weights each time."""
    torch.manual_seed(0)
    own = {"vae": vae_dtype or dtype}
    return {
        name: made(class_named(part.cls), part.config, own.get(name, dtype), "cpu")
        for name, part in parts.items()
    }


def _no_text(dtype: torch.dtype) -> dict[str, Any]:
    return {"tokenizer": None, "text_encoder": _NoTextEncoder(dtype)}


def _pipeline(name: str, device: str, **parts: Any) -> Any:
    pipe = class_named(name)(**parts).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _components(pipes: tuple[Any, ...]) -> dict[str, Any]:
    return {name: part for pipe in pipes for name, part in pipe.components.items()}


logging.getLogger("diffusers").setLevel(logging.ERROR)  # says what it thinks of missing parts
