"""The store when all goes well: what is put is found, listed, stamped and removed."""

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from jitd.cache import files
from jitd.cache.errors import BadValue
from jitd.cache.keys import Key
from jitd.cache.store import Store

OLD = 1_000_000.0


def test_what_is_put_is_found(store: Store, key: Key) -> None:
    """A miss, a put and a hit, each counted; put returns what get gives."""
    assert store.get(key) is None
    assert not store.has(key)
    put = store.put(key, {"times": (1.5, 2.5)}, label="silu", meta={"n": 1})
    got = store.get(key)
    assert got is not None
    assert got.body == put.body == {"times": [1.5, 2.5]}
    assert got.header.label == "silu"
    assert store.has(key)
    assert store.counters == {"misses": 1, "puts": 1, "hits": 1}
    assert repr(store) == f"<Store at {store.root}: 1 hits, 1 misses, 1 puts, 0 bad files>"


def test_a_put_replaces(store: Store, key: Key) -> None:
    """The last put wins, and nothing of the earlier one or of the writing stays behind."""
    store.put(key, {"n": 1})
    store.put(key, {"n": 2})
    record = store.get(key)
    assert record is not None
    assert record.body == {"n": 2}
    assert [path for path in store.root.rglob("*") if path.is_file() and "silu" in path.parts] == [
        store.root / key.path
    ]
    assert [*(store.root / "tmp").iterdir()] == []


@pytest.mark.parametrize("umask", [0, 0o777])
def test_records_are_private(store: Store, key: Key, umask: int) -> None:
    """Files are 0600 and folders 0700 under the loosest and the strictest umask."""
    previous = os.umask(umask)
    try:
        store.put(key, {})
    finally:
        os.umask(previous)
    for path in (store.root / "winner").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_bad_body_is_refused_and_nothing_written(store: Store, key: Key) -> None:
    """A body that would not come back raises and leaves the cache as it was."""
    with pytest.raises(BadValue):
        store.put(key, {"a": {1: 2}})
    assert not (store.root / key.path).exists()


def test_a_moved_cache_still_hits(store: Store, key: Key, tmp_path: Path) -> None:
    """Nothing in a cache knows its place: moved or copied, it hits."""
    store.put(key, {"n": 1})
    shutil.copytree(store.root, tmp_path / "copy")
    store.root.rename(tmp_path / "moved")
    assert Store(tmp_path / "copy").get(key) is not None
    assert Store(tmp_path / "moved").get(key) is not None
    assert store.get(key) is None


def test_headers_are_listed_by_kind_and_op(store: Store) -> None:
    """Listing gives every record once, of all kinds, one kind or one op, with what it says."""
    keys = [
        Key.of(kind, op, n=n)
        for kind in ("winner", "artifact")
        for op in ("silu", "gelu")
        for n in range(3)
    ]
    for key in keys:
        store.put(key, {"n": 1}, label=str(key), meta={"op": key.op})
    assert {header.key for header in store.headers()} == set(keys)
    assert {header.key for header in store.headers("winner")} == {*keys[:6]}
    assert {header.key for header in store.headers(op="gelu")} == {*keys[3:6], *keys[9:]}
    for header in store.headers("winner", "silu"):
        assert header.label == str(header.key)
        assert header.meta == {"op": "silu"}
        assert header.file_bytes == (store.root / header.path).stat().st_size
        record = store.record_for(header)
        assert record is not None
        assert record.header == header
    assert store.counters == {"puts": len(keys)}


def test_a_long_header_is_listed(store: Store, key: Key) -> None:
    """A header that does not fit into the first read is read to its end."""
    store.put(key, {"n": 1}, label="x" * 100_000)
    assert [len(header.label) for header in store.headers()] == [100_000]


def test_use_is_stamped_once_an_hour(store: Store, key: Key) -> None:
    """A hit renews an old stamp and leaves a fresh one; listing renews none."""
    store.put(key, {})
    path = store.root / key.path
    os.utime(path, (OLD, OLD))
    assert [header.last_used for header in store.headers()] == [OLD]
    assert [store.record_for(header) is not None for header in store.headers()] == [True]
    assert store.has(key)
    assert path.stat().st_mtime == OLD
    store.get(key)
    assert time.time() - path.stat().st_mtime < 60
    recent = time.time() - files.STAMP_EVERY_S + 60
    os.utime(path, (recent, recent))
    store.get(key)
    assert path.stat().st_mtime == pytest.approx(recent)


