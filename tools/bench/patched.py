"""Which models of diffusers `bench patch` measures: released configs, few layers, real sizes."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...models.helios import presets as helios
from ...models.ltx2 import presets as ltx2
from ...models.pipelines.building import class_named, made
from ...models.zimage import presets as zimage

__all__ = ["DECODERS", "Live", "cases", "lively"]

VIDEO = ltx2.Size(1024, 1536)
"""Whose stage 1 has 6144 tokens, for two samples, and whose stage 2 has 24576, for one."""

CHUNK = helios.PRESETS["384x640"]
"""11040 tokens with history."""

IMAGE = zimage.PRESETS["1024"]
"""4096 tokens, 4128 with the shortest caption."""

TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "ltx2": (
            "LTX2VideoTransformer3DModel",
            {**ltx2.TRANSFORMERS["2.3"], "rope_type": "split", "num_layers": 2},
        ),
        "helios": ("HeliosTransformer3DModel", {"num_layers": 1}),
        "zimage": ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 0}),
    }
)
"""Classes and configs: where none is named, the class's default is that of the released model."""

UPSAMPLER: tuple[str, Mapping[str, Any]] = ("LTX2LatentUpsamplerModel", ltx2.UPSAMPLERS["2.3"])

DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "Z-Image": (
            "AutoencoderKL",
            {
                "block_out_channels": (128, 256, 512, 512),
                "layers_per_block": 2,
                "latent_channels": 16,
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "sample_size": 1024,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
            },
        ),
        "LTX-2.3": (
            "AutoencoderKLLTX2Video",
            {
                "block_out_channels": (8, 8, 8, 8),  # of the encoder, which nobody calls
                "decoder_causal": False,
                "decoder_block_out_channels": (256, 512, 512, 1024),
                "decoder_layers_per_block": (4, 6, 4, 2, 2),
                "decoder_spatio_temporal_scaling": (True,) * 4,
                "decoder_inject_noise": (False,) * 5,
                "decoder_spatial_padding_mode": "zeros",
                "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
                "upsample_residual": (False,) * 4,
                "upsample_factor": (2, 2, 1, 2),
                "spatial_compression_ratio": 32,
                "temporal_compression_ratio": 8,
            },
        ),
        "Wan": ("AutoencoderKLWan", {}),
    }
)
"""Of VAEs: released decoders."""

LATENTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Z-Image": (1, 16, 128, 128),  # 1024x1024
        "LTX-2.3": (1, 128, 5, 16, 24),  # 33 frames of 512x768
        "Wan": (1, 16, 3, 48, 80),  # 9 frames of 384x640, a third of a chunk
    }
)
"""What they decode."""

_FP32 = ("Wan",)  # as Helios' pipelines have it


@dataclass(frozen=True)
class Live:
    """A model as a pipeline has it, and a call of it.

    name    the row's
    cls     of diffusers, with its `config`
    given   arguments of a call, from the model's config and a dtype, on the default device
    dtype   of parameters and arguments, but for what the class keeps in fp32
    decodes whether it is a VAE, whose decoder is called
    facts   what the JSON says of it
    """

    name: str
    cls: str
    config: Mapping[str, Any]
    given: Callable[[Any, torch.dtype], Mapping[str, Any]]
    dtype: torch.dtype = torch.bfloat16
    decodes: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


class Decoding(nn.Module):  # type: ignore[misc]  # torch is not followed
    """A VAE as what decodes."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor, *, return_dict: bool) -> Any:
        return self.vae.decode(z, return_dict=return_dict)


def lively(case: Live, device: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the arguments of a call; the same random numbers each time."""
    torch.manual_seed(0)
    model = made(class_named(case.cls), case.config, case.dtype, device)
    with torch.device(device):
        given = dict(case.given(model.config, case.dtype))
    model = Decoding(model) if case.decodes else model
    if "return_dict" in inspect.signature(type(model).forward).parameters:
        given["return_dict"] = False
    return model, given


def cases(models: Sequence[str], stages: Sequence[int]) -> list[Live]:
    """Those of `ltx2`, `upsampler`, `helios`, `zimage`, `vae` that are named; stages: of ltx2."""
    of_model: dict[str, Callable[[], Iterator[Live]]] = {
        "ltx2": lambda: _ltx2(stages),
        "upsampler": _upsampler,
        "helios": _helios,
        "zimage": _zimage,
        "vae": _decoders,
    }
    return [case for model in models for case in of_model[model]()]


