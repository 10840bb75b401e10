"""What is drawn for a run: the first latents, and the noise of every SDE step, in order.

All of it is drawn before the loop, so that a step draws nothing and can be captured. The order of
draws from each generator is what makes a seed mean the same video elsewhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

__all__ = ["Noise", "StepNoise", "draw_noise", "hq_generators", "renoised", "standardised"]

Generators = Generator | Sequence[Generator]
"""One for a batch, or one for each sample of it."""

STEP_SEED, SUBSTEP_SEED = -1, 9999  # of HQ, whatever the seed of the run


class StepNoise(NamedTuple):
    """Of one step: two for each stream, of the SDE at the midpoint and at the end."""

    video_mid: Tensor
    audio_mid: Tensor
    video: Tensor
    audio: Tensor


class Noise(NamedTuple):
    """The same of all steps, one dimension more in front."""

    video_mid: Tensor
    audio_mid: Tensor
    video: Tensor
    audio: Tensor

    def at(self, step: int) -> StepNoise:
        return StepNoise(*(stack[step] for stack in self))


def hq_generators(device: torch.device | str) -> tuple[Generator, Generator]:
    """HQ's own, of the noise at the ends of steps and of that at their midpoints."""
    step, substep = Generator(device), Generator(device)
    return step.manual_seed(STEP_SEED), substep.manual_seed(SUBSTEP_SEED)


def draw_noise(
    steps: int,
    video: Sequence[int],
    audio: Sequence[int],
    *,
    step: Generators,
    substep: Generators | None = None,
    standard: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Noise:
    """Noise of `steps` steps of res_2s for streams of these shapes (B, S, C), rounded to `dtype`.

    Drawn step by step: video and audio at the midpoint, from `substep` (by default `step`), then
    video and audio at the end. `standard` draws in fp64 and standardises, as HQ does. Takes 2 *
    steps * (video + audio) elements: 250 MB for HQ's 14 first steps in fp32, once.
    """
    substep = step if substep is None else substep
    drawn: list[list[Tensor]] = []
    for _ in range(steps):
        drawn.append(
            [
                _draw(shape, generators, standard, device).to(dtype)
                for generators, shape in (
                    (substep, video), (substep, audio), (step, video), (step, audio),
                )
            ]
        )  # fmt: skip
    if not drawn:
        where = {"dtype": dtype, "device": device}
        return Noise(*(torch.empty(0, *shape, **where) for shape in (video, audio) * 2))
    return Noise(*(torch.stack(column) for column in zip(*drawn, strict=True)))


def standardised(noise: Tensor) -> Tensor:
    """The noise with mean 0 and deviation 1 over all of it, then over the last two dimensions."""
    noise = (noise - noise.mean()) / noise.std()
    mean, std = (f(dim=(-2, -1), keepdim=True) for f in (noise.mean, noise.std))
    return (noise - mean) / std


def renoised(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Latents taken back to `sigma`, in fp32: what stage 2 begins with."""
    return (noise.float() * sigma + latents.float() * (1 - sigma)).to(latents.dtype)


def first_noise(
    generators: Generators, shape: Sequence[int], device: torch.device | str | None = None
) -> Tensor:
    """Latents of pure noise, fp32."""
    return _normal(shape, generators, torch.float32, device)


def _draw(
    shape: Sequence[int], generators: Generators, standard: bool, device: torch.device | str | None
) -> Tensor:
    if not standard:
        return _normal(shape, generators, torch.float32, device)
    return standardised(_normal(shape, generators, torch.float64, device))


def _normal(
    shape: Sequence[int],
    generators: Generators,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    """Drawn where the generator is, so that a CPU generator gives the same on every card."""
    if isinstance(generators, Generator):
        drawn = torch.randn(*shape, generator=generators, dtype=dtype, device=generators.device)
        return drawn if device is None else drawn.to(device)
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for a batch of {shape[0]}; give as many.")
    return torch.cat([_normal((1, *shape[1:]), one, dtype, device) for one in generators])
