"""Counting what msgpack holds, before it is decoded."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jitd.cache.errors import BadRecord
from jitd.cache.values import count_values

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=60,
)


def counted(value: object) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(counted, value.values()))
    return 1 + sum(map(counted, value)) if isinstance(value, list) else 1


@given(VALUES)
def test_it_counts_as_msgpack_writes(value: object) -> None:
    """Every value of every type is counted once, whatever the nesting."""
    assert count_values(msgpack.packb(value), 10_000) == counted(value)


@pytest.mark.parametrize("size", [15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_every_width_of_a_length_is_read(size: int) -> None:
    """Lists, maps, strings and bytes just below and above each width of their length."""
    maps = {str(n): n for n in range(size)}
    for value in ([None] * size, maps, "x" * size, b"x" * size):
        assert count_values(msgpack.packb(value), 1 << 20) == counted(value)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_count_or_bad_record(data: bytes) -> None:
    """What is counted, msgpack decodes or refuses; nothing else is raised."""
    try:
        count = count_values(data, 1000)
    except BadRecord:
        with pytest.raises((ValueError, msgpack.UnpackException, TypeError)):
            msgpack.unpackb(data, strict_map_key=True, ext_hook=_refused)
    else:
        assert 1 <= count <= 1001


def _refused(code: int, _data: bytes) -> None:
    raise ValueError(code)


@pytest.mark.parametrize("data", [b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\xdc\xff\xff" * 9])
def test_a_bomb_is_counted_no_further_than_its_limit(data: bytes) -> None:
    """A giant announced length and endless nesting end at the limit."""
    assert count_values(data, 1000) == 1001
