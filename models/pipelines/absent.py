"""What stands in for the parts of a pipeline that are not there, or that nothing is warmed of."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "VAE",
    "AudioVAE",
    "Connectors",
    "LTX2Transformer",
    "TextEncoder",
    "Transformer",
    "Vocoder",
]


class _Config(SimpleNamespace):
    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


class Absent(nn.Module):
    """A module of the meta device with a dtype and a config, as pipelines ask for them."""

    def __init__(self, dtype: torch.dtype, **config: Any) -> None:
        super().__init__()
        self.dtype, self.device, self.config = dtype, torch.device("meta"), _Config(**config)


class TextEncoder(Absent):
    """Never asked: prompts are given as embeddings."""


class Transformer(Absent):
    """Answers at once."""

    def cache_context(self, name: str) -> Any:
        return nullcontext()

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,)


class LTX2Transformer(Transformer):
    """Answers with both streams at once."""

    def __init__(self, dtype: torch.dtype, channels: int, audio_channels: int) -> None:
        super().__init__(
            dtype,
            in_channels=channels,
            audio_in_channels=audio_channels,
            patch_size=1,
            patch_size_t=1,
        )
        coordinates = lambda batch, *args, **kwargs: torch.empty(batch, 1, device="meta")  # noqa: E731
        self.rope = SimpleNamespace(prepare_video_coords=coordinates)
        self.audio_rope = SimpleNamespace(prepare_audio_coords=coordinates)

    def forward(self, hidden_states: Tensor, audio_hidden_states: Tensor, **kwargs: Any) -> Any:
        return hidden_states, audio_hidden_states


class VAE(Absent):
    """Takes latents and gives nothing to see of them."""

    def __init__(self, dtype: torch.dtype, **config: Any) -> None:
        super().__init__(dtype, scaling_factor=1.0, shift_factor=0.0, **config)
        self.latents_mean = self.latents_std = torch.zeros(1, device="meta")
        self.spatial_compression_ratio, self.temporal_compression_ratio = 32, 8

    def decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (latents[:, :3],)


class AudioVAE(VAE):
    """LTX-2's, with the figures of the released one where `channels`, those of a token, have 16
    bins of a spectrum as they do there; else with one."""

    def __init__(self, dtype: torch.dtype, channels: int) -> None:
        bins = 16 if channels % 16 == 0 else 1
        super().__init__(
            dtype,
            mel_bins=4 * bins,
            latent_channels=channels // bins,
            sample_rate=16000,
            mel_hop_length=160,
        )
        self.mel_compression_ratio = self.temporal_compression_ratio = 4


class Connectors(Absent):
    """Prompts as a transformer takes them."""

    def __init__(self, dtype: torch.dtype, channels: int, audio_channels: int) -> None:
        super().__init__(dtype)
        self._channels = (channels, audio_channels)

    def forward(self, prompt: Tensor, mask: Tensor, **kwargs: Any) -> tuple[Tensor, ...]:
        sizes = prompt.shape[:2]
        made = [torch.empty(*sizes, n, dtype=self.dtype, device="meta") for n in self._channels]
        return (*made, torch.ones(*sizes, device="meta"))


class Vocoder(Absent):
    """Silent."""

    def forward(self, mel: Tensor) -> Tensor:
        return mel
