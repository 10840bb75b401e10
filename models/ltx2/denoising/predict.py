"""The model's predictions of one step, guided into one x0 for each stream."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ...ops.guidance import guidance_combine, velocity_to_x0
from .guidance import NONE, Guidance, Pass, checked_passes, passes_of, perturbation_configs

__all__ = ["Predictor", "Prompt", "Sigma", "Split", "Stream", "chunked"]

Transformer: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""Called with the names of `LTX2Transformer.forward`; gives the velocities of video and audio."""

Sigma: TypeAlias = float | Tensor
"""A number, or, in a captured loop, a tensor (1,) on the device."""

Split: TypeAlias = Literal["no", "configs", "arguments"]
"""One call for all passes, which are told apart by `perturbation_configs`; or a call for each, told
by such a config for each sample, or by arguments (HQ).
"""


@dataclass
class Stream:
    """Latents (B, S, C) of video or audio, and what is known of them before.

    mask   (B|1, S, 1): how much of a token is to be denoised. Where it is 0 the token is that of
           `clean`, and has timestep zero
    """

    latents: Tensor
    guidance: Guidance = NONE
    clean: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.latents.shape)
        if len(shape) != 3:
            raise ValueError(f"latents are {shape}; allowed is (B, S, C).")
        if (self.clean is None) != (self.mask is None):
            raise ValueError("clean latents and mask go together; give both or neither.")
        if self.clean is None or self.mask is None:
            return
        batch, tokens, _ = shape
        if tuple(self.mask.shape) not in ((batch, tokens, 1), (1, tokens, 1)):
            raise ValueError(
                f"mask is {tuple(self.mask.shape)}; allowed are {(batch, tokens, 1)} and "
                f"{(1, tokens, 1)}."
            )
        if tuple(self.clean.shape) not in (shape, (1, *shape[1:])):
            raise ValueError(f"clean latents are {tuple(self.clean.shape)}; allowed is {shape}.")
        self.mask = self.mask.to(self.latents.dtype)
        self.clean = self.clean.to(self.latents.dtype)

    def held(self, x: Tensor) -> Tensor:
        """x where it is to be denoised, the clean latents elsewhere: x*mask + clean*(1 - mask).

        In one launch, and to the bit where the mask is 0 or 1.
        """
        if self.clean is None or self.mask is None:
            return x
        return torch.lerp(self.clean.expand_as(x), x, self.mask)

    def sigmas(self, sigma: Sigma) -> Tensor | None:
        """The sigma of each token, (B|1, S) in fp32, where they differ."""
        return None if self.mask is None else self.mask.squeeze(-1).float() * sigma


@dataclass(frozen=True)
class Prompt:
    """What the transformer is given of a text: (B, T, D) each, and masks (B, T)."""

    video: Tensor
    audio: Tensor
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None


