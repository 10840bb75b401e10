"""Clearing: what is selected goes, and nothing that jitd did not write."""

import os
import shutil
import time
from pathlib import Path

import pytest
from jitd.cache import counters
from jitd.cache.clear import Cleared, clear, clear_all, select
from jitd.cache.errors import CacheFolderError
from jitd.cache.evict import Bounds, evict, read_usage
from jitd.cache.keys import Key
from jitd.cache.paths import MARKER
from jitd.cache.scan import COUNTERS
from jitd.cache.store import Store

KEYS = [
    Key.of(kind, op, n=n)
    for kind in ("winner", "artifact")
    for op in ("silu", "gelu", "norm")
    for n in range(2)
]


@pytest.fixture
def full(store: Store) -> Store:
    for key in KEYS:
        store.put(key, {"n": 1}, meta={"op": key.op})
    return store


def test_select_by_each_condition(full: Store) -> None:
    """Op, ops, kinds and a predicate each narrow the choice, and together they all hold."""
    assert {header.key for header in select(full)} == set(KEYS)
    assert {header.op for header in select(full, op="silu")} == {"silu"}
    assert {header.op for header in select(full, op="silu", ops=["gelu"])} == {"silu", "gelu"}
    assert select(full, ops=[]) == []
    assert {header.kind for header in select(full, kinds=["winner"])} == {"winner"}
    chosen = select(full, op="silu", kinds=["winner"], predicate=lambda h: dict(h.parts)["n"] == 1)
    assert [header.key for header in chosen] == [Key.of("winner", "silu", n=1)]


def test_select_by_last_use(full: Store) -> None:
    """Age counts from the last use."""
    old = full.root / KEYS[0].path
    os.utime(old, (time.time() - 1000, time.time() - 1000))
    assert [header.key for header in select(full, older_than_s=500)] == [KEYS[0]]
    assert select(full, older_than_s=2000) == []


def test_clear_removes_the_selection(full: Store) -> None:
    """Exactly the selected records go, counted in files and bytes, and their empty folders."""
    selection = select(full, op="silu")
    cleared = clear(full, selection)
    assert cleared == Cleared(4, sum(header.file_bytes for header in selection))
    assert str(cleared) == f"4 files, {cleared.bytes} bytes"
    assert {header.op for header in select(full)} == {"gelu", "norm"}
    assert not (full.root / "winner" / "silu").exists()
    assert clear(full, selection) == Cleared(0, 0)


def test_clear_all_leaves_an_empty_cache(full: Store) -> None:
    """Records, temporaries and quarantine go; marker, tag and locks stay."""
    (full.root / KEYS[0].path).write_bytes(b"garbage")
    full.get(KEYS[0])
    damaged = full.root / KEYS[1].path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (full.root / "tmp" / f"{KEYS[2].digest}.123.{'0' * 16}").write_bytes(b"half")
    (full.root / "locks").mkdir()
    (full.root / "locks" / "winner-00.lock").write_bytes(b"")
    assert clear_all(full).files == len(KEYS) + 1
    left = sorted(str(path.relative_to(full.root)) for path in full.root.rglob("*"))
    assert left == [MARKER, "CACHEDIR.TAG", "locks", "locks/winner-00.lock"]
    full.put(KEYS[0], {})
    assert full.has(KEYS[0])


def test_clear_all_forgets_what_was_counted(full: Store, tmp_path: Path) -> None:
    """The estimate and the counters go with what they were about; a link in their place stays."""
    evict(full, Bounds())
    counters.add(full.root, {"hits": 3})
    number = len(KEYS) + 2
    assert clear_all(full, dry_run=True).files == number
    assert clear_all(full).files == number
    assert counters.total(full.root) == {}
    assert read_usage(full) is None
    (tmp_path / "mine").write_text("{}")
    (full.root / COUNTERS).symlink_to(tmp_path / "mine")
    assert clear_all(full).files == 0
    assert (full.root / COUNTERS).is_symlink()


def test_clearing_some_keeps_what_was_counted(full: Store) -> None:
    """Counters are of the whole cache: clearing a part of it leaves them."""
    counters.add(full.root, {"hits": 3})
    clear(full, select(full, op="silu"))
    assert counters.total(full.root) == {"hits": 3}


def test_clear_all_keeps_foreign_files(full: Store) -> None:
    """Files that jitd did not write stay, wherever in the cache somebody put them."""
    shard = (full.root / KEYS[0].path).parent
    foreign = [
        full.root / "README",
        full.root / "notes" / "silu" / "aa" / ("0" * 40),
        full.root / "winner" / "thesis.tex",
        shard / "thesis.tex",
        shard / ("0" * 40),
        full.root / "tmp" / "thesis.tex",
        full.root / "quarantine" / "thesis.tex",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("years of work")
    clear_all(full)
    assert [path for path in foreign if not path.exists()] == []
    assert select(full) == []


def test_clearing_follows_no_link(full: Store, tmp_path: Path) -> None:
    """Links to records elsewhere, as file, shard, op or kind, are neither followed nor removed."""
    other = Store(shutil.copytree(full.root, tmp_path / "other"))
    there = [other.root / key.path for key in KEYS]
    winner, gelu, norm, silu = (
        full.root / "winner",
        full.root / "artifact" / "gelu",
        (full.root / KEYS[-1].path).parent,
        full.root / Key.of("artifact", "silu", n=0).path,
    )
    listed = select(full)
    for path in (winner, gelu, norm, silu):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(other.root / path.relative_to(full.root))
    clear(full, listed)
    clear(full, select(full))
    clear_all(full)
    assert [path for path in there if not path.exists()] == []
    assert all(path.is_symlink() for path in (winner, gelu, norm, silu))


def test_clear_all_refuses_an_unmarked_folder(full: Store) -> None:
    """Without its marker a folder is nobody's cache, and nothing in it is touched."""
    (full.root / MARKER).unlink()
    with pytest.raises(CacheFolderError, match=MARKER):
        clear_all(full)
    assert len(select(full)) == len(KEYS)
