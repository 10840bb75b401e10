"""What speaks against a winner: `noisy`, it was measured on a restless card; `stale`, under another
driver than the one that is here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ...jit.device import devices


def drivers(metas: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The driver that is here, by the name of its card; empty where no winner names one to compare.

    Asking costs what starting CUDA does.
    """
    if not any(meta.get("driver") for meta in metas):
        return {}
    return {card.name: card.driver for card in devices()}


def marks(meta: Mapping[str, Any], here: Mapping[str, str]) -> list[str]:
    """The words for a winner, from its header's meta or its body. `here` is from `drivers`."""
    words = ["noisy"] if meta.get("noisy") else []
    then, now = meta.get("driver"), here.get(meta.get("device", ""))
    return [*words, "stale"] if then and now and then != now else words
