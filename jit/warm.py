"""Warming: have everything a workload needs in the cache before it runs.

With the card at hand each bucket of each signature is tuned, and its winner compiled and checked
for every binary class that the op can reach. Without it the default configs are compiled for a
target, which leaves tuning and checking to the first run on the card.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..cache.keys import Key
from ..cache.store import Store
from .binary import Binary
from .build import Builder
from .code import code_digest
from .declare import Config, Device
from .errors import NotReady
from .op import OPS, Op
from .record import Workload
from .sign import Call

Status = Literal["tuned", "known", "compiled", "failed"]
Again = Literal["missing", "noisy", "stale", "all"]


@dataclass(frozen=True)
class Row:
    """What warming did for the signatures of one bucket. Times in microseconds."""

    signature: str  # the bucket's
    calls: int
    config: str = ""
    status: Status = "failed"
    us: float | None = None
    floor_us: float | None = None
    eager_us: float | None = None
    detail: str = ""

    @property
    def floor_share(self) -> float | None:
        """How much of the memory limit is reached: 1.0 is all of it."""
        return self.floor_us / self.us if self.us and self.floor_us else None

    @property
    def speedup(self) -> float | None:
        """Times faster than eager, in the same run."""
        return self.eager_us / self.us if self.us and self.eager_us else None


@dataclass(frozen=True)
class Bucket:
    """The signatures of a workload that one tune serves."""

    op: Op
    call: Call
    calls: int

    @property
    def signature(self) -> str:
        return self.op.sign(self.call).text


@dataclass
class Progress:
    """What is under way; `changed` is called after each step with the progress itself."""

    changed: Callable[["Progress"], None] = lambda progress: None
    signature: str = ""
    doing: Literal["tuning", "checking"] = "tuning"  # where something is tuned
    done: int = 0  # buckets that are tuned, or binaries where nothing is
    total: int = 0
    step: int = 0  # candidates checked of the signature under way; buckets, where it is `checking`
    steps: int = 0

    def update(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.changed(self)


def buckets(workload: Workload) -> list[Bucket]:
    """The buckets of a workload, in the order of the workload.

    Raises ValueError for a signature of an op that this process has not declared.
    """
    found: dict[str, Bucket] = {}
    for text, calls in workload.counts.items():
        op = OPS.get(text.partition("[")[0])
        if op is None:
            raise ValueError(f"{text!r} names no declared op; there are {', '.join(sorted(OPS))}.")
        bucket = Bucket(op, op.bucket(op.parse(text).call), calls)
        known = found.get(bucket.signature)
        found[bucket.signature] = replace(bucket, calls=known.calls + calls) if known else bucket
    return list(found.values())


def warm(
    builder: Builder, workload: Workload, progress: Progress, again: Again = "missing"
) -> list[Row]:
    """Tune what is not tuned and check every binary class, on the builder's card.

    again  what to tune although it has a winner: nothing; what was measured on a `noisy` card; what
           is `stale`, from before an upgrade of the driver or Triton; all

    What is done stays done if it is interrupted: every winner is stored as it is found, every
    timing as it is made. Of several processes that warm one card the first does the work.

    While one bucket is tuned, what reaches the other classes of those before it is compiled; it is
    checked when all are tuned.
    """
    builder.tuner().start()
    wanted = buckets(workload)
    progress.update(total=len(wanted))
    rows = []
    with builder.alone():
        for bucket in wanted:
            if to_tune(builder, bucket, again):
                builder.prefetch(bucket.op, bucket.call)
        builder.on_progress = lambda what, done, total: progress.update(step=done, steps=total)
        for index, bucket in enumerate(wanted):
            progress.update(signature=bucket.signature, done=index, step=0, steps=0)
            rows.append(_tuned(builder, bucket, again))
        progress.update(done=len(wanted), doing="checking")
        for index, bucket in enumerate(wanted):
            progress.update(signature=bucket.signature, step=index, steps=len(wanted))
            rows[index] = _checked(builder, bucket, rows[index])
        builder.artifacts.drop_candidates({bucket.op.name for bucket in wanted})
        builder.artifacts.forget()
    progress.update(signature="")
    return rows


def to_tune(builder: Builder, bucket: Bucket, again: Again) -> bool:
    """Whether `warm` tunes a bucket."""
    op, call = bucket.op, bucket.call
    body = builder.winners.body(op, call)
    if again == "all" or body is None or not builder.winners.complete(op, call):
        return True
    if again == "noisy":
        return bool(body["noisy"])
    return again == "stale" and body["driver"] != builder.device.driver


def compile_for(
    builder: Builder, workload: Workload, progress: Progress, *, whole_space: bool = False
) -> list[Row]:
    """Compile the default config, and any winner known for the target, of every bucket.

    `whole_space` compiles every candidate, so that the first tune on a card compiles nothing.
    """
    wanted = buckets(workload)
    needed: dict[str, list[Binary]] = {}
    configs: dict[str, Config] = {}
    impossible: dict[str, str] = {}
    candidates: set[Binary] = set()
    for bucket in wanted:
        try:
            config, binaries = worth_compiling(builder, bucket)
            if whole_space:
                _, tried = worth_compiling(builder, bucket, whole_space=True)
                candidates.update(set(tried) - set(binaries))
                binaries += tried
        except ValueError as error:
            impossible[bucket.signature] = str(error)
            continue
        configs[bucket.signature], needed[bucket.signature] = config, binaries
    everything = {b.key.digest: b for binaries in needed.values() for b in binaries}
    errors: dict[str, str] = {}
    progress.update(total=len(everything), done=0)

    def on_done(binary: Binary, error: str | None) -> None:
        if error is not None:
            errors[binary.key.digest] = error
        progress.update(done=progress.done + 1, signature=str(binary))

    builder.artifacts.compile_all(everything.values(), on_done, candidates)
    progress.update(signature="")
    rows = []
    for bucket in wanted:
        if bucket.signature in impossible:
            rows.append(Row(bucket.signature, bucket.calls, detail=impossible[bucket.signature]))
            continue
        failed = [errors[b.key.digest] for b in needed[bucket.signature] if b.key.digest in errors]
        row = Row(bucket.signature, bucket.calls, configs[bucket.signature].name)
        detail = failed[0] if failed else f"{len(set(needed[bucket.signature]))} binaries"
        rows.append(replace(row, status="failed" if failed else "compiled", detail=detail))
    return rows


def _tuned(builder: Builder, bucket: Bucket, again: Again) -> Row:
    """Tune a bucket if need be, and start compiling what reaches its other classes."""
    op, call = bucket.op, bucket.call
    tuning = to_tune(builder, bucket, again)
    row = Row(bucket.signature, bucket.calls, status="tuned" if tuning else "known")
    try:
        if tuning:
            builder.tune_again(op, call, fresh=again != "missing")
    except NotReady as not_ready:
        return replace(row, status="failed", detail=str(not_ready))
    builder.prefetch_winner(op, op.reach(call))
    return row


def _checked(builder: Builder, bucket: Bucket, row: Row) -> Row:
    """Check every class of a bucket that is tuned, and say what is known of it."""
    op, call = bucket.op, bucket.call
    if row.status == "failed":
        return row
    try:
        for reached in (call, *op.reach(call)):
            builder.get_or_build(op, reached, "tune")
    except NotReady as not_ready:
        return replace(row, status="failed", detail=str(not_ready))
    record = builder.store.get(builder.tuning_key(op, call))
    if record is None:
        return replace(
            row, status="failed", detail="tuned, but the cache could not keep the winner"
        )
    times = {name: record.body[name] for name in ("us", "floor_us", "eager_us")}
    return replace(row, config=record.body["config"], **times)


def worth_compiling(
    builder: Builder, bucket: Bucket, *, whole_space: bool = False
) -> tuple[Config, list[Binary]]:
    """The default config, and every binary that `compile_for` makes for a bucket."""
    op, chosen = bucket.op, _configs_worth_compiling(builder, bucket, whole_space)
    calls = [(bucket.call, config) for config in chosen]
    for config in chosen[:1] if whole_space else chosen:
        calls += [(call, config) for call in op.reach(bucket.call)]
    return chosen[0], [
        binary
        for call, config in calls
        if config.variant.applies(call) is None
        for binary in builder.binaries(op, config.plan(call, builder.device), call)
    ]


def _configs_worth_compiling(builder: Builder, bucket: Bucket, whole_space: bool) -> list[Config]:
    """The default first, then what else is worth compiling."""
    op, call, device = bucket.op, bucket.call, builder.device
    default = op.default(call, device)
    if default is None:
        raise ValueError(f"{bucket.signature}: no variant of {op.name} can compute it.")
    if whole_space:
        return [default, *op.configs(call, device)[0]]
    known = []
    for header in builder.store.headers("winner", op.name):
        if header.meta.get("target") == device.target and header.label == bucket.signature:
            record = builder.store.record_for(header)
            body: Mapping[str, Any] = record.body if record else {}
            config = op.config(body.get("variant", ""), body.get("params", {}))
            known += [config] if config else []
    return [default, *known]


# -- receipts ---------------------------------------------------------------------------------


def receipt_key(model: str, options: Mapping[str, Any], device: Device, toolchain: str) -> Key:
    """What a warmup's outcome depends on: the question, the code, the card, the toolchain."""
    return Key.of(
        "receipt",
        model,
        options=tuple(sorted((k, str(v)) for k, v in options.items())),
        code=code_digest(),
        device=device.name,
        uuid=device.uuid,
        sm_count=device.sm_count,
        target=device.target,
        toolchain=toolchain,
    )


