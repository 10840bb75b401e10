"""Read-only caches behind the writable one: searched in order, never changed, never in the way."""

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jitd.cache import tiers
from jitd.cache.clear import clear, clear_all, select
from jitd.cache.errors import CacheWriteError
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.cache.tiers import store_over, tiers_behind

OLD = 1_000_000.0


@pytest.fixture
def behind(tmp_path: Path) -> list[Store]:
    """Two caches to be behind another."""
    return [Store(open_root(tmp_path / name)) for name in ("first", "second")]


@pytest.fixture
def tiered(root: Path, behind: list[Store]) -> Store:
    return store_over(Store, root, [tier.root for tier in behind])


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "_SAID", set())


def files_of(store: Store) -> dict[str, tuple[bytes, float]]:
    found = [path for path in store.root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(store.root)): (path.read_bytes(), path.stat().st_mtime)
        for path in found
    }


def body_of(store: Store, key: Key) -> object:
    record = store.get(key)
    return record and record.body["from"]


def test_an_earlier_tier_hides_a_later_one(tiered: Store, behind: list[Store], key: Key) -> None:
    """A record is found wherever it is, and the first of several answers; hits behind are told."""
    first, second = behind
    assert tiered.get(key) is None
    for store, name in ((second, "second"), (first, "first"), (tiered, "root")):
        store.put(key, {"from": name})
        assert body_of(tiered, key) == name
        assert tiered.has(key)
        assert tiered.is_intact(key.path)
        [header] = tiered.headers()
        assert header.tier == tiered.tiers.index(store.root)
        record = tiered.record_for(header)
        assert record is not None
        assert record.header == header
    assert tiered.counters == {"misses": 1, "hits": 3, "hits_behind": 2, "puts": 1}
    assert "and 2 behind it: 3 hits" in repr(tiered)


def test_records_of_all_tiers_are_listed_once(tiered: Store, behind: list[Store]) -> None:
    """The list is in order of the paths, whichever folder a record is in, without duplicates."""
    keys = [
        Key.of(kind, op, n=n) for kind in ("winner", "check") for op in ("a", "b") for n in range(4)
    ]
    stores = [tiered, *behind]
    for number, key in enumerate(keys):
        stores[number % 3].put(key, {})
        stores[(number + 1) % 3].put(key, {})
    assert [header.path for header in tiered.headers()] == sorted(key.path for key in keys)
    assert {header.key for header in tiered.headers("winner", "a")} == set(keys[:4])


def test_what_is_behind_is_never_changed(tiered: Store, behind: list[Store], key: Key) -> None:
    """Not by hits (no stamp), puts, removals or clearing, though the user could write there."""
    other = Key.of("artifact", "silu", n=1)
    for tier in behind:
        for one in (key, other):
            tier.put(one, {"from": "behind"})
            os.utime(tier.root / one.path, (OLD, OLD))
    before = [files_of(tier) for tier in behind]
    assert body_of(tiered, key) == "behind"
    assert [tiered.remove(header) for header in tiered.headers()] == [None, None]
    assert not tiered.delete(key)
    tiered.put(key, {"from": "root"})
    assert [header.key for header in select(tiered)] == [key]
    assert clear(tiered, tiered.headers()).files == 1
    assert body_of(tiered, key) == "behind"
    tiered.put(other, {"from": "root"})
    assert clear_all(tiered).files == 1
    assert tiered.sweep_temporaries(0) == 0
    assert [files_of(tier) for tier in behind] == before


def test_a_header_from_behind_names_no_file_in_front(
    tiered: Store, behind: list[Store], key: Key
) -> None:
    """Not even a link to the very file that was listed is removed for it."""
    behind[0].put(key, {"from": "first"})
    [header] = tiered.headers()
    path = tiered.root / key.path
    path.parent.mkdir(parents=True)
    os.link(behind[0].root / key.path, path)
    assert tiered.remove(header) is None
    assert path.exists()


