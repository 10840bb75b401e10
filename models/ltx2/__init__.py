"""LTX-2: the latent upsampler that doubles the latents between its two stages.

Names are resolved on first use, so that listing presets imports no torch:

- presets: `Size`, `PRESETS`, `UPSAMPLERS`, `latent_shape`, `DEFAULT_FRAMES`
- upsampler: `LatentUpsampler`, `ResBlock`
- workload: `run_upsampler`
"""

from importlib import import_module
from typing import Any

_HOME = {
    "DEFAULT_FRAMES": "presets",
    "PRESETS": "presets",
    "UPSAMPLERS": "presets",
    "LatentUpsampler": "upsampler",
    "ResBlock": "upsampler",
    "Size": "presets",
    "latent_shape": "presets",
    "run_upsampler": "workload",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
