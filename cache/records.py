"""The format of one record file: a frame, a header for listing, a body.

    frame    magic, u16 format version, u32 header bytes, u64 body bytes, checksum of the body,
             checksum of everything before it and of the header
    header   msgpack map {kind, op, digest, parts, label, created, meta}
    body     msgpack map, as the caller gave it

The header has its own checksum, so that listing a cache trusts it without reading bodies. Both are
BLAKE2b of 16 bytes: they find faults, they do not stop an attacker (the folder's owner does).
Whatever the bytes, decoding gives a record or raises BadRecord, and nothing else.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from reprlib import repr as shown  # of bounded size and depth: fields can be 1 MiB, or 1000 deep
from typing import Any, Final, NamedTuple

import msgpack

from .errors import BadRecord, BadValue, Cause
from .keys import KINDS, Key

MAGIC: Final = b"\x93jitd\r\n\x1a"  # not text, and damaged by every newline conversion
FORMAT_VERSION: Final = 1
MAX_HEADER_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 256 << 20

_CHECKSUM_BYTES: Final = 16
_FIXED: Final = struct.Struct(f"<{len(MAGIC)}sHIQ{_CHECKSUM_BYTES}s")
_FIELDS: Final = ("kind", "op", "digest", "parts", "label", "created", "meta")
FRAME_BYTES: Final = _FIXED.size + _CHECKSUM_BYTES
MAX_FILE_BYTES: Final = FRAME_BYTES + MAX_HEADER_BYTES + MAX_BODY_BYTES


@dataclass(frozen=True)
class Header:
    """What listing shows of a record: all but its body.

    `created` and `last_used` are Unix seconds, `file_bytes` the size of the file. `last_used` and
    `inode` describe the file that was read, and are 0 for bytes that were never in one. `tier` is
    the place of its folder in `Store.tiers`: 0 for the one that is written, which alone is cleared.
    """

    key: Key
    label: str
    created: float
    meta: Mapping[str, Any]
    file_bytes: int
    last_used: float = 0.0
    inode: int = 0
    tier: int = 0

    @property
    def kind(self) -> str:
        return self.key.kind

    @property
    def op(self) -> str:
        return self.key.op

    @property
    def digest(self) -> str:
        return self.key.digest

    @property
    def parts(self) -> tuple[tuple[str, Any], ...]:
        return self.key.parts

    @property
    def path(self) -> str:
        """Where the record lies below the root."""
        return self.key.path


@dataclass(frozen=True)
class Record:
    """A header and the body filed under its key. Tuples in a body come back as lists."""

    header: Header
    body: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.header.key


class Frame(NamedTuple):
    """The sizes and checksums at the start of a record."""

    header_bytes: int
    body_bytes: int
    body_checksum: bytes
    header_checksum: bytes

    @property
    def file_bytes(self) -> int:
        return FRAME_BYTES + self.header_bytes + self.body_bytes


def encode(
    key: Key, body: Mapping[str, Any], *, label: str, meta: Mapping[str, Any], created: float
) -> bytes:
    """The bytes of a record file. Raises BadValue for what `decode` would not give back."""
    header_data = _pack(
        key,
        "header",
        MAX_HEADER_BYTES,
        {
            "kind": key.kind,
            "op": key.op,
            "digest": key.digest,
            "parts": key.parts,
            "label": label,
            "created": created,
            "meta": dict(meta),
        },
    )
    body_data = _pack(key, "body", MAX_BODY_BYTES, dict(body))
    fixed = _FIXED.pack(
        MAGIC, FORMAT_VERSION, len(header_data), len(body_data), _checksum(body_data)
    )
    data = fixed + _checksum(fixed, header_data) + header_data + body_data
    try:
        decode_header(data, len(data))
    except BadRecord as error:
        raise BadValue(f"header of {key}: {error.detail}. Nothing was stored.") from error
    return data


def decode(data: bytes, key: Key | None = None) -> Record:
    """The record in `data`; which one it may be, `decode_header` says. Raises BadRecord."""
    header = decode_header(data, len(data), key)
    frame = decode_frame(data)
    body = memoryview(data)[FRAME_BYTES + frame.header_bytes :]
    if _checksum(body) != frame.body_checksum:
        raise BadRecord("checksum", "the body is not what was written")
    return Record(header, _unpack(body, "body", use_list=True))


def decode_frame(data: bytes) -> Frame:
    """The frame at the start of `data`, with sizes that are safe to allocate. Raises BadRecord."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise BadRecord("magic", f"begins with {data[: len(MAGIC)]!r}, not {MAGIC!r}")
    if len(data) < FRAME_BYTES:
        raise BadRecord("truncated", f"{len(data)} bytes, less than a frame of {FRAME_BYTES}")
    _, version, header_bytes, body_bytes, body_checksum = _FIXED.unpack_from(data)
    if version != FORMAT_VERSION:
        raise BadRecord("version", f"format {version}; this jitd reads {FORMAT_VERSION}")
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise BadRecord("length", f"claims {header_bytes} header and {body_bytes} body bytes")
    return Frame(header_bytes, body_bytes, body_checksum, data[_FIXED.size : FRAME_BYTES])


