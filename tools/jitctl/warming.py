"""What `jitctl warmup` does: resolve what is wanted, look for receipts, tune or compile."""

import hashlib
import importlib
import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from ...cache.errors import JitdError
from ...cache.keys import Key
from ...cache.locks import KeyLocks
from ...cache.store import Store
from ...jit import warm
from ...jit.build import Builder
from ...jit.compile import CompilePool
from ...jit.declare import Device
from ...jit.device import devices, stand_in, why_no_device
from ...jit.op import OPS
from ...jit.record import Workload
from ...jit.settings import Settings
from ...jit.stats import STATS
from ...jit.toolchain import toolchain
from ...models import catalog
from .output import note, progress

Work = Literal["tune", "compile"]
DEFAULT_ARCH = "sm_90"


@dataclass(frozen=True)
class Wanted:
    """What is to be warm: a model at some sizes, signatures, or both."""

    model: catalog.Model | None
    sizes: tuple[Any, ...]
    dtype: str
    version: str
    signatures: tuple[str, ...]
    workload: Path | None
    imports: tuple[str, ...]

    @property
    def name(self) -> str:
        """What receipts are filed under."""
        return self.model.name if self.model else "signatures"

    @property
    def options(self) -> dict[str, object]:
        """All that decides the signatures, for the key of the receipt."""
        options: dict[str, object] = {
            "signatures": sorted(self.signatures),
            "workload": _digest(self.workload) if self.workload else "",
            "imports": [(name, _package_digest(name)) for name in sorted(self.imports)],
        }
        if self.model:
            sizes = sorted(str(size) for size in self.sizes)
            options |= {"sizes": sizes, "dtype": self.dtype, "version": self.version}
        return options

    @property
    def command(self) -> str:
        """The command line that wants the same on another machine."""
        words = ["jitctl", "warmup"]
        if self.model:
            words += ["--model", self.model.name]
            if set(self.sizes) != set(self.model.sizes.values()):
                words += [word for size in self.sizes for word in ("--size", str(size))]
            if self.dtype != "bf16":
                words += ["--dtype", self.dtype]
            if self.version != self.model.versions[0]:
                words += ["--version", self.version]
        words += [word for name in self.imports for word in ("--import", name)]
        words += [word for text in self.signatures for word in ("--signature", text)]
        words += ["--workload", str(self.workload)] if self.workload else []
        return shlex.join(words)

    def resolve(self) -> Workload:
        """The signatures. Imports torch. Raises ValueError for one that cannot be read."""
        for name in self.imports:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise ValueError(f"--import {name}: {error}.") from error
        catalog.declare_ops()
        asked = Workload.load(self.workload) if self.workload else Workload()
        for text in self.signatures:
            asked.add(text)
        for text in asked:
            _check_signature(text)
        if self.model:
            model = self.model.workload(self.sizes, self.dtype, self.version)
            for text, calls in model.counts.items():
                asked.add(text, calls)
        return asked


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


# -- what, and for what -----------------------------------------------------------------------


def wanted(
    model: str | None,
    *,
    sizes: Sequence[str],
    dtype: str,
    version: str | None,
    signatures: Sequence[str],
    workload: Path | None,
    imports: Sequence[str],
) -> Wanted:
    """The request, checked as far as that goes without torch. Raises ValueError."""
    if not (model or signatures or workload):
        raise ValueError(
            f"nothing to warm: give --model ({', '.join(catalog.MODELS)}), --signature or "
            "--workload. Example: jitctl warmup --model ltx2"
        )
    known = catalog.model(model) if model else None
    if known is None and (sizes or version):
        raise ValueError("--size and --version are options of a model: give --model, too.")
    if workload and not workload.is_file():
        raise ValueError(f"--workload {workload}: no such file.")
    if workload:
        Workload.load(workload)  # refuse a damaged one before torch is imported
    if known and version and version not in known.versions:
        raise ValueError(
            f"{known.name} has no version {version!r}; there are {', '.join(known.versions)}."
        )
    parsed: tuple[Any, ...] = ()
    if known:
        given = [known.parse_size(text) for text in sizes]
        parsed = tuple(dict.fromkeys(given or known.sizes.values()))
    return Wanted(
        model=known,
        sizes=parsed,
        dtype=dtype,
        version=version or (known.versions[0] if known else ""),
        signatures=tuple(dict.fromkeys(signatures)),
        workload=workload,
        imports=tuple(dict.fromkeys(imports)),
    )