def write_receipt(
    builder: Builder,
    key: Key,
    workload: Workload,
    rows: Sequence[Row],
    *,
    whole_space: bool = False,
) -> None:
    """Note which records the workload needs, so that the next warmup need only look for them."""
    paths: set[str] = set()
    for bucket in buckets(workload):
        paths.update(_needed(builder, bucket, whole_space))
    body = {"paths": sorted(paths), "rows": [asdict(row) for row in rows]}
    builder.store.put(key, body, label=key.op)


def _needed(builder: Builder, bucket: Bucket, whole_space: bool) -> set[str]:
    op, call = bucket.op, bucket.call
    config = builder.winner(op, call)
    if config is None:
        _, binaries = worth_compiling(builder, bucket, whole_space=whole_space)
        return {binary.key.path for binary in binaries}
    paths = {builder.tuning_key(op, call).path}
    for reached in (call, *op.reach(call)):
        if config.variant.applies(reached) is None:
            binaries = builder.binaries(op, config.plan(reached, builder.device), reached)
            paths |= {binary.key.path for binary in binaries}
            paths |= {key.path for key in builder.checks(op, config, binaries)}
    return paths


def read_receipt(store: Store, key: Key) -> list[Row] | None:
    """The rows of an earlier warmup, if everything it made is still there; imports no torch."""
    record = store.get(key)
    if record is None or not all(store.is_intact(path) for path in record.body["paths"]):
        return None
    return [Row(**row) for row in record.body["rows"]]
