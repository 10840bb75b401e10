"""What the rotary ops demand of their arguments, and which calls share a tune and binaries."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from ...jit.sign import Call, TensorSpec
from .group_norm_problem import next_power_of_two
from .modulation import DTYPES, NUMERICS

LAYOUTS = ("split", "interleaved", "complex")
ROUNDINGS = ("each", "once", "native")

_SMALLEST_TUNED = 1 << 24  # elements, below which a card's caches would flatter a bucket


# -- what is refused --------------------------------------------------------------------------


def check_x(op: str, name: str, x: TensorSpec, numerics: str) -> None:
    """Raise ValueError unless x is (B, T, D) of a dtype that there is."""
    if len(x.shape) != 3:
        raise ValueError(f"{op}: {name} is {x.shape}; allowed is (B, T, H*2R).")
    if x.dtype not in DTYPES:
        raise ValueError(f"{op}: {name} is {x.dtype}; allowed are {', '.join(DTYPES)}.")
    if numerics not in NUMERICS:
        raise ValueError(f"{op}: numerics={numerics!r}; allowed are {', '.join(NUMERICS)}.")


def check_tables(op: str, name: str, x: TensorSpec, cos: Any, sin: Any) -> None:
    """Raise ValueError unless there are no tables, or such as turn x (B, T, D)."""
    if (cos is None) != (sin is None):
        raise ValueError(f"{op}: the tables of {name} are half given; give cos and sin, or none.")
    if cos is None:
        return
    if cos.shape != sin.shape or cos.dtype != sin.dtype:
        raise ValueError(
            f"{op}: the tables of {name} are {cos.dtype} {cos.shape} and {sin.dtype} {sin.shape}; "
            "make them equal."
        )
    if cos.dtype not in (x.dtype, "fp32"):
        allowed = " and ".join(dict.fromkeys((x.dtype, "fp32")))
        raise ValueError(f"{op}: the tables of {name} are {cos.dtype}; allowed are {allowed}.")
    if len(cos.shape) != 4 or cos.shape[3] < 1:
        raise ValueError(
            f"{op}: the tables of {name} are {cos.shape}; allowed is (B, H, T, R), R half a head."
        )
    _check_heads(op, name, x.shape[2], cos.shape)
    batch, tokens, _ = x.shape
    if cos.shape[0] not in (1, batch):
        raise ValueError(
            f"{op}: the tables of {name} are {cos.shape}: a batch of {cos.shape[0]} does not "
            f"divide {name}'s {batch}; allowed are 1 and {batch}."
        )
    if cos.shape[2] != tokens:
        raise ValueError(
            f"{op}: the tables of {name} are {cos.shape}, of {cos.shape[2]} tokens; {name} has "
            f"{tokens}."
        )


def _check_heads(op: str, name: str, width: int, shape: Sequence[int]) -> None:
    """Raise ValueError unless `width` channels are heads of 2R, as many as the tables have."""
    heads, half = shape[1], shape[3]
    if heads > 1 and width % heads == 0 and width // heads % 2:
        raise ValueError(
            f"{op}: {name} has {width} channels, the tables {heads} heads: an odd head dim of "
            f"{width // heads}; allowed are even ones."
        )
    if width % (2 * half):
        odd = ": an odd head dim" if width % 2 else ""
        raise ValueError(
            f"{op}: {name} has {width} channels, which do not divide into the heads of 2 x {half} "
            f"of its tables {tuple(shape)}{odd}."
        )
    if heads not in (1, width // (2 * half)):
        raise ValueError(
            f"{op}: the tables of {name} are {tuple(shape)}, of {heads} heads; {name} has "
            f"{width // (2 * half)} heads of 2 x {half} channels. Allowed is also 1."
        )


def check_split(call: Call) -> None:
    check_x("split_rotary", "x", call.x, call.numerics)
    if call.cos is None or call.sin is None:
        raise ValueError("split_rotary: cos and sin are needed.")
    check_tables("split_rotary", "x", call.x, call.cos, call.sin)


def half_of(table: TensorSpec, layout: str) -> int:
    """R, half a head, of the heads that a table turns."""
    return {"split": table.shape[-1], "interleaved": table.shape[-1] // 4}.get(
        layout, table.shape[-2]
    )


def check_qk(call: Call) -> None:
    op, q, k = "qk_norm_rotary", call.q, call.k
    for name, allowed in (("layout", LAYOUTS), ("rounding", ROUNDINGS)):
        if call[name] not in allowed:
            raise ValueError(f"{op}: {name}={call[name]!r}; allowed are {', '.join(allowed)}.")
    for name, x in (("q", q), ("k", k)):
        check_x(op, name, x, call.numerics)
        cos, sin = call[f"{name}_cos"], call[f"{name}_sin"]
        if call.layout == "split":
            check_tables(op, name, x, cos, sin)
        else:
            _check_pairs(op, name, x, cos, sin, call.layout)
    if q.shape[::2] != k.shape[::2] or q.dtype != k.dtype:
        raise ValueError(
            f"{op}: q is {q.dtype} {q.shape}, k {k.dtype} {k.shape}; only their numbers of tokens "
            "may differ."
        )
    tables = [table for table in (call.q_cos, call.k_cos) if table is not None]
    halves = {half_of(table, call.layout) for table in tables}
    if len(halves) > 1:
        raise ValueError(
            f"{op}: the tables of q are {call.q_cos.shape}, those of k {call.k_cos.shape}: heads "
            "of other sizes; make them equal."
        )
    for name, x in (("q", q), ("k", k)):
        _check_weight(op, f"w{name}", call[f"w{name}"], x, halves, call.rounding)
    if call.wq is not None and call.wk is not None and call.wq.shape != call.wk.shape:
        raise ValueError(
            f"{op}: wq is {call.wq.shape}, wk {call.wk.shape}: one norm over rows, one over heads; "
            "make them equal."
        )


def _check_pairs(op: str, name: str, x: TensorSpec, table: Any, sin: Any, layout: str) -> None:
    """Raise ValueError unless there is no table, or one that turns neighbours in x (B, T, D)."""
    if sin is not None:
        raise ValueError(
            f"{op}: {name}_sin is given; with layout={layout!r} {name}_cos holds the whole table."
        )
    if table is None:
        return
    batch, tokens, width = x.shape
    words = {"interleaved": "(B|1, T, 4R)", "complex": "(B|1, T, R, 2)"}[layout]
    shape = table.shape
    fits = len(shape) == 3 and shape[2] % 4 == 0 and shape[2] > 0
    if layout == "complex":
        fits = len(shape) == 4 and shape[3] == 2 and shape[2] > 0
    if not fits or table.dtype not in ("fp32", "fp64"):
        raise ValueError(
            f"{op}: the table of {name} is {table.dtype} {shape}; allowed is fp32 {words}, R half "
            "a head."
        )
    if shape[0] not in (1, batch) or shape[1] != tokens:
        raise ValueError(
            f"{op}: the table of {name} is {shape}; {name} is {x.shape}. Allowed are a batch of 1 "
            f"or {batch}, and {tokens} tokens."
        )
    if width % (2 * half_of(table, layout)):
        raise ValueError(
            f"{op}: {name} has {width} channels, which do not divide into the heads of 2 x "
            f"{half_of(table, layout)} of its table {shape}."
        )


def _check_weight(
    op: str, name: str, weight: TensorSpec | None, x: TensorSpec, halves: set[int], rounding: str
) -> None:
    """Raise ValueError unless a weight is as long as a row, or as a head of the tables."""
    if weight is None:
        return
    heads = [(2 * half,) for half in halves]
    if weight.shape != x.shape[2:] and weight.shape not in heads:
        allowed = " and ".join(str(tuple(shape)) for shape in (x.shape[2:], *heads))
        raise ValueError(f"{op}: {name} is {weight.shape}; allowed is {allowed}.")
    if weight.dtype not in DTYPES:
        raise ValueError(f"{op}: {name} is {weight.dtype}; allowed are {', '.join(DTYPES)}.")
    if rounding != "once" and weight.dtype != x.dtype:
        raise ValueError(
            f"{op}: {name} is {weight.dtype}, beside {x.dtype}; rounding={rounding!r} is eager's "
            "chain in one dtype. Use rounding='once', or make them equal."
        )


# -- which calls are tuned together -----------------------------------------------------------

# Each tensor of tokens, with the tables that turn it.
Turned = tuple[str, str, str]
SPLIT: Sequence[Turned] = (("x", "cos", "sin"),)
QK: Sequence[Turned] = (("q", "q_cos", "q_sin"), ("k", "k_cos", "k_sin"))


def bucket(call: Call, turned: Sequence[Turned]) -> Call:
    """Samples and tokens up to powers of two, in plain layouts; heads as they are.

    Tables keep their order in memory: token by token, as diffusers makes them, or head by head.
    """
    changes: dict[str, TensorSpec] = {}
    for name, *tables in turned:
        batch, tokens = (next_power_of_two(size) for size in call[name].shape[:2])
        changes |= _resized(call, name, tables, batch, tokens)
    for weight in ("wq", "wk"):
        if call.get(weight) is not None:
            changes[weight] = TensorSpec(call[weight].dtype, call[weight].shape)
    return call.replace(**changes)


def _resized(
    call: Call, name: str, tables: Sequence[str], batch: int, tokens: int
) -> dict[str, TensorSpec]:
    """x and its tables in plain layouts for so many samples and tokens."""
    x: TensorSpec = call[name]
    changed = {name: TensorSpec(x.dtype, (batch, tokens, x.shape[2]))}
    for table in tables:
        spec: TensorSpec | None = call[table]
        if spec is not None and call.get("layout", "split") != "split":
            shape = (1 if spec.shape[0] == 1 else batch, tokens, *spec.shape[2:])
            changed[table] = TensorSpec(spec.dtype, shape)
        elif spec is not None:
            first, heads, _, half = spec.shape
            shape = (1 if first == 1 else batch, heads, tokens, half)
            token_major = heads > 1 and spec.strides[1] < spec.strides[2]
            layout = "perm0213" if token_major and tokens > 1 else "contiguous"
            changed[table] = TensorSpec.with_layout(spec.dtype, shape, layout)
    return changed


def _of_tokens(call: Call, turned: Sequence[Turned], share: float, less: int) -> Call:
    """A bucket's call with `share` of the tokens, `less` fewer; at least one."""
    changes: dict[str, TensorSpec] = {}
    for name, *tables in turned:
        batch, tokens, _ = call[name].shape
        changes |= _resized(call, name, tables, batch, max(1, int(tokens * share) - less))
    return call.replace(**changes)