def targets(
    arch: Sequence[str], index: int | None, mode: Work | None, *, whole_space: bool
) -> tuple[Work, list[Device]]:
    """Whether to tune or compile, and for which devices or stand-ins. Raises ValueError."""
    if arch:
        if mode == "tune" or index is not None:
            raise ValueError("--arch compiles for a GPU that is not here: nothing to tune on.")
        return "compile", [stand_in(name) for name in dict.fromkeys(arch)]
    cards = devices()
    if not cards:
        if mode == "tune" or index is not None:
            raise JitdError(
                f"no GPU to tune on: {why_no_device()}. Without one: jitctl warmup --mode compile"
            )
        return "compile", [stand_in(DEFAULT_ARCH)]
    if index is not None and index >= len(cards):
        raise ValueError(f"--device {index}: there are {len(cards)}, counted from 0.")
    work: Work = "compile" if mode == "compile" else "tune"
    if whole_space and work == "tune":
        raise ValueError("--space is for compiling ahead: tuning compiles every candidate anyway.")
    return work, [cards[index or 0]]


# -- doing it ---------------------------------------------------------------------------------


def warmed(
    store: Store,
    settings: Settings,
    wanted: Wanted,
    work: Work,
    targets: Sequence[Device],
    *,
    whole_space: bool,
    dry_run: bool,
) -> list[Outcome]:
    """Warm every target, or with `dry_run` say what that would take.

    What a receipt answers needs neither torch nor Triton.
    """
    options = {**wanted.options, "work": work, "space": whole_space}
    outcomes: list[Outcome] = []
    workload: Workload | None = None
    with CompilePool(settings.jobs, timeout_s=settings.compile_timeout_s) as pool:
        for target in targets:
            key = warm.receipt_key(wanted.name, options, target, toolchain())
            rows = warm.read_receipt(store, key)
            if rows is not None:
                outcomes.append(Outcome(target, rows, from_receipt=True))
                continue
            workload = workload or wanted.resolve()
            locks = KeyLocks(store.root)
            builder = Builder(store, locks, lambda: pool, target, toolchain(), STATS)
            if dry_run:
                rows = _outlook(builder, workload, work, whole_space=whole_space)
            else:
                rows = _made(builder, workload, work, key, whole_space=whole_space)
            outcomes.append(Outcome(target, rows, from_receipt=False))
    return outcomes


def _made(
    builder: Builder, workload: Workload, work: Work, key: Key, *, whole_space: bool
) -> list[warm.Row]:
    """Warm one device. Ctrl-C keeps what is done and says so."""
    steps = warm.Progress()
    try:
        with progress(work) as shown:
            steps.changed = shown.show
            if work == "tune":
                rows = warm.warm(builder, workload, steps)
            else:
                rows = warm.compile_for(builder, workload, steps, whole_space=whole_space)
    except KeyboardInterrupt:
        unit = "signatures are tuned" if work == "tune" else "binaries are compiled"
        note(
            f"interrupted: {steps.done} of {steps.total} {unit} and kept in {builder.store.root}. "
            "The same command goes on from there."
        )
        raise typer.Exit(130) from None
    if not any(row.status == "failed" for row in rows):
        warm.write_receipt(builder, key, workload, rows, whole_space=whole_space)
    return rows


def _outlook(
    builder: Builder, workload: Workload, work: Work, *, whole_space: bool
) -> list[warm.Row]:
    """What a warmup would find, in the detail of each row."""
    rows = []
    for bucket in warm.buckets(workload):
        op, call = bucket.op, bucket.call
        config = builder.winner(op, call) if work == "tune" else None
        if work == "compile":
            config, binaries = warm.worth_compiling(builder, bucket, whole_space=whole_space)
            missing = len({b.key for b in binaries if not builder.store.has(b.key)})
            detail = f"{missing} of {len({b.key for b in binaries})} binaries missing"
        elif config is None:
            detail = f"to tune: {len(op.configs(call, builder.device)[0])} candidates"
        elif all(builder.look_up(op, reached, "tune") for reached in (call, *op.reach(call))):
            detail = "ready"
        else:
            detail = "tuned; binaries to compile or check"
        name = config.name if config else ""
        rows.append(warm.Row(bucket.signature, bucket.calls, name, "known", detail=detail))
    return rows


def _check_signature(text: str) -> None:
    """Raise ValueError for a signature that this process cannot read."""
    name = text.partition("[")[0]
    if name not in OPS:
        raise ValueError(
            f"signature {text!r}: no op {name!r} is declared; there are {', '.join(sorted(OPS))}. "
            "One that is declared outside jitd needs --import MODULE."
        )
    try:
        OPS[name].parse(text)
    except ValueError as error:
        raise ValueError(f"signature {text!r}: {error}.") from error


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _package_digest(module: str) -> str:
    """Changes with any source file of the package that `module` is in; nothing is imported."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return "missing"
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [path for place in folders for path in sorted(place.rglob("*.py"))]
    files += [Path(spec.origin)] if spec.origin and not folders else []
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
