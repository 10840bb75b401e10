"""The canary: what it calls drift, and what it shrugs off."""

import random

import pytest
from jitd.autotune.canary import Canary
from jitd.autotune.policy import Policy


def drift(*measurements):
    canary = Canary()
    for samples in measurements:
        canary.note(samples)
    return canary.drift


STEADY = [10.0] * 9


def test_steady_is_no_drift():
    """Equal times, few or many, and none at all."""
    assert drift() == 0.0
    assert drift(STEADY) == drift(STEADY, STEADY, [10.0]) == 0.0


def test_a_slower_measurement_is_drift():
    """The share between the fastest and the slowest median, wherever they stand."""
    assert drift(STEADY, STEADY, [11.0] * 5, [10.5] * 5) == pytest.approx(0.10)
    assert drift(STEADY, [11.0] * 5, STEADY) == pytest.approx(0.10)


def test_rising_clocks_are_no_drift():
    """The first measurement does not count, as soon as there is a second."""
    assert drift([15.0] * 9, STEADY, STEADY) == 0.0
    assert drift([10.0, 20.0] * 4, STEADY) == 0.0


def test_a_slow_creep_adds_up():
    """One per cent at a time is more than ten in the end."""
    creeping = [[10.0 * (1 + 0.01 * i)] * 5 for i in range(20)]
    assert drift(STEADY, *creeping) > 0.10


def test_a_few_odd_measurements_are_no_drift():
    """Two of twenty, as when something else ran for a moment."""
    assert drift(STEADY, *[STEADY] * 18, [11.0] * 9, [9.0] * 9) < 0.02


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 40])
def test_one_slow_sample_is_no_drift(count):
    """An interrupt, a refresh: even among few samples."""
    if count > 2:  # of two samples one is half
        assert drift(STEADY, [*[10.0] * (count - 1), 500.0]) == 0.0
    assert drift(STEADY, [10.0] * count) == 0.0


@pytest.mark.parametrize(("slow", "seen"), [(2, 0.0), (12, 0.1), (22, 0.2)])
def test_many_slow_samples_are_drift(slow, seen):
    """What waits counts by its share, though no median moves; two may always be slow."""
    rest = [[10.0] * (100 - slow) + [20.0] * slow]
    assert drift(STEADY, *rest) == pytest.approx(seen, abs=0.01)


def test_an_endless_sample_counts_as_a_slow_one():
    """Three of a hundred that took for ever are no drift."""
    assert drift(STEADY, [10.0] * 97 + [1e6] * 3) < 0.03


def test_turns_with_another_process_show():
    """A third of all samples wait for it, at random: every seed is noisy by the usual policy."""
    for seed in range(50):
        rng = random.Random(seed)
        shared = [[10 * rng.choice([1, 1, 1.8]) for _ in range(40)] for _ in range(3)]
        assert drift(STEADY, *shared) > Policy().drift


def test_the_usual_noise_does_not():
    """One per cent of noise and the odd outlier, over a long search, stay below the policy's."""
    for seed in range(50):
        rng = random.Random(seed)
        usual = [
            [
                10 * (1 + rng.gauss(0, 0.01)) * (1.5 if rng.random() < 0.003 else 1)
                for _ in range(rng.choice([9, 9, 15, 40]))
            ]
            for _ in range(60)
        ]
        assert 0 < drift(STEADY, *usual) < Policy().drift


def test_times_that_are_none_are_not_counted():
    """Nothing, or zero, is no measurement: it neither divides nor takes the first one's place."""
    assert drift([], [0.0, 0.0], [15.0] * 5, STEADY) == 0.0


def test_a_canary_says_what_it_saw():
    """The repr has the number of measurements and the drift."""
    canary = Canary()
    canary.note(STEADY)
    assert repr(canary) == "Canary(1 measurements, drift 0.0%)"
