"""Counters of what jitd did in this process."""

import threading
from collections import Counter


class Stats:
    """Counts by name; names of answers by the reference begin with `reference:` and their cause.

    Hits of the in-process table are not counted: a counter would cost as much as the look-up.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        """Every counter that is not zero, sorted by name."""
        with self._lock:
            return {name: n for name, n in sorted(self._counts.items()) if n}

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()

    def __repr__(self) -> str:
        return f"<Stats: {', '.join(f'{n} {k}' for k, n in self.snapshot().items()) or 'none'}>"


STATS = Stats()
