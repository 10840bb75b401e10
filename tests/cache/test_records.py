"""The record format: what comes back, and that nothing else ever does."""

import random
import struct
from hashlib import blake2b

import msgpack
import pytest
from jitd.cache import records
from jitd.cache.errors import CAUSES, BadRecord, BadValue
from jitd.cache.keys import Key
from jitd.cache.records import decode, decode_header, encode

KEY = Key.of("winner", "silu", dtype="bf16", shape=(1, 2))
BODY = {"config": {"BLOCK": 1024}, "times": [1.5, 2.5], "cubin": b"\x00\x01", "none": None}


def encoded(key: Key = KEY) -> bytes:
    return encode(key, BODY, label="silu[bf16](1x2)", meta={"gbps": 3900.5}, created=17.0)


def sealed(header: bytes, body: bytes, version: int = records.FORMAT_VERSION) -> bytes:
    """A file with right checksums around any header and body, written from the description."""
    start = struct.pack("<8sHIQ", records.MAGIC, version, len(header), len(body))
    start += blake2b(body, digest_size=16).digest()
    return start + blake2b(start + header, digest_size=16).digest() + header + body


def cause_of(data: bytes, key: Key = KEY) -> str:
    with pytest.raises(BadRecord) as caught:
        decode(data, key)
    assert caught.value.cause in CAUSES
    return caught.value.cause


def test_what_was_encoded_comes_back() -> None:
    """Key, label, time, meta and body survive; the header says how big the file is."""
    data = encoded()
    record = decode(data, KEY)
    assert record.body == BODY
    assert record.key == KEY
    header = decode_header(data, len(data))
    assert header == record.header
    assert (header.kind, header.op, header.digest) == ("winner", "silu", KEY.digest)
    assert (header.label, header.created, header.meta) == (
        "silu[bf16](1x2)",
        17.0,
        {"gbps": 3900.5},
    )
    assert (header.parts, header.path, header.file_bytes) == (KEY.parts, KEY.path, len(data))


def test_the_format_is_as_described() -> None:
    """A file put together from the description in the module is the file that is written."""
    data = encoded()
    header_bytes = struct.unpack_from("<8sHIQ", data)[2]
    header = data[records.FRAME_BYTES :][:header_bytes]
    assert sealed(header, data[records.FRAME_BYTES + header_bytes :]) == data


def test_a_header_is_read_without_its_body() -> None:
    """Listing needs only the start of a file, and trusts it."""
    data = encoded()
    start = data[: records.FRAME_BYTES + struct.unpack_from("<8sHIQ", data)[2]]
    assert decode_header(start, len(data)).key == KEY


def test_every_flipped_bit_is_found() -> None:
    """No single flipped bit, anywhere in a record, goes unnoticed."""
    data = encoded()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        cause_of(bytes(damaged))


def test_every_truncation_is_found() -> None:
    """A record cut at any length is truncated, and says so."""
    data = encoded()
    for length in range(len(data)):
        assert cause_of(data[:length]) == "truncated"
        with pytest.raises(BadRecord):
            decode_header(data[:length], length)


def test_an_addition_is_found() -> None:
    """A record with something behind it is refused."""
    assert cause_of(encoded() + b"\0") == "length"