@dataclass
class Predictor:
    """Asks a transformer for what a step needs, and guides the answers.

    prompt, negative  the latter only where a stream is guided by cfg
    split             see `Split`
    dtype             of what the transformer is given; the latents' own if None
    scale             of its timesteps: sigma * scale (HQ of SGLang is given sigmas as they are)
    more              further arguments, the same at every call: sizes, use_cross_timestep, ...

    `predictor(video, audio, x_video, x_audio, sigma, step)` gives both x0. It waits for nothing.
    Raises ValueError where a prompt is missing or does not fit.
    """

    transformer: Transformer
    prompt: Prompt
    video: Guidance = NONE
    audio: Guidance = NONE
    negative: Prompt | None = None
    split: Split = "no"
    dtype: torch.dtype | None = None
    scale: float = 1000.0
    more: Mapping[str, Any] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        self.passes = checked_passes(self.passes or passes_of(self.video, self.audio))
        if self.negative is None and any(one.negative for one in self.passes):
            raise ValueError("cfg guides away from a negative prompt: give one, or cfg=1.")
        # All passes at once, or each by itself: what a call is given of the prompts, made once.
        together = [self.passes] if self.split == "no" else [(one,) for one in self.passes]
        self._calls = [(passes, self._texts(passes)) for passes in together]
        self._last: tuple[Tensor, Tensor] | None = None
        self._timesteps: dict[float, Tensor] = {}
        self._made: dict[tuple[object, ...], dict[float, Tensor]] = {}

    def begin(self, sigmas: Sequence[float], device: torch.device) -> None:
        """A run begins, with predictions at these sigmas: the last one is forgotten, and timesteps
        are put on the device at once, which would else be a launch of each prediction.

        Waits for nothing. Those of a schedule are kept, as a graph may have captured a step that
        reads them; while a graph is captured each prediction makes its own.
        """
        self._last, self._timesteps = None, {}
        on_cuda = device.type == "cuda"
        if not sigmas or (on_cuda and torch.cuda.is_current_stream_capturing()):
            return
        key = (device, *sigmas)
        if key not in self._made:
            values = torch.tensor([sigma * self.scale for sigma in sigmas], pin_memory=on_cuda)
            # Pinned, so that nobody waits: torch keeps the memory until it has been read.
            pieces = values.to(device, non_blocking=True).split(1)
            self._made[key] = dict(zip(sigmas, pieces, strict=True))
        self._timesteps = self._made[key]

    def __call__(
        self, video: Stream, audio: Stream, x_video: Tensor, x_audio: Tensor, sigma: Sigma,
        step: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The guided x0 of both streams at `sigma`, in their dtypes, clean where they are held."""
        skipped = self.video.skips(step), self.audio.skips(step)
        last = self._last
        if last is not None and all(skipped):
            return last
        told, sigmas = self._noise_of(video, audio, x_video, sigma)
        answers: dict[str, tuple[Tensor, Tensor]] = {}
        for passes, texts in self._calls:
            answers |= self._ask(passes, texts, told, x_video, x_audio)
        x0 = []
        for place, (stream, x, guidance) in enumerate(
            ((video, x_video, self.video), (audio, x_audio, self.audio))
        ):
            if last is not None and skipped[place]:
                x0.append(last[place])
                continue
            velocities = {name: answer[place] for name, answer in answers.items()}
            x0.append(stream.held(_guided(x, velocities, guidance, sigma, sigmas[place])))
        self._last = x0[0], x0[1]
        return self._last

    # -- what a call is given -----------------------------------------------------------------

    def _texts(self, passes: Sequence[Pass]) -> dict[str, Tensor]:
        prompts = [self.negative if one.negative else self.prompt for one in passes]
        named = {
            "encoder_hidden_states": [p.video for p in prompts if p],
            "audio_encoder_hidden_states": [p.audio for p in prompts if p],
            "encoder_attention_mask": [p.video_mask for p in prompts if p],
            "audio_encoder_attention_mask": [p.audio_mask for p in prompts if p],
        }
        texts = {}
        for name, tensors in named.items():
            given = [t for t in tensors if t is not None]
            if len(given) not in (0, len(tensors)):
                raise ValueError(f"{name}: one prompt has it, one has not; give all or none.")
            if len({t.shape for t in given}) > 1:
                shapes = ", ".join(str(tuple(t.shape)) for t in given)
                raise ValueError(f"{name}: {shapes}; make the prompts' shapes equal.")
            if given:
                texts[name] = given[0] if len(given) == 1 else torch.cat(given)
        return texts

    def _noise_of(
        self, video: Stream, audio: Stream, like: Tensor, sigma: Sigma
    ) -> tuple[dict[str, Tensor], tuple[Tensor | None, Tensor | None]]:
        """(the timesteps of one pass, both streams' sigmas by token if they have them)."""
        batch, device = like.shape[0], like.device
        if isinstance(sigma, Tensor):
            whole = (sigma.float() * self.scale).expand(batch)
        elif sigma in self._timesteps:
            whole = self._timesteps[sigma].expand(batch)
        else:
            whole = torch.full((batch,), sigma * self.scale, device=device)
        sigmas = video.sigmas(sigma), audio.sigmas(sigma)
        steps = [whole if s is None else (s * self.scale).expand(batch, s.shape[1]) for s in sigmas]
        told = {"timestep": steps[0], "audio_timestep": steps[1], "sigma": whole}
        return {**told, "audio_sigma": whole}, sigmas

    def _ask(
        self, passes: Sequence[Pass], texts: Mapping[str, Tensor], told: Mapping[str, Tensor],
        x_video: Tensor, x_audio: Tensor,
    ) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
        """The velocities of these passes, by their names."""
        count, batch = len(passes), x_video.shape[0]
        latents = {"hidden_states": x_video, "audio_hidden_states": x_audio}
        given = {name: x.to(self.dtype or x.dtype) for name, x in latents.items()}
        given |= told
        if count > 1:
            given = {n: t.repeat(count, *[1] * (t.ndim - 1)) for n, t in given.items()}
        asked = texts["encoder_hidden_states"].shape[0]
        if asked != count * batch:
            raise ValueError(
                f"prompts are {asked} samples for {count} passes of {batch} latents; allowed is a "
                "prompt for each."
            )
        perturbed: dict[str, Any] = {}
        if self.split == "arguments":
            perturbed = passes[0].arguments
        elif not all(one.plain for one in passes):
            perturbed["perturbation_configs"] = perturbation_configs(passes, batch)
        answer = self.transformer(**given, **texts, **self.more, **perturbed)
        pieces = [chunked(velocity, passes) for velocity in answer[:2]]
        return {one.name: (pieces[0][one.name], pieces[1][one.name]) for one in passes}


def chunked(x: Tensor, passes: Sequence[Pass]) -> dict[str, Tensor]:
    """A batch of all passes as one for each, views by name. ValueError if it does not divide."""
    batch, rest = divmod(x.shape[0], len(passes))
    if rest or not batch:
        raise ValueError(
            f"a batch of {x.shape[0]} does not divide into {len(passes)} passes "
            f"({', '.join(one.name for one in passes)})."
        )
    return {one.name: x[n * batch : (n + 1) * batch] for n, one in enumerate(passes)}


def _guided(
    x: Tensor, velocities: Mapping[str, Tensor], by: Guidance, sigma: Sigma, tokens: Tensor | None
) -> Tensor:
    """One stream's x0: what the passes say of it, as far as it is guided by them."""
    how: dict[str, Any] = {"sigmas": tokens}
    if tokens is None:
        how = {"sigmas": sigma} if isinstance(sigma, Tensor) else {"sigma": sigma}
    branches = {
        "neg": velocities.get("neg") if by.cfg != 1 else None,
        "perturbed": velocities.get("perturbed") if by.stg != 0 else None,
        "modality": velocities.get("modality") if by.modality != 1 else None,
    }
    cond = velocities["cond"]
    if all(branch is None for branch in branches.values()):
        return velocity_to_x0(x, cond, **how)
    return guidance_combine(
        cond, **branches, x=x, cfg=by.cfg, stg=by.stg, mod=by.modality, rescale=by.rescale, **how
    )
