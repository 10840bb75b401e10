"""Eviction: the bounds are kept, the right ones go, and nothing that is not ours."""

import json
import os
import stat
from pathlib import Path

import pytest
from jitd.cache import counters, evict, scan
from jitd.cache.evict import Bounds, Keeper, bytes_of, read_usage
from jitd.cache.keys import Key
from jitd.cache.store import Store

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86_400.0
ANY = Bounds(1 << 40, 1 << 20)


@pytest.fixture
def put(store: Store):
    """Puts a record that was last used so many seconds before `NOW`: its key."""

    def one(kind: str, n: int, age_s: float, size: int = 10) -> Key:
        key = Key.of(kind, "silu", n=n)
        store.put(key, {"cubin": bytes(size)})
        os.utime(store.root / key.path, (NOW - age_s, NOW - age_s))
        return key

    return one


def left(store: Store) -> set[tuple[str, int]]:
    return {(header.kind, dict(header.parts)["n"]) for header in store.headers()}


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("1000", 1000), ("500M", 500 << 20), ("4G", 4 << 30), ("1.5 GiB", 3 << 29),
     ("2kB", 2048)],
)  # fmt: skip
def test_sizes_for_people(text: str, number: int) -> None:
    """Sizes are read with or without a unit, which is a power of 1024."""
    assert bytes_of(text) == number


