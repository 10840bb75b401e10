"""LTX-2's latent upsampler, with GroupNorm, residual and SiLU computed by jitd's ops.

Same parameters and same mathematics as `LTX2LatentUpsamplerModel` of diffusers
(pipelines/ltx2/latent_upsampler.py, read at 0.42.1), so that a state dict of that class loads with
strict=True. One forward makes 1 + 2 * num_blocks_per_stage calls of `group_norm_silu` and
2 * num_blocks_per_stage calls of `group_norm_add_silu`: 9 and 8 in the released models.

Layout: a contiguous input stays contiguous up to the spatial upsampler. Behind it frames lie
outside channels in memory, and the first block there gets that view as its residual: the op takes
strides, a copy would cost a read and a write of the largest activation. A channels-last module
keeps its activations channels-last from end to end; as it has both kinds of convolution, convert
it with `torch.nn.utils.convert_conv2d_weight_memory_format` and its `conv3d` twin.
"""

from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.group_norm import apply_group_norm_silu, group_norm_add_silu

__all__ = ["RATIONAL_SCALES", "LatentUpsampler", "ResBlock"]

GROUPS = 32  # of every GroupNorm; eps is nn.GroupNorm's default, 1e-5

# Spatial scale -> (numerator, denominator): enlarge by the first, blur and stride by the second.
RATIONAL_SCALES = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class LatentUpsampler(nn.Module):
    """Enlarges video latents in space, in time or both: conv, blocks, upsampler, blocks, conv.

    The arguments are the config of diffusers' class. `use_rational_resampler` selects the layout
    of the 2.0 checkpoints (`upsampler.conv`, any scale of `RATIONAL_SCALES`); without it, and
    whenever time is enlarged, the upsampler is a convolution and a pixel shuffle by two
    (`upsampler.0`, as in 2.3), and `rational_spatial_scale` is not read. With `dims=2` every
    frame is processed by itself.

    Raises ValueError for dims other than 2 and 3, for `mid_channels` that 32 does not divide, for
    an unknown scale, if nothing is to be enlarged, and for time with `dims=2`.
    """

    def __init__(
        self,
        in_channels: int = 128,
        mid_channels: int = 1024,
        num_blocks_per_stage: int = 4,
        *,
        dims: int = 3,
        spatial_upsample: bool = True,
        temporal_upsample: bool = False,
        rational_spatial_scale: float = 2.0,
        use_rational_resampler: bool = True,
    ) -> None:
        super().__init__()
        if dims not in _CONV:
            raise ValueError(f"dims is {dims}; it must be 2 (frame by frame) or 3")
        if mid_channels % GROUPS:
            raise ValueError(f"mid_channels is {mid_channels}; it must be a multiple of {GROUPS}")
        if dims == 2 and temporal_upsample:
            raise ValueError("temporal_upsample needs dims=3: with dims=2 frames never meet")
        if not (spatial_upsample or temporal_upsample):
            raise ValueError("nothing to enlarge: set spatial_upsample, temporal_upsample or both")
        self.dims = dims
        self.temporal_upsample = temporal_upsample

        conv = _CONV[dims]
        self.initial_conv = conv(in_channels, mid_channels, kernel_size=3, padding=1)
        self.initial_norm = nn.GroupNorm(GROUPS, mid_channels)
        self.initial_activation = nn.SiLU()
        self.res_blocks = _stage(mid_channels, num_blocks_per_stage, dims)
        self.upsampler: nn.Module
        if temporal_upsample:
            self.upsampler = ShuffleUpsampler(
                mid_channels, (2, 2, 2) if spatial_upsample else (2, 1, 1)
            )
        elif use_rational_resampler:
            self.upsampler = RationalResampler(mid_channels, rational_spatial_scale)
        else:
            self.upsampler = ShuffleUpsampler(mid_channels, (2, 2))
        self.post_upsample_res_blocks = _stage(mid_channels, num_blocks_per_stage, dims)
        self.final_conv = conv(mid_channels, in_channels, kernel_size=3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Latents (B, in_channels, F, H, W), already scaled by the VAE's statistics, enlarged.

        Spatially to (B, in_channels, F, s*H, s*W), rounded up for s = 1.5 and 0.75; in time to
        2*F - 1 frames: the first latent frame stands for one video frame, the others for eight.
        """
        batch = hidden_states.shape[0]
        x = hidden_states if self.dims == 3 else _fold_frames(hidden_states)
        x = _conv(self.initial_conv, x)
        x = apply_group_norm_silu(x, self.initial_norm, self.initial_activation)
        for block in self.res_blocks:
            x = block(x)

        if self.temporal_upsample:
            x = self.upsampler(x)[:, :, 1:]
        elif self.dims == 3:
            x = _unfold_frames(self.upsampler(_fold_frames(x)), batch)
        else:
            x = self.upsampler(x)

        for block in self.post_upsample_res_blocks:
            x = block(x)
        x = _conv(self.final_conv, x)
        return x if self.dims == 3 else _unfold_frames(x, batch)


class ResBlock(nn.Module):
    """silu(norm2(conv2(silu(norm1(conv1(x))))) + x), for x (N, channels, *spatial).

    `dims` spatial dimensions, 2 or 3. `x` may be strided; the result has conv2's layout.
    """

    def __init__(self, channels: int, *, dims: int) -> None:
        super().__init__()
        conv = _CONV[dims]
        self.conv1 = conv(channels, channels, kernel_size=3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = conv(channels, channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.activation = nn.SiLU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = _conv(self.conv1, hidden_states)
        x = apply_group_norm_silu(x, self.norm1, self.activation)
        x = _conv(self.conv2, x)
        norm = self.norm2
        return group_norm_add_silu(
            x, hidden_states, norm.weight, norm.bias, norm.num_groups, norm.eps
        )


class ShuffleUpsampler(nn.Sequential):
    """A convolution (`0`) to prod(factors) times the channels, then a pixel shuffle (`1`).

    One factor per spatial dimension: (H, W), or (F, H, W).
    """

    def __init__(self, channels: int, factors: tuple[int, ...]) -> None:
        shuffle = PixelShuffle(factors)
        conv = _CONV[len(factors)]
        super().__init__(conv(channels, shuffle.gain * channels, kernel_size=3, padding=1), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        conv, shuffle = self
        return shuffle(_conv(conv, x))


class RationalResampler(nn.Module):
    """Resizes frames (N, C, H, W) by a scale of `RATIONAL_SCALES`; sides are rounded up.

    Raises ValueError for any other scale.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        if scale not in RATIONAL_SCALES:
            allowed = ", ".join(map(str, RATIONAL_SCALES))
            raise ValueError(f"rational_spatial_scale is {scale}; it must be one of {allowed}")
        up, down = RATIONAL_SCALES[scale]
        self.conv = nn.Conv2d(channels, up * up * channels, kernel_size=3, padding=1)
        self.pixel_shuffle = PixelShuffle((up, up))
        self.blur_down = BlurDownsample(down)

    def forward(self, x: Tensor) -> Tensor:
        return self.blur_down(self.pixel_shuffle(_conv(self.conv, x)))


class PixelShuffle(nn.Module):
    """(N, C * prod(p), *d) to (N, C, *(d * p)), p being `factors`, the last one fastest.

    One copy. The result is channels-last if the input is, else contiguous, on every device, where
    `F.pixel_shuffle` would keep channels-last on the CPU alone.
    """

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors
        self.gain = 1
        for factor in factors:
            self.gain *= factor

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.factors)
        batch, channels = x.shape[0], x.shape[1] // self.gain
        sides = [side * factor for side, factor in zip(x.shape[2:], self.factors, strict=True)]
        split = x.unflatten(1, (channels, *self.factors))
        pairs = [dim for i in range(n) for dim in (2 + n + i, 2 + i)]
        if _is_channels_last(x):
            return split.permute(0, *pairs, 1).reshape(batch, *sides, channels).movedim(-1, 1)
        return split.permute(0, 1, *pairs).reshape(batch, channels, *sides)


