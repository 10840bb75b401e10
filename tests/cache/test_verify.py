"""Verifying: each fault is found and named, what can be repaired is, and no more is touched."""

import os
from pathlib import Path

import pytest
from jitd.cache.keys import Key
from jitd.cache.records import MAGIC, Record
from jitd.cache.store import Store
from jitd.cache.verify import Fault, repair, verify

GOOD = Key.of("artifact", "silu", n=0)
BAD = Key.of("artifact", "silu", n=1)


@pytest.fixture
def full(store: Store) -> Store:
    for key in (GOOD, BAD, Key.of("winner", "gelu", n=0)):
        store.put(key, {"cubin": bytes(1000)})
    return store


def found(store: Store) -> dict[str, str]:
    return {fault.path: fault.what for fault in verify(store)}


def repaired(store: Store) -> list[bool]:
    return [repair(store, fault) for fault in [*verify(store)]]


def test_a_good_cache_has_no_fault(full: Store) -> None:
    """Nothing that jitd itself puts there is a fault, and every record is shown once."""
    (full.root / "locks").mkdir()
    (full.root / "locks" / "winner-0a.lock").touch(0o600)
    (full.root / "usage.json").touch(0o600)
    (full.root / "counters.jsonl").touch(0o600)
    seen: list[Record] = []
    assert list(verify(full, seen.append)) == []
    assert [record.key for record in seen] == [header.key for header in full.headers()]


def _flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: b"", "damaged"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data + b"\0", "damaged"),
        (lambda data: bytes(len(data)), "damaged"),
        (_flipped, "damaged"),
        (lambda data: data[:60] + b"\xff" + data[61:], "damaged"),
    ],
    ids=["empty", "short", "long", "zeros", "body", "header"],
)
def test_damage_is_found_and_set_aside(full: Store, change, what: str) -> None:
    """A record whose bytes changed, anywhere, is found, and moved to the quarantine."""
    path = full.root / BAD.path
    path.write_bytes(change(path.read_bytes()))
    assert found(full) == {BAD.path: what}
    assert repaired(full) == [True]
    assert found(full) == {}
    assert not path.exists()
    assert [one.name for one in (full.root / "quarantine").iterdir()] == [
        f"artifact-silu-{BAD.digest}-{what}"
    ]
    assert full.get(GOOD) is not None


def test_swapped_records_are_misplaced(full: Store) -> None:
    """A whole record under another's name is as bad as a damaged one."""
    (full.root / BAD.path).write_bytes((full.root / GOOD.path).read_bytes())
    assert found(full) == {BAD.path: "misplaced"}
    assert repaired(full) == [True]


def test_another_version_is_harmless(full: Store) -> None:
    """A record of another format is reported as such, and left to the jitd that reads it."""
    path = full.root / BAD.path
    data = path.read_bytes()
    path.write_bytes(MAGIC + b"\xff\xff" + data[len(MAGIC) + 2 :])
    (fault,) = verify(full)
    assert fault.what == "version"
    assert fault.is_harmless
    assert not repair(full, fault)
    assert path.exists()


def test_what_others_could_write_is_set_aside(full: Store) -> None:
    """A record that others could have written is not trusted; a folder loses the permission."""
    (full.root / BAD.path).chmod(0o666)
    (full.root / "winner").chmod(0o777)
    assert found(full) == {BAD.path: "permissions", "winner": "permissions"}
    assert repaired(full) == [True, True]
    assert found(full) == {}
    assert (full.root / "winner").stat().st_mode & 0o777 == 0o755


@pytest.mark.usefixtures("as_root")
def test_what_others_own_is_set_aside(full: Store) -> None:
    """A record of another user is not trusted; a folder of another user is only reported."""
    os.chown(full.root / BAD.path, 12345, 12345)
    os.chown(full.root / "winner", 12345, 12345)
    assert found(full) == {BAD.path: "owner", "winner": "owner"}
    assert repaired(full) == [True, False]
    assert found(full) == {"winner": "owner"}


def test_foreign_files_and_links_are_left_alone(full: Store, tmp_path: Path) -> None:
    """They are found wherever they are, without a remedy, and no repair touches them."""
    shard = (full.root / GOOD.path).parent
    foreign = [
        "thesis.tex",
        "artifact/thesis.tex",
        "artifact/silu/thesis.tex",
        "artifact/silu/zz/thesis.tex",
        f"{shard.relative_to(full.root)}/thesis.tex",
        "tmp/thesis.tex",
        "quarantine/thesis.tex",
        "locks/thesis.tex",
        "notes/thesis.tex",
    ]
    for name in foreign:
        (full.root / name).parent.mkdir(exist_ok=True)
        (full.root / name).write_text("years of work")
    links = ["artifact/gelu", "check", f"{shard.relative_to(full.root)}/{'0' * 40}"]
    for name in links:
        (full.root / name).symlink_to(tmp_path)
    (full.root / "source").write_text("a file in a folder's place")
    (shard / ("1" * 40)).mkdir()
    expected = {
        **dict.fromkeys(foreign, "foreign"),
        **dict.fromkeys(links, "link"),
        "source": "foreign",
        str((shard / ("1" * 40)).relative_to(full.root)): "foreign",
    }
    for inner, outer in (("artifact/silu/zz/thesis.tex", "artifact/silu/zz"),
                         ("notes/thesis.tex", "notes")):  # fmt: skip
        expected[outer] = expected.pop(inner)
    assert found(full) == expected
    assert not any(repaired(full))
    assert found(full) == expected


def test_stale_temporaries_are_swept(full: Store) -> None:
    """What a killed writer left is found after an hour and removed; what is younger is no fault."""
    stale, young = (full.root / "tmp" / f"{n * 40}.1.{'0' * 16}" for n in "ab")
    for path in (stale, young):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    assert found(full) == {f"tmp/{stale.name}": "temporary"}
    assert repaired(full) == [True]
    assert young.exists()
    assert not stale.exists()


def test_a_repair_looks_again(full: Store) -> None:
    """A good record that was put over a bad one since stays."""
    path = full.root / BAD.path
    path.write_bytes(b"bad")
    (fault,) = verify(full)
    full.put(BAD, {"n": 1})
    assert not repair(full, fault)
    assert full.get(BAD) is not None


def test_a_repair_does_not_follow_a_planted_link(full: Store, tmp_path: Path) -> None:
    """A link that takes a bad file's place before the repair is neither moved nor followed."""
    path = full.root / BAD.path
    path.write_bytes(b"bad")
    (fault,) = verify(full)
    path.unlink()
    (tmp_path / "mine").write_text("mine")
    path.symlink_to(tmp_path / "mine")
    planted = Fault(fault.path, fault.what, fault.detail, fault.remedy, path.lstat().st_ino)
    assert not repair(full, planted)
    assert path.is_symlink()


def test_what_goes_away_is_no_fault(full: Store) -> None:
    """A record that is evicted while the cache is verified is not missed."""
    for fault in verify(full, lambda record: full.delete(BAD) and None):
        pytest.fail(str(fault))
