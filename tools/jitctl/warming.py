"""What `jitctl warmup` and `jitctl tune` do: look for receipts, tune or compile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import typer

from ...cache.errors import JitdError
from ...cache.keys import Key
from ...cache.records import Record
from ...cache.store import Store
from ...jit import warm
from ...jit.build import Builder
from ...jit.compile import CompilePool
from ...jit.declare import Config, Device
from ...jit.device import devices, stand_in, why_no_device
from ...jit.record import Workload
from ...jit.runtime import builder_of
from ...jit.runtime import keep as keep  # noqa: PLC0414 - for the commands that build
from ...jit.settings import Settings
from ...jit.toolchain import toolchain
from . import resume
from .output import note, progress
from .wanted import Request, Work

DEFAULT_ARCH = "sm_90"


@dataclass
class Outcome:
    """What one device or arch has now."""

    device: Device
    rows: list[warm.Row]
    from_receipt: bool

    @property
    def failed(self) -> int:
        return sum(row.status == "failed" for row in self.rows)

    def document(self) -> dict[str, Any]:
        """This outcome for --json."""
        rows = [
            {**asdict(row), "floor_share": row.floor_share, "speedup": row.speedup}
            for row in self.rows
        ]
        where = "device" if self.device.uuid else "stand_in"
        arch = self.device.target
        return {where: self.device.name, "arch": arch, "receipt": self.from_receipt, "rows": rows}


# -- for what ---------------------------------------------------------------------------------


def targets(
    arch: Sequence[str],
    index: int | None,
    mode: Work | None,
    again: warm.Again,
    *,
    whole_space: bool,
) -> tuple[Work, list[Device]]:
    """Whether to tune or compile, and for which devices or stand-ins. Raises ValueError."""
    if again != "missing" and (arch or mode == "compile"):
        raise ValueError("--again tunes anew: it goes with neither --arch nor --mode compile.")
    if arch:
        if mode == "tune" or index is not None:
            raise ValueError("--arch compiles for a GPU that is not here: nothing to tune on.")
        return "compile", [stand_in(name) for name in dict.fromkeys(arch)]
    if not devices() and mode != "tune" and index is None and again == "missing":
        return "compile", [stand_in(DEFAULT_ARCH)]
    card = the_card(index, "Without one: jitctl warmup --mode compile")
    work: Work = "compile" if mode == "compile" else "tune"
    if whole_space and work == "tune":
        raise ValueError("--space is for compiling ahead: tuning compiles every candidate anyway.")
    return work, [card]


def the_card(index: int | None, remedy: str) -> Device:
    """The card to tune on; JitdError where there is none, ValueError where there are fewer."""
    cards = devices()
    if not cards:
        raise JitdError(f"no GPU to tune on: {why_no_device()}. {remedy}")
    if index is not None and index >= len(cards):
        raise ValueError(f"--device {index}: there are {len(cards)}, counted from 0.")
    return cards[index or 0]


# -- doing it ---------------------------------------------------------------------------------


def warmed(
    store: Store,
    settings: Settings,
    request: Request,
    targets: Sequence[Device],
    *,
    dry_run: bool,
    began: float | None = None,
) -> list[Outcome]:
    """Warm every target, or with `dry_run` say what that would take.

    What a receipt answers needs neither torch nor Triton; a receipt answers no --again. `began` is
    when the warmup began that this one goes on with.
    """
    wanted = request.wanted
    options = {**wanted.options, "work": request.work, "space": request.whole_space}
    outcomes: list[Outcome] = []
    workload: Workload | None = None
    with CompilePool(settings.jobs, timeout_s=settings.compile_timeout_s) as pool:
        for target in targets:
            key = warm.receipt_key(wanted.name, options, target, toolchain())
            rows = warm.read_receipt(store, key) if request.again == "missing" else None
            if rows is not None:
                outcomes.append(Outcome(target, rows, from_receipt=True))
                continue
            if workload is None:
                workload = wanted.resolve()
                if not dry_run:
                    resume.begin(store, request, target.target, began)
            builder = builder_of(store, target, settings, lambda: pool)
            if dry_run:
                rows = _outlook(builder, workload, request)
            else:
                rows = _made(builder, workload, request, key, began)
            outcomes.append(Outcome(target, rows, from_receipt=False))
    if not dry_run:
        resume.end(store, request)
    return outcomes


def tuned(
    store: Store, settings: Settings, workload: Workload, card: Device, *, anew: bool
) -> tuple[list[warm.Row], list[Record]]:
    """Tune what is not tuned, or with `anew` all: what became of each bucket, and the winners."""
    with CompilePool(settings.jobs, timeout_s=settings.compile_timeout_s) as pool:
        builder = builder_of(store, card, settings, lambda: pool)
        steps = warm.Progress()
        with _interruptible("tune", steps, store, "The same command goes on from there."):
            rows = warm.warm(builder, workload, steps, again="all" if anew else "missing")
    found = [store.get(builder.tuning_key(b.op, b.call)) for b in warm.buckets(workload)]
    return rows, [record for record in found if record is not None]


def _made(
    builder: Builder, workload: Workload, request: Request, key: Key, began: float | None
) -> list[warm.Row]:
    """Warm one device, and leave a receipt."""
    steps, space = warm.Progress(), request.whole_space
    remedy = f"To go on from there: {resume.to_go_on(request.command)}"
    with _interruptible(request.work, steps, builder.store, remedy):
        if request.work == "compile":
            rows = warm.compile_for(builder, workload, steps, whole_space=space)
        elif began is None or request.again == "missing":
            rows = warm.warm(builder, workload, steps, again=request.again)
        else:
            rows = _tuned_since(builder, workload, steps, request.again, began)
    if not any(row.status == "failed" for row in rows):
        warm.write_receipt(builder, key, workload, rows, whole_space=space)
    return rows


def _tuned_since(
    builder: Builder, workload: Workload, steps: warm.Progress, again: warm.Again, began: float
) -> list[warm.Row]:
    """Go on tuning anew: what was tuned after `began` is not tuned a third time."""
    wanted = warm.buckets(workload)
    left, done = Workload(), Workload()
    for bucket in wanted:
        record = builder.store.get(builder.tuning_key(bucket.op, bucket.call))
        part = done if record is not None and record.header.created >= began else left
        part.add(bucket.signature, bucket.calls)
    rows = warm.warm(builder, left, steps, again=again) + warm.warm(builder, done, steps)
    order = [bucket.signature for bucket in wanted]
    return sorted(rows, key=lambda row: order.index(row.signature))


@contextmanager
def _interruptible(work: Work, steps: warm.Progress, store: Store, remedy: str) -> Iterator[None]:
    """Show the progress. Ctrl-C keeps what is done, says so and what to do then."""
    try:
        with progress(work) as shown:
            steps.changed = shown.show
            yield
    except KeyboardInterrupt:
        unit = "signatures are tuned" if work == "tune" else "binaries are compiled"
        note(
            f"interrupted: {steps.done} of {steps.total} {unit} and kept in {store.root}. {remedy}"
        )
        raise typer.Exit(130) from None


def _outlook(builder: Builder, workload: Workload, request: Request) -> list[warm.Row]:
    """What a warmup would find, in the detail of each row."""
    rows = []
    for bucket in warm.buckets(workload):
        if request.work == "compile":
            config, detail = _to_compile(builder, bucket, whole_space=request.whole_space)
        else:
            config, detail = _tuning_outlook(builder, bucket, request.again)
        name = config.name if config else ""
        rows.append(warm.Row(bucket.signature, bucket.calls, name, "known", detail=detail))
    return rows


def _to_compile(
    builder: Builder, bucket: warm.Bucket, *, whole_space: bool
) -> tuple[Config | None, str]:
    try:
        config, binaries = warm.worth_compiling(builder, bucket, whole_space=whole_space)
    except ValueError as error:  # no variant: said of this signature, like a kernel that fails
        return None, str(error)
    keys = {binary.key for binary in binaries}
    missing = sum(not builder.store.has(key) for key in keys)
    return config, f"{missing} of {len(keys)} binaries missing"


def _tuning_outlook(
    builder: Builder, bucket: warm.Bucket, again: warm.Again
) -> tuple[Config | None, str]:
    op, call = bucket.op, bucket.call
    winner = builder.winner(op, call)
    if warm.to_tune(builder, bucket, again):
        configs, _ = op.configs(call, builder.device)
        anew = winner is not None and again != "missing"
        left = len(configs) - (0 if anew else len(builder.winners.known(op, call, configs)))
        of = "" if left == len(configs) else f" of {len(configs)}"
        return winner, f"to tune{' again' * anew}: {left}{of} candidates"
    if all(builder.look_up(op, reached, "tune") for reached in (call, *op.reach(call))):
        return winner, "ready"
    return winner, "tuned; binaries to compile or check"
