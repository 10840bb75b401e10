"""Bundles: records in one file, to be carried to another machine.

    head      magic, u16 format version, u16 signature bytes (0 or 64), u32 manifest bytes,
              u64 payload bytes, BLAKE2b-256 of the manifest, 64 bytes of signature (or zeros)
    payload   the records, one behind the other, each as in a record file with `created` 0
    manifest  ASCII, a line for each record, sorted by path: `<path> <bytes> <BLAKE2b-256>`

Nothing in a bundle depends on when, where or by whom it was written: equal records give equal
bytes. A signature covers the manifest's digest, and with it every byte but its own.

Whatever the bytes, reading gives records that are filed under the keys they say, or raises
BadBundle. A path in a manifest is only ever compared: where a record goes follows from its key.
"""

import os
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Final

from . import files
from .errors import BadBundle, BadRecord, CacheWriteError
from .records import Record, decode, decode_frame, encode
from .values import count_values

MAGIC: Final = b"\x93jitb\r\n\x1a"
FORMAT_VERSION: Final = 1
CARRIED: Final = frozenset({"artifact", "check", "negative", "winner"})
"""The kinds that mean something on another machine: no paths, no UUIDs, no commands."""

MAX_MANIFEST_BYTES: Final = 64 << 20
MAX_RECORD_BYTES: Final = 64 << 20
MAX_VALUES: Final = 1 << 20
"""Of one record, nested ones counted: a list in msgpack is one byte, in memory fifty."""

SIGNATURE_BYTES: Final = 64
_CONTEXT: Final = b"jitd bundle, format 1\0"  # a signature of anything else is none of a bundle
_DIGEST_BYTES: Final = 32
_HEAD: Final = struct.Struct(f"<{len(MAGIC)}sHHIQ{_DIGEST_BYTES}s{SIGNATURE_BYTES}s")
_LINE: Final = re.compile(
    r"((?P<kind>[a-z]+)/[a-z0-9_][a-z0-9_.-]{0,99}/(?P<shard>[0-9a-f]{2})/(?P=shard)[0-9a-f]{38})"
    r" ([1-9][0-9]{0,9}) ([0-9a-f]{64})"
)
_MAX_LINE_BYTES: Final = 300

Sign = Callable[[bytes], bytes]
"""Message -> signature."""


@dataclass(frozen=True)
class Entry:
    """One line of a manifest, and where in the file its record begins."""

    path: str
    size: int
    digest: str
    offset: int

    @property
    def kind(self) -> str:
        return self.path.partition("/")[0]

    @property
    def line(self) -> bytes:
        return f"{self.path} {self.size} {self.digest}\n".encode()


@dataclass(frozen=True)
class Written:
    """What was exported. `digest` is the manifest's: equal digests, equal records."""

    entries: tuple[Entry, ...]
    digest: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """An open bundle whose manifest is sound; `records` verifies what it gives."""

    path: Path
    entries: tuple[Entry, ...]
    digest: bytes
    signature: bytes | None
    _descriptor: int

    @property
    def message(self) -> bytes:
        """What the signature signs."""
        return message_of(self.digest)

    def records(self, paths: Collection[str] | None = None) -> Iterator[Record]:
        """The records (of these paths), in order, one at a time. Raises BadBundle."""
        for entry in self.entries:
            if paths is None or entry.path in paths:
                yield self._record(entry)

    def _record(self, entry: Entry) -> Record:
        data = _read_at(self._descriptor, entry.offset, entry.size)
        if _digest(data) != entry.digest:
            raise BadBundle(self.path, f"{entry.path} is not what the manifest lists")
        try:
            _refuse_bomb(data)
            record = decode(data)
        except BadRecord as error:
            raise BadBundle(self.path, f"{entry.path}: {error}") from error
        header = record.header
        if header.path != entry.path:
            raise BadBundle(self.path, f"{entry.path} holds the record of {header.path}")
        if header.created:
            raise BadBundle(self.path, f"{entry.path} has a time, which records in bundles lack")
        return record


def message_of(digest: bytes) -> bytes:
    """What is signed for a bundle whose manifest has this digest."""
    return _CONTEXT + digest


