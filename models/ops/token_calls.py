"""Calls of a bucket of tokens: those that reach its other binaries, and those at which its binaries
are checked. For ops over x (B, S, D) and what lies beside it: token by token, with a row for each
frame or sample, or once for all. An `index` names a row for each token. x may have other dimensions
where only vectors lie beside it: (…, D) are then so many rows.
"""

from collections.abc import Callable, Iterable, Mapping

from ...jit.sign import Call, TensorSpec

_SMALLEST_TUNED = 1 << 24  # elements


def reach_tokens(call: Call) -> list[Call]:
    """Calls of the bucket of `call` (a bucket's own) that reach its other classes.

    x, or all of the tensors, may begin between 16-byte boundaries, as slices of an odd width do;
    and strides may leave nothing to vectorise. An index is nobody's slice.
    """
    anywhere = {n: _unaligned(spec) for n, spec in call.tensors.items() if n != "index"}
    found = [call.replace(x=anywhere["x"]), call.replace(**anywhere)]
    return list(dict.fromkeys([call, *found, call.replace(x=_gapped(call.x))]))


def probe_tokens(call: Call, bucket_of: Callable[[Call], Call]) -> list[Call]:
    """The longest and about the shortest call that share the bucket of `call`.

    The shortest has an odd number of tokens if it can: its last tiles are partly empty.
    """
    bucket = bucket_of(call)
    longest, frames = _tokens(bucket.x), _frames(bucket)
    fewer = _fewer({*frames.values(), longest})
    fewer_frames = {name: fewer[count] for name, count in frames.items()}
    probes = [
        _of_tokens(call, longest, frames),
        _of_tokens(call, fewer[longest], fewer_frames),
    ]
    return [probe for probe in probes if bucket_of(probe) == bucket]


def _fewer(counts: Iterable[int]) -> dict[int, int]:
    """For each of different powers of two a bit more than its half, odd if it can be; each of them
    divides the next, as frames and tokens have to.
    """
    fewer, step = {}, 1
    for count in sorted(counts):
        times = count // 2 // step + 1
        times += 1 if times % 2 == 0 and step * (times + 1) <= count else 0
        step *= times
        fewer[count] = step
    return fewer


def smaller_tokens(call: Call, bucket_of: Callable[[Call], Call]) -> Call | None:
    """The bucket of half the tokens, down to where a card's caches would flatter it."""
    tokens = _tokens(call.x)
    if call.x.numel < _SMALLEST_TUNED or tokens < 4:
        return None
    return bucket_of(_of_tokens(call, tokens // 2, {}))


def _tokens(x: TensorSpec) -> int:
    return x.shape[1] if len(x.shape) == 3 else x.numel // x.shape[-1]


def _frames(call: Call) -> dict[str, int]:
    """The number of frames of each operand that has a row for each of several."""
    tokens, tensors = _tokens(call.x), call.tensors.items()
    return {n: s.shape[1] for n, s in tensors if len(s.shape) == 3 and 1 < s.shape[1] < tokens}


def _of_tokens(call: Call, tokens: int, frames: Mapping[str, int]) -> Call:
    """The call with so many tokens, and as many frames as `frames` says."""
    x: TensorSpec = call.x
    if len(x.shape) != 3:
        return call.replace(x=x.like(shape=(tokens, x.shape[-1])))
    changes: dict[str, TensorSpec] = {}
    for name, spec in call.tensors.items():
        by_token = name == "index" or (len(spec.shape) == 3 and spec.shape[1] == x.shape[1])
        if by_token or name in frames:
            rows = tokens if by_token else frames[name]
            changes[name] = spec.like(shape=(spec.shape[0], rows, *spec.shape[2:]))
    return call.replace(**changes)


def _unaligned(spec: TensorSpec) -> TensorSpec:
    return spec.like(aligned=False, strides=spec.strides)


def _gapped(spec: TensorSpec) -> TensorSpec:
    """The same, contiguous as it is, with one element between its rows."""
    width = spec.shape[-1]
    return spec.like(strides=(*(s // width * (width + 1) for s in spec.strides[:-1]), 1))