@pytest.mark.parametrize("text", ["", "M", "-1", "4X", "1e9", "4G4"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """What is no size says which ones are."""
    with pytest.raises(ValueError, match="500M"):
        bytes_of(text)


def test_least_recently_used_go_first(store: Store, put) -> None:
    """Of one kind the oldest stamps go, just as many as the bound of files wants."""
    for n in range(5):
        put("artifact", n, DAY * (n + 1))
    evicted = evict.evict(store, Bounds(1 << 40, 3), now=NOW)
    assert left(store) == {("artifact", n) for n in range(3)}
    assert evicted.removed["artifact"].files == evicted.total.files == 2
    assert (evicted.files, evicted.failed) == (3, 0)


def test_bound_of_bytes(store: Store, put) -> None:
    """The bytes of all files are brought under the bound, and counted as they were freed."""
    for n in range(4):
        put("artifact", n, DAY * (n + 1), size=1000)
    before = sum(entry.bytes for entry in scan.entries(store.root))
    evicted = evict.evict(store, Bounds(before - 1, 100), now=NOW)
    assert evicted.bytes == before - evicted.total.bytes < before
    assert left(store) == {("artifact", n) for n in range(3)}


def test_winners_outlive_all_else(store: Store, put) -> None:
    """Binaries go before checks and receipts, these before winners, whatever their age."""
    for kind in ("winner", "timing", "workload"):
        put(kind, 0, 20 * DAY)
    for kind in ("check", "receipt"):
        put(kind, 0, 10 * DAY)
    for kind in ("artifact", "source", "negative"):
        put(kind, 0, 60.0)
    evict.evict(store, Bounds(1 << 40, 5), now=NOW)
    assert {kind for kind, _ in left(store)} == {"winner", "timing", "workload", "check", "receipt"}
    evict.evict(store, Bounds(1 << 40, 3), now=NOW)
    assert {kind for kind, _ in left(store)} == {"winner", "timing", "workload"}
    evict.evict(store, Bounds(1 << 40, 0), now=NOW)
    assert left(store) == set()


def test_every_kind_has_a_rank() -> None:
    """No kind of record is forgotten, and the quarantine has none: it goes before all."""
    assert evict.RANKS.keys() == evict.KINDS


def test_the_last_hour_is_spared(store: Store, put) -> None:
    """What was used in the last hour stays while something of its rank is older, then goes, too."""
    put("artifact", 0, 59 * 60.0)
    put("artifact", 1, 61 * 60.0)
    put("artifact", 2, -10 * DAY)  # a clock that was wrong: neither old nor lately used
    evict.evict(store, Bounds(1 << 40, 2), now=NOW)
    assert left(store) == {("artifact", 0), ("artifact", 2)}
    evict.evict(store, Bounds(1 << 40, 1), now=NOW)
    assert left(store) == {("artifact", 0)}
    evict.evict(store, Bounds(1 << 40, 0), now=NOW)
    assert left(store) == set()


def test_within_bounds_nothing_goes(store: Store, put) -> None:
    """A cache within its bounds keeps all, however old."""
    put("artifact", 0, 1000 * DAY)
    assert evict.evict(store, ANY, now=NOW).total.files == 0
    assert left(store) == {("artifact", 0)}


def test_age_removes_what_was_not_used(store: Store, put) -> None:
    """`older_than_s` removes beyond the bounds, by last use, and never a winner."""
    for kind in ("artifact", "winner", "check"):
        put(kind, 0, 40 * DAY)
        put(kind, 1, 20 * DAY)
    evict.evict(store, ANY, older_than_s=30 * DAY, now=NOW)
    assert left(store) == {("artifact", 1), ("check", 1), ("winner", 0), ("winner", 1)}


def test_what_nobody_needs_is_swept(store: Store, put) -> None:
    """Temporaries and quarantine by age and number, journals of tunes given up; no bound needed."""
    put("timing", 0, 31 * DAY)
    put("timing", 1, 29 * DAY)
    for folder, name, age_s in (
        ("tmp", f"{'a' * 40}.1.{'0' * 16}", 2 * HOUR),
        ("tmp", f"{'b' * 40}.1.{'0' * 16}", HOUR / 2),
        ("tmp", "usage.json.1." + "0" * 16, 2 * HOUR),
        ("tmp", "thesis.tex", 1000 * DAY),
        ("quarantine", f"artifact-silu-{'a' * 40}-magic", 31 * DAY),
        *(("quarantine", f"artifact-silu-{n:040x}-magic", n) for n in range(70)),
    ):
        path = store.root / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (NOW - age_s, NOW - age_s))
    evicted = evict.evict(store, ANY, now=NOW)
    assert {name: one.files for name, one in evicted.removed.items()} == {
        "temporary": 2, "quarantined": 7, "timing": 1
    }  # fmt: skip
    assert sorted(path.name for path in (store.root / "tmp").iterdir()) == [
        f"{'b' * 40}.1.{'0' * 16}",
        "thesis.tex",
    ]
    assert left(store) == {("timing", 1)}


def test_what_changed_meanwhile_stays(store: Store, put, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is used or replaced between the look and the unlink is kept, others go on."""
    used, replaced, other = (put("artifact", n, DAY) for n in range(3))
    listed = scan.entries

    def then_something_happens(root: Path):
        found = [*listed(root)]
        os.utime(root / used.path, (NOW, NOW))
        store.put(replaced, {"new": 1})
        os.utime(root / replaced.path, (NOW - DAY, NOW - DAY))
        return found

    monkeypatch.setattr(scan, "entries", then_something_happens)
    evicted = evict.evict(store, Bounds(1 << 40, 0), now=NOW)
    assert left(store) == {("artifact", 0), ("artifact", 1)}
    assert evicted.total.files == 1
    assert not store.has(other)


def test_another_evictor_is_no_trouble(store: Store, put, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders that go away under it are no failure, and are not counted as its own."""
    for n in range(3):
        put("artifact", n, DAY)
    listed = scan.entries

    def then_all_goes(root: Path):
        found = [*listed(root)]
        monkeypatch.setattr(scan, "entries", listed)
        evict.evict(store, Bounds(0, 0), now=NOW)
        return found

    monkeypatch.setattr(scan, "entries", then_all_goes)
    evicted = evict.evict(store, Bounds(0, 0), now=NOW)
    assert (evicted.total.files, evicted.failed) == (0, 0)
    assert (evicted.files, evicted.bytes) == (0, 0)


def test_nothing_foreign_goes(store: Store, put, tmp_path: Path) -> None:
    """Files with other names or other beginnings, links and what they lead to all stay."""
    shard = (store.root / put("artifact", 0, DAY).path).parent
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    foreign = [shard / "notes", shard / ("0" * 40), store.root / "notes", elsewhere / ("1" * 40)]
    for path in foreign:
        path.write_text("mine")
        os.utime(path, (0, 0))
    (shard / ("2" * 40)).symlink_to(elsewhere / ("1" * 40))
    (store.root / "artifact" / "gelu").symlink_to(elsewhere)
    evict.evict(store, Bounds(0, 0), older_than_s=1.0, now=NOW)
    assert all(path.read_text() == "mine" for path in foreign)
    assert left(store) == set()
    assert (shard / ("2" * 40)).is_symlink()


def test_a_dry_run_says_what_a_run_does(store: Store, put) -> None:
    """A dry run removes and writes nothing, and gives the same figures as the run after it."""
    for n in range(4):
        put("artifact", n, DAY * n)
    planned = evict.evict(store, Bounds(1 << 40, 2), dry_run=True, now=NOW)
    assert len(left(store)) == 4
    assert read_usage(store) is None
    assert evict.evict(store, Bounds(1 << 40, 2), now=NOW) == planned


def test_folders_are_not_left_behind(store: Store, put) -> None:
    """Folders that eviction empties go with their files."""
    put("artifact", 0, DAY)
    evict.evict(store, Bounds(0, 0), now=NOW)
    assert not (store.root / "artifact").exists()


def test_what_cannot_be_removed_is_counted(
    store: Store, put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that refuses costs no exception: the failures are counted, with a reason."""
    put("artifact", 0, DAY)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refuse)
    evicted = evict.evict(store, Bounds(0, 0), now=NOW)
    assert evicted.failed == 1
    assert "Permission denied" in evicted.failure


# -- by itself --------------------------------------------------------------------------------


def test_a_put_beyond_the_bound_evicts(store: Store, put) -> None:
    """With a keeper in place, putting more than fits leaves the newest, within the bounds."""
    keeper = Keeper(store, Bounds(1 << 40, 10))
    for n in range(30):
        put("artifact", n, DAY - n)
        keeper.note(100, now=NOW)
    assert 8 <= len(left(store)) <= 10
    assert ("artifact", 29) in left(store)


def test_most_puts_look_at_nothing(store: Store, put, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first put of all counts the files; then each process adds, until a step or an hour."""
    scans: list[float] = []
    really = evict.evict
    monkeypatch.setattr(evict, "evict", lambda *a, **k: scans.append(k["now"]) or really(*a, **k))
    bounds = Bounds(1 << 40, 640)  # steps of ten files
    ours, theirs = Keeper(store, bounds), Keeper(store, bounds)
    ours.note(1, now=NOW)
    assert scans == [NOW]
    for _ in range(9):
        ours.note(1, now=NOW + 1)
    theirs.note(1, now=NOW + 1)
    assert read_usage(store) == (0, 0, NOW)
    ours.note(1, now=NOW + 2)
    ours.note(1, now=NOW + 2)
    usage = read_usage(store)
    assert usage is not None
    assert (usage.files, usage.scanned) == (11, NOW)
    assert scans == [NOW]
    theirs.note(1, now=NOW + 2 * HOUR)
    ours.note(1, now=NOW + 2 * HOUR)
    assert scans == [NOW, NOW + 2 * HOUR]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"bytes": -1, "files": 0, "scanned": 0}', "x" * 300, "[" * 200],
)
def test_a_bad_estimate_is_none(store: Store, text: str) -> None:
    """Whatever is in the file of the estimate, it is counted anew."""
    (store.root / evict.USAGE).write_text(text)
    assert read_usage(store) is None
    Keeper(store, ANY).note(1, now=NOW)
    assert read_usage(store) == (0, 0, NOW)


def test_a_keeper_that_fails_does_not_fail_the_put(
    store: Store, put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put is done when its record is in place; trouble with the bounds is only logged."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    store.after_put = Keeper(store, ANY).note
    monkeypatch.setattr(evict, "evict", fail)
    put("artifact", 0, DAY)
    assert left(store) == {("artifact", 0)}


# -- counters ---------------------------------------------------------------------------------


def test_counts_add_up(store: Store) -> None:
    """Counts of several processes are summed by name; nothing is written for no counts."""
    counters.add(store.root, {"hits": 0})
    assert not (store.root / counters.FILE).exists()
    counters.add(store.root, {"hits": 2, "misses": 1})
    counters.add(store.root, {"hits": 3})
    assert counters.total(store.root) == {"hits": 5, "misses": 1}
    assert stat.S_IMODE((store.root / counters.FILE).stat().st_mode) == 0o600


def test_bad_lines_count_nothing(store: Store) -> None:
    """Torn, foreign and negative lines are left out, the others still count."""
    lines = ["{", "[1]", '{"a": "b"}', '{"hits": -5}', '{"hits": 1}', "", "\x00", '{"x": true}']
    (store.root / counters.FILE).write_text("\n".join(lines) + "\n")
    assert counters.total(store.root) == {"hits": 1}


def test_counters_stay_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has grown is summed up into one line, and nothing is lost by that."""
    monkeypatch.setattr(counters, "COMPACT_BYTES", 100)
    for _ in range(50):
        counters.add(store.root, {"hits": 1})
    assert counters.total(store.root) == {"hits": 50}
    assert (store.root / counters.FILE).stat().st_size <= 100 + len(json.dumps({"hits": 50})) + 1


def test_a_link_is_not_written_through(store: Store, tmp_path: Path) -> None:
    """A link in the place of the counters is neither followed nor a failure."""
    (tmp_path / "mine").write_text("")
    (store.root / counters.FILE).symlink_to(tmp_path / "mine")
    counters.add(store.root, {"hits": 1})
    assert (tmp_path / "mine").read_text() == ""
    assert counters.total(store.root) == {}


def test_a_process_adds_its_counts_once(store: Store, spawn) -> None:
    """At exit a process, and a fork of it, add what each counted itself since it began."""
    code = """
import os, sys
from pathlib import Path
from jitd.cache import counters
root, counts = Path(sys.argv[1]), {"hits": 100}
counters.keep(counters.Tally(root, lambda: counts))
counts["hits"] += 1
child = os.fork()
if not child:
    counters.keep(counters.Tally(root, lambda: counts))
    counts["hits"] += 10
else:
    os.waitpid(child, 0)
"""
    assert spawn(code, store.root).exit_code() == 0
    assert counters.total(store.root) == {"hits": 11}
