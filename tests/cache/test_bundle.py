"""The bundle's format: what comes back, and that hostile files give nothing else."""

import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jitd.cache import bundle, records
from jitd.cache.bundle import opened, write
from jitd.cache.errors import BadBundle, CacheWriteError
from jitd.cache.keys import Key
from jitd.cache.records import Record, decode, encode

HEAD_BYTES = 120
BODY = {"config": {"BLOCK": 1024}, "cubin": b"\x00\x01" * 40, "none": None}


def record(key: Key, created: float = 17.0) -> Record:
    data = encode(key, BODY, label="silu[bf16](1x2)", meta={"shape": [1, 2]}, created=created)
    return decode(data, key)


def sample() -> list[Record]:
    keys = [Key.of(kind, "silu", n=n) for kind in ("artifact", "winner") for n in range(3)]
    return [record(key) for key in sorted(keys, key=lambda key: key.path)]


def contents(path: Path) -> list[Record]:
    with opened(path) as found:
        return list(found.records())


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


def put_together(
    entries: list[tuple[str, bytes]],
    *,
    lines: bytes | None = None,
    version: int = 1,
    signature: bytes = b"",
    claims: dict[str, int] | None = None,
) -> bytes:
    """A file with right digests around any names and records, written from the description."""
    payload = b"".join(data for _, data in entries)
    manifest = lines
    if manifest is None:
        each = (f"{name} {len(data)} {digest(data).hex()}\n" for name, data in entries)
        manifest = "".join(each).encode()
    sizes = {"signed": len(signature), "manifest": len(manifest), "payload": len(payload)}
    sizes |= claims or {}
    head = struct.pack("<8sHHIQ", b"\x93jitb\r\n\x1a", version, *sizes.values())
    return head + digest(manifest) + signature.ljust(64, b"\0") + payload + manifest


def entry(key: Key, created: float = 0.0) -> tuple[str, bytes]:
    return key.path, encode(key, BODY, label="", meta={}, created=created)


SILU = Key.of("winner", "silu", n=1)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """The reason why a file is no bundle."""

    def why(data: bytes) -> str:
        path = tmp_path / "hostile"
        path.write_bytes(data)
        with pytest.raises(BadBundle) as caught:
            contents(path)
        return caught.value.reason

    return why


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write(tmp_path / "good", sample())
    return tmp_path / "good"


def test_what_was_written_comes_back(good: Path) -> None:
    """Keys, labels, meta and bodies survive; the time of making does not."""
    for found, wanted in zip(contents(good), sample(), strict=True):
        assert found.body == wanted.body
        assert found.header.parts == wanted.header.parts
        assert (found.header.label, found.header.meta) == (wanted.header.label, wanted.header.meta)
        assert found.header.created == 0.0


def test_the_format_is_as_described(good: Path) -> None:
    """A file put together from the description in the module is the file that is written."""
    how = {"label": "silu[bf16](1x2)", "meta": {"shape": [1, 2]}, "created": 0.0}
    entries = [(one.header.path, encode(one.key, BODY, **how)) for one in sample()]
    assert put_together(entries) == good.read_bytes()


def test_time_and_place_leave_no_trace(good: Path, tmp_path: Path) -> None:
    """The same records of another time, written elsewhere, are the same bytes."""
    (tmp_path / "there").mkdir()
    later = [replace(one, header=replace(one.header, created=99.0, inode=5)) for one in sample()]
    write(tmp_path / "there" / "other", later)
    assert (tmp_path / "there" / "other").read_bytes() == good.read_bytes()


