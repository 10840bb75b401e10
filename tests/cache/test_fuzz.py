"""The decoder against damage nobody thought of: a record as written, or BadRecord, nothing else."""

import random
from itertools import islice

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jitd.cache.errors import CAUSES, BadRecord
from jitd.cache.keys import Key
from jitd.cache.records import (
    FRAME_BYTES,
    MAGIC,
    Record,
    decode,
    decode_frame,
    decode_header,
    decode_listed,
)

from .fuzz import Original, damaged, nested, originals, resealed, sealed

SEED = 20
CORPUS = originals(random.Random(SEED))
ORIGINAL = {original.key: original for original in CORPUS}
SEEDED = settings(derandomize=True, database=None, deadline=None, max_examples=500)
SIZES = pytest.mark.parametrize(
    "inputs", [3000, pytest.param(600_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)


def written(key: Key) -> list[Record]:
    """Every record that was ever written under `key`."""
    return [decode(original.data, key) for original in CORPUS if original.key == key]


WRITTEN = {key: written(key) for key in ORIGINAL}


def decoded(data: bytes, key: Key) -> Record | None:
    """What each reader makes of `data`; anything but BadRecord fails the test."""
    record = None
    for read in (
        lambda: decode_header(data, len(data)),
        lambda: decode_header(data[: FRAME_BYTES + decode_frame(data).header_bytes], len(data)),
        lambda: decode_listed(data, len(data), key.path),
        lambda: decode(data),
        lambda: decode(data, key),
    ):
        try:
            record = read()
        except BadRecord as error:
            record = None
            assert error.cause in CAUSES
            assert len(str(error)) < 10_000
    return record if isinstance(record, Record) else None


@SIZES
def test_damage_is_never_served(inputs: int) -> None:
    """Whatever happens to a file, what is served under a key was once written under that key."""
    for original, data in islice(damaged(random.Random(SEED), CORPUS), inputs):
        record = decoded(data, original.key)
        assert record is None or record in WRITTEN[original.key], data.hex()


@SIZES
def test_right_checksums_do_not_help(inputs: int) -> None:
    """Damage with right checksums around it (a hostile file) gives a record of the key asked for,
    or BadRecord: no other exception, however deep or odd its contents."""
    for original, data in islice(resealed(random.Random(SEED), CORPUS), inputs):
        record = decoded(data, original.key)
        assert record is None or record.key == original.key, data.hex()
        hash(record is None or record.header.path)


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda tail: MAGIC + b"\1\0" + tail))
@example(b"")
@example(MAGIC)
@SEEDED
def test_any_bytes_are_a_bad_record(data: bytes) -> None:
    """Bytes that nobody wrote as a record are none."""
    assert decoded(data, CORPUS[0].key) is None


@given(st.sampled_from(CORPUS), st.data())
@SEEDED
def test_any_replacement_is_noticed(original: Original, data: st.DataObject) -> None:
    """Any stretch of a record replaced by any bytes: refused, unless they are the same bytes."""
    start = data.draw(st.integers(0, len(original.data)))
    end = data.draw(st.integers(start, min(start + 64, len(original.data))))
    found = original.data[:start] + data.draw(st.binary(max_size=64)) + original.data[end:]
    assert (decoded(found, original.key) is not None) == (found == original.data)


@given(st.sampled_from(CORPUS), st.sampled_from(CORPUS), st.data())
@SEEDED
def test_no_two_records_make_a_third(a: Original, b: Original, data: st.DataObject) -> None:
    """The start of one record and the end of another are a record only where one is all of it."""
    start = data.draw(st.integers(0, len(a.data)) | st.just(len(a.data) - len(a.pieces[2])))
    end = data.draw(st.integers(0, len(b.data)) | st.just(len(b.data) - len(b.pieces[2])))
    found = a.data[:start] + b.data[end:]
    if decoded(found, a.key) is not None:
        assert found in {original.data for original in CORPUS if original.key == a.key}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["winner", "winer"]) | PLAIN,
            "op": st.sampled_from(["silu", "../silu", "a\n"]) | PLAIN,
            "digest": st.just(CORPUS[0].key.digest) | PLAIN,
            "parts": st.lists(st.tuples(st.text(max_size=3), PLAIN), max_size=3) | PLAIN,
            "label": st.text(max_size=3) | PLAIN,
            "created": st.floats() | PLAIN,
            "meta": st.dictionaries(st.text(max_size=3), PLAIN, max_size=3) | PLAIN,
            "more": PLAIN,
        },
    )
    | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), PLAIN, max_size=3),
)
@SEEDED
def test_any_fields_are_a_header_or_refused(fields: dict[str | bytes, object]) -> None:
    """A header of any fields, with right checksums, is one of its own key or a BadRecord."""
    data = sealed(msgpack.packb(fields), b"\x80")
    decoded(data, CORPUS[0].key)
    try:
        header = decode_header(data, len(data))
    except BadRecord:
        return
    assert header.digest == fields["digest"]
    assert header.path.split("/")[:2] == [fields["kind"], fields["op"]]


def header_with(**other: bytes) -> bytes:
    """The header of the first record with some fields replaced by raw msgpack."""
    fields = msgpack.unpackb(CORPUS[0].pieces[1])
    out = bytes([0x80 | len(fields)])
    for name, value in fields.items():
        out += msgpack.packb(name) + other.get(name, msgpack.packb(value))
    return out


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param(b"\x82\xa1a\x01\xc4\x01a\x01", b"\x80", id="fields that do not sort"),
        pytest.param(nested(1000) * 2, b"\x80", id="header too deep to print"),
        pytest.param(header_with(), nested(1000) * 2, id="body too deep to print"),
        pytest.param(
            header_with(parts=b"\x91\x92\xa1n" + nested(1000)), b"\x80", id="part too deep to print"
        ),
        pytest.param(header_with(created=b"\xcb\x7f\xf8" + bytes(6)), b"\x80", id="made at nan"),
        pytest.param(header_with(op=b"\xda\xff\xff" + b"x" * 65535), b"\x80", id="long op"),
    ],
)
def test_what_fuzzing_found_is_refused(header: bytes, body: bytes) -> None:
    """Each of these once raised something else, or a message as long as the file."""
    data = sealed(header, body)
    with pytest.raises(BadRecord) as caught:
        decode_header(data, len(data))
        decode(data, CORPUS[0].key)
    assert len(str(caught.value)) < 1000
