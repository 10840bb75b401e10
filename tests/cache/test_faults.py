"""The fault table: what is wrong on the disk x who meets it.

Each cell demands: no exception but the documented one, no wrong bytes, the right counter, nothing
half-written, everything else untouched, and a put that mends it once the fault is gone. Failures of
the system's calls are in test_system_faults.py.
"""

import errno
import os
import shutil
import socket
import stat
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgpack
import pytest
from jitd.cache import bundle, counters
from jitd.cache.clear import clear_all
from jitd.cache.errors import CacheWriteError
from jitd.cache.evict import USAGE, Bounds, evict
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.records import FORMAT_VERSION, FRAME_BYTES, MAGIC
from jitd.cache.store import MAX_QUARANTINED, Store
from jitd.cache.tiers import store_over

KEY = Key.of("winner", "silu", dtype="bf16", shape=(1, 1024))
WITNESS = Key.of("winner", "silu", dtype="bf16", shape=(2, 2048))
BODY = {"us": 1.5, "cubin": b"\x7fELF" + bytes(range(256)) * 8}
NEW = {"us": 1.25, "cubin": b"\x7fELF" + bytes(256)}
FRAME = struct.Struct("<8sHIQ16s")


@dataclass
class Case:
    """A store with the record that is to be damaged and one that is not."""

    store: Store
    tmp: Path

    @property
    def path(self) -> Path:
        return self.store.root / KEY.path

    def at(self, relative: str) -> Path:
        return self.store.root / relative

    def fresh(self) -> Store:
        """The same cache as another process sees it: no counts, nothing said yet."""
        return Store(self.store.root)


@dataclass(frozen=True)
class Fault:
    """Something wrong, and what is to come of it.

    counter     what a reader of the record counts for each look; several names: any of them
    listed      what a lister counts, if that differs
    intact      the record itself is untouched: readers find it
    header_ok   the header is: `has` and listing do not read the body
    stays       the file is not moved aside when it is read
    obstacle    what has to be removed before a put can work, below the root; "" if nothing
    """

    name: str
    plant: Callable[[Case], object]
    counter: str = ""
    listed: str | None = None
    intact: bool = False
    header_ok: bool = False
    stays: bool = False
    obstacle: str = ""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


# -- faults -----------------------------------------------------------------------------------


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Case], object]:
    return lambda case: case.path.write_bytes(change(case.path.read_bytes()))


def flipped(position: int, bit: int = 0) -> Callable[[Case], object]:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1 << bit
        return bytes(changed)

    return replaced(flip)


def header_bytes(data: bytes) -> int:
    return int(FRAME.unpack_from(data)[2])


def checksum(*pieces: bytes) -> bytes:
    return blake2b(b"".join(pieces), digest_size=16).digest()


def crafted(header: bytes | None, body: bytes | None) -> Callable[[Case], object]:
    """A file with right checksums around a wrong header or body; None: the real one."""

    def craft(data: bytes) -> bytes:
        end = FRAME_BYTES + header_bytes(data)
        head = data[FRAME_BYTES:end] if header is None else header
        tail = data[end:] if body is None else body
        fixed = FRAME.pack(MAGIC, FORMAT_VERSION, len(head), len(tail), checksum(tail))
        return fixed + checksum(fixed, head) + head + tail

    return replaced(craft)


def header_with(**changes: object) -> Callable[[Case], object]:
    def plant(case: Case) -> None:
        data = case.path.read_bytes()
        fields = msgpack.unpackb(data[FRAME_BYTES : FRAME_BYTES + header_bytes(data)])
        crafted(msgpack.packb({**fields, **changes}), None)(case)

    return plant


def record_of(key: Key) -> Callable[[Case], object]:
    def swap(case: Case) -> None:
        other = Store(open_root(case.tmp / "other"))
        other.put(key, NEW)
        shutil.copy(other.root / key.path, case.path)

    return swap


def instead(make: Callable[[Path, Case], object]) -> Callable[[Case], object]:
    """Something that is no file in the record's place."""

    def plant(case: Case) -> None:
        case.path.unlink()
        make(case.path, case)

    return plant


def link_to_a_good_record(path: Path, case: Case) -> None:
    other = Store(open_root(case.tmp / "other"))
    other.put(KEY, NEW)
    path.symlink_to(other.root / KEY.path)


def bound_socket(path: Path, case: Case) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(case.tmp / "s"))  # a path below a root is too long for a socket's name
    (case.tmp / "s").rename(path)


def device(path: Path, _: Case) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: never ends
    except PermissionError:
        pytest.skip("needs to make a device file")