def test_random_damage_is_found() -> None:
    """Thousands of seeded mutations: each is a BadRecord, none is another exception."""
    chance = random.Random(20)
    data = encoded()
    for _ in range(5000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(len(damaged) + 1)
            end = min(len(damaged), start + chance.randint(0, 12))
            damaged[start:end] = chance.randbytes(chance.randint(0, 12))
        if bytes(damaged) != data:
            cause_of(bytes(damaged))
            try:
                decode_header(bytes(damaged), len(damaged))
            except BadRecord as error:
                assert error.cause in CAUSES


def test_damage_under_a_right_checksum_is_found() -> None:
    """Even with matching checksums, wrong msgpack gives a record or BadRecord, nothing else."""
    chance = random.Random(21)
    data = encoded()
    header_bytes = struct.unpack_from("<8sHIQ", data)[2]
    pieces = data[records.FRAME_BYTES :][:header_bytes], data[records.FRAME_BYTES + header_bytes :]
    outcomes = set()
    for _ in range(5000):
        header, body = (bytearray(piece) for piece in pieces)
        target = chance.choice((header, body))
        for _ in range(chance.randint(1, 3)):
            target[chance.randrange(len(target))] = chance.randrange(256)
        for key in (KEY, None):
            try:
                damaged = sealed(bytes(header), bytes(body))
                decode(damaged, key) if key else decode_header(damaged, len(damaged))
                outcomes.add("read")
            except BadRecord as error:
                outcomes.add(error.cause)
    assert outcomes >= {"read", "decode", "key"}


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"kind": "winner"},
        {"parts": [["shape", [1, 2]], ["dtype"]]},
        {"parts": {"dtype": "bf16"}},
        {"parts": [[["a"], 1]]},
        {"label": b"bytes"},
        {"created": "today"},
        {"meta": []},
        {"kind": "winer"},
        {"op": "../../etc"},
        {"digest": "0" * 40},
    ],
    ids=repr,
)
def test_wrong_fields_are_refused(fields: object) -> None:
    """A header with a missing field, a wrong type or a lie about its key is no header."""
    good = {"kind": "winner", "op": "silu", "digest": KEY.digest, "parts": KEY.parts}
    good |= {"label": "", "created": 1.0, "meta": {}}
    changed = {**good, **fields} if isinstance(fields, dict) and fields else fields
    data = sealed(msgpack.packb(changed), b"\x80")
    if fields != {"kind": "winner"}:  # which changes nothing
        with pytest.raises(BadRecord):
            decode_header(data, len(data))


def test_each_cause_is_told() -> None:
    """The word for each defect is the right one, for whoever reads the counters."""
    data = encoded()
    other = Key.of("winner", "silu", dtype="fp16", shape=(1, 2))
    assert cause_of(b"not a record, but long enough to be one") == "magic"
    assert cause_of(sealed(b"\x80", b"\x80", version=99)) == "version"
    assert cause_of(data[:-1]) == "truncated"
    assert cause_of(data[:10] + b"\xff" * 12 + data[22:]) == "length"
    assert cause_of(data[:-1] + bytes([data[-1] ^ 1])) == "checksum"
    assert cause_of(data, other) == "key"
    assert cause_of(data, Key.of("artifact", "silu", dtype="bf16", shape=(1, 2))) == "kind"
    assert cause_of(sealed(b"\xc1", b"\x80")) == "decode"


def test_a_giant_claim_allocates_nothing() -> None:
    """Sizes are checked against their bounds before anything of that size is made."""
    giant = struct.pack("<8sHIQ", records.MAGIC, 1, 10, 2**63) + bytes(64)
    assert cause_of(giant) == "length"
    with pytest.raises(BadRecord):
        decode_header(giant, 2**63)


@pytest.mark.parametrize(
    "body",
    [
        {"a": object()},
        {"a": {1: 2}},
        {"a": 2**64},
        {"a": msgpack.ExtType(1, b"")},
        {1: "a"},
        {"a": "\ud800"},
    ],
    ids=["object", "integer key", "2^64", "ext", "key", "surrogate"],
)
def test_a_body_that_would_not_come_back_is_refused(body: dict[str, object]) -> None:
    """What the strict reader refuses is refused when it is written, not when it is needed."""
    with pytest.raises(BadValue, match="Nothing was stored"):
        encode(KEY, body, label="", meta={}, created=0.0)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header or body over its bound is refused with both sizes."""
    with pytest.raises(BadValue, match=r"header of .* at most 1048576 bytes"):
        encode(KEY, {}, label="x" * 2**20, meta={}, created=0.0)
    monkeypatch.setattr(records, "MAX_BODY_BYTES", 1000)
    with pytest.raises(BadValue, match=r"body of .*: 1\d\d\d bytes\. Allowed: at most 1000"):
        encode(KEY, {"a": b"x" * 1001}, label="", meta={}, created=0.0)