def probes(call: Call, turned: Sequence[Turned]) -> list[Call]:
    """The longest call whose last tiles are not full, and the shortest of the bucket of `call`."""
    own = bucket(call, turned)
    tried = (_of_tokens(own, turned, 1.0, 1), _of_tokens(own, turned, 0.5, -1))
    return [probe for probe in tried if bucket(probe, turned) == own]


def smaller(call: Call, turned: Sequence[Turned]) -> Call | None:
    """The bucket of half the tokens, down to where caches would flatter it."""
    if call[turned[0][0]].numel < _SMALLEST_TUNED:
        return None
    return bucket(_of_tokens(bucket(call, turned), turned, 0.5, 0), turned)


def reach(call: Call, turned: Sequence[Turned]) -> list[Call]:
    """Calls of the bucket of `call` (a bucket's own) in its other binary classes, one change each:
    tensors that begin between 16-byte boundaries, and strides that allow no wide loads.
    """
    found = [call]
    for name, *tables in turned:
        for group in ([name], [table for table in tables if call[table] is not None]):
            for change in (_unaligned, _oddly_strided):
                found.append(call.replace(**{one: change(call[one]) for one in group}))
    return [*dict.fromkeys(one for one in found if bucket(one, turned) == call)]


def _unaligned(spec: TensorSpec) -> TensorSpec:
    return spec.like(aligned=False, strides=spec.strides)


def _oddly_strided(spec: TensorSpec) -> TensorSpec:
    """As if cut out of a tensor with one channel more."""
    return spec.like(strides=tuple(_odd_strides(spec)))


def _odd_strides(spec: TensorSpec) -> Iterator[int]:
    outer = outer_strides(spec)
    width = prod(spec.shape[len(outer) :])
    for stride in outer:
        yield stride // width * (width + 1)
    yield from spec.strides[len(outer) :]


def outer_strides(spec: TensorSpec) -> tuple[int, ...]:
    """Strides outside of what lies dense: a row, or R pairs (…, R, 2) of a complex table."""
    pairs = len(spec.shape) == 4 and spec.shape[3] == 2 and spec.strides[2:] == (2, 1)
    return spec.strides[: -2 if pairs else -1]
