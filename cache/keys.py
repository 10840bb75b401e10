"""Keys: what a record is filed under, kept in parts so that a miss can be explained.

A digest alone says *that* two things differ. A key keeps its labelled parts, they are stored in the
record's header, and `difference` says *what* differs (the idea is from JAX's compilation cache).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from math import isnan
from reprlib import repr as shown  # of bounded size and depth, for what a file claims to be
from typing import Final, TypeAlias, Union

import msgpack

from .errors import BadValue

KEY_SCHEMA: Final = 1
"""Part of every digest. Raise it when the meaning of parts or the format of records changes: old
and new versions of jitd can then share a folder and never meet at one path."""

KINDS: Final = frozenset(
    {"artifact", "check", "winner", "timing", "negative", "workload", "receipt", "source"}
)
DIGEST_BYTES: Final = 20
MAX_DEPTH: Final = 16

Value: TypeAlias = Union[bool, int, float, str, bytes, tuple["Value", ...], None]  # noqa: UP007 - it is recursive

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}")


class Absent(Enum):
    """Stands in a difference for a part that one of the keys lacks (None is a value)."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class Key:
    """What a record is filed under.

    `kind` is one of `KINDS`. `op` is a name of `[a-z0-9_.-]`, without a leading dot. `parts` are
    pairs of a name and a value, sorted by name on construction; names are unique.

    Two keys are equal when their digests are: 1, 1.0, True, "1" and b"1" are five different values,
    which Python's own comparison of the parts would not say.

    Raises BadValue for anything else.
    """

    kind: str
    op: str
    parts: tuple[tuple[str, Value], ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            allowed = ", ".join(sorted(KINDS))
            raise BadValue(f"kind of a key: {shown(self.kind)}. Allowed: {allowed}.")
        if not isinstance(self.op, str) or _NAME.fullmatch(self.op) is None:
            raise BadValue(
                f"op of a key: {shown(self.op)}. Allowed: [a-z0-9_.-], 100 at most, first no "
                f"'.' or '-'."
            )
        names = [name for name, _ in self.parts]
        if not all(type(name) is str and name for name in names) or len(set(names)) < len(names):
            raise BadValue(
                f"part names of a key: {shown(names)}. Allowed: strings that differ, none empty."
            )
        for name, value in self.parts:
            if not (_is_unicode(name) and _are_values((value,), MAX_DEPTH)):
                raise BadValue(
                    f"part {shown(name)} of a key: {shown(value)} ({type(value).__name__}). "
                    f"Allowed: None, bool, int of 64 bits, float but nan, str, bytes, and tuples "
                    f"of them, {MAX_DEPTH} deep at most."
                )
        if names != sorted(names):
            object.__setattr__(self, "parts", tuple(sorted(self.parts, key=lambda part: part[0])))

    @classmethod
    def of(cls, kind: str, op: str, /, **parts: Value) -> "Key":
        """The key with these parts: `Key.of("winner", "silu", dtype="bf16", shape=(1, 1024))`."""
        return cls(kind, op, tuple(parts.items()))

    @classmethod
    def claimed(
        cls, kind: str, op: str, digest: str, parts: tuple[tuple[str, Value], ...]
    ) -> "Key":
        """The key that a header claims, with the digest that it claims; nothing is looked at.

        Good for listing: building a key from its parts takes longer than reading its file.
        """
        key = object.__new__(cls)
        key.__dict__.update(kind=kind, op=op, parts=parts, digest=digest)
        return key

    @cached_property
    def digest(self) -> str:
        """40 hexadecimal digits that depend on the kind, the op, every part and `KEY_SCHEMA`."""
        return blake2b(
            _packed((KEY_SCHEMA, self.kind, self.op, self.parts)), digest_size=DIGEST_BYTES
        ).hexdigest()

    @cached_property
    def path(self) -> str:
        """Where the record lies below the root: `<kind>/<op>/<2 hex>/<digest>`."""
        return f"{self.kind}/{self.op}/{self.digest[:2]}/{self.digest}"

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Key) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in self.parts)
        return f"{self.kind}/{self.op}/{self.digest[:8]}({parts})"


def difference(a: Key, b: Key) -> list[tuple[str, Value | Absent, Value | Absent]]:
    """Why `a` is not `b`: (name, value in a, value in b) of each part that differs, by name.

    A different kind or op comes first, under that name. `Absent.ABSENT` marks a part that one of
    the keys lacks.
    """
    return list(_differences(a, b))


def _differences(a: Key, b: Key) -> Iterator[tuple[str, Value | Absent, Value | Absent]]:
    if a.kind != b.kind:
        yield "kind", a.kind, b.kind
    if a.op != b.op:
        yield "op", a.op, b.op
    in_a, in_b = dict(a.parts), dict(b.parts)
    for name in sorted(in_a.keys() | in_b.keys()):
        if name not in in_a:
            yield name, Absent.ABSENT, in_b[name]
        elif name not in in_b:
            yield name, in_a[name], Absent.ABSENT
        # Compared as encoded: in Python, 1 == 1.0 == True, and these are different keys.
        elif _packed(in_a[name]) != _packed(in_b[name]):
            yield name, in_a[name], in_b[name]


def _packed(value: object) -> bytes:
    """The one encoding of a value: msgpack tells int, float, bool, str, bytes and tuple apart."""
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def _are_values(values: tuple[object, ...], depth: int) -> bool:
    """Whether `values` are Values, nested at most `depth` deep, whose digests are stable.

    Exact types only: a subclass (an IntEnum, say) would come back from disk as its base class.
    No nan: it equals nothing, so nobody could tell two such keys apart.
    """
    for value in values:
        if type(value) is str:
            good = _is_unicode(value)
        elif type(value) is tuple:
            good = depth > 0 and _are_values(value, depth - 1)
        elif type(value) is int:
            good = -(2**63) <= value < 2**64
        elif type(value) is float:
            good = not isnan(value)
        else:
            good = value is None or type(value) in (bool, bytes)
        if not good:
            return False
    return True


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as from os.fsdecode
        return False
    return True
