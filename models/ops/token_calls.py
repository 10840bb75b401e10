"""Calls of a bucket of tokens: those that reach its other binaries, and those at which its binaries
are checked. For ops over x (B, S, D) and what lies beside it, token by token or as an operand.
"""

from collections.abc import Callable, Sequence

from ...jit.sign import Call, TensorSpec
from .operands import vector_width

_SMALLEST_TUNED = 1 << 24  # elements


def reach_tokens(call: Call, tokens: Sequence[str], operands: Sequence[str]) -> list[Call]:
    """Calls of the bucket of `call` (a bucket's own) that reach its other classes.

    x, or all of the tensors, may begin between 16-byte boundaries, as slices of an odd width do;
    and strides may leave nothing to vectorise.
    """
    present = [name for name in (*tokens, *operands) if call.get(name) is not None]
    found = [call]
    for names in (tokens[:1], present):
        found.append(call.replace(**{name: _unaligned(call[name]) for name in names}))
    if vector_width(call, tokens, operands) > 1:
        found.append(call.replace(x=_gapped(call.x)))
    return list(dict.fromkeys(found))


def probe_tokens(
    call: Call, operands: Sequence[str], bucket_of: Callable[[Call], Call]
) -> list[Call]:
    """The longest and about the shortest call that share the bucket of `call`.

    The shortest has an odd number of tokens if it can: its last tiles are partly empty.
    """
    bucket = bucket_of(call)
    longest = bucket.x.shape[1]
    frames = max((_frames(bucket, name) for name in operands), default=1)
    fewer = frames // 2 + 1 if frames > 1 else 1
    each = longest // 2 // fewer + 1
    each += 1 if each % 2 == 0 and fewer * (each + 1) <= longest else 0
    probes = [
        _of_tokens(call, operands, n, f) for n, f in ((longest, frames), (fewer * each, fewer))
    ]
    plain = all(spec.layout == "contiguous" for spec in call.tensors.values())
    return [p for p in probes if plain and bucket_of(p) == bucket]


def smaller_tokens(
    call: Call, operands: Sequence[str], bucket_of: Callable[[Call], Call]
) -> Call | None:
    """The bucket of half the tokens, down to where a card's caches would flatter it."""
    x: TensorSpec = call.x
    frames = max((_frames(call, name) for name in operands), default=1)
    if x.numel < _SMALLEST_TUNED or x.shape[1] < 4:
        return None
    half = x.shape[1] // 2
    return bucket_of(_of_tokens(call, operands, half, min(frames, half)))


def _frames(call: Call, name: str) -> int:
    spec: TensorSpec | None = call.get(name)
    return spec.shape[1] if spec is not None and len(spec.shape) == 3 else 1


def _of_tokens(call: Call, operands: Sequence[str], tokens: int, frames: int) -> Call:
    """The call with other numbers of tokens and of frames."""
    x: TensorSpec = call.x
    changes: dict[str, TensorSpec] = {}
    for name, spec in call.tensors.items():
        if name in operands:
            if _frames(call, name) > 1:
                rows = tokens if spec.shape[1] == x.shape[1] else frames
                changes[name] = spec.like(shape=(spec.shape[0], rows, spec.shape[2]))
        elif len(spec.shape) > 1 and spec.shape[1] == x.shape[1]:
            changes[name] = spec.like(shape=(spec.shape[0], tokens, *spec.shape[2:]))
    return call.replace(**changes)


def _unaligned(spec: TensorSpec) -> TensorSpec:
    return spec.like(aligned=False, strides=spec.strides)


def _gapped(spec: TensorSpec) -> TensorSpec:
    """The same with one element between its rows."""
    _, tokens, width = spec.shape
    return spec.like(strides=(tokens * (width + 1), width + 1, 1))
