"""The policy: what enters a key, and which numbers contradict each other."""

from dataclasses import fields

import pytest
from jitd.autotune.policy import VERSION, Policy

OTHER = {
    "clock_warmup_ms": 100,
    "rungs": (5, 40),
    "keep_within": 1.5,
    "finalists": 8,
    "graph_below_us": 50.0,
    "tie": 0.02,
    "hysteresis": 0.05,
    "floor_stop": 0.1,
    "drift": 0.2,
    "flush_l2": False,
    "input_sets": 3,
}


def test_every_number_is_part_of_the_identity():
    """Changing any one field demands another key; equal policies agree."""
    assert Policy().identity() == Policy().identity()
    assert set(OTHER) == {field.name for field in fields(Policy)}
    changed = {Policy(**{name: value}).identity() for name, value in OTHER.items()}
    assert len(changed | {Policy().identity()}) == len(OTHER) + 1


def test_the_identity_begins_with_the_version():
    """The same numbers measured in another way can be told apart."""
    assert Policy().identity()[0] == VERSION


@pytest.mark.parametrize(
    "numbers",
    [
        {"rungs": ()},
        {"rungs": (0, 5)},
        {"rungs": (40, 5)},
        {"keep_within": 0.9},
        {"finalists": 0},
        {"input_sets": 0},
        {"tie": 0.05, "hysteresis": 0.03},
        {"tie": -0.01},
        {"drift": 0.0},
    ],
)
def test_contradictions_are_refused(numbers):
    """A policy that could drop the best or swap a tied winner does not exist."""
    with pytest.raises(ValueError, match=next(iter(numbers))):
        Policy(**numbers)
