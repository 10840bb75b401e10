"""LTX-2's video and audio VAEs: RMSNorm over channels and SiLU in one op.

Read at diffusers 0.38.0, 0.40.0 and 0.42.1: models/autoencoders/autoencoder_kl_ltx2.py and
autoencoder_kl_ltx2_audio.py. A modulation by the timestep, which no released VAE has, would stand
between norm and SiLU: such blocks are left.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.channel_norm import channel_rms_norm_silu
from .norm_silu import NormKind, NormSites

__all__ = ["RECIPES"]

_VIDEO = "diffusers.models.autoencoders.autoencoder_kl_ltx2."
_AUDIO = "diffusers.models.autoencoders.autoencoder_kl_ltx2_audio."


def _silu(norm: Any, x: Tensor, numerics: str) -> Tensor:
    return channel_rms_norm_silu(x, None, norm.eps, form="rms", numerics=numerics)


def _over(dim: int) -> str | None:
    return None if dim == 1 else f"over dimension {dim}, not channels"


_CHANNEL_NORM = NormKind(
    cls=_VIDEO + "PerChannelRMSNorm",
    op="channel_rms_norm_silu",
    silu=_silu,
    odd=lambda norm: _over(norm.channel_dim),
)
_PIXEL_NORM = NormKind(
    cls=_AUDIO + "LTX2AudioPixelNorm",
    op="channel_rms_norm_silu",
    silu=_silu,
    odd=lambda norm: _over(norm.dim),
)
_VIDEO_BLOCK = NormSites(_CHANNEL_NORM, ("norm1", "norm2"), "nonlinearity")
_VIDEO_TAIL = NormSites(_CHANNEL_NORM, ("norm_out",), "conv_act")
_AUDIO_BLOCK = NormSites(_PIXEL_NORM, ("norm1", "norm2"), "non_linearity")
_AUDIO_TAIL = NormSites(_PIXEL_NORM, ("norm_out",), "non_linearity")


def _unconditioned(sites: NormSites) -> Any:
    def fits(module: Any) -> str | None:
        if getattr(module, "scale_shift_table", None) is not None:
            return "a modulation by the timestep stands between norm and SiLU"
        return sites.fits(module)

    return fits


def _video_block(
    module: Any,
    inputs: Tensor,
    temb: Tensor | None = None,
    generator: torch.Generator | None = None,
    causal: bool = True,
) -> Tensor:
    """LTX2VideoResnetBlock3d: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), noise behind each."""
    x = module.conv1(_VIDEO_BLOCK.silu(module, "norm1", inputs), causal=causal)
    x = _noised(x, module.per_channel_scale1, generator)
    x = module.dropout(_VIDEO_BLOCK.silu(module, "norm2", x))
    x = module.conv2(x, causal=causal)
    x = _noised(x, module.per_channel_scale2, generator)
    if module.norm3 is not None:
        inputs = module.norm3(inputs.movedim(1, -1)).movedim(-1, 1)
    if module.conv_shortcut is not None:
        inputs = module.conv_shortcut(inputs)
    return x + inputs


def _noised(x: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """x (B, C, F, H, W) with one noise of (H, W) for all, by `scale` (C, 1, 1); none without."""
    if scale is None:
        return x
    noise = torch.randn(x.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
    return x + (noise * scale)[None, :, None]


def _video_block_takes(
    module: nn.Module,
    inputs: Tensor,
    temb: Tensor | None = None,
    generator: torch.Generator | None = None,
    causal: bool = True,
) -> str | None:
    return _VIDEO_BLOCK.takes(module, inputs)


def _video_encoder(module: Any, hidden_states: Tensor, causal: bool | None = None) -> Tensor:
    causal = causal or module.is_causal
    time, space = module.patch_size_t, module.patch_size
    x = hidden_states.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    x = x.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)
    x = module.conv_in(x, causal=causal)
    for block in module.down_blocks:
        x = block(x, causal=causal)
    x = module.mid_block(x, causal=causal)
    x = module.conv_out(_VIDEO_TAIL.silu(module, "norm_out", x), causal=causal)
    # One log-variance stands for all channels but the last, which has its own.
    return torch.cat([x, x[:, -1:].repeat(1, x.shape[1] - 2, 1, 1, 1)], dim=1)


def _video_encoder_takes(
    module: nn.Module, hidden_states: Tensor, causal: bool | None = None
) -> str | None:
    return _VIDEO_TAIL.takes(module, hidden_states)


def _video_decoder(
    module: Any, hidden_states: Tensor, temb: Tensor | None = None, causal: bool | None = None
) -> Tensor:
    causal = causal or module.is_causal
    x = module.conv_in(hidden_states, causal=causal)
    x = module.mid_block(x, temb, causal=causal)
    for block in module.up_blocks:
        x = block(x, temb, causal=causal)
    x = module.conv_out(_VIDEO_TAIL.silu(module, "norm_out", x), causal=causal)

    time, space = module.patch_size_t, module.patch_size
    x = x.unflatten(1, (-1, time, space, space)).permute(0, 1, 5, 2, 6, 4, 7, 3)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _video_decoder_takes(
    module: nn.Module,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    causal: bool | None = None,
) -> str | None:
    return _VIDEO_TAIL.takes(module, hidden_states)


def _audio_block(module: Any, x: Tensor, temb: Tensor | None = None) -> Tensor:
    """LTX2AudioResnetBlock: shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + temb)))."""
    h = module.conv1(_AUDIO_BLOCK.silu(module, "norm1", x))
    if temb is not None:
        h = h + module.temb_proj(module.non_linearity(temb))[:, :, None, None]
    h = module.conv2(module.dropout(_AUDIO_BLOCK.silu(module, "norm2", h)))
    if module.in_channels != module.out_channels:
        x = module.conv_shortcut(x) if module.use_conv_shortcut else module.nin_shortcut(x)
    return x + h


def _audio_block_takes(module: nn.Module, x: Tensor, temb: Tensor | None = None) -> str | None:
    return _AUDIO_BLOCK.takes(module, x)


def _stage(stage: Any, x: Tensor) -> Tensor:
    for number, block in enumerate(stage.block):
        x = block(x, temb=None)
        if stage.attn:
            x = stage.attn[number](x)
    return x


def _middle(mid: Any, x: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(x, temb=None)), temb=None)


def _audio_encoder(module: Any, hidden_states: Tensor) -> Tensor:
    """Spectrograms (B, channels, time, mel) to moments of latents."""
    x = module.conv_in(hidden_states)
    for level in range(module.num_resolutions):
        stage = module.down[level]
        x = _stage(stage, x)
        if level != module.num_resolutions - 1 and hasattr(stage, "downsample"):
            x = stage.downsample(x)
    return module.conv_out(_AUDIO_TAIL.silu(module, "norm_out", _middle(module.mid, x)))


def _audio_encoder_takes(module: nn.Module, hidden_states: Tensor) -> str | None:
    return _AUDIO_TAIL.takes(module, hidden_states)


_TIMES = 4  # spectrogram frames to a latent one


def _audio_decoder(module: Any, sample: Tensor) -> Tensor:
    """Latents (B, C, time, mel) to spectrograms, cut or filled up to their nominal size.

    A causal decoder's first latent frame stands for one frame, the others for four.
    """
    _, _, frames, bins = sample.shape
    x = _middle(module.mid, module.conv_in(sample))
    for level in reversed(range(module.num_resolutions)):
        stage = module.up[level]
        x = _stage(stage, x)
        if level != 0 and hasattr(stage, "upsample"):
            x = stage.upsample(x)
    if module.give_pre_end:
        return x

    x = module.conv_out(_AUDIO_TAIL.silu(module, "norm_out", x))
    if module.tanh_out:
        x = torch.tanh(x)
    time = frames * _TIMES
    if module.causality_axis is not None:
        time = max(time - (_TIMES - 1), 1)
    mel = bins if module.mel_bins is None else module.mel_bins
    x = x[:, : module.out_ch, :time, :mel]
    if x.shape[2] < time or x.shape[3] < mel:
        x = F.pad(x, (0, mel - x.shape[3], 0, time - x.shape[2]))
    return x


def _audio_decoder_takes(module: nn.Module, sample: Tensor) -> str | None:
    return _AUDIO_TAIL.takes(module, sample)


RECIPES = (
    _VIDEO_BLOCK.recipe(
        _VIDEO + "LTX2VideoResnetBlock3d",
        _video_block,
        *("9a5ea8db4a138d41", "ae4b5f8aa1db02ca"),  # from 0.41 on: the docstring of the norm
        fits=_unconditioned(_VIDEO_BLOCK),
        takes=_video_block_takes,
    ),
    _VIDEO_TAIL.recipe(
        _VIDEO + "LTX2VideoEncoder3d",
        _video_encoder,
        *("55da6b8c4f7200f0", "47ffa7dd66bccd9c"),
        takes=_video_encoder_takes,
    ),
    _VIDEO_TAIL.recipe(
        _VIDEO + "LTX2VideoDecoder3d",
        _video_decoder,
        *("2dbea7f0c4e7db77", "4c5d9d7aecaec6a8"),
        fits=_unconditioned(_VIDEO_TAIL),
        takes=_video_decoder_takes,
    ),
    _AUDIO_BLOCK.recipe(
        _AUDIO + "LTX2AudioResnetBlock",
        _audio_block,
        "fcda3795490107e3",
        takes=_audio_block_takes,
    ),
    _AUDIO_TAIL.recipe(
        _AUDIO + "LTX2AudioEncoder", _audio_encoder, "f8de875ac2811420", takes=_audio_encoder_takes
    ),
    _AUDIO_TAIL.recipe(
        _AUDIO + "LTX2AudioDecoder", _audio_decoder, "487c76019d38b3ce", takes=_audio_decoder_takes
    ),
)