def _ltx2(stages: Sequence[int]) -> Iterator[Live]:
    cls, config = TRANSFORMERS["ltx2"]
    for stage in stages:
        yield Live(
            name=f"LTX-2.3, {config['num_layers']} blocks",
            cls=cls,
            config=config,
            given=lambda c, dtype, stage=stage: _ltx2_call(stage, c, dtype),  # type: ignore[misc]
            facts={"model": "ltx2", "stage": stage},
        )


def _ltx2_call(stage: int, c: Any, dtype: torch.dtype) -> dict[str, Any]:
    chosen, audio = ltx2.variant_named("2.3"), ltx2.audio_tokens(VIDEO)
    batch, (frames, height, width) = chosen.batch[stage - 1], ltx2.latent_shape(VIDEO, stage)
    timestep, tokens = torch.full((batch,), 725.0), ltx2.TEXT_TOKENS
    audio_dim = c.audio_cross_attention_dim
    return {
        "hidden_states": torch.randn(
            batch, prod((frames, height, width)), c.in_channels, dtype=dtype
        ),
        "audio_hidden_states": torch.randn(batch, audio, c.audio_in_channels, dtype=dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, c.cross_attention_dim, dtype=dtype),
        "audio_encoder_hidden_states": torch.randn(batch, tokens, audio_dim, dtype=dtype),
        "timestep": timestep,
        "audio_timestep": timestep,
        "sigma": timestep,
        "encoder_attention_mask": torch.ones(batch, tokens),
        "audio_encoder_attention_mask": torch.ones(batch, tokens),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": audio,
        "use_cross_timestep": chosen.use_cross_timestep,
    }


def _upsampler() -> Iterator[Live]:
    def given(c: Any, dtype: torch.dtype) -> dict[str, Any]:
        shape = (1, c.in_channels, *ltx2.latent_shape(VIDEO, 1))
        return {"hidden_states": torch.randn(shape, dtype=dtype)}

    cls, config = UPSAMPLER
    yield Live(
        name="LTX-2.3 upsampler",
        cls=cls,
        config=config,
        given=given,
        facts={"model": "upsampler"},
    )


def _helios() -> Iterator[Live]:
    cls, config = TRANSFORMERS["helios"]
    yield Live(
        name="Helios, 1 block",
        cls=cls,
        config=config,
        given=_helios_call,
        facts={"model": "helios", "tokens": helios.tokens(CHUNK)},
    )


def _helios_call(c: Any, dtype: torch.dtype) -> dict[str, Any]:
    """A chunk behind a whole history."""
    frames, height, width = helios.chunk_shape(CHUNK)
    times = torch.arange(sum(n for n, _ in helios.HISTORY.values()) + frames)[None]
    given = {
        "hidden_states": torch.randn(1, c.in_channels, frames, height, width, dtype=dtype),
        "timestep": torch.tensor([725]),
        "encoder_hidden_states": torch.randn(1, helios.TEXT_TOKENS, c.text_dim, dtype=dtype),
        "indices_hidden_states": times[:, -frames:],
    }
    start = 0
    for term in reversed(helios.HISTORY):
        count, _ = helios.HISTORY[term]
        latents = torch.randn(1, c.in_channels, count, height, width, dtype=dtype)
        given[f"latents_history_{term}"] = latents
        given[f"indices_latents_history_{term}"] = times[:, start : start + count]
        start += count
    return given


def _zimage() -> Iterator[Live]:
    caption = zimage.CAPTIONS[0]

    def given(c: Any, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "x": [torch.randn(c.in_channels, 1, *zimage.latent_shape(IMAGE), dtype=dtype)],
            "t": torch.full((1,), 0.3),
            "cap_feats": [torch.randn(caption, c.cap_feat_dim, dtype=dtype)],
        }

    cls, config = TRANSFORMERS["zimage"]
    yield Live(
        name="Z-Image, 1 block",
        cls=cls,
        config=config,
        given=given,
        facts={"model": "zimage", "tokens": zimage.tokens(IMAGE, caption)},
    )


def _decoders() -> Iterator[Live]:
    for name, (cls, config) in DECODERS.items():
        wide = name in _FP32
        yield Live(
            name=f"{name} decoder" + (", fp32" if wide else ""),
            cls=cls,
            config=config,
            given=lambda c, dtype, name=name: {  # type: ignore[misc]
                "z": torch.randn(LATENTS[name], dtype=dtype)
            },
            dtype=torch.float32 if wide else torch.bfloat16,
            decodes=True,
            facts={"model": "vae", "of": name},
        )
