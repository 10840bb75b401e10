"""The steps of a run: Euler's, and those of res_2s.

A step is a prediction or two, and for each stream one launch behind each. Its numbers come from
the host, or, where a step is captured once and replayed for others, from tensors: `HostSteps` and
`DeviceSteps` give the same arguments to the same ops.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from ...ops.steps import COEFFICIENTS, euler_step, res2s_midpoint, res2s_step
from .coefficients import midpoint_sigma, res2s_coefficients
from .noise import Noise, StepNoise
from .predict import Predictor, Sigma, Stream
from .schedule import checked_sigmas

__all__ = ["DeviceSteps", "HostSteps", "Sampler", "denoise", "euler_at", "res2s_at"]

Sampler: TypeAlias = Literal["euler", "res2s"]
Pair: TypeAlias = tuple[Tensor, Tensor]
_MID = 3  # coefficients of the midpoint, which come first
_APART = 4  # numbers of 4 bytes from one to the next: each begins at a multiple of 16 bytes


class Steps(Protocol):
    """The numbers of a schedule, as arguments of the ops."""

    sigmas: tuple[float, ...]

    def asked(self, sampler: Sampler) -> Sequence[float]: ...

    def sigma(self, step: int) -> Sigma: ...

    def middle(self, step: int) -> Sigma: ...

    def euler(self, step: int) -> Mapping[str, Any]: ...

    def midpoint(self, step: int) -> Mapping[str, Any]: ...

    def whole(self, step: int) -> Mapping[str, Any]: ...

    def noise(self, noise: Noise, step: int) -> StepNoise: ...


@dataclass
class HostSteps:
    """Numbers from the host: a graph keeps those it was captured with."""

    sigmas: tuple[float, ...]
    single: bool = False  # see `res2s_coefficients`

    def __post_init__(self) -> None:
        self.sigmas = checked_sigmas(self.sigmas)

    def asked(self, sampler: Sampler) -> Sequence[float]:
        """The sigmas at which a run asks for predictions."""
        middles = [midpoint_sigma(*pair) for pair in pairwise(self.sigmas)]
        return [*self.sigmas[:-1], *(middles if sampler == "res2s" else ())]

    def sigma(self, step: int) -> Sigma:
        return self.sigmas[step]

    def middle(self, step: int) -> Sigma:
        return midpoint_sigma(self.sigmas[step], self.sigmas[step + 1])

    def euler(self, step: int) -> Mapping[str, Any]:
        return {"sigma": self.sigmas[step], "sigma_next": self.sigmas[step + 1]}

    def midpoint(self, step: int) -> Mapping[str, Any]:
        values = self._row(step)[:_MID]
        return dict(zip(("alpha", "move", "up"), values, strict=True))

    def whole(self, step: int) -> Mapping[str, Any]:
        return self._row(step)._asdict()

    def noise(self, noise: Noise, step: int) -> StepNoise:
        return noise.at(step)

    def _row(self, step: int) -> Any:
        return res2s_coefficients(self.sigmas[step], self.sigmas[step + 1], single=self.single)


class DeviceSteps:
    """The same numbers in tensors on the device, for graphs.

    Without a `counter` each step of a captured loop reads its own rows, and `update` gives the
    next replays another schedule. With one, a tensor of one int32, a captured step reads the rows
    that it names and the noise of that step, and whoever replays it counts. What is decided on the
    host is what was captured: a step that ends at x0, or reuses a prediction, is another graph.
    """

    def __init__(
        self,
        sigmas: Sequence[float],
        device: torch.device | str,
        *,
        single: bool = False,
        counter: Tensor | None = None,
    ) -> None:
        self.sigmas, self._single = checked_sigmas(sigmas), single
        steps = len(self.sigmas) - 1
        self._schedule = torch.empty(steps + 1, dtype=torch.float64, device=device)
        self._table = torch.empty(steps, COEFFICIENTS, dtype=torch.float64, device=device)
        self._at, self._between = (
            torch.empty(steps, _APART, dtype=torch.float32, device=device) for _ in range(2)
        )
        self._counter = counter
        self._counters = torch.arange(steps, dtype=torch.int32, device=device)
        self._counters = self._counters.repeat_interleave(_APART).view(steps, _APART)
        self.update(self.sigmas)

    def update(self, sigmas: Sequence[float]) -> None:
        """Write another schedule of as many steps. Waits for the device: between replays only.

        Raises ValueError for another number of steps, and unless the same ones end at 0.
        """
        values = checked_sigmas(sigmas)
        if len(values) != len(self.sigmas) or (values[-1] == 0) != (self.sigmas[-1] == 0):
            raise ValueError(
                f"{len(values)} sigmas that end at {values[-1]:g}; allowed are "
                f"{len(self.sigmas)} that end at 0 only if {self.sigmas[-1]:g} is 0."
            )
        self.sigmas = values
        pairs = list(pairwise(values))
        rows = [res2s_coefficients(*pair, single=self._single) for pair in pairs]
        self._schedule.copy_(torch.tensor(values, dtype=torch.float64))
        self._table.copy_(
            torch.tensor([row or (0.0,) * COEFFICIENTS for row in rows], dtype=torch.float64)
        )
        self._at.copy_(torch.tensor(values[:-1])[:, None].expand(-1, _APART))
        middles = [midpoint_sigma(*pair) for pair in pairs]
        self._between.copy_(torch.tensor(middles)[:, None].expand(-1, _APART))

    def asked(self, sampler: Sampler) -> Sequence[float]:
        """None that the host knows of."""
        return ()

    def sigma(self, step: int) -> Sigma:
        return self._of(self._at, step)

    def middle(self, step: int) -> Sigma:
        return self._of(self._between, step)

    def euler(self, step: int) -> Mapping[str, Any]:
        return {"table": self._schedule, "step": self._step(step)}

    def midpoint(self, step: int) -> Mapping[str, Any]:
        return {"table": self._table, "step": self._step(step)}

    whole = midpoint

    def noise(self, noise: Noise, step: int) -> StepNoise:
        return noise.at(step) if self._counter is None else StepNoise(*noise)

    def _step(self, step: int) -> Tensor:
        return self._counters[step, :1] if self._counter is None else self._counter

    def _of(self, rows: Tensor, step: int) -> Tensor:
        if self._counter is None:
            return rows[step, :1]
        return rows.index_select(0, self._counter)[0, :1]


def denoise(
    predictor: Predictor,
    video: Stream,
    audio: Stream,
    steps: Steps,
    *,
    sampler: Sampler = "euler",
    noise: Noise | None = None,
    after: Callable[[int], object] = lambda step: None,
) -> Pair:
    """The latents of both streams after all steps; the streams are left as they are.

    `noise`: that of res_2s, for every step but one that ends at 0. `after(step)` is called behind
    each. Raises ValueError if noise is missing.
    """
    count = len(steps.sigmas) - 1
    drawn = sum(sigma > 0 for sigma in steps.sigmas[1:])
    if sampler == "res2s" and drawn and (noise is None or noise.video.shape[0] < drawn):
        given = 0 if noise is None else noise.video.shape[0]
        raise ValueError(f"noise of {given} steps; res2s takes that of {drawn}: see `draw_noise`.")
    predictor.begin(steps.asked(sampler), video.latents.device)
    x = video.held(video.latents), audio.held(audio.latents)
    for step in range(count):
        if sampler == "euler":
            x = euler_at(predictor, video, audio, x, steps, step)
        else:
            x = res2s_at(predictor, video, audio, x, steps, step, noise)
        after(step)
    return x


def euler_at(
    predictor: Predictor, video: Stream, audio: Stream, x: Pair, steps: Steps, step: int
) -> Pair:
    """The latents after one step of Euler's."""
    x0 = predictor(video, audio, *x, steps.sigma(step), step)
    how = steps.euler(step)
    moved = [euler_step(old, new, **how) for old, new in zip(x, x0, strict=True)]
    return video.held(moved[0]), audio.held(moved[1])


def res2s_at(
    predictor: Predictor,
    video: Stream,
    audio: Stream,
    x: Pair,
    steps: Steps,
    step: int,
    noise: Noise | None,
) -> Pair:
    """The latents after one step of res_2s; after one to sigma 0, what is predicted."""
    x0 = predictor(video, audio, *x, steps.sigma(step), step)
    if steps.sigmas[step + 1] == 0 or noise is None:
        return x0
    drawn = steps.noise(noise, step)
    how = steps.midpoint(step)
    mid = (
        video.held(res2s_midpoint(x[0], x0[0], drawn.video_mid, **how)),
        audio.held(res2s_midpoint(x[1], x0[1], drawn.audio_mid, **how)),
    )
    between = predictor(video, audio, *mid, steps.middle(step), step)
    how = steps.whole(step)
    return (
        video.held(res2s_step(x[0], x0[0], between[0], drawn.video_mid, drawn.video, **how)),
        audio.held(res2s_step(x[1], x0[1], between[1], drawn.audio_mid, drawn.audio, **how)),
    )
