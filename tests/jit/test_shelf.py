"""The shelf: what cannot be written is kept for the process."""

import logging
import os

from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit.shelf import Shelf
from jitd.jit.stats import Stats

KEY = Key.of("winner", "silu", n=1)


def test_what_cannot_replace_a_record_answers_before_it(tmp_path, monkeypatch, caplog):
    """In a read-only cache a process sees its own newer body, also before one of a baked folder."""
    baked, own = (Store(open_root(tmp_path / name)) for name in ("baked", "own"))
    baked.put(KEY, {"us": 3.0})
    shelf = Shelf(Store(own.root, [baked.root]), Stats())
    assert shelf.get(KEY) == {"us": 3.0}

    def read_only(*_, **__):
        raise OSError(30, os.strerror(30))

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", read_only)
        assert shelf.put(KEY, {"us": 2.0}, "silu", {}) == {"us": 2.0}
        assert shelf.put(KEY, {"us": 2.0}, "silu", {}) == {"us": 2.0}
        assert shelf.get(KEY) == {"us": 2.0}
    assert shelf.stats["put_failed"] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    shelf.put(KEY, {"us": 1.0}, "silu", {})
    assert shelf.get(KEY) == own.get(KEY).body == {"us": 1.0}
    shelf.drop(KEY)
    assert shelf.get(KEY) == {"us": 3.0}
