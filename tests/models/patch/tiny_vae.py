"""Tiny VAEs of diffusers with random weights, the released ones on meta, and calls of both."""

import pytest
import torch
from jitd.tools.bench.patched import DECODERS
from jitd.tools.examples.configs import LTX2
from torch import nn
from torch.nn.utils import (
    convert_conv2d_weight_memory_format,
    convert_conv3d_weight_memory_format,
)

_WAN = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1,
    "temperal_downsample": [False, True],
}  # fmt: skip
_KL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 16,
}  # fmt: skip


def _of_ltx2(version, name):
    part = LTX2[version][name]
    return part.cls, part.config


# Class, config, and the shape of a sample that is encoded.
TINY = {
    "video 2.0": (*_of_ltx2("2.0", "vae"), (3, 9, 64, 64)),
    "video 2.3": (*_of_ltx2("2.3", "vae"), (3, 9, 64, 64)),
    "audio": (*_of_ltx2("2.3", "audio_vae"), (2, 9, 16)),
    "wan 2.1": ("AutoencoderKLWan", _WAN, (3, 5, 16, 16)),
    "wan 2.2": (
        "AutoencoderKLWan",
        {
            **_WAN,
            "dim_mult": [1, 2, 4, 4],
            "temperal_downsample": [False, True, True],
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
        },
        (3, 5, 32, 32),
    ),
    "kl": ("AutoencoderKL", _KL, (3, 16, 16)),
}

# As released, but for the encoders. With what the decoder is given for the size in the comment.
RELEASED = {
    "video 2.0": (  # 512x768, 121 frames
        "AutoencoderKLLTX2Video",
        {"decoder_causal": False, "block_out_channels": (8, 8, 8, 8)},
        (1, 128, 16, 16, 24),
    ),
    "video 2.3": (*DECODERS["LTX-2.3"], (1, 128, 16, 16, 24)),
    "audio": ("AutoencoderKLLTX2Audio", {}, (1, 8, 126, 16)),  # the same 121 frames
    "wan 2.1": (*DECODERS["Wan"], (1, 16, 9, 48, 80)),  # 384x640, 33 frames
    "kl": (*DECODERS["Z-Image"], (1, 16, 128, 128)),  # 1024x1024
}


def build(name, *, dtype=torch.float32, device="cpu", channels_last=False, **changes):
    """A tiny VAE in eval mode; the same weights each time, with norms and noise that matter."""
    diffusers = pytest.importorskip("diffusers")  # here: it takes seconds to import
    cls, config, _ = TINY[name]
    torch.manual_seed(0)
    model = getattr(diffusers, cls)(**{**config, **changes})
    for path, parameter in model.named_parameters():
        if "norm" in path or "per_channel_scale" in path:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    if channels_last:
        convert_conv2d_weight_memory_format(model, torch.channels_last)
        convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    return model.to(device, dtype).eval()


def released(name, *, device="meta", dtype=torch.bfloat16):
    """(a released decoder's VAE, the latents of one sample)."""
    diffusers = pytest.importorskip("diffusers")
    cls, config, shape = RELEASED[name]
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(diffusers, cls)(**config)
        latents = torch.randn(shape, dtype=dtype)
    return model.to(dtype).eval(), latents


def sample(name, batch=1, *, dtype=torch.float32, device="cpu", channels_last=False):
    """What a tiny VAE encodes; the same each time."""
    shape = (batch, *TINY[name][2])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if channels_last else x


def there_and_back(model, x):
    """(moments of the latents, what is decoded from their mean), without gradients."""
    with torch.no_grad():
        moments = model.encode(x).latent_dist.parameters
        mean = moments.chunk(2, dim=1)[0].contiguous()
        return moments, model.decode(mean).sample


def same(outs, wanted):
    """Whether results have the same bits and strides."""
    return all(
        torch.equal(out, want) and out.stride() == want.stride()
        for out, want in zip(outs, wanted, strict=True)
    )


def of(module, name):
    """A class of diffusers, which takes seconds to import."""
    return getattr(pytest.importorskip(f"diffusers.models.{module}"), name)


def made(cls, *args, **config):
    """An instance in eval mode with parameters that matter: a modulation, a noise's scale."""
    torch.manual_seed(0)
    module = cls(*args, **config).eval()
    for parameter in module.parameters():
        if parameter.ndim == 1 or not parameter.any() or parameter.numel() == max(parameter.shape):
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return module


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outcome(module, *args, **kwargs):
    """What a call comes to: its result, or its error."""
    with torch.no_grad():
        try:
            return module(*args, **kwargs)
        except (TypeError, ValueError) as error:
            return str(error)
