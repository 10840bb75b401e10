"""LTX-2: the transformer of its two stages, and the latent upsampler between them.

Names are resolved on first use, so that listing presets imports no torch:

- presets: `Size`, `PRESETS`, `Variant`, `VARIANTS`, `TRANSFORMERS`, `UPSAMPLERS`, `latent_shape`,
  `video_tokens`, `audio_tokens`, `DEFAULT_FRAMES`
- transformer: `LTX2Transformer`; its config: `TransformerConfig`
- embedding: `timestep_rows`
- denoising: a package of its own, `jitd.models.ltx2.denoising`
- upsampler: `LatentUpsampler`, `ResBlock`
- workload: `run_stage`, `run_step`, `run_upsampler`, `record_stage`, `record_run`
"""

from importlib import import_module
from typing import Any

_HOME = {
    "DEFAULT_FRAMES": "presets",
    "LTX2Transformer": "transformer",
    "LatentUpsampler": "upsampler",
    "PRESETS": "presets",
    "ResBlock": "upsampler",
    "Size": "presets",
    "TRANSFORMERS": "presets",
    "TransformerConfig": "config",
    "UPSAMPLERS": "presets",
    "VARIANTS": "presets",
    "Variant": "presets",
    "audio_tokens": "presets",
    "latent_shape": "presets",
    "record_run": "workload",
    "record_stage": "workload",
    "run_stage": "workload",
    "run_step": "workload",
    "run_upsampler": "workload",
    "timestep_rows": "embedding",
    "video_tokens": "presets",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