def decode_header(data: bytes, file_bytes: int, key: Key | None = None) -> Header:
    """The header of a record file of `file_bytes` bytes that begins with `data`.

    `data` must reach to the end of the header; the body need not be there. With `key`, the record
    must be the one filed under it; without, the digest must be that of the parts. Raises BadRecord.
    """
    claimed, label, created, meta = _claims(data, file_bytes)
    if key is None:
        key = _built(claimed)
    elif claimed.kind != key.kind:
        raise BadRecord("kind", f"a record of kind {shown(claimed.kind)}")
    if claimed.path != key.path or claimed.parts != key.parts:
        found = f"{claimed.kind}/{claimed.op}/{claimed.digest}"[:200]
        raise BadRecord("key", f"the record of {found!r}, not of {key.path}")
    return Header(key, label, created, meta, file_bytes)


def decode_listed(
    data: bytes, file_bytes: int, path: str, *, last_used: float = 0.0, inode: int = 0
) -> Header:
    """What `decode_header` gives for the record that is filed at `path` below a root, in half the
    time: that its digest is the digest of its parts is not looked at.

    So it is good for saying what is there. What reads the body looks at the key again.
    `last_used` and `inode` go to the header. Raises BadRecord.
    """
    key, label, created, meta = _claims(data, file_bytes)
    refuse_misplaced(key, path)
    return Header(key, label, created, meta, file_bytes, last_used, inode)


def refuse_misplaced(key: Key, path: str) -> None:
    """Raise BadRecord unless `path` is where the record of `key` belongs."""
    if key.path != path:
        cause: Cause = "key" if path.startswith(f"{key.kind}/") else "kind"
        raise BadRecord(cause, f"the record of {key.path[:200]!r}")


def _claims(data: bytes, file_bytes: int) -> tuple[Key, str, float, dict[str, Any]]:
    """Key, label, time of making and meta, as an intact header says; the key is not verified."""
    frame = decode_frame(data)
    if file_bytes < frame.file_bytes:
        raise BadRecord("truncated", f"{file_bytes} bytes of {frame.file_bytes}")
    if file_bytes > frame.file_bytes:
        raise BadRecord("length", f"{file_bytes} bytes where {frame.file_bytes} were written")
    header = memoryview(data)[FRAME_BYTES : FRAME_BYTES + frame.header_bytes]
    if _checksum(data[: _FIXED.size], header) != frame.header_checksum:
        raise BadRecord("checksum", "the header is not what was written")
    fields = _unpack(header, "header", use_list=False)
    try:
        kind, op, digest, parts, label, created, meta = map(fields.__getitem__, _FIELDS)
    except KeyError as error:
        raise BadRecord("decode", f"the header lacks {error}") from error
    if not (
        type(kind) is type(op) is type(digest) is type(label) is str
        and type(meta) is dict
        and type(created) in (float, int)
        and _are_pairs(parts)
    ):
        raise BadRecord("decode", f"the header has wrong fields: {shown(fields)}")
    if not isfinite(created):
        raise BadRecord("decode", f"a record made at {created}")
    if kind not in KINDS:
        raise BadRecord("kind", f"a record of kind {shown(kind)}")
    return Key.claimed(kind, op, digest, parts), label, float(created), meta


def _are_pairs(parts: object) -> bool:
    if type(parts) is not tuple:
        return False
    for part in parts:  # a loop: a generator would take a tenth of the time of listing
        if type(part) is not tuple or len(part) != 2 or type(part[0]) is not str:
            return False
    return True


def _built(claimed: Key) -> Key:
    try:
        return Key(claimed.kind, claimed.op, claimed.parts)
    except BadValue as error:
        raise BadRecord("key", str(error)) from error


def _pack(key: Key, part: str, max_bytes: int, value: dict[str, Any]) -> bytes:
    allowed = f"Allowed: at most {max_bytes} bytes of msgpack, string keys. Nothing was stored."
    try:
        data: bytes = msgpack.packb(value, use_bin_type=True)
        # Read back: msgpack writes some things (integer keys, say) that a strict reader refuses.
        _unpack(data, part, use_list=True)
    except (TypeError, ValueError, OverflowError, RecursionError, BadRecord) as error:
        raise BadValue(f"{part} of {key}: {error}. {allowed}") from error
    if len(data) > max_bytes:
        raise BadValue(f"{part} of {key}: {len(data)} bytes. {allowed}")
    return data


def _unpack(data: bytes | memoryview, part: str, *, use_list: bool) -> dict[str, Any]:
    try:  # without explicit limits, msgpack bounds every length by len(data)
        value = msgpack.unpackb(
            data, raw=False, strict_map_key=True, use_list=use_list, ext_hook=_refuse_extension
        )
    except (
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise BadRecord(
            "decode", f"the {part} is not msgpack: {type(error).__name__}, {error}"
        ) from error
    if not isinstance(value, dict):
        raise BadRecord("decode", f"the {part} is a {type(value).__name__}, not a map")
    return value


def _refuse_extension(code: int, _data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _checksum(*pieces: bytes | memoryview) -> bytes:
    hasher = blake2b(digest_size=_CHECKSUM_BYTES)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()
