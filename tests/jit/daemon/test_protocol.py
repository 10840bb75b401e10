"""Frames: whatever the bytes, a record whose fields have their types, or one error."""

import contextlib
from dataclasses import fields

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jitd.jit.daemon import protocol
from jitd.jit.daemon.protocol import (
    ANSWERS,
    LENGTH,
    MAX_FRAME_BYTES,
    MAX_TEXT,
    REQUESTS,
    Build,
    News,
    ProtocolError,
    decode,
    encode,
    length_of,
)

KINDS = {**REQUESTS, **ANSWERS}
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=50)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
TEXT = st.text(max_size=200)
OF_TYPE = {
    str: TEXT,
    int: st.integers(-(2**63), 2**63 - 1),
    bool: st.booleans(),
    list[str]: st.lists(TEXT, max_size=5),
    dict[str, object]: st.dictionaries(TEXT, PLAIN, max_size=4),
}


def values(kind):
    """Records of a kind, with any fields that its types allow."""
    hints = {item.name: item.type for item in fields(kind)}
    known = {str(hint): found for hint, found in OF_TYPE.items()} | {
        "dict[str, typing.Any]": OF_TYPE[dict[str, object]]
    }
    return st.builds(
        kind, **{n: OF_TYPE[h] if h in OF_TYPE else known[str(h)] for n, h in hints.items()}
    )


@given(st.one_of(*map(values, KINDS.values())))
def test_every_record_comes_back(record):
    """Encoding and decoding any record gives the same record."""
    frame = encode(record)
    assert length_of(frame[: LENGTH.size]) == len(frame) - LENGTH.size
    assert decode(frame[LENGTH.size :], KINDS) == record


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_an_error(body):
    """No bytes raise anything but ProtocolError."""
    try:
        record = decode(body, REQUESTS)
    except ProtocolError:
        return
    assert type(record) in REQUESTS.values()


@given(st.sampled_from(sorted(REQUESTS)), st.dictionaries(TEXT, PLAIN, max_size=4), st.data())
def test_any_fields_are_checked(name, more, data):
    """A message of a known name with other fields, or fields of other types, is refused; what is
    accepted has the types that it should."""
    kind = REQUESTS[name]
    chosen = data.draw(
        st.dictionaries(st.sampled_from([f.name for f in fields(kind)] or ["x"]), PLAIN)
    )
    body = msgpack.packb({"is": name, **chosen, **more})
    try:
        record = decode(body, REQUESTS)
    except ProtocolError:
        return
    assert not more.keys() - {f.name for f in fields(kind)} - {"is"}
    for item in fields(kind):
        assert protocol._fits(getattr(record, item.name), item.type)


@given(st.one_of(*map(values, REQUESTS.values())), st.data())
def test_a_changed_byte_is_a_record_or_an_error(record, data):
    """Flipping any byte of a good frame raises nothing but ProtocolError."""
    body = bytearray(encode(record)[LENGTH.size :])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        decode(bytes(body), REQUESTS)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no message"),
        (b"\xc1", "no message"),
        (msgpack.packb([1]), "holds a list"),
        (msgpack.packb({"is": "nonsense"}), "called 'nonsense'"),
        (msgpack.packb({"is": ["hello"]}), "called"),
        (msgpack.packb({"is": "wait"}), "not whole"),
        (msgpack.packb({"is": "wait", "key": 1}), "whose key is '1'"),
        (msgpack.packb({"is": "wait", "key": "k" * (MAX_TEXT + 1)}), "whose key is"),
        (msgpack.packb({"is": "status", "more": 1}), "with ['more']"),
        (b"\xdd\xff\xff\xff\xff", "values"),
        (b"\x91" * 100_000 + b"\xc0", "values"),
        (msgpack.packb({"is": "shutdown", "now": 1}), "whose now is '1'"),
    ],
)
def test_what_is_refused(body, says):
    """Each kind of nonsense is refused by name; a bomb before it is unpacked."""
    with pytest.raises(ProtocolError) as caught:
        decode(body, REQUESTS)
    assert says in str(caught.value)


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_lengths_are_bounded(length):
    """No frame is empty, and none is longer than the bound, whatever its head says."""
    with pytest.raises(ProtocolError, match=str(length)):
        length_of(LENGTH.pack(length))


def test_a_record_that_is_too_large_is_not_sent():
    """Encoding more than a frame may hold raises, before anything is sent."""
    with pytest.raises(ProtocolError, match="allowed are"):
        encode(News("k", "s", "done", detail="x" * (MAX_FRAME_BYTES + 1)))


def test_a_key_is_what_must_be_built():
    """Who asks, how urgently, and from where it is imported change no key; all else does."""
    build = Build("op", "module", "digest", "op[bf16](1)", "card", "sm_90", False)
    same = [
        Build("op", "moved", "digest", "op[bf16](1)", "card", "sm_90", True, {"x": 1}, [], ["/p"]),
    ]
    other = [
        Build("po", "module", "digest", "op[bf16](1)", "card", "sm_90", False),
        Build("op", "module", "changed", "op[bf16](1)", "card", "sm_90", False),
        Build("op", "module", "digest", "op[bf16](2)", "card", "sm_90", False),
        Build("op", "module", "digest", "op[bf16](1)", "drac", "sm_90", False),
        Build("op", "module", "digest", "op[bf16](1)", "card", "sm_100", False),
        Build("op", "module", "digest", "op[bf16](1)", "card", "sm_90", False, {}, ["unaligned"]),
    ]
    assert {one.key for one in same} == {build.key}
    assert len({build.key, *(one.key for one in other)}) == 1 + len(other)
