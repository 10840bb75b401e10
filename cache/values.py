"""How many values a piece of msgpack holds, without making any of them.

A decoder makes an object of some fifty bytes for an empty list that takes one byte. Whoever reads
msgpack from strangers counts first.
"""

from typing import Final

from .errors import BadRecord

# First byte -> bytes of payload behind it, for the values of a fixed size.
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0,  # nil, false, true
    0xCA: 4, 0xCB: 8,  # floats
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,  # integers
}  # fmt: skip
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin, str: bytes of length
_NESTED: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # array, map; per item


def count_values(data: bytes | memoryview, limit: int) -> int:
    """The values in one msgpack object, those inside it counted; `limit + 1` if there are more.

    Takes time for at most `limit` values. Raises BadRecord for what is cut short, has something
    behind it, or is of an extension type.
    """
    at, count, left = 0, 0, 1  # `left`: values that are announced and were not seen yet
    while left:
        count, left = count + 1, left - 1
        if count + left > limit:
            return limit + 1
        if at >= len(data):
            raise BadRecord("decode", "msgpack that is cut short")
        first = data[at]
        at += 1
        if first < 0x80 or first >= 0xE0 or first in _FIXED:
            at += _FIXED.get(first, 0)
        elif first < 0x90:
            left += 2 * (first & 0x0F)
        elif first < 0xA0:
            left += first & 0x0F
        elif first < 0xC0:
            at += first & 0x1F
        elif first in _SIZED:
            width = _SIZED[first]
            at += width + int.from_bytes(data[at : at + width], "big")
        elif first in _NESTED:
            width, each = _NESTED[first]
            left += each * int.from_bytes(data[at : at + width], "big")
            at += width
        else:
            raise BadRecord("decode", f"msgpack of type {first:#x}")
    if at != len(data):
        raise BadRecord("decode", f"{len(data)} bytes of msgpack that end at {at}")
    return count