def test_one_record_at_a_time(tmp_path: Path) -> None:
    """Writing and reading 60 MB in records of 2 MB takes the memory of a few records."""
    keys = sorted((Key.of("artifact", "big", n=n) for n in range(30)), key=lambda key: key.path)

    def each() -> Iterator[Record]:
        for key in keys:
            data = encode(key, {"cubin": bytes(2 << 20)}, label="", meta={}, created=1.0)
            yield decode(data, key)

    tracemalloc.start()
    try:
        write(tmp_path / "big", each())
        with opened(tmp_path / "big") as found:
            assert sum(1 for _ in found.records()) == len(keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


def test_only_some_records_are_read(good: Path) -> None:
    """Those asked for, and no other, are read and verified."""
    wanted = sample()[4]
    with opened(good) as found:
        assert [one.key for one in found.records({wanted.header.path})] == [wanted.key]


def test_what_no_bundle_holds(tmp_path: Path) -> None:
    """Records of kinds that stay at home, in no order or twice are refused, and no file is left."""
    one, two = sample()[:2]
    note = record(Key.of("workload", "resume", request="x"))
    for wrong in ([note], [two, one], [one, one]):
        with pytest.raises(BadBundle):
            write(tmp_path / "b", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails says so, and leaves neither half a bundle nor a temporary file."""
    (tmp_path / "b").write_text("the bundle of yesterday")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheWriteError, match="No space left"):
        write(tmp_path / "b", sample())
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_text() == "the bundle of yesterday"


def test_a_file_that_changes_while_it_is_read(good: Path) -> None:
    """What changed after it was verified is refused when it is read again."""
    with opened(good) as found:
        assert len(list(found.records())) == 6
        data = bytearray(good.read_bytes())
        data[HEAD_BYTES + 200] ^= 1
        good.write_bytes(data)
        with pytest.raises(BadBundle, match="not what the manifest lists"):
            list(found.records())


# -- hostile ----------------------------------------------------------------------------------


def test_every_truncation_is_refused(good: Path, refused: Callable[[bytes], str]) -> None:
    """A bundle cut at any length is no bundle."""
    data = good.read_bytes()
    for length in range(len(data)):
        assert "cut short" in refused(data[:length]) or length < 8


def test_every_flipped_bit_is_refused(good: Path, refused: Callable[[bytes], str]) -> None:
    """No single flipped bit, anywhere in an unsigned bundle, goes unnoticed."""
    data = good.read_bytes()
    for index in range(len(data)):
        damaged = bytearray(data)
        damaged[index] ^= 1 << index % 8
        refused(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (put_together([entry(SILU)]) + b"\0", "too long"),
        (put_together([entry(SILU)], version=2), "format 2"),
        (b"PK" + put_together([entry(SILU)]), "begins with"),
        (put_together([entry(SILU)], claims={"signed": 7}), "a signature of 7"),
        (put_together([entry(SILU)], claims={"manifest": 2**32 - 1}), "claims a manifest"),
        (put_together([entry(SILU)], claims={"payload": 2**64 - 1}), "cut short"),
        (put_together([entry(SILU)], claims={"payload": 0}), "too long"),
        (put_together([entry(SILU), entry(SILU)]), "listed twice"),
        (put_together([entry(SILU), entry(Key.of("artifact", "a", n=1))]), "listed after"),
        (put_together([entry(Key.of("workload", "resume", n=1))]), "kind 'workload'"),
        (put_together([entry(Key.of("receipt", "ltx2", n=1))]), "kind 'receipt'"),
        (put_together([("winer" + SILU.path[6:], entry(SILU)[1])]), "kind 'winer'"),
        (put_together([(SILU.path, entry(Key.of("winner", "silu", n=2))[1])]), "the record of"),
        (put_together([entry(SILU, created=1.0)]), "a time"),
        (put_together([(SILU.path, b"not a record" * 20)]), "bad record (magic)"),
        (put_together([(SILU.path, entry(SILU)[1] + b"\0")]), "bad record (length)"),
        (put_together([entry(SILU)], lines=b""), "does not add up"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_hostile_files_under_right_digests(
    data: bytes, reason: str, refused: Callable[[bytes], str]
) -> None:
    """Whoever can compute digests still gets nothing wrong past the rest, and reads why."""
    assert reason in refused(data)


@pytest.mark.parametrize(
    "name",
    [
        "winner/../../../etc/passwd",
        "/etc/passwd",
        "winner/../aa/" + "a" * 40,
        "winner/.ssh/aa/" + "a" * 40,
        "winner/silu/../" + "a" * 40,
        "winner/silu/ab/" + "a" * 40,
        "winner/si/lu/aa/" + "a" * 40,
        "winner/silu/aa/" + "a" * 39,
        "winner/SILU/aa/" + "a" * 40,
        "winner/silu\n/aa/" + "a" * 40,
        "winner/silu\0/aa/" + "a" * 40,
        "winner/" + "s" * 300 + "/aa/" + "a" * 40,
        "..",
        "",
    ],
)
def test_names_that_lead_elsewhere(name: str, refused: Callable[[bytes], str]) -> None:
    """A name that is no path of a record is refused as it is read."""
    assert "no line of a manifest" in refused(put_together([(name, entry(SILU)[1])]))


@pytest.mark.parametrize("op", ["../../etc", "/etc", "..", "a/b", ".hidden", "A", ""])
def test_ops_that_lead_elsewhere(op: str, refused: Callable[[bytes], str]) -> None:
    """A record whose header claims an op that is no name is refused, whatever the manifest says."""
    header = {"kind": "winner", "op": op, "digest": SILU.digest, "parts": SILU.parts}
    header |= {"label": "", "created": 0.0, "meta": {}}
    data = sealed(msgpack.packb(header), msgpack.packb({}))
    assert "bad record (key)" in refused(put_together([(SILU.path, data)]))


@pytest.mark.parametrize("size", [2**26 + 1, 2**33 - 1, 10**10])
def test_giant_records_are_refused_by_their_claim(
    size: int, refused: Callable[[bytes], str]
) -> None:
    """A size over its bound is refused before anything of that size is made or read."""
    line = f"{SILU.path} {size} {'0' * 64}\n".encode()
    reason = refused(put_together([], lines=line))
    assert "allowed 67108864" in reason or "no line" in reason


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_bomb_is_refused_before_it_is_decoded(
    part: str, refused: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million empty lists, two megabytes in the file and a hundred in memory, are counted and
    refused."""
    bomb = b"\x81\xa1x\xdd" + struct.pack(">I", 2 << 20) + b"\x90" * (2 << 20)
    header = {"kind": "winner", "op": "silu", "digest": SILU.digest, "parts": SILU.parts}
    header |= {"label": "", "created": 0.0, "meta": {}}
    monkeypatch.setattr(records, "MAX_HEADER_BYTES", 4 << 20)
    parts = (bomb, b"\x80") if part == "header" else (msgpack.packb(header), bomb)
    assert "values in" in refused(put_together([(SILU.path, sealed(*parts))]))


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "device"])
def test_what_is_no_file(what: str, good: Path, tmp_path: Path) -> None:
    """A link, a pipe, a folder in a bundle's place is refused at once; nothing waits for it."""
    place = tmp_path / "place"
    match what:
        case "link":
            place.symlink_to(good)
        case "fifo":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "device":
            place = Path("/dev/null")
    with pytest.raises(BadBundle, match="link" if what == "link" else "no regular file"):
        contents(place)