def write(path: Path, records: Iterable[Record], *, sign: Sign | None = None) -> Written:
    """Write records, which come sorted by path, to a new file at `path`, or in a file's place.

    Never holds more than one record. The file (0600) appears whole or not at all. Raises BadBundle
    for what no bundle may hold or replace, CacheWriteError when the system refuses.
    """
    if os.path.lexists(path) and not (path.is_file() and not path.is_symlink()):
        raise BadBundle(path, "something that is no regular file is in its place")
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        descriptor = files.new(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                written = _write(path, file, records, sign)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CacheWriteError(f"cannot write {path}: {error.strerror}.", error.errno) from error
    return written


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """The bundle at `path`, its head and manifest verified. Raises BadBundle, OSError.

    Every size is held to its bound and to the size of the file before anything is read by it.
    """
    try:
        with files.opened(path) as (descriptor, status):
            yield _opened(path, descriptor, status.st_size)
    except OSError as error:
        if path.is_symlink():
            raise BadBundle(path, "it is a link; name the file itself") from error
        if os.path.lexists(path) and not path.is_file():
            raise BadBundle(path, "it is no regular file") from error
        raise


def _write(path: Path, file: BinaryIO, records: Iterable[Record], sign: Sign | None) -> Written:
    file.write(bytes(_HEAD.size))
    entries: list[Entry] = []
    offset = _HEAD.size
    for record in records:
        data = _canonical(record)
        entry = Entry(record.header.path, len(data), _digest(data), offset)
        if entry.kind not in CARRIED:
            raise BadBundle(path, f"{entry.path}: records of this kind stay where they are")
        if entry.size > MAX_RECORD_BYTES:
            raise BadBundle(path, f"{entry.path}: {len(data)} bytes; allowed {MAX_RECORD_BYTES}")
        if entries and entry.path <= entries[-1].path:
            raise BadBundle(path, f"{entry.path} comes after {entries[-1].path}")
        file.write(data)
        entries.append(entry)
        offset += len(data)
    manifest = b"".join(entry.line for entry in entries)
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise BadBundle(path, f"{len(entries)} records are too many: export fewer ops")
    file.write(manifest)
    digest = _hash(manifest)
    signature = sign(message_of(digest)) if sign else b""
    file.seek(0)
    payload = offset - _HEAD.size
    sizes = len(signature), len(manifest), payload
    file.write(_HEAD.pack(MAGIC, FORMAT_VERSION, *sizes, digest, signature))
    return Written(tuple(entries), digest.hex(), offset + len(manifest))


def _canonical(record: Record) -> bytes:
    """A record file without the time: the same on every machine that has the record."""
    header = record.header
    return encode(header.key, record.body, label=header.label, meta=header.meta, created=0.0)


def _opened(path: Path, descriptor: int, file_bytes: int) -> Bundle:
    head = _read_at(descriptor, 0, _HEAD.size)
    if head[: len(MAGIC)] != MAGIC:
        raise BadBundle(path, f"it begins with {head[: len(MAGIC)]!r}, not as a bundle does")
    if len(head) < _HEAD.size:
        raise BadBundle(path, f"it is cut short: {file_bytes} bytes")
    _, version, signed, manifest_bytes, payload_bytes, digest, signature = _HEAD.unpack(head)
    if version != FORMAT_VERSION:
        raise BadBundle(path, f"format {version}; this jitd reads {FORMAT_VERSION}")
    if signed not in (0, SIGNATURE_BYTES) or (not signed and any(signature)):
        raise BadBundle(path, f"it claims a signature of {signed} bytes")
    if manifest_bytes > MAX_MANIFEST_BYTES:
        reason = f"it claims a manifest of {manifest_bytes} bytes; allowed {MAX_MANIFEST_BYTES}"
        raise BadBundle(path, reason)
    wanted = _HEAD.size + payload_bytes + manifest_bytes
    if wanted != file_bytes:
        how = "cut short" if file_bytes < wanted else "too long"
        raise BadBundle(path, f"it is {how}: {file_bytes} bytes of {wanted}")
    manifest = _read_at(descriptor, _HEAD.size + payload_bytes, manifest_bytes)
    if _hash(manifest) != digest:
        raise BadBundle(path, "the manifest is not what was written")
    entries = tuple(_entries(path, manifest))
    if sum(entry.size for entry in entries) != payload_bytes:
        raise BadBundle(path, f"the manifest does not add up to {payload_bytes} bytes")
    return Bundle(path, entries, digest, signature if signed else None, descriptor)


def _entries(path: Path, manifest: bytes) -> Iterator[Entry]:
    """The lines of a manifest, each as it is read: the first bad one ends it."""
    start, offset, last = 0, _HEAD.size, ""
    while start < len(manifest):
        end = manifest.find(b"\n", start, start + _MAX_LINE_BYTES)
        line = manifest[start : end if end >= 0 else start + _MAX_LINE_BYTES]
        match = _LINE.fullmatch(line.decode("latin-1")) if end >= 0 else None
        if match is None:
            raise BadBundle(path, f"no line of a manifest: {line!r}")
        name, kind, size = match[1], match["kind"], int(match[4])
        if kind not in CARRIED:
            reason = f"{name}: a record of kind {kind!r}; allowed {', '.join(sorted(CARRIED))}"
            raise BadBundle(path, reason)
        if size > MAX_RECORD_BYTES:
            raise BadBundle(path, f"{name} claims {size} bytes; allowed {MAX_RECORD_BYTES}")
        if name <= last:
            what = "is listed twice" if name == last else f"is listed after {last}"
            raise BadBundle(path, f"{name} {what}")
        yield Entry(name, size, match[5], offset)
        start, offset, last = end + 1, offset + size, name


def _refuse_bomb(data: bytes) -> None:
    """Raise BadRecord for a record that would be much larger in memory than it is in the file."""
    frame = decode_frame(data)
    if frame.file_bytes != len(data):
        raise BadRecord("length", f"{len(data)} bytes where {frame.file_bytes} were written")
    body = len(data) - frame.body_bytes
    for part in (memoryview(data)[body - frame.header_bytes : body], memoryview(data)[body:]):
        if count_values(part, MAX_VALUES) > MAX_VALUES:
            raise BadRecord("length", f"more than {MAX_VALUES} values in {len(part)} bytes")


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return files.read_up_to(descriptor, size)


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _digest(data: bytes) -> str:
    return _hash(data).hex()
