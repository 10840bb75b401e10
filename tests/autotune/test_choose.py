"""Choosing among timings: tie band, default, hysteresis. A pure function, so a table."""

import pytest
from jitd.autotune.policy import Policy
from jitd.autotune.search import Timing, choose

ORDER = ["a", "b", "c", "d"]


def pick(us, *, stored=None, default=None, order=ORDER):
    timings = {name: Timing(value, 0.01, 40, "graph") for name, value in us.items()}
    return choose(timings, order, stored=stored, default=default, policy=Policy())


def test_nothing_to_choose_from():
    """Without timings there is no winner, whoever is stored or default."""
    assert pick({}, stored="a", default="b") is None


def test_a_clear_winner_wins():
    """Outside of the tie band speed alone decides."""
    assert pick({"a": 12.0, "b": 10.0, "c": 11.0}, default="c") == "b"


def test_a_tie_goes_to_the_default():
    """Within 1 % of the best the default is preferred to earlier names."""
    assert pick({"a": 10.0, "b": 10.05, "c": 10.09}, default="c") == "c"


def test_a_default_just_outside_the_band_is_not_preferred():
    """The band ends at 1 %."""
    assert pick({"a": 10.0, "b": 10.05, "c": 10.11}, default="c") == "a"


def test_a_tie_without_default_goes_to_canonical_order():
    """The first in order wins, though it is not the fastest."""
    assert pick({"c": 10.0, "b": 10.05, "d": 9.99}) == "b"


def test_a_tied_stored_winner_stays():
    """Stored comes before default."""
    assert pick({"a": 10.0, "b": 10.05, "c": 10.09}, stored="c", default="a") == "c"


@pytest.mark.parametrize(("challenger", "winner"), [(9.72, "a"), (9.70, "b")])
def test_a_stored_winner_yields_only_to_more_than_three_percent(challenger, winner):
    """10.0 us stays against 9.72 us (2.9 %) and yields to 9.70 us (3.1 %)."""
    assert pick({"a": 10.0, "b": challenger}, stored="a") == winner


def test_only_clearly_faster_candidates_may_replace_a_stored_winner():
    """The tie band of the new best does not let in one that is 2.7 % faster than the stored."""
    assert pick({"a": 9.74, "b": 9.68, "c": 10.0}, stored="c", default="a") == "b"


def test_a_stored_winner_that_was_not_timed_has_no_say():
    """One that failed, was wrong, or fell behind early is simply replaced."""
    assert pick({"b": 10.0}, stored="a") == "b"


def test_the_order_of_measuring_does_not_matter():
    """Only canonical order breaks ties, not the order in which timings came in."""
    us = {"a": 10.02, "b": 10.0, "c": 10.05}
    assert pick(us) == pick(dict(reversed(us.items()))) == "a"


def test_runs_that_take_no_time_can_be_chosen():
    """An op on nothing measures 0 us, and still has a winner."""
    assert pick({"b": 0.0, "c": 0.0}, default="c") == "c"
