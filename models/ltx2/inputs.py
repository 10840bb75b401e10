"""What LTX-2's transformer may be given: each check names what does not fit and what would."""

import torch
from torch import Tensor

from .embedding import Timesteps

__all__ = [
    "checked_coords",
    "checked_latents",
    "checked_sigma",
    "checked_text",
    "score_bias",
]


def checked_latents(name: str, x: Tensor, channels: int) -> tuple[int, int]:
    """(B, S) of latents (B, S, channels). Raises ValueError."""
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(f"{name} is {tuple(x.shape)}; allowed is (B, tokens, {channels}).")
    return x.shape[0], x.shape[1]


def checked_text(name: str, x: Tensor, batch: int, channels: int) -> None:
    """Raise ValueError unless a prompt is (batch, T, channels)."""
    if x.ndim != 3 or x.shape[0] != batch or x.shape[2] != channels:
        raise ValueError(f"{name} is {tuple(x.shape)}; allowed is ({batch}, T, {channels}).")


def checked_coords(name: str, coords: Tensor, sizes: tuple[int, int], batch: int) -> Tensor:
    """Spans (B|1, axes, tokens, 2) or positions (B|1, axes, tokens). Raises ValueError."""
    shape, (axes, tokens) = tuple(coords.shape), sizes
    if shape[:1] not in ((1,), (batch,)) or shape[1:] not in (sizes, (*sizes, 2)):
        raise ValueError(
            f"{name} of {shape}, given or made of the sizes given: allowed is "
            f"({batch} or 1, {axes}, {tokens}, 2) for {tokens} tokens."
        )
    return coords


def checked_sigma(name: str, sigma: Tensor | None, batch: int, *, needed: bool) -> Timesteps | None:
    """Sigmas (B,) as timesteps of whole samples. Raises ValueError, also if one is missing."""
    if sigma is None:
        if needed:
            raise ValueError(
                f"{name} is missing: this model, or use_cross_timestep, modulates by it; give "
                f"{(batch,)}."
            )
        return None
    if tuple(sigma.shape) != (batch,):
        raise ValueError(f"{name} is {tuple(sigma.shape)}; allowed is {(batch,)}.")
    return Timesteps(sigma, (batch, 1))


def score_bias(name: str, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores, (B, 1, 1|S, T): of a mask (B, T) of ones and zeros, or as given."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return ((1 - mask.to(dtype)) * -10000.0)[:, None, None]
    if mask.ndim == 3:
        return mask.unsqueeze(1)
    raise ValueError(f"{name} is {tuple(mask.shape)}; allowed are (B, T) and (B, 1|S, T).")
