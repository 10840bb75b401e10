"""The kernels, put into a live diffusers pipeline: `patch(pipe)`, and back: `unpatch(pipe)`.

Names are resolved on first use, so that importing this imports no torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "PatchReport": "report",
    "Recipe": "recipe",
    "digest": "recipe",
    "numerics": "recipe",
    "patch": "patching",
    "unpatch": "patching",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