def file_instead_of(relative: str) -> Callable[[Case], object]:
    def plant(case: Case) -> None:
        shutil.rmtree(case.at(relative), ignore_errors=True)
        case.at(relative).write_text("not a folder")

    return plant


def beside(relative: str, data: bytes = b"foreign") -> Callable[[Case], object]:
    def plant(case: Case) -> None:
        path = case.at(relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return plant


def full_quarantine(case: Case) -> None:
    for n in range(MAX_QUARANTINED):
        beside(f"quarantine/winner-silu-{n:040x}-magic")(case)
    replaced(lambda _: b"garbage!")(case)


def quarantine_in_the_way(case: Case) -> None:
    case.at("quarantine").write_text("not a folder")
    replaced(lambda _: b"garbage!")(case)


def many_temporaries(case: Case) -> None:
    data = case.path.read_bytes()
    for n in range(3):
        beside(f"tmp/{KEY.digest}.{n}.{'0' * 16}", data[: 100 * n])(case)


SHARD = KEY.path.rpartition("/")[0]
HEADER_END = -len(msgpack.packb(BODY))
LENGTHS = "bad:length bad:truncated"

FAULTS = [
    # cut short
    *(
        Fault(f"cut to {size} bytes", replaced(lambda data, n=size: data[:n]), "bad:truncated")
        for size in (0, 1, len(MAGIC) - 1, len(MAGIC), FRAME_BYTES - 1, FRAME_BYTES)
    ),
    Fault(
        "cut in the header",
        replaced(lambda data: data[: FRAME_BYTES + header_bytes(data) // 2]),
        "bad:truncated",
    ),
    Fault(
        "cut after the header",
        replaced(lambda data: data[: FRAME_BYTES + header_bytes(data)]),
        "bad:truncated",
    ),
    Fault("cut by one byte", replaced(lambda data: data[:-1]), "bad:truncated"),
    # one bit
    Fault("bit of the magic", flipped(0), "bad:magic"),
    Fault("bit of the magic's end", flipped(len(MAGIC) - 1, 7), "bad:magic"),
    Fault("bit of the version", flipped(8, 1), "bad:version", stays=True),
    Fault("low bit of the header's length", flipped(10), LENGTHS),
    Fault("high bit of the header's length", flipped(13, 7), "bad:length"),
    Fault("low bit of the body's length", flipped(14), LENGTHS),
    Fault("high bit of the body's length", flipped(21, 7), "bad:length"),
    Fault("bit of the body's checksum", flipped(22), "bad:checksum"),
    Fault("bit of the header's checksum", flipped(38, 3), "bad:checksum"),
    Fault("bit of the header's start", flipped(FRAME_BYTES), "bad:checksum"),
    Fault("bit of the header's end", flipped(HEADER_END - 1, 5), "bad:checksum"),
    Fault("bit of the body's start", flipped(HEADER_END), "bad:checksum", header_ok=True),
    Fault("bit of the body's middle", flipped(HEADER_END // 2, 6), "bad:checksum", header_ok=True),
    Fault("bit of the body's end", flipped(-1, 7), "bad:checksum", header_ok=True),
    # other bytes
    Fault("zeros of the same length", replaced(lambda data: bytes(len(data))), "bad:magic"),
    Fault(
        "zeros in the second half",
        replaced(lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2)),
        "bad:checksum",
        header_ok=True,
    ),
    Fault("one byte too many", replaced(lambda data: data + b"\0"), "bad:length"),
    Fault("written twice", replaced(lambda data: data * 2), "bad:length"),
    Fault("a mebibyte too many", replaced(lambda data: data + bytes(1 << 20)), "bad:length"),
    Fault("newlines converted", replaced(lambda d: d.replace(b"\n", b"\r\n")), "bad:magic"),
    Fault("a script", replaced(lambda _: b"#!/bin/sh\nexit 1\n" * 99), "bad:magic"),
    Fault("a pickle", replaced(lambda _: b"\x80\x04cos\nsystem\n." * 9), "bad:magic"),
    # another record's bytes
    Fault("record of another key", record_of(WITNESS), "bad:key"),
    Fault("record of another op", record_of(Key("winner", "gelu", KEY.parts)), "bad:key"),
    Fault("record of another kind", record_of(Key("artifact", "silu", KEY.parts)), "bad:kind"),
    Fault("older format", replaced(lambda d: d[:8] + b"\0\0" + d[10:]), "bad:version", stays=True),
    Fault(
        "newer format", replaced(lambda d: d[:8] + b"\x02\0" + d[10:]), "bad:version", stays=True
    ),
    # lengths that would not fit
    Fault(
        "claims the most that is allowed",
        replaced(lambda d: FRAME.pack(MAGIC, FORMAT_VERSION, 1 << 20, 256 << 20, bytes(16)) + d),
        "bad:truncated",
    ),
    Fault(
        "claims 2**64 bytes",
        replaced(lambda d: FRAME.pack(MAGIC, FORMAT_VERSION, 1, 2**64 - 1, bytes(16)) + d),
        "bad:length",
    ),
    # right checksums around nonsense
    Fault("header is no msgpack", crafted(b"\xc1" * 50, None), "bad:decode"),
    Fault("header is a list", crafted(msgpack.packb([1, 2]), None), "bad:decode"),
    Fault("header lacks fields", crafted(msgpack.packb({"kind": "winner"}), None), "bad:decode"),
    Fault("header of an unknown kind", header_with(kind="spell"), "bad:kind"),
    Fault("header with a path for an op", header_with(op="../../etc"), "bad:key"),
    Fault("header with another digest", header_with(digest="0" * 40), "bad:key"),
    Fault(
        "header with other parts",
        header_with(parts=WITNESS.parts),
        "bad:key",
        header_ok=True,
    ),
    Fault("header with text for a part", header_with(parts=["dtype"]), "bad:decode"),
    Fault("header with text for a time", header_with(created="today"), "bad:decode"),
    Fault("header claims a huge array", crafted(b"\xdd\xff\xff\xff\xff", None), "bad:decode"),
    Fault("header nested deeply", crafted(b"\x91" * 5000 + b"\xc0", None), "bad:decode"),
    Fault("body is no msgpack", crafted(None, b"\xc1"), "bad:decode", header_ok=True),
    Fault("body is empty", crafted(None, b""), "bad:decode", header_ok=True),
    Fault("body is a number", crafted(None, b"\x07"), "bad:decode", header_ok=True),
    Fault(
        "body claims a huge map",
        crafted(None, b"\xdf\xff\xff\xff\xff"),
        "bad:decode",
        header_ok=True,
    ),
    Fault(
        "body with an extension",
        crafted(None, msgpack.packb({"a": msgpack.ExtType(5, b"x")})),
        "bad:decode",
        header_ok=True,
    ),
    # no file in its place
    Fault("gone", instead(lambda path, case: None)),
    Fault(
        "a folder",
        instead(lambda path, case: path.mkdir()),
        "unreadable:EISDIR",
        stays=True,
        obstacle=KEY.path,
    ),
    Fault(
        "a folder in use",
        instead(lambda path, case: (path / "inside").mkdir(parents=True)),
        "unreadable:EISDIR",
        stays=True,
        obstacle=KEY.path,
    ),
    Fault(
        "a pipe",
        instead(lambda path, case: os.mkfifo(path)),
        "unreadable:EINVAL",
        stays=True,
    ),
    Fault("a socket", instead(bound_socket), "unreadable:ENXIO", stays=True),
    Fault("a device", instead(device), "unreadable:EINVAL", stays=True),
    Fault(
        "a dangling link",
        instead(lambda path, case: path.symlink_to(case.tmp / "nowhere")),
        "unreadable:ELOOP",
        stays=True,
    ),
    Fault("a link to a record", instead(link_to_a_good_record), "unreadable:ELOOP", stays=True),
    Fault(
        "a link to itself",
        instead(lambda path, case: path.symlink_to(path)),
        "unreadable:ELOOP",
        stays=True,
    ),
    Fault(
        "a link to a folder",
        instead(lambda path, case: path.symlink_to(case.tmp)),
        "unreadable:ELOOP",
        stays=True,
    ),
    # no folder in a folder's place
    *(
        Fault(
            f"a file for {what}",
            file_instead_of(place),
            "unreadable:ENOTDIR",
            listed="",
            stays=True,
            obstacle=place,
        )
        for what, place in (
            ("the kind's folder", "winner"),
            ("the op's folder", "winner/silu"),
            ("the inner folder", SHARD),
        )
    ),
    # beside the record
    Fault("a file for tmp", file_instead_of("tmp"), intact=True, obstacle="tmp"),
    Fault("temporaries of the same record", many_temporaries, intact=True),
    Fault("a temporary of another name", beside("tmp/foreign"), intact=True),
    Fault("a folder in tmp", beside("tmp/folder/foreign"), intact=True),
    Fault("foreign file in the root", beside("foreign"), intact=True),
    Fault("foreign folder in the root", beside("foreign/winner/silu"), intact=True),
    Fault("foreign file among the ops", beside("winner/foreign"), intact=True),
    Fault("foreign file in the op's folder", beside("winner/silu/foreign"), intact=True),
    Fault(
        "foreign file in the inner folder",
        beside(f"{SHARD}/.nfs0001"),
        listed="bad:magic bad:truncated",
        intact=True,
    ),
    Fault("full quarantine", full_quarantine, "bad:magic"),
    Fault("a file for quarantine", quarantine_in_the_way, "bad:magic", stays=True),
]
assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


# -- actors -----------------------------------------------------------------------------------


def complaints(store: Store) -> dict[str, int]:
    return {
        name: number
        for name, number in store.counters.items()
        if name.startswith(("bad:", "unreadable:"))
    }


def assert_counted(store: Store, expected: str) -> None:
    """Exactly one complaint, of an expected name; none if nothing is expected."""
    found = complaints(store)
    assert sum(found.values()) == bool(expected), found
    assert set(found) <= set(expected.split())


def body_of(store: Store, key: Key) -> object:
    record = store.get(key)
    return record and record.body


def reader(case: Case, fault: Fault) -> None:
    """`get`: the right bytes or a miss; a bad file is moved aside, and the next look is quiet."""
    store = case.fresh()
    planted = os.path.lexists(case.path)
    assert body_of(store, KEY) == (BODY if fault.intact else None)
    assert_counted(store, fault.counter)
    assert (store.counters["hits"], store.counters["misses"]) == (fault.intact, not fault.intact)
    assert os.path.lexists(case.path) == (planted and (fault.intact or fault.stays))
    again = case.fresh()
    assert body_of(again, KEY) == (BODY if fault.intact else None)
    assert_counted(again, fault.counter if fault.stays else "")


def asker(case: Case, fault: Fault) -> None:
    """`has` and `is_intact`: no for what has no intact header; nothing is moved."""
    for ask in (lambda store: store.has(KEY), lambda store: store.is_intact(KEY.path)):
        store = case.fresh()
        planted = os.path.lexists(case.path)
        found = fault.intact or fault.header_ok
        assert ask(store) is found
        # Without the key, a header is wrong for other reasons, but wrong.
        assert (sum(complaints(store).values()) > 0) == (bool(fault.counter) and not found)
        assert os.path.lexists(case.path) == planted


def lister(case: Case, fault: Fault) -> None:
    """`headers`: every intact header once; `record_for` of it gives the right bytes or nothing."""
    store = case.fresh()
    found = {header.key: header for header in store.headers()}
    expected = {KEY} if fault.intact or fault.header_ok else set()
    witness = {WITNESS} if (store.root / WITNESS.path).exists() else set()
    assert set(found) == expected | witness
    listed = fault.counter if fault.listed is None else fault.listed
    assert sum(complaints(store).values()) == (bool(listed) and not fault.header_ok)
    if KEY in found:
        record = store.record_for(found[KEY])
        assert (record and record.body) == (BODY if fault.intact else None)


def writer(case: Case, fault: Fault) -> None:
    """`put`: replaces whatever is there, or says why not and leaves nothing half-written."""
    store = case.fresh()
    before = leftovers(store)
    if fault.obstacle:
        with pytest.raises(CacheWriteError) as caught:
            store.put(KEY, NEW)
        assert caught.value.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY)
        assert store.counters["puts"] == 0
        assert body_of(store, KEY) == (BODY if fault.intact else None)
    else:
        store.put(KEY, NEW)
        assert store.counters == {"puts": 1}
        assert body_of(store, KEY) == NEW
    assert leftovers(store) == before


def remover(case: Case, fault: Fault) -> None:
    """`delete`: a regular file goes, whatever is in it; nothing else does, and nothing is said."""
    store = case.fresh()
    there = os.path.lexists(case.path)
    regular = there and stat.S_ISREG(case.path.lstat().st_mode)
    assert store.delete(KEY) is regular
    assert os.path.lexists(case.path) == (there and not regular)
    assert body_of(store, KEY) is None


def clearer(case: Case, fault: Fault) -> None:
    """`clear_all`: what jitd wrote goes, foreign things and links stay."""
    store = case.fresh()
    there = os.path.lexists(case.path)
    ours = there and stat.S_ISREG(case.path.lstat().st_mode) and _begins_with_magic(case.path)
    foreign = [path for path in store.root.rglob("*") if "foreign" in path.name]
    clear_all(store)
    assert os.path.lexists(case.path) == (there and not ours)
    assert all(path.exists() for path in foreign)
    assert not (store.root / WITNESS.path).is_file()
    assert not [path for path in (case.at("tmp").glob("*.*.*") if case.at("tmp").is_dir() else ())]


def reader_in_front(case: Case, fault: Fault) -> None:
    """A fault in a read-only folder: another has the record, and the folder is left as it is."""
    front, last = (Store(open_root(case.tmp / name)) for name in ("front", "last"))
    last.put(KEY, BODY)
    before = snapshot(case.store.root)
    store = store_over(Store, front.root, [case.store.root, last.root])
    assert body_of(store, KEY) == BODY
    assert_counted(store, fault.counter)
    assert store.has(KEY)
    [header] = [header for header in store.headers() if header.key == KEY]
    assert header.tier == (1 if fault.intact or fault.header_ok else 2)
    record = store.record_for(header)
    assert record is not None
    assert record.body == BODY
    store.put(KEY, NEW)
    assert body_of(store, KEY) == NEW
    assert snapshot(case.store.root) == before


def evictor(case: Case, fault: Fault) -> None:
    """`evict`: within bounds all stays; beyond them what jitd wrote goes, all else stays."""
    store = case.fresh()
    before = regular_files(store.root)
    assert evict(store, Bounds()).total.files == 0
    assert regular_files(store.root) == before
    there = os.path.lexists(case.path)
    ours = there and stat.S_ISREG(case.path.lstat().st_mode) and _begins_with_magic(case.path)
    foreign = [path for path in store.root.rglob("*") if "foreign" in path.name]
    evicted = evict(store, Bounds(0, 0))
    assert os.path.lexists(case.path) == (there and not ours)
    assert all(path.exists() for path in foreign)
    assert not (store.root / WITNESS.path).is_file()
    assert evicted.failed == 0
    assert counters.total(store.root)["evictions"] == evicted.total.files
    assert body_of(store, KEY) is None


def exporter(case: Case, fault: Fault) -> None:
    """A bundle of all that is listed holds what is right, and only that."""
    store = case.fresh()
    expected: dict[Key, object] = {KEY: BODY} if fault.intact else {}
    if (store.root / WITNESS.path).is_file():
        expected[WITNESS] = NEW
    records = [store.record_for(header) for header in store.headers("winner")]
    file = case.tmp / "bundle.jitd"
    bundle.write(file, [record for record in records if record])
    with bundle.opened(file) as opened:
        assert {record.key: record.body for record in opened.records()} == expected
    assert [path.name for path in case.tmp.glob("*bundle*")] == [file.name]


ACTORS = [reader, asker, lister, writer, remover, clearer, reader_in_front, evictor, exporter]
EMPTYING = (clearer, evictor)


def leftovers(store: Store) -> list[str]:
    folder = store.root / "tmp"
    return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208


def snapshot(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): (
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
            path.lstat().st_size,
        )
        for path in root.rglob("*")
    }


def regular_files(root: Path) -> dict[str, object]:
    """All but the estimate of how much there is."""
    found = snapshot(root)
    return {name: found[name] for name in found if (root / name).is_file() and name != USAGE}


def _begins_with_magic(path: Path) -> bool:
    return path.read_bytes().startswith(MAGIC)


def remove_whatever(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


@pytest.fixture
def case(store: Store, tmp_path: Path) -> Case:
    store.put(KEY, BODY)
    store.put(WITNESS, NEW)
    return Case(store, tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("actor", ACTORS, ids=lambda actor: actor.__name__)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_fault_table(case: Case, fault: Fault, actor: Callable[[Case, Fault], None]) -> None:
    """Whatever is wrong on the disk, nobody crashes or gets wrong bytes, and a put mends it."""
    fault.plant(case)
    witness = (case.store.root / WITNESS.path).is_file()
    actor(case, fault)
    store = case.fresh()
    if actor not in EMPTYING:
        assert body_of(store, WITNESS) == (NEW if witness else None)
    if fault.obstacle:
        remove_whatever(case.at(fault.obstacle))
    store.put(KEY, NEW)
    assert body_of(store, KEY) == NEW
    assert store.has(KEY)
    assert KEY in {header.key for header in store.headers()}


def test_a_claim_costs_no_memory(case: Case) -> None:
    """A small file that claims the most that is allowed is refused before that much is taken."""
    claim = FRAME.pack(MAGIC, FORMAT_VERSION, 1 << 20, 256 << 20, bytes(16))
    case.path.write_bytes(claim + bytes(1000))
    store = case.fresh()
    tracemalloc.start()
    try:
        assert [header.key for header in store.headers()] == [WITNESS]
        assert store.get(KEY) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20
