"""Whether the body of a record that comes from elsewhere is what jitd would have written.

The cache's checksums say that bytes are those that somebody wrote. What this process wrote needs no
more. What comes in a bundle is held to the shape that its readers rely on, so that nothing in it
can make a call raise, and to the digest by which checks know a binary.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from ..autotune.candidate import Timing
from ..cache.records import Record

_MAX_SHARED_BYTES: Final = 1 << 20  # four times what any card has

Test = Callable[[Any], bool]


def flaw(record: Record) -> str | None:
    """What is wrong with a record for those that read it, or None."""
    header, body = record.header, record.body
    for name, test in _META.items():
        if name in header.meta and not test(header.meta[name]):
            return f"its meta has {name}={_shown(header.meta[name])}"
    found = _flaw(body, _BODIES[header.kind])
    if found is None and header.kind == "artifact" and _digest(body) != body["cubin_digest"]:
        return "cubin_digest is not the digest of its cubin"
    return found


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.blake2b(body["cubin"], digest_size=20).hexdigest()


def _flaw(body: Mapping[str, Any], shape: Mapping[str, Test]) -> str | None:
    for name, test in shape.items():
        if name not in body:
            return f"it lacks {name}"
        if not test(body[name]):
            return f"it has {name}={_shown(body[name])}"
    return None


def _shown(value: object) -> str:
    return f"{value!r:.60}"


def _is(*types: type) -> Test:
    return lambda value: type(value) in types


def _within(low: int, high: int) -> Test:
    return lambda value: type(value) is int and low <= value <= high


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _each(test: Test) -> Test:
    return lambda value: type(value) in (list, tuple) and all(map(test, value))


def _map(test: Test) -> Test:
    return lambda value: type(value) is dict and all(map(test, value.values()))


def _like(shape: Mapping[str, Test], *, partly: bool = False) -> Test:
    def test(value: Any) -> bool:
        if type(value) is not dict:
            return False
        wanted = {name: test for name, test in shape.items() if name in value or not partly}
        return _flaw(value, wanted) is None

    return test


def _timing(value: Any) -> bool:
    return (
        type(value) is dict
        and set(value) == {field.name for field in fields(Timing)}
        and all(_number(value[name]) for name in ("us", "spread", "reps"))
        and type(value["how"]) is str
    )


_text, _flag, _count = _is(str), _is(bool), _within(0, 1 << 40)
_counts = _or_none(_each(_count))
_params = _map(_is(bool, int, float, str))

_VERDICT: Final[Mapping[str, Test]] = {  # what `show` prints of a check
    "max_abs_error": _or_none(_is(int, float)),
    "eager_max_abs_error": _or_none(_is(int, float)),
    "bound": _or_none(_is(int, float)),
    "differing": _or_none(_is(int, float)),
    "truth": _or_none(_text),
    "registers": _counts,
    "local_bytes": _counts,
    "shared_bytes": _counts,
}

_TRIAL: Final[Mapping[str, Test]] = {
    "config": _text,
    "variant": _text,
    "params": _params,
    "status": lambda value: value in ("timed", "dropped", "failed", "wrong"),
    "reason": _text,
    "detail": _text,
    "timing": _or_none(_timing),
    "error": _or_none(_is(int, float)),
    "registers": _counts,
    "spills": _or_none(_count),
    "digest": _text,
}

_BODIES: Final[Mapping[str, Mapping[str, Test]]] = {
    "artifact": {
        "cubin": lambda value: type(value) is bytes and bool(value),
        "cubin_digest": _text,
        "symbol": _text,
        "shared": _within(0, _MAX_SHARED_BYTES),
        "num_warps": _within(1, 64),
        "params": _each(lambda pair: type(pair) is list and [*map(type, pair)] == [str, str]),
        "scratch_pointers": _within(0, 2),
        "candidate": _flag,
    },
    "check": {"ok": _flag, "reason": _text},
    "negative": {"reason": _text},
    "winner": {
        "variant": _text,
        "params": _params,
        "config": _text,
        "digest": _text,
        "signature": _text,
        "tuned_at": _text,
        "us": lambda value: _number(value) and value > 0,
        "how": _text,
        "eager_us": _or_none(_number),
        "floor_us": _or_none(_number),
        "device": _text,
        "target": _text,
        "driver": _or_none(_text),
        "check": _or_none(_like(_VERDICT, partly=True)),
        "outcomes": _each(_like(_TRIAL)),
        "dropped": _map(_each(_text)),
        "stopped_early": _flag,
        "drift": _number,
        "noisy": _flag,
    },
}

_META: Final[Mapping[str, Test]] = {
    "op": _text,
    "target": _text,
    "device": _text,
    "driver": _or_none(_text),
    "module": _text,
    "config": _text,
    "us": _or_none(_number),
    "eager_us": _or_none(_number),
    "floor_us": _or_none(_number),
    "noisy": _flag,
    "shape": _each(_count),
    "candidate": _flag,
}
