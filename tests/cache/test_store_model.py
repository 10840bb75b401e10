"""The store against a model of it: any sequence of operations and faults, compared step by step."""

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from jitd.cache import clear
from jitd.cache.errors import CacheWriteError
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.records import Header
from jitd.cache.store import LOGGER, QUARANTINE, TEMPORARIES, Store

POOL = [
    *(Key.of("winner", "silu", n=n) for n in (1, 2)),
    Key.of("winner", "gelu", n=1),
    Key.of("artifact", "silu", n=1),
]
KEYS = st.sampled_from(POOL)
NUMBERS = st.integers(0, 7)
OLD = 1_000_000.0


@dataclass(frozen=True)
class File:
    """What the model knows of one path. `bad` and `bad_header` are the counters that a read of the
    record, and of its header alone, adds to; None where it succeeds."""

    version: int
    body: dict[str, object]
    label: str
    bad: str | None = None
    bad_header: str | None = None
    is_file: bool = True
    is_folder: bool = False
    is_old: bool = False


def _flipped(data: bytes, position: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 1
    return bytes(damaged)


# What it does to the bytes, and what a reader of the header, and of the record, then counts.
DAMAGE = {
    "body": (lambda data: _flipped(data, -1), None, "bad:checksum"),
    "header": (lambda data: _flipped(data, 70), "bad:checksum", "bad:checksum"),
    "magic": (lambda data: _flipped(data, 3), "bad:magic", "bad:magic"),
    "version": (lambda data: _flipped(data, 9), "bad:version", "bad:version"),
    "cut": (lambda data: data[:-1], "bad:truncated", "bad:truncated"),
    "empty": (lambda data: b"", "bad:truncated", "bad:truncated"),
    "longer": (lambda data: data + b"x", "bad:length", "bad:length"),
}


class StoreMachine(RuleBasedStateMachine):
    """A store, a dict that says what it holds, and a Counter that says what it counted."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(open_root(self.folder / "cache"))
        self.model: dict[Key, File] = {}
        self.counted: Counter[str] = Counter()
        self.versions = 0
        self.listed: list[tuple[Header, int]] = []  # with the version that was there

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def path(self, key: Key) -> Path:
        return self.store.root / key.path

    def count(self, name: str | None) -> None:
        if name is not None:
            self.counted[name] += 1

    @initialize(keys=st.lists(KEYS, unique=True))
    def fill(self, keys: list[Key]) -> None:
        for key in keys:
            self.put(key, 0, 0)
        self.headers(None, None)

    def one_listed(self, number: int) -> tuple[Header, int]:
        return self.listed[-1 - number % len(self.listed)]

    @rule(
        key=KEYS, size=st.sampled_from([0, 0, 0, 10, 5000]), label_size=st.sampled_from([0, 5000])
    )
    def put(self, key: Key, size: int, label_size: int) -> None:
        self.versions += 1
        label = "x" * label_size
        body = {"version": f"{self.versions:06}", "data": "x" * size}
        there = self.model.get(key)
        if there is not None and there.is_folder:
            with pytest.raises(CacheWriteError):
                self.store.put(key, body, label=label)
            return
        record = self.store.put(key, body, label=label)
        assert (record.key, record.body, record.header.label) == (key, body, label)
        self.count("puts")
        self.model[key] = File(self.versions, body, label)

    @rule(key=KEYS)
    def get(self, key: Key) -> None:
        there = self.model.get(key)
        record = self.store.get(key)
        if there is not None and there.bad is None:
            assert record is not None
            assert (record.key, record.body, record.header.label) == (key, there.body, there.label)
            self.count("hits")
            self.model[key] = replace(there, is_old=False)
            return
        assert record is None
        self.count("misses")
        if there is not None:
            self.count(there.bad)
            if there.is_file and there.bad != "bad:version":  # moved aside
                del self.model[key]

    @rule(key=KEYS)
    def has(self, key: Key) -> None:
        there = self.model.get(key)
        assert self.store.has(key) == (there is not None and there.bad_header is None)
        self.count(there and there.bad_header)

    @rule(key=KEYS)
    def is_intact(self, key: Key) -> None:
        there = self.model.get(key)
        assert self.store.is_intact(key.path) == (there is not None and there.bad_header is None)
        self.count(there and there.bad_header)

    @rule(key=KEYS)
    def delete(self, key: Key) -> None:
        there = self.model.get(key)
        assert self.store.delete(key) == (there is not None and there.is_file)
        if there is not None and there.is_file:
            del self.model[key]

    @precondition(lambda self: self.listed)
    @rule(number=NUMBERS, puts=st.integers(1, 3))
    def remove_what_was_replaced(self, number: int, puts: int) -> None:
        """After two puts a file may have the inode of the one that was listed (ext4 does so)."""
        header, _ = self.one_listed(number)
        there = self.model.get(header.key)
        if there is None or there.is_file:
            for _ in range(puts):
                self.put(header.key, 0, 0)
            assert self.store.remove(header) is None

    @rule(kind=st.none() | st.just("winner"), op=st.none() | st.just("silu"))
    def headers(self, kind: str | None, op: str | None) -> None:
        expected = {}
        for key, there in self.model.items():
            if kind in (None, key.kind) and op in (None, key.op):
                self.count(there.bad_header)
                if there.bad_header is None:
                    expected[key] = there
        found = list(self.store.headers(kind, op))
        assert {header.key for header in found} == set(expected)
        paths = [header.path for header in found]
        assert paths == sorted(set(paths))
        for header in found:
            there = expected[header.key]
            assert header.label == there.label
            assert header.file_bytes == self.path(header.key).stat().st_size
            assert (header.last_used == OLD) == there.is_old
        self.listed += [(header, expected[header.key].version) for header in found]

    @precondition(lambda self: self.listed)
    @rule(number=NUMBERS)
    def record_for(self, number: int) -> None:
        header, _ = self.one_listed(number)
        there = self.model.get(header.key)
        record = self.store.record_for(header)
        if there is None or there.bad is not None:
            assert record is None
            self.count(there and there.bad)
            if there is not None and there.is_file and there.bad != "bad:version":
                del self.model[header.key]
        else:
            assert record is not None
            assert record.body == there.body

    @precondition(lambda self: self.listed)
    @rule(number=NUMBERS, cleared=st.booleans())
    def remove(self, number: int, cleared: bool) -> None:
        header, version = self.one_listed(number)
        there = self.model.get(header.key)
        is_same = there is not None and there.version == version and there.bad_header is None
        if cleared:
            gone = clear.clear(self.store, [header])
            assert gone == clear.Cleared(int(is_same), header.file_bytes if is_same else 0)
        else:
            assert self.store.remove(header) == (header.file_bytes if is_same else None)
        if is_same:
            del self.model[header.key]

    @rule(key=KEYS, how=st.sampled_from(sorted(DAMAGE)))
    def damage(self, key: Key, how: str) -> None:
        there = self.model.get(key)
        if there is None or there.bad is not None:
            return
        change, bad_header, bad = DAMAGE[how]
        self.path(key).write_bytes(change(self.path(key).read_bytes()))
        self.model[key] = replace(there, bad=bad, bad_header=bad_header, is_old=False)

    @rule(key=KEYS, other=KEYS)
    def swap(self, key: Key, other: Key) -> None:
        there, instead = self.model.get(key), self.model.get(other)
        if key == other or there is None or instead is None or there.bad or instead.bad:
            return
        self.path(key).write_bytes(self.path(other).read_bytes())
        bad = "bad:key" if key.kind == other.kind else "bad:kind"
        self.model[key] = replace(there, bad=bad, bad_header=bad, is_old=False)

    @rule(key=KEYS, what=st.sampled_from(["folder", "link"]))
    def replace_by_no_file(self, key: Key, what: str) -> None:
        there = self.model.get(key)
        if there is None or not there.is_file:
            return
        self.path(key).unlink()
        if what == "folder":
            self.path(key).mkdir()
        else:
            self.path(key).symlink_to("nowhere")
        bad = "unreadable:EISDIR" if what == "folder" else "unreadable:ELOOP"
        self.model[key] = replace(
            there, bad=bad, bad_header=bad, is_file=False, is_folder=what == "folder"
        )

    @rule(key=KEYS)
    def tidy(self, key: Key) -> None:
        there = self.model.get(key)
        if there is not None and not there.is_file:
            self.path(key).rmdir() if there.is_folder else self.path(key).unlink()
            del self.model[key]

    @rule(key=KEYS)
    def touch(self, key: Key) -> None:
        there = self.model.get(key)
        if there is not None and there.is_file:
            os.utime(self.path(key), (OLD, OLD))
            self.model[key] = replace(there, is_old=True)

    @rule(moved=st.booleans())
    def reopen(self, moved: bool) -> None:
        root = self.store.root
        if moved:
            root = root.rename(self.folder / ("here" if root.name == "there" else "there"))
        self.store = Store(open_root(root))
        self.counted.clear()

    @rule(old=st.booleans())
    def leave_a_temporary(self, old: bool) -> None:
        folder = self.store.root / TEMPORARIES
        folder.mkdir(mode=0o700, exist_ok=True)
        left = folder / f"{'0' * 40}.1.{'0' * 16}"
        left.write_bytes(b"half")
        if old:
            os.utime(left, (OLD, OLD))
        assert self.store.sweep_temporaries(3600) == int(old)
        left.unlink(missing_ok=True)

    @rule()
    def clear_all(self) -> None:
        begins = {key for key, there in self.model.items() if there.is_file}
        begins = {key for key in begins if self.path(key).read_bytes()[:8] == clear.MAGIC}
        aside = self.store.root / QUARANTINE
        others = len([*aside.iterdir()]) if aside.exists() else 0
        assert clear.clear_all(self.store, dry_run=True).files == len(begins) + others
        assert clear.clear_all(self.store).files == len(begins) + others
        for key in begins:
            del self.model[key]

    @invariant()
    def agrees(self) -> None:
        assert self.store.counters == self.counted
        assert {path for path in POOL if os.path.lexists(self.path(path))} == set(self.model)
        temporaries = self.store.root / TEMPORARIES
        assert not temporaries.exists() or not [*temporaries.iterdir()]
        for key, there in self.model.items():
            if there.is_file:
                assert (self.path(key).stat().st_mtime == OLD) == there.is_old


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and thousands of fsyncs would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(LOGGER, "disabled", True)


class TestStore(StoreMachine.TestCase):  # type: ignore[misc]
    """Store and model agree after every step of two hundred sequences."""

    settings = settings(
        derandomize=True, database=None, deadline=None, max_examples=200, stateful_step_count=50
    )


@pytest.mark.long
@pytest.mark.timeout(1200)
class TestStoreForLong(StoreMachine.TestCase):  # type: ignore[misc]
    """The same, for two thousand longer sequences."""

    settings = settings(
        derandomize=True, database=None, deadline=None, max_examples=2000, stateful_step_count=100
    )