def test_delete_and_remove(store: Store, key: Key) -> None:
    """Delete says whether there was a record; remove gives the bytes freed, once."""
    store.put(key, {})
    assert store.delete(key)
    assert not store.delete(key)
    store.put(key, {})
    [header] = store.headers()
    assert store.remove(header) == header.file_bytes
    assert store.remove(header) is None


def test_a_record_replaced_since_listing_stays(store: Store, key: Key) -> None:
    """Removing what was listed spares what another process put there meanwhile."""
    store.put(key, {"n": 1})
    [header] = store.headers()
    store.put(key, {"n": 2})
    assert store.remove(header) is None
    assert store.has(key)


def test_a_record_in_the_same_inode_stays(store: Store, key: Key) -> None:
    """A record of the same size is spared even if the file system gave it the inode of the one
    that was listed, as ext4 does with every second put."""
    store.put(key, {"n": 1})
    [listed] = store.headers()
    store.put(key, {"n": 2})
    [replaced] = store.headers()
    assert listed.file_bytes == replaced.file_bytes
    assert store.remove(replace(listed, inode=replaced.inode)) is None
    assert store.has(key)


def test_old_temporaries_are_swept(store: Store, key: Key) -> None:
    """What killed writers left goes when it is old enough; what is being written stays."""
    store.put(key, {})
    old, new = store.root / "tmp" / "old", store.root / "tmp" / "new"
    for path in (old, new):
        path.write_bytes(b"half a record")
    os.utime(old, (OLD, OLD))
    assert store.sweep_temporaries(3600) == 1
    assert new.exists()
    assert not old.exists()


RACE = """
import sys
from pathlib import Path
from jitd.cache.keys import Key
from jitd.cache.store import Store
store, key = Store(Path(sys.argv[1])), Key.of("winner", "silu", n=1)
print("ready", flush=True)
sys.stdin.readline()
for n in range(100):
    store.put(key, {"from": sys.argv[2], "data": sys.argv[2] * 50_000})
    assert store.get(key).body["data"] in ("a" * 50_000, "b" * 50_000)
assert set(store.counters) == {"puts", "hits"}, store.counters
"""


def test_racing_writers_leave_whole_records(store: Store, spawn: Callable) -> None:
    """Two processes that put the same key again and again see, and leave, only whole records."""
    children = [spawn(RACE, store.root, name) for name in "ab"]
    assert [child.line() for child in children] == ["ready", "ready"]
    for child in children:
        child.say("go")
    assert [child.exit_code() for child in children] == [0, 0]
    record = store.get(Key.of("winner", "silu", n=1))
    assert record is not None
    assert record.body["data"] == record.body["from"] * 50_000
    assert [*(store.root / "tmp").iterdir()] == []


def test_an_overtaken_writer_still_puts_whole(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that stands still before its rename while another puts replaces it entirely."""
    written, overtaken = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        if threading.current_thread() is slow and not written.is_set():
            written.set()
            assert overtaken.wait(30)
        fsync(descriptor)

    slow = threading.Thread(target=store.put, args=(key, {"from": "slow"}))
    monkeypatch.setattr(os, "fsync", slow_fsync)
    slow.start()
    assert written.wait(30)
    store.put(key, {"from": "fast"})
    between = store.get(key)
    overtaken.set()
    slow.join(30)
    after = store.get(key)
    assert between is not None
    assert after is not None
    assert (between.body, after.body) == ({"from": "fast"}, {"from": "slow"})


def test_threads_share_a_store(store: Store) -> None:
    """Counts are exact when many threads use one store."""

    def work(n: int) -> None:
        for m in range(50):
            key = Key.of("winner", "silu", n=n, m=m)
            assert store.get(key) is None
            store.put(key, {"n": n})
            assert store.get(key) is not None

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.counters == {"hits": 400, "misses": 400, "puts": 400}
