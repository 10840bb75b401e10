"""Seeded damage to record files: the raw kind, and the kind with right checksums around it."""

import random
import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import msgpack
from jitd.cache import records
from jitd.cache.keys import KINDS, Key
from jitd.cache.records import FRAME_BYTES, decode_frame, encode


class Original(NamedTuple):
    """A record as it was written."""

    key: Key
    data: bytes

    @property
    def pieces(self) -> tuple[bytes, bytes, bytes]:
        """Frame, header and body."""
        end = FRAME_BYTES + decode_frame(self.data).header_bytes
        return self.data[:FRAME_BYTES], self.data[FRAME_BYTES:end], self.data[end:]


def sealed(header: bytes, body: bytes) -> bytes:
    """A file with right checksums around any header and body, written from the description."""
    start = struct.pack(
        "<8sHIQ", records.MAGIC, records.FORMAT_VERSION, len(header), len(body)
    ) + digest(body)
    return start + digest(start + header) + header + body


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def originals(chance: random.Random) -> list[Original]:
    """Records of all kinds, small and large; some share a key, and some differ by one byte."""
    made: list[Original] = []
    for kind in sorted(KINDS):
        for _ in range(3):
            key = Key.of(kind, "silu", dtype="bf16", n=chance.randrange(3), shape=(1, (2, None)))
            for tail in (b"a", b"b"):
                body = {"cubin": chance.randbytes(chance.choice((0, 9, 300))) + tail, "us": [1.5]}
                meta = {"gbps": chance.random()}
                made.append(Original(key, encode(key, body, label="silu", meta=meta, created=17.0)))
    return made


def nested(depth: int) -> bytes:
    """msgpack of arrays in arrays."""
    return b"\x91" * depth + b"\x01"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` after one to three accidents: flips, cuts, insertions, repeats, words overwritten."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(_ACCIDENTS)(bytearray(data), chance)
    return data


def _flip(data: bytearray, chance: random.Random) -> bytes:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _cut(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 1 << 30))]
    return bytes(data)


def _insert(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    data[start:start] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


def _repeat(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    data[start:start] = data[start : start + chance.randrange(1, 40)]
    return bytes(data)


def _overwrite(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    data[start : start + 4] = chance.choice(_WORDS)
    return bytes(data)


_ACCIDENTS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _flip,
    _cut,
    _insert,
    _repeat,
    _overwrite,
)
_WORDS = (
    *(
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff",
        b"\xdf\xff\xff\xff",
        b"\xc6\xff\xff\xff",
    ),
    *(b"\xd6\xff\0\0", b"\xd4\x05\0\0", b"\xc4\x01x\xc0", b"\xa1\xff\xc0\xc0", b"\xcb\x7f\xf8\0"),
    *(nested(600), nested(1000), nested(1023), nested(1100)),
)


def spliced(chance: random.Random, a: Original, b: Original) -> bytes:
    """A file of pieces of two records: cut anywhere, or at the borders of frame, header, body."""
    if chance.random() < 0.5:
        at = chance.randrange(len(a.data) + 1)
        return a.data[:at] + b.data[chance.choice((at, chance.randrange(len(b.data) + 1))) :]
    return b"".join(chance.choice(pair) for pair in zip(a.pieces, b.pieces, strict=True))


def damaged(chance: random.Random, corpus: list[Original]) -> Iterator[tuple[Original, bytes]]:
    """For ever: (the record whose key is asked for, bytes found in its place)."""
    while True:
        a = chance.choice(corpus)
        if chance.random() < 0.7:
            yield a, mutated(a.data, chance)
        else:
            b = chance.choice(corpus)
            yield a, chance.choice((spliced(chance, a, b), b.data))


def resealed(chance: random.Random, corpus: list[Original]) -> Iterator[tuple[Original, bytes]]:
    """For ever: the same with headers and bodies damaged under right checksums."""
    while True:
        a, b = chance.choice(corpus), chance.choice(corpus)
        _, header, body = a.pieces
        match chance.randrange(4):
            case 0:
                header = mutated(header, chance)
            case 1:
                body = mutated(body, chance)
            case 2:
                header = b.pieces[1]
            case 3:
                header = _with_value(header, chance)
        yield a, sealed(header, body)


def _with_value(header: bytes, chance: random.Random) -> bytes:
    """The header with one field replaced by other msgpack, or given one more field."""
    fields = records._unpack(header, "header", use_list=False)
    names = [*fields, b"bytes", "more"]
    chosen = chance.choice(names)
    out = bytearray([0x80 | len({*fields, chosen})])
    for name in dict.fromkeys([*fields, chosen]):
        out += msgpack.packb(name)
        out += chance.choice(_VALUES) if name == chosen else msgpack.packb(fields[name])
    return bytes(out)


_VALUES = (
    *(b"\xc0", b"\xc2", b"\x80", b"\x90", b"\xa0", b"\xff", b"\xcb\x7f\xf8\0\0\0\0\0\0"),
    *(b"\xa2\xc3\x28", b"\xc4\x01x", b"\xd6\xff\0\0\0\1", b"\xd4\x05\0", b"\xa4silu"),
    *(b"\x91\x92\xa1n" + nested(depth) for depth in (1, 15, 16, 17, 900, 1000, 1100)),
    *(b"\x91\x92" + nested(depth) + b"\x01" for depth in (1, 900, 1000)),
    *(b"\x81\xa1n" + nested(depth) for depth in (1, 900, 1000)),
    b"\x91\x92\xa1n\x81\xa1a\x01",
    b"\x92\x92\xa1n\x01\x92\xa1n\x02",
)
