"""Keys, for any value that they accept: one digest for each value, and back from disk as it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jitd.cache.errors import BadValue
from jitd.cache.keys import DIGEST_BYTES, KINDS, Key, Value, difference
from jitd.cache.records import decode, decode_header, encode

SEEDED = settings(derandomize=True, database=None, deadline=None, max_examples=500)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)
OPS = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,99}", fullmatch=True)
PARTS = st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=4)
KEYS = st.builds(
    lambda kind, op, parts: Key(kind, op, tuple(parts.items())),
    st.sampled_from(sorted(KINDS)),
    OPS,
    PARTS,
)


def exactly(value: Value) -> object:
    """What two values share only when they are the same: 1, 1.0 and True are not, nor 0.0, -0.0."""
    if isinstance(value, tuple):
        return tuple(exactly(item) for item in value)
    return type(value), repr(value)


@given(KEYS)
@SEEDED
def test_a_key_survives_the_disk(key: Key) -> None:
    """A header gives back the key it was written for: kind, op, digest, each part exactly."""
    data = encode(key, {}, label="", meta={}, created=1.0)
    for back in (decode_header(data, len(data)).key, decode(data, key).key):
        assert back == key
        assert (back.kind, back.op, back.path) == (key.kind, key.op, key.path)
        assert exactly(back.parts) == exactly(key.parts)
        assert difference(back, key) == []


@given(KEYS, st.randoms(use_true_random=False))
@SEEDED
def test_a_key_has_one_digest(key: Key, chance) -> None:
    """However its parts are ordered, a key has one digest, and it names a file."""
    parts = [*key.parts]
    chance.shuffle(parts)
    again = Key(key.kind, key.op, tuple(parts))
    assert again.digest == key.digest
    assert hash(again) == hash(key)
    assert len(key.digest) == 2 * DIGEST_BYTES
    assert set(key.digest) <= set("0123456789abcdef")


@given(VALUES, VALUES)
@SEEDED
def test_different_values_are_different_keys(a: Value, b: Value) -> None:
    """Two keys are equal when, and only when, their parts are exactly the same."""
    keys = Key.of("winner", "silu", n=a), Key.of("winner", "silu", n=b)
    assert (keys[0] == keys[1]) == (exactly(a) == exactly(b))
    assert (difference(*keys) == []) == (exactly(a) == exactly(b))


ANY = st.recursive(
    SCALARS
    | st.floats()
    | st.integers()
    | st.text(st.characters(), max_size=3)
    | st.complex_numbers()
    | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=8,
)


@given(ANY)
@SEEDED
def test_any_value_is_accepted_or_refused(value: object) -> None:
    """Any value is a part that survives the disk, or a BadValue; there is nothing between."""
    try:
        key = Key.of("winner", "silu", n=value)  # type: ignore[arg-type]
    except BadValue:
        return
    data = encode(key, {}, label="", meta={}, created=1.0)
    assert exactly(decode_header(data, len(data)).parts) == exactly(key.parts)


def test_a_value_as_deep_as_allowed_survives() -> None:
    """The deepest tuple that a key takes comes back; one deeper is refused."""
    value: tuple[object, ...] = ()
    for _ in range(15):
        value = (value,)
    key = Key.of("winner", "silu", n=value)  # type: ignore[arg-type]
    data = encode(key, {}, label="", meta={}, created=1.0)
    assert decode_header(data, len(data)).parts == key.parts
    with pytest.raises(BadValue):
        Key.of("winner", "silu", n=(value,))  # type: ignore[arg-type]
