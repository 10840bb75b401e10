"""AutoencoderKL, Z-Image's VAE (and that of FLUX): GroupNorm and SiLU in one op.

Read at diffusers 0.38.0, 0.40.0 and 0.42.1: models/resnet.py, models/autoencoders/vae.py. A decoder
of Z-Image's config has 29 sites: two in each of 14 blocks, and one before the last convolution.
"""

from typing import Any

from torch import Tensor, nn

from .norm_silu import GROUP_NORM, NormSites
from .recipe import Recipe

__all__ = ["RECIPES"]

_BLOCK = NormSites(GROUP_NORM, ("norm1", "norm2"), "nonlinearity")
_SCALED_BLOCK = NormSites(GROUP_NORM, ("norm1",), "nonlinearity")
_TAIL = NormSites(GROUP_NORM, ("conv_norm_out",), "conv_act")
_MANY = 64  # samples, from which on an upsampler is given contiguous tensors


def _sites(block: Any) -> NormSites:
    """With `scale_shift` a modulation stands between the second norm and its SiLU."""
    return _SCALED_BLOCK if block.time_embedding_norm == "scale_shift" else _BLOCK


def _block(module: Any, input_tensor: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
    """ResnetBlock2D: shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + temb)))."""
    x = _BLOCK.silu(module, "norm1", input_tensor)
    resample = module.downsample if module.upsample is None else module.upsample
    if resample is not None:
        if module.upsample is not None and x.shape[0] >= _MANY:
            input_tensor, x = input_tensor.contiguous(), x.contiguous()
        input_tensor, x = resample(input_tensor), resample(x)
    x = module.conv1(x)

    if module.time_emb_proj is not None:
        temb = temb if module.skip_time_act else module.nonlinearity(temb)
        temb = module.time_emb_proj(temb)[:, :, None, None]
    if module.time_embedding_norm == "scale_shift":
        assert temb is not None  # `_block_takes` has seen to it
        scale, shift = temb.chunk(2, dim=1)
        x = module.nonlinearity(module.norm2(x) * (1 + scale) + shift)
    else:
        if module.time_embedding_norm == "default" and temb is not None:
            x = x + temb
        x = _BLOCK.silu(module, "norm2", x)
    x = module.conv2(module.dropout(x))

    if module.conv_shortcut is not None:
        input_tensor = module.conv_shortcut(input_tensor)
    return (input_tensor + x) / module.output_scale_factor


def _block_takes(
    module: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any
) -> str | None:
    if args or kwargs.get("scale") is not None:
        return "scale"
    conditioned = module.time_emb_proj is not None or module.time_embedding_norm == "scale_shift"
    if conditioned and temb is None:
        return "temb"
    return _sites(module).takes(module, input_tensor)


def _encoder(module: Any, sample: Tensor) -> Tensor:
    x = module.conv_in(sample)
    for block in module.down_blocks:
        x = block(x)
    x = module.mid_block(x)
    return module.conv_out(_TAIL.silu(module, "conv_norm_out", x))


def _encoder_takes(module: nn.Module, sample: Tensor) -> str | None:
    return _TAIL.takes(module, sample)


def _decoder(module: Any, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
    x = module.conv_in(sample)
    x = module.mid_block(x, latent_embeds)
    for block in module.up_blocks:
        x = block(x, latent_embeds)
    return module.conv_out(_TAIL.silu(module, "conv_norm_out", x))


def _decoder_takes(
    module: nn.Module, sample: Tensor, latent_embeds: Tensor | None = None
) -> str | None:
    if latent_embeds is not None:
        return "latent_embeds"
    return _TAIL.takes(module, sample)


def _mid_block(module: Any, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
    """UNetMidBlock2D: a block, then attentions with a block behind each.

    Attention answers with a transposed view, which for one sample eager's norms and samplers take
    for contiguous, by its batch stride. That stride is another one on torch's meta device, where
    workloads are recorded: a copy, which each of the next four norms would make, settles it.
    """
    x = module.resnets[0](hidden_states, temb)
    for attention, block in zip(module.attentions, module.resnets[1:], strict=False):
        if attention is not None:
            contiguous = x.is_contiguous()
            x = attention(x, temb=temb)
            if contiguous and x.shape[0] == 1:
                x = x.contiguous()
        x = block(x, temb)
    return x


RECIPES = (
    _BLOCK.recipe(
        "diffusers.models.resnet.ResnetBlock2D",
        _block,
        "9a4189c6c6718b31",
        fits=lambda block: _sites(block).fits(block),
        reads=lambda block: _sites(block).reads(block),
        takes=_block_takes,
    ),
    Recipe(
        cls="diffusers.models.unets.unet_2d_blocks.UNetMidBlock2D",
        forward=_mid_block,
        ops=(),
        sources=frozenset({"01babe54054137e0"}),
    ),
    _TAIL.recipe(
        "diffusers.models.autoencoders.vae.Encoder",
        _encoder,
        "16b16d5949f5a724",
        takes=_encoder_takes,
    ),
    _TAIL.recipe(
        "diffusers.models.autoencoders.vae.Decoder",
        _decoder,
        "13b05fef874d1e0f",
        takes=_decoder_takes,
    ),
)
