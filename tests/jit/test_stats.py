"""Counters."""

import threading

import jitd
from jitd.jit.stats import STATS, Stats


def test_counting_from_threads_loses_nothing():
    """Counts of many threads add up."""
    stats = Stats()
    count = lambda: [stats.count("loads") for _ in range(2000)]  # noqa: E731
    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert stats["loads"] == 8000


def test_a_snapshot_is_sorted_and_without_zeros():
    """`jitd.stats()` is a plain dictionary of what happened."""
    STATS.count("tunes")
    STATS.count("checks", 0)
    STATS.count("compiles", 3)
    assert jitd.stats() == {"compiles": 3, "tunes": 1}
    assert list(jitd.stats()) == ["compiles", "tunes"]
    assert repr(STATS) == "<Stats: 3 compiles, 1 tunes>"
    STATS.clear()
    assert (jitd.stats(), repr(STATS)) == ({}, "<Stats: none>")