def test_a_bad_record_behind_is_passed_over(
    tiered: Store, behind: list[Store], key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted each time, logged once and left where it is; the next folder answers."""
    first = behind[0]
    for tier in behind:
        tier.put(key, {"from": tier.root.name})
    path = first.root / key.path
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        assert body_of(tiered, key) == "second"
    assert tiered.has(key)
    assert [header.tier for header in tiered.headers()] == [2]
    assert tiered.counters["bad:truncated"] == 4
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert path.exists()
    assert not (first.root / "quarantine").exists()


def test_the_same_fault_in_two_folders_is_said_twice(
    tiered: Store, behind: list[Store], key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """What is logged once is the file, not its name: each bad copy is named."""
    for tier in behind:
        tier.put(key, {})
        (tier.root / key.path).write_bytes(b"")
    assert tiered.get(key) is None
    assert [str(tier.root / key.path) in caplog.text for tier in behind] == [True, True]


def test_a_bad_record_in_front_is_moved_aside(tiered: Store, behind: list[Store], key: Key) -> None:
    """What is bad in the writable folder goes, and what it hid answers at once."""
    behind[1].put(key, {"from": "second"})
    tiered.put(key, {"from": "root"})
    (tiered.root / key.path).write_bytes(b"garbage")
    assert body_of(tiered, key) == "second"
    assert not (tiered.root / key.path).exists()
    assert tiered.counters["bad:magic"] == 1


def test_an_unusable_folder_is_left_out_and_said_once(
    root: Path, behind: list[Store], key: Key, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing, open to others, foreign: one warning each for the process; the rest is searched."""
    first, second = behind
    first.root.chmod(0o777)
    second.put(key, {"from": "second"})
    (tmp_path / "foreign").mkdir()
    wanted = [tmp_path / "missing", first.root, tmp_path / "foreign", second.root]
    for _ in range(2):
        store = store_over(Store, root, wanted)
        assert store.tiers == (root, second.root)
        assert store.counters["left_out"] == 3
        assert body_of(store, key) == "second"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    for reason in ("No such file", "chmod go-w", "it has no .jitd-cache file"):
        assert reason in caplog.text
    assert not (tmp_path / "missing").exists()


def test_a_folder_counts_once(root: Path, behind: list[Store], tmp_path: Path) -> None:
    """A folder named twice, by a link, or that is the cache itself, is searched once."""
    (tmp_path / "link").symlink_to(behind[0].root)
    folders = [behind[0].root, tmp_path / "link", root, behind[0].root]
    assert tiers_behind(root, folders) == ([behind[0].root], [])
    assert store_over(Store, root, folders).counters == {}


def test_a_folder_that_goes_away_is_a_miss(
    tiered: Store, behind: list[Store], key: Key, tmp_path: Path
) -> None:
    """A read-only folder that is unmounted under a process costs misses; one that comes, hits."""
    behind[1].put(key, {"from": "second"})
    behind[1].root.rename(tmp_path / "away")
    assert tiered.get(key) is None
    assert [*tiered.headers()] == []
    (tmp_path / "away").rename(behind[1].root)
    assert body_of(tiered, key) == "second"


def test_an_unreadable_folder_behind_is_counted(
    tiered: Store, behind: list[Store], key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error in one folder does not end the search."""
    for tier in behind:
        tier.put(key, {"from": tier.root.name})
    real = os.open

    def failing(path: object, *arguments: int, **options: int) -> int:
        if str(path).startswith(str(behind[0].root)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", failing)
    assert body_of(tiered, key) == "second"
    assert [header.tier for header in tiered.headers()] == [2]
    assert tiered.counters["unreadable:EIO"] > 0


def test_a_read_only_cache_in_front(
    tiered: Store, behind: list[Store], key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first folder cannot be written either, what is behind still answers."""
    behind[0].put(key, {"from": "first"})

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(CacheWriteError, match="EROFS"):
        tiered.put(key, {"from": "root"})
    assert body_of(tiered, key) == "first"


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_cache_that_root_baked(as_root: None, key: Key) -> None:
    """A user reads what root made and opened to readers, and nothing of what root kept private."""
    other = Key.of("winner", "silu", n=2)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777 | stat.S_ISVTX)
        baked = Store(open_root(Path(folder) / "baked"))
        for one in (key, other):
            baked.put(one, {"from": "baked"})
        with another_user():
            own = open_root(Path(folder) / "own")
            usable, [error] = tiers_behind(own, [baked.root])
            assert not usable
            assert "chmod -R go=rX" in str(error)
        for path in (baked.root, *baked.root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (baked.root / other.path).chmod(0)
        with another_user():
            store = store_over(Store, own, [baked.root])
            assert body_of(store, key) == "baked"
            assert store.get(other) is None
            assert not store.has(other)
            assert [header.key for header in store.headers()] == [key]
            assert store.counters["unreadable:EACCES"] == 3
            store.put(other, {"from": "own"})
            assert body_of(store, other) == "own"
            (own / key.path).parent.mkdir(mode=0o500, parents=True)
            with pytest.raises(CacheWriteError, match="EACCES"):
                store.put(key, {"from": "own"})
            assert body_of(store, key) == "baked"
            assert [*(own / "tmp").iterdir()] == []
