"""How the blocks of LTX-2's transformer are perturbed, for guidance: sample by sample.

Perturbed self-attention gives values in the place of what they attend to; perturbed attention
between the streams gives nothing. A batch may hold samples that are perturbed and such that are
not: then both are computed, and chosen from by a mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["NOTHING", "Keep", "Perturbed", "perturbed_blocks"]

_KEYS = (
    "skip_video_self_attn_blocks",
    "skip_audio_self_attn_blocks",
    "skip_a2v_cross_attn",
    "skip_v2a_cross_attn",
)


class Keep(NamedTuple):
    """What is kept of one attention: by sample, (B, 1, 1) of 1 and 0; or, `skip`, nothing."""

    mask: Tensor | None = None
    skip: bool = False


class Perturbed(NamedTuple):
    """What is kept of a block's attentions; the last two are those between the streams."""

    video: Keep = Keep()
    audio: Keep = Keep()
    a2v: Keep = Keep()
    v2a: Keep = Keep()

    @property
    def isolated(self) -> bool:
        """Whether the streams do not hear each other in any sample."""
        return self.a2v.skip and self.v2a.skip


NOTHING = Perturbed()


def perturbed_blocks(
    layers: int,
    batch: int,
    like: Tensor,
    *,
    configs: Sequence[Mapping[str, Any]] | None = None,
    blocks: tuple[Sequence[int], Sequence[int]] = ((), ()),
    mask: Tensor | None = None,
    isolated: tuple[bool, bool] = (False, False),
) -> list[Perturbed]:
    """What each block is told. `like`: masks are of its dtype and device.

    configs   one dict for each sample with the keys that SGLang's pipelines use; a key that is
              missing perturbs nothing
    blocks    instead, the blocks of the video and the audio stream perturbed in every sample, or,
              with a `mask` (B,) or (B, 1, 1), in those where it is 0. A mask on the CPU is looked
              at; one on the GPU is not, since that would wait for it
    isolated  without a2v, without v2a, in every sample

    Nothing waits for the device. Raises ValueError for blocks that there are not, another number of
    configs than samples, unknown keys, and for configs beside any of the others.
    """
    masks = _Masks(like)
    if configs is None:
        keep = _kept(mask, batch, like) if any(map(len, blocks)) else Keep()
        video, audio = (_checked_blocks(numbers, layers) for numbers in blocks)
        a2v, v2a = (Keep(skip=skip) for skip in isolated)
        return [
            Perturbed(
                keep if number in video else Keep(), keep if number in audio else Keep(), a2v, v2a
            )
            for number in range(layers)
        ]
    if any(map(len, blocks)) or any(isolated) or mask is not None:
        raise ValueError("perturbation_configs beside other perturbations; give one or the other.")
    if len(configs) != batch:
        raise ValueError(
            f"{len(configs)} perturbation_configs for a batch of {batch}; give one for each sample."
        )
    if unknown := sorted({key for config in configs for key in config} - set(_KEYS)):
        raise ValueError(f"perturbation_configs have {unknown}; allowed are {', '.join(_KEYS)}.")
    video, audio = (
        [_checked_blocks(config.get(key) or (), layers) for config in configs] for key in _KEYS[:2]
    )
    a2v, v2a = (masks.keep([not config.get(key, False) for config in configs]) for key in _KEYS[2:])
    return [
        Perturbed(
            masks.keep([number not in skipped for skipped in video]),
            masks.keep([number not in skipped for skipped in audio]),
            a2v,
            v2a,
        )
        for number in range(layers)
    ]


class _Masks:
    """Masks of one forward, each made once. Not kept longer: a graph's memory is not ours."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._made: dict[tuple[bool, ...], Tensor] = {}

    def keep(self, kept: Sequence[bool]) -> Keep:
        if all(kept):
            return Keep()
        if not any(kept):
            return Keep(skip=True)
        key = tuple(kept)
        if key not in self._made:
            # Filled on the device: to copy it from the host would wait.
            mask = torch.ones(len(key), 1, 1, dtype=self._like.dtype, device=self._like.device)
            for sample, here in enumerate(key):
                if not here:
                    mask[sample].zero_()
            self._made[key] = mask
        return Keep(self._made[key])


def _checked_blocks(blocks: Sequence[int], layers: int) -> frozenset[int]:
    """Numbers of blocks, from 0. Raises ValueError for one that the model does not have."""
    wanted = frozenset(blocks)
    unknown = sorted(number for number in wanted if not 0 <= number < layers)
    if unknown:
        raise ValueError(
            f"spatio_temporal_guidance_blocks names {unknown}; allowed are 0 to {layers - 1}."
        )
    return wanted


def _kept(mask: Tensor | None, batch: int, x: Tensor) -> Keep:
    """By that mask; nothing, if it keeps nothing as far as the host can see."""
    if mask is None:
        return Keep(skip=True)
    if tuple(mask.shape) not in ((batch,), (batch, 1, 1)):
        raise ValueError(
            f"perturbation_mask is {tuple(mask.shape)}; allowed are {(batch,)} and {(batch, 1, 1)}."
        )
    here = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if here and not mask.any():
        return Keep(skip=True)
    return Keep(mask.to(x.device, x.dtype).view(batch, 1, 1))
