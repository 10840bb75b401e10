"""What repeated tunes of one signature chose: how good, and how much the same."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .goals import (
    TUNE_REGRET,
    TUNE_REGRET_PAIRS,
    TUNE_SAME,
    TUNE_SAME_PAIRS,
    TUNE_WORST,
    Reached,
)


@dataclass(frozen=True)
class Picks:
    """us         time of every config that was picked, and of the fastest, measured together
    empty      what each tune from an empty store picked, the first one first
    stored     what was stored for the tunes `with_stored`
    """

    us: Mapping[str, float]
    empty: Sequence[str]
    stored: str
    with_stored: Sequence[str]

    @property
    def best_us(self) -> float:
        return min(self.us.values())

    def regret(self, name: str) -> float:
        """How much slower than the fastest, as a share."""
        return self.us[name] / self.best_us - 1

    @property
    def first_regret(self) -> float:
        return self.regret(self.empty[0])

    @property
    def worst_regret(self) -> float:
        return max(map(self.regret, {*self.empty, *self.with_stored}))

    @property
    def same(self) -> int:
        """How many tunes from an empty store made the commonest choice."""
        return Counter(self.empty).most_common(1)[0][1]

    @property
    def kept(self) -> int:
        """How many tunes kept the stored winner."""
        return sum(name == self.stored for name in self.with_stored)

    @property
    def steady(self) -> bool:
        return self.same >= TUNE_SAME * len(self.empty)

    def json(self) -> dict[str, Any]:
        return {
            "us": dict(self.us),
            "empty": list(self.empty),
            "stored": self.stored,
            "with_stored": list(self.with_stored),
            "best_us": self.best_us,
            "first_regret": self.first_regret,
            "worst_regret": self.worst_regret,
            "same": self.same,
            "kept": self.kept,
        }


def goals(pairs: Sequence[Picks]) -> list[Reached]:
    """What all pairs together have to show."""
    if not pairs:
        return []
    close = sum(pair.first_regret <= TUNE_REGRET for pair in pairs)
    good = sum(pair.worst_regret <= TUNE_WORST for pair in pairs)
    steady = sum(pair.steady for pair in pairs)
    kept = sum(pair.kept == len(pair.with_stored) for pair in pairs)
    all_of_them, worst = len(pairs), max(pair.worst_regret for pair in pairs)
    return [
        Reached(
            f"the first winner within {TUNE_REGRET:.0%} of the best",
            f"{TUNE_REGRET_PAIRS:.0%} of the pairs",
            _share(close, all_of_them),
            close >= TUNE_REGRET_PAIRS * all_of_them,
        ),
        Reached(
            f"every winner of a repeated tune within {TUNE_WORST:.0%} of the best",
            "all pairs",
            f"{_share(good, all_of_them)}, the worst {worst:.1%}",
            good == all_of_them,
        ),
        Reached(
            f"from an empty store {TUNE_SAME:.0%} of the tunes pick the same",
            f"{TUNE_SAME_PAIRS:.0%} of the pairs",
            _share(steady, all_of_them),
            steady >= TUNE_SAME_PAIRS * all_of_them,
        ),
        Reached(
            "with a stored winner all tunes pick it",
            "all pairs",
            _share(kept, all_of_them),
            kept == all_of_them,
        ),
    ]


def _share(some: int, everybody: int) -> str:
    return f"{some} of {everybody}"