def sealed(header: bytes, body: bytes) -> bytes:
    """A record file with right checksums around any header and body."""
    start = struct.pack("<8sHIQ", records.MAGIC, 1, len(header), len(body))
    start += blake2b(body, digest_size=16).digest()
    return start + blake2b(start + header, digest_size=16).digest() + header + body


# -- fuzzed -----------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=40)),
    min_size=1,
    max_size=5,
)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for start, length, new in edits:
        at = start % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


def fuzz(examples: int, folder: Path) -> None:
    """Edited files; edited manifests and records under digests that are right again."""
    path = folder / "fuzzed"
    whole = [entry(one.key) for one in sample()]
    data = put_together(whole)
    lines = b"".join(f"{n} {len(d)} {digest(d).hex()}\n".encode() for n, d in whole)

    def survives(changed: bytes) -> None:
        path.write_bytes(changed)
        try:
            found = contents(path)
        except BadBundle:
            return
        for one in found:  # whatever it is: it is a record, at home where its key says
            assert one.key == Key(one.key.kind, one.key.op, one.key.parts)
            assert one.key.kind in bundle.CARRIED
        keys = [one.header.path for one in found]
        assert keys == sorted(set(keys))

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        target=st.sampled_from(["file", "manifest", "record", "header"]),
        which=st.integers(0, 5),
        edits=EDITS,
    )
    @example(target="file", which=0, edits=[(0, 0, b"")])
    def run(target: str, which: int, edits: list[tuple[int, int, bytes]]) -> None:
        if target == "file":
            changed = edited(data, edits)
            path.write_bytes(changed)
            if changed == data:
                assert len(contents(path)) == 6
            else:
                with pytest.raises(BadBundle):
                    contents(path)
        elif target == "manifest":
            survives(put_together(whole, lines=edited(lines, edits)))
        else:
            name, one = whole[which]
            if target == "record":
                one = edited(one, edits)
            else:
                size = struct.unpack_from("<8sHIQ", one)[2]
                start = records.FRAME_BYTES + size
                one = sealed(edited(one[records.FRAME_BYTES : start], edits), one[start:])
            survives(put_together([*whole[:which], (name, one), *whole[which + 1 :]]))

    run()


def test_fuzzed_bundles(tmp_path: Path) -> None:
    """Thousands of edits: an edited file is refused; under new digests only true records pass."""
    fuzz(3000, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fuzzed_bundles_at_length(tmp_path: Path) -> None:
    """The same, a quarter of a million times."""
    fuzz(250_000, tmp_path)
