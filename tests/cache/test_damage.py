"""The store when things go wrong: every fault is a miss, and no write is half done."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from jitd.cache.errors import CacheWriteError
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.records import MAGIC
from jitd.cache.store import MAX_QUARANTINED, Store


def damage(store: Store, key: Key, data: bytes) -> Path:
    path = store.root / key.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_bad_record_is_a_miss_told_once(
    store: Store, key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged record is a miss, counted each time, logged once, moved aside and replaceable."""
    store.put(key, {"n": 1})
    path = store.root / key.path
    good = path.read_bytes()
    for _ in range(2):
        damage(store, key, good[:-1] + bytes([good[-1] ^ 1]))
        assert store.get(key) is None
        assert not path.exists()
    assert store.counters["bad:checksum"] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text
    [aside] = (store.root / "quarantine").iterdir()
    assert aside.name == f"winner-silu-{key.digest}-checksum"
    store.put(key, {"n": 2})
    assert store.get(key) is not None


def test_damage_of_every_byte_is_a_miss(store: Store, key: Key) -> None:
    """Through the store too, no damaged byte of a file is ever served."""
    store.put(key, {"n": 1})
    good = (store.root / key.path).read_bytes()
    for position in range(len(good)):
        damage(store, key, good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        assert store.get(key) is None
    damage(store, key, good)
    assert store.get(key) is not None


@pytest.mark.parametrize("data", [b"", b"x", b"#!/bin/sh\n" * 1000, MAGIC, MAGIC + bytes(46)])
def test_a_foreign_file_is_a_miss(store: Store, key: Key, data: bytes) -> None:
    """Something else in a record's place is a miss for get, has and headers, and put mends it."""
    damage(store, key, data)
    assert not store.has(key)
    assert [*store.headers()] == []
    assert store.get(key) is None
    store.put(key, {})
    assert store.has(key)


def test_swapped_records_are_misses(store: Store) -> None:
    """Whole records under each other's names are not served: each says what it is."""
    keys = [Key.of("winner", "silu", n=n) for n in range(2)] + [Key.of("artifact", "silu", n=0)]
    for key in keys:
        store.put(key, {"key": str(key)})
    paths = [store.root / key.path for key in keys]
    files = [path.read_bytes() for path in paths]
    for path, data in zip(paths, files[1:] + files[:1], strict=True):
        path.write_bytes(data)
    assert [*store.headers()] == []
    assert [store.has(key) for key in keys] == [False] * 3
    assert [store.get(key) for key in keys] == [None] * 3
    # Each of the three was looked at by headers, has and get.
    assert (store.counters["bad:key"], store.counters["bad:kind"]) == (3, 6)


def test_another_versions_record_is_left_alone(store: Store, key: Key) -> None:
    """A record of another format version is a miss, but not broken: it stays where it is."""
    store.put(key, {})
    good = (store.root / key.path).read_bytes()
    path = damage(store, key, good[:8] + b"\x63\x00" + good[10:])
    assert store.get(key) is None
    assert path.exists()
    assert store.counters["bad:version"] == 1


def test_a_folder_in_a_records_place_is_a_miss(store: Store, key: Key) -> None:
    """A folder is not a record; a put over it fails with its reason and removes nothing."""
    (store.root / key.path / "inside").mkdir(parents=True)
    assert store.get(key) is None
    assert not store.has(key)
    assert [*store.headers()] == []
    with pytest.raises(CacheWriteError, match="EISDIR") as caught:
        store.put(key, {})
    assert caught.value.errno == errno.EISDIR
    assert not store.delete(key)
    assert (store.root / key.path / "inside").is_dir()


def test_a_link_in_a_records_place_is_a_miss(store: Store, key: Key, tmp_path: Path) -> None:
    """Links, dangling or to a good record, are not followed; a put replaces the link itself."""
    other = Store(open_root(tmp_path / "other"))
    other.put(key, {"n": 1})
    path = store.root / key.path
    path.parent.mkdir(parents=True)
    for target in (tmp_path / "nowhere", other.root / key.path):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        assert store.get(key) is None
        assert not store.has(key)
        assert [*store.headers()] == []
    store.put(key, {"n": 2})
    assert not path.is_symlink()
    record = other.get(key)
    assert record is not None
    assert record.body == {"n": 1}


@pytest.mark.timeout(60)
def test_a_pipe_in_a_records_place_is_a_miss(store: Store, key: Key) -> None:
    """Reading does not wait for somebody to write into a pipe."""
    path = store.root / key.path
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert store.get(key) is None
    assert not store.has(key)


def test_a_file_in_a_folders_place_is_a_miss(store: Store, key: Key) -> None:
    """Where a kind's folder should be there is a file: misses, empty lists, a clear error."""
    (store.root / "winner").write_text("")
    assert store.get(key) is None
    assert [*store.headers()] == []
    assert not store.delete(key)
    with pytest.raises(CacheWriteError):
        store.put(key, {})


def test_an_unreadable_folder_is_empty(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be listed is counted and left out; the rest is listed."""
    other = Key.of("artifact", "silu")
    store.put(key, {})
    store.put(other, {})
    real = os.open

    def denied(path: object, *arguments: int, **options: int) -> int:
        if path == "winner":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    assert [header.key for header in store.headers()] == [other]
    assert store.counters["unreadable:EACCES"] == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.EMFILE])
def test_a_failing_open_is_a_miss(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever the system says when a record is opened, a reader only sees a miss."""
    store.put(key, {})

    def failing(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert store.get(key) is None
        assert not store.has(key)
    assert store.get(key) is not None


def test_a_record_that_vanishes_while_read_is_a_miss(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale handle in the middle of a read (a network file system) is a miss."""
    store.put(key, {})

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "read", stale)
    assert store.get(key) is None
    assert [*store.headers()] == []


def test_the_quarantine_is_bounded(store: Store) -> None:
    """However many files go bad, only the latest are kept."""
    for n in range(MAX_QUARANTINED + 10):
        damage(store, Key.of("winner", "silu", n=n), b"garbage")
        store.get(Key.of("winner", "silu", n=n))
    assert len([*(store.root / "quarantine").iterdir()]) == MAX_QUARANTINED


def partial_write(descriptor: int, data: memoryview) -> int:
    if len(data) > 10:
        return WRITE(descriptor, data[:10])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITE = os.write


@pytest.mark.parametrize(
    ("call", "failure"), [("write", partial_write), ("fsync", failing), ("replace", failing)]
)
def test_a_full_disk_leaves_nothing_behind(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, call: str, failure: Callable
) -> None:
    """No space at any step: a typed error with the errno, no temporary file, the old record."""
    store.put(key, {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failure)
        with pytest.raises(CacheWriteError, match=r"ENOSPC.*jitctl") as caught:
            store.put(key, {"n": 2})
    assert caught.value.errno == errno.ENOSPC
    assert [*(store.root / "tmp").iterdir()] == []
    record = store.get(key)
    assert record is not None
    assert record.body == {"n": 1}
    assert store.counters["puts"] == 1


def test_short_writes_are_continued(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that writes a few bytes at a time still writes all of them."""
    monkeypatch.setattr(os, "write", lambda descriptor, data: WRITE(descriptor, data[:7]))
    store.put(key, {"data": b"x" * 1000})
    assert store.get(key) is not None


def test_an_interrupted_put_leaves_nothing_behind(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a write goes through and leaves no temporary file."""

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(key, {})
    assert [*(store.root / "tmp").iterdir()] == []
    assert not store.has(key)


def test_a_put_survives_a_clearing_process(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is taken away between two steps of a put: it is made again."""
    replace, taken = os.replace, []

    def late(source: str, target: str) -> None:
        if not taken:
            taken.append(target)
            shutil.rmtree(store.root / "winner")
            shutil.rmtree(store.root / "tmp")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    store.put(key, {})
    assert taken
    assert store.has(key)


def test_a_removed_root_is_not_made_again(store: Store, key: Key) -> None:
    """When the whole cache is gone, reads miss and a put fails: only `open_root` makes a root."""
    shutil.rmtree(store.root)
    assert store.get(key) is None
    assert [*store.headers()] == []
    with pytest.raises(CacheWriteError, match="ENOENT"):
        store.put(key, {})
    assert not store.root.exists()


def test_a_killed_writer_leaves_no_record(store: Store, key: Key, spawn: Callable) -> None:
    """kill -9 between write and rename: no record, and one temporary file that can be swept."""
    child = spawn(
        """
import os, sys
from pathlib import Path
from jitd.cache.keys import Key
from jitd.cache.store import Store
def stop(descriptor):
    print("written", flush=True)
    sys.stdin.readline()
os.fsync = stop
Store(Path(sys.argv[1])).put(Key.of("winner", "silu", n=1), {"data": "x" * 1000})
""",
        store.root,
    )
    assert child.line() == "written"
    child.kill()
    assert store.get(Key.of("winner", "silu", n=1)) is None
    assert store.sweep_temporaries(0) == 1
