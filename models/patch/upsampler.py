"""Recipes for LTX-2's latent upsampler, as diffusers has it."""

from collections.abc import Iterator

from torch import Tensor, nn

from ..ops.group_norm import group_norm_add_silu, group_norm_silu
from .norm_silu import GROUP_NORM, NormSites
from .recipe import Recipe, numerics

__all__ = ["RECIPES"]

_HOME = "diffusers.pipelines.ltx2.latent_upsampler"
_BLOCK = NormSites(GROUP_NORM, ("norm1", "norm2"), "activation")
_HEAD = NormSites(GROUP_NORM, ("initial_norm",), "initial_activation")


def _res_block(module: nn.Module, hidden_states: Tensor) -> Tensor:
    x = module.conv1(hidden_states)
    x = _norm_silu(module, module.norm1, x)
    x = module.conv2(x)
    norm = module.norm2
    return group_norm_add_silu(
        x,
        hidden_states,
        norm.weight,
        norm.bias,
        norm.num_groups,
        norm.eps,
        numerics=numerics(module),
    )


def _res_block_takes(module: nn.Module, hidden_states: Tensor) -> str | None:
    return None if hidden_states.dtype == module.norm1.weight.dtype else "dtype"


def _res_block_reads(module: nn.Module) -> Iterator[nn.Module]:
    yield from (module.norm1, module.norm2, module.activation)


def _upsampler(module: nn.Module, hidden_states: Tensor) -> Tensor:
    batch = hidden_states.shape[0]
    frame_by_frame = module.dims == 2
    x = _fold_frames(hidden_states) if frame_by_frame else hidden_states
    x = module.initial_conv(x)
    x = _norm_silu(module, module.initial_norm, x)
    for block in module.res_blocks:
        x = block(x)

    if frame_by_frame:
        x = module.upsampler(x)
    elif module.temporal_upsample:
        x = module.upsampler(x)[:, :, 1:]
    else:
        x = _unfold_frames(module.upsampler(_fold_frames(x)), batch)

    for block in module.post_upsample_res_blocks:
        x = block(x)
    x = module.final_conv(x)
    return _unfold_frames(x, batch) if frame_by_frame else x


def _upsampler_takes(module: nn.Module, hidden_states: Tensor) -> str | None:
    return None if hidden_states.dtype == module.initial_norm.weight.dtype else "dtype"


def _upsampler_reads(module: nn.Module) -> Iterator[nn.Module]:
    yield from (module.initial_norm, module.initial_activation)


def _norm_silu(module: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return group_norm_silu(
        x, norm.weight, norm.bias, norm.num_groups, norm.eps, numerics=numerics(module)
    )


def _fold_frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) as (B * F, C, H, W)."""
    return x.permute(0, 2, 1, 3, 4).flatten(0, 1)


def _unfold_frames(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_fold_frames`, always a view."""
    return x.unflatten(0, (batch, -1)).permute(0, 2, 1, 3, 4)


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        cls=f"{_HOME}.ResBlock",
        forward=_res_block,
        ops=("group_norm_silu", "group_norm_add_silu"),
        sources=frozenset({"db5a9a4555f20787"}),  # 0.38.0, 0.40.0, 0.42.1
        fits=_BLOCK.fits,
        reads=_res_block_reads,
        takes=_res_block_takes,
    ),
    Recipe(
        cls=f"{_HOME}.LTX2LatentUpsamplerModel",
        forward=_upsampler,
        ops=("group_norm_silu",),
        sources=frozenset({"fbe119a244d995ef"}),  # 0.38.0, 0.40.0, 0.42.1
        fits=_HEAD.fits,
        reads=_upsampler_reads,
        takes=_upsampler_takes,
    ),
)
