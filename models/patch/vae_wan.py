"""The Wan VAE, which Helios decodes with: normalisation over channels, weight and SiLU in one op.

Read at diffusers 0.38.0, 0.40.0 and 0.42.1: models/autoencoders/autoencoder_kl_wan.py. Chunks of
latent frames are decoded one after the other; a causal convolution is given the last two frames of
its previous input, which a list holds, one entry a convolution (`feat_cache`, at `feat_idx[0]`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.channel_norm import channel_rms_norm_silu
from .norm_silu import NormKind, NormSites, is_odd

__all__ = ["RECIPES"]

_WAN = "diffusers.models.autoencoders.autoencoder_kl_wan."
_EPS = 1e-12  # F.normalize's
_KEPT = 2  # frames of a convolution's input that its next chunk is given

Cache = list[Any] | None


def _silu(norm: Any, x: Tensor, numerics: str) -> Tensor:
    """silu(norm(x)).

    Behind an upsampler x (B, C, F, H, W) lies frame by frame. As frames are independent here, they
    are given to the op as samples, which saves a copy; the result lies like x, as eager's does.
    """
    weight = norm.gamma.flatten()
    if not x.is_contiguous() and x.ndim == 5:
        frames = x.transpose(1, 2)
        if frames.is_contiguous():
            y = channel_rms_norm_silu(
                frames.flatten(0, 1), weight, _EPS, form="l2", numerics=numerics
            )
            return y.unflatten(0, frames.shape[:2]).transpose(1, 2)
    y = channel_rms_norm_silu(x, weight, _EPS, form="l2", numerics=numerics)
    return y.contiguous() if is_odd(x) else y  # as the padding behind eager's norm does


def _odd(norm: Any) -> str | None:
    if not norm.channel_first:
        return "channels are last"
    return "with a bias" if torch.is_tensor(norm.bias) else None


_NORM = NormKind(
    cls=_WAN + "WanRMS_norm",
    op="channel_rms_norm_silu",
    silu=_silu,
    odd=_odd,
    weights=("gamma",),
)
_BLOCK = NormSites(_NORM, ("norm1", "norm2"), "nonlinearity")
_TAIL = NormSites(_NORM, ("norm_out",), "nonlinearity")


def _causal(conv: Any, x: Tensor, feat_cache: Cache, feat_idx: list[int]) -> Tensor:
    """conv(x), behind the frames that the cache keeps for it; leaves x's last ones there."""
    if feat_cache is None:
        return conv(x)
    index = feat_idx[0]
    before = feat_cache[index]
    last = x[:, :, -_KEPT:].clone()
    if last.shape[2] < _KEPT and before is not None:
        last = torch.cat([before[:, :, -1:].to(last.device), last], dim=2)
    out = conv(x, before)
    feat_cache[index] = last
    feat_idx[0] += 1
    return out


def _block(
    module: Any, x: Tensor, feat_cache: Cache = None, feat_idx: list[int] | None = None
) -> Tensor:
    """WanResidualBlock: conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)."""
    feat_idx = [0] if feat_idx is None else feat_idx
    shortcut = module.conv_shortcut(x)
    x = _causal(module.conv1, _BLOCK.silu(module, "norm1", x), feat_cache, feat_idx)
    x = module.dropout(_BLOCK.silu(module, "norm2", x))
    return _causal(module.conv2, x, feat_cache, feat_idx) + shortcut


def _cached(feat_cache: Cache, feat_idx: list[int] | None) -> str | None:
    """Without an index the stock forward counts in a list that all its calls share."""
    if feat_cache is not None and feat_idx is None:
        return "feat_idx"
    return None


def _block_takes(
    module: nn.Module, x: Tensor, feat_cache: Cache = None, feat_idx: list[int] | None = None
) -> str | None:
    return _cached(feat_cache, feat_idx) or _BLOCK.takes(module, x)


def _encoder(
    module: Any, x: Tensor, feat_cache: Cache = None, feat_idx: list[int] | None = None
) -> Tensor:
    feat_idx = [0] if feat_idx is None else feat_idx
    x = _causal(module.conv_in, x, feat_cache, feat_idx)
    for layer in module.down_blocks:
        # Attentions are among these blocks and know of no cache.
        x = layer(x) if feat_cache is None else layer(x, feat_cache=feat_cache, feat_idx=feat_idx)
    x = module.mid_block(x, feat_cache=feat_cache, feat_idx=feat_idx)
    return _causal(module.conv_out, _TAIL.silu(module, "norm_out", x), feat_cache, feat_idx)


def _encoder_takes(
    module: nn.Module, x: Tensor, feat_cache: Cache = None, feat_idx: list[int] | None = None
) -> str | None:
    return _cached(feat_cache, feat_idx) or _TAIL.takes(module, x)


def _decoder(
    module: Any,
    x: Tensor,
    feat_cache: Cache = None,
    feat_idx: list[int] | None = None,
    first_chunk: bool = False,
) -> Tensor:
    feat_idx = [0] if feat_idx is None else feat_idx
    x = _causal(module.conv_in, x, feat_cache, feat_idx)
    x = module.mid_block(x, feat_cache=feat_cache, feat_idx=feat_idx)
    for block in module.up_blocks:
        x = block(x, feat_cache=feat_cache, feat_idx=feat_idx, first_chunk=first_chunk)
    return _causal(module.conv_out, _TAIL.silu(module, "norm_out", x), feat_cache, feat_idx)


def _decoder_takes(
    module: nn.Module,
    x: Tensor,
    feat_cache: Cache = None,
    feat_idx: list[int] | None = None,
    first_chunk: bool = False,
) -> str | None:
    return _cached(feat_cache, feat_idx) or _TAIL.takes(module, x)


RECIPES = (
    _BLOCK.recipe(
        _WAN + "WanResidualBlock",
        _block,
        *("c7551f6186a6fde7", "0a9bcebd5982f47c"),  # from 0.41 on: annotations
        takes=_block_takes,
    ),
    _TAIL.recipe(
        _WAN + "WanEncoder3d",
        _encoder,
        *("73037d09f1dd25db", "3c241bd530a98c61"),
        takes=_encoder_takes,
    ),
    _TAIL.recipe(
        _WAN + "WanDecoder3d",
        _decoder,
        *("bdcde9eed3c835b1", "c386e6c2b6c2d9b6"),
        takes=_decoder_takes,
    ),
)
