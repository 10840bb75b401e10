"""Helios: the transformer that denoises a video chunk by chunk.

Names are resolved on first use, so that listing presets imports no torch:

- presets: `Size`, `PRESETS`, `Variant`, `VARIANTS`, `HISTORY`, `chunk_shape`, `tokens`
- transformer: `HeliosTransformer`; its config: `TransformerConfig`
- workload: `run_chunk`, `record_run`
"""

from importlib import import_module
from typing import Any

_HOME = {
    "HISTORY": "presets",
    "HeliosTransformer": "transformer",
    "PRESETS": "presets",
    "Size": "presets",
    "TransformerConfig": "config",
    "VARIANTS": "presets",
    "Variant": "presets",
    "chunk_shape": "presets",
    "record_run": "workload",
    "run_chunk": "workload",
    "tokens": "presets",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
