"""Z-Image: the transformer that denoises images.

Names are resolved on first use, so that listing presets imports no torch:

- presets: `Size`, `PRESETS`, `Variant`, `VARIANTS`, `CAPTIONS`, `image_tokens`, `tokens`
- transformer: `ZImageTransformer`; its config: `TransformerConfig`
- workload: `run_image`, `record_run`
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CAPTIONS": "presets",
    "PRESETS": "presets",
    "Size": "presets",
    "TransformerConfig": "config",
    "VARIANTS": "presets",
    "Variant": "presets",
    "ZImageTransformer": "transformer",
    "image_tokens": "presets",
    "record_run": "workload",
    "run_image": "workload",
    "tokens": "presets",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
