"""Whether a device kept its pace while it was measured on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SPARED = 50
"""One sample of so many, and always two, may be as slow as it likes."""

SLOWEST = 3.0
"""Times the median: slower samples count as no slower, so that a few cannot make a drift."""


class Canary:
    """The times of something that never changes, taken along with each measurement.

    What varies in them is the device's doing: clocks, heat, another process. `drift` says by how
    much, as a share; it is the larger of two.

    - Between measurements: the largest of their medians over the smallest, less 1, without the
      tenth of them at either end.
    - Over all samples: their mean over their median, less 1. Turns taken with another process look
      like this: most samples are as ever, and some wait.

    A few slow samples move neither. The first measurement counts only as long as it is the only
    one: the clocks may still be rising.
    """

    def __init__(self) -> None:
        self._measurements: list[list[float]] = []

    def __repr__(self) -> str:
        return f"Canary({len(self._measurements)} measurements, drift {self.drift:.1%})"

    def note(self, samples_us: Sequence[float]) -> None:
        """Add one measurement. Without a sample above zero it says nothing, and is not counted."""
        samples = [us for us in samples_us if us > 0]
        if samples:
            self._measurements.append(samples)

    @property
    def drift(self) -> float:
        """As the class says; 0.0 before the first measurement."""
        measurements = self._measurements[1:] or self._measurements
        if not measurements:
            return 0.0
        medians = sorted(statistics.median(samples) for samples in measurements)
        spared = len(medians) // 10
        between = medians[-1 - spared] / medians[spared] - 1
        samples = sorted(us for measurement in measurements for us in measurement)
        median = statistics.median(samples)
        usual = samples[: len(samples) - max(2, len(samples) // SPARED)] or [median]
        over_all = statistics.fmean(min(us, SLOWEST * median) for us in usual) / median - 1
        return max(between, over_all)