class BlurDownsample(nn.Module):
    """Blurs frames (N, C, H, W) with a 5x5 binomial kernel and keeps every `stride`-th pixel.

    Stride 1 returns the input: there is nothing to guard against aliasing. The kernel is in the
    state dict either way, because the checkpoints carry it.
    """

    kernel: Tensor

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        row = torch.tensor([float(comb(4, i)) for i in range(5)])
        kernel = torch.outer(row, row)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        channels = x.shape[1]
        weight = self.kernel.expand(channels, 1, 5, 5)
        out = F.conv2d(x, weight, stride=self.stride, padding=2, groups=channels)
        return _laid_out(out, x, weight)


def _stage(channels: int, blocks: int, dims: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(channels, dims=dims) for _ in range(blocks))


def _fold_frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) as (B * F, C, H, W); a view if B is 1 or x is channels-last."""
    return x.permute(0, 2, 1, 3, 4).flatten(0, 1)


def _unfold_frames(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_fold_frames`, always a view: frames outside channels in memory."""
    return x.unflatten(0, (batch, -1)).permute(0, 2, 1, 3, 4)


def _conv(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """conv(x), on the meta device with the layout it has on a real one."""
    return _laid_out(conv(x), x, conv.weight)


def _laid_out(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The result of a convolution, relaid on the meta device only.

    cuDNN and oneDNN answer in channels-last as soon as input or weight is; torch's meta kernel
    always answers contiguous. Uncorrected, a workload recorded on meta would name signatures that
    no channels-last model ever asks for.
    """
    if out.is_meta and (_is_channels_last(x) or _is_channels_last(weight)):
        return out.contiguous(memory_format=_CHANNELS_LAST[out.ndim])
    return out


def _is_channels_last(x: Tensor) -> bool:
    """Whether channels are innermost; a slice of frames or a batch counts, gaps and all."""
    return x.stride(1) == 1 and x.stride(-1) == x.shape[1]
