"""What is asked to be warm: a model, signatures, a workload. Read, checked, and written down."""

import hashlib
import importlib
import importlib.util
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ...jit.op import OPS
from ...jit.record import Workload
from ...jit.sign import Signature
from ...jit.warm import Again
from ...models import catalog
from ...models.pipelines.recording import Pipeline
from .output import note

Work = Literal["tune", "compile"]


@dataclass(frozen=True)
class Wanted:
    """What is to be warm: a model at some sizes, signatures, or both.

    `pipeline`: the model is that of a folder of diffusers.
    """

    model: catalog.Model | None
    sizes: tuple[Any, ...]
    dtype: str
    variant: str
    i2v: bool
    signatures: tuple[str, ...]
    workloads: tuple[Path, ...]
    imports: tuple[str, ...]
    pipeline: Pipeline | None = None

    @property
    def name(self) -> str:
        """What receipts are filed under."""
        return self.model.name if self.model else "signatures"

    @property
    def options(self) -> dict[str, object]:
        """All that decides the signatures, for the key of the receipt."""
        options: dict[str, object] = {
            "signatures": sorted(self.signatures),
            "workload": " ".join(sorted(map(_digest, self.workloads))),
            "imports": [(name, _package_digest(name)) for name in sorted(self.imports)],
        }
        if self.model:
            sizes = sorted(str(size) for size in self.sizes)
            options |= {"sizes": sizes, "dtype": self.dtype}
            options |= {"variant": self.variant, "i2v": self.i2v}
        return options | (self.pipeline.options if self.pipeline else {})

    @property
    def words(self) -> list[str]:
        """The command line that wants the same on any machine."""
        words = ["jitctl", "warmup"]
        if self.model:
            words += self.pipeline.words if self.pipeline else ["--model", self.model.name]
            if set(self.sizes) != set(self.model.sizes.values()):
                words += [word for size in self.sizes for word in ("--size", str(size))]
            if self.dtype != "bf16":
                words += ["--dtype", self.dtype]
            if self.variant != self.model.variants[0]:
                words += ["--variant", self.variant]
            words += ["--i2v"] * self.i2v
        words += [word for name in self.imports for word in ("--import", name)]
        words += [word for text in self.signatures for word in ("--signature", text)]
        words += [word for path in self.workloads for word in ("--workload", str(path))]
        return words

    @property
    def command(self) -> str:
        return shlex.join(self.words)

    def resolve(self) -> Workload:
        """The signatures. Imports torch. Raises ValueError for one that cannot be read."""
        declare_ops(self.imports)
        asked = Workload.load_all(self.workloads)
        _refuse_unknown(asked, self.workloads)
        for text in self.signatures:
            read_signature(text)
            asked.add(text)
        if self.model:
            model = self.model.workload(self.sizes, self.dtype, self.variant, i2v=self.i2v)
            for text, calls in model.counts.items():
                asked.add(text, calls)
        return asked


@dataclass(frozen=True)
class Request:
    """A whole warmup, as it was asked for: enough to ask for it again.

    `archs` are stood in for, `index` is the card that is here; one of the two is empty.
    """

    wanted: Wanted
    work: Work
    archs: tuple[str, ...]
    index: int | None
    whole_space: bool
    again: Again = "missing"
    jobs: int | None = None

    @property
    def command(self) -> str:
        """The command line that asks for the same on this machine."""
        words = [*self.wanted.words, *(word for name in self.archs for word in ("--arch", name))]
        words += ["--device", str(self.index)] if self.index else []
        words += ["--mode", self.work] if self.work == "compile" and not self.archs else []
        words += ["--space"] * self.whole_space
        words += ["--again", self.again] if self.again != "missing" else []
        words += ["--jobs", str(self.jobs)] if self.jobs else []
        return shlex.join(words)

    @property
    def identity(self) -> str:
        """Equal for two requests that leave the same in the cache."""
        return replace(self, jobs=None).command

    def document(self) -> dict[str, Any]:
        """This request as plain data; `Request.of` reads it back."""
        wanted = self.wanted
        return {
            "model": wanted.model.name if wanted.model and not wanted.pipeline else None,
            "diffusers": wanted.pipeline.document() if wanted.pipeline else None,
            "sizes": [str(size) for size in wanted.sizes],
            "dtype": wanted.dtype,
            "variant": wanted.variant,
            "i2v": wanted.i2v,
            "signatures": list(wanted.signatures),
            "workloads": [str(path) for path in wanted.workloads],
            "imports": list(wanted.imports),
            "work": self.work,
            "archs": list(self.archs),
            "index": self.index,
            "space": self.whole_space,
            "again": self.again,
            "jobs": self.jobs,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Request":
        """Raises ValueError where what was asked for is no more: a model, a file; and for a note of
        another version of jitd, which had other options.
        """
        names = {field.name for field in fields(Wanted)} - {"pipeline"} | {"diffusers"}
        missing = names - set(document)
        if missing:
            raise ValueError(f"another version of jitd noted it: {', '.join(sorted(missing))}?")
        return cls(
            wanted=wanted(
                document["model"],
                sizes=document["sizes"],
                dtype=document["dtype"],
                variant=document["variant"] or None,
                i2v=document["i2v"],
                signatures=document["signatures"],
                workloads=[Path(path) for path in document["workloads"]],
                imports=document["imports"],
                pipeline=Pipeline.of(document["diffusers"]) if document["diffusers"] else None,
            ),
            work=document["work"],
            archs=tuple(document["archs"]),
            index=document["index"],
            whole_space=document["space"],
            again=document["again"],
            jobs=document["jobs"],
        )


def wanted(
    model: str | None,
    *,
    sizes: Sequence[str],
    dtype: str,
    variant: str | None,
    i2v: bool,
    signatures: Sequence[str],
    workloads: Sequence[Path],
    imports: Sequence[str],
    hq: bool = False,
    pipeline: Pipeline | None = None,
) -> Wanted:
    """The request, checked as far as that goes without torch. `hq` is a name for the variant of
    high quality. Raises ValueError.
    """
    if not (model or signatures or workloads or pipeline):
        raise ValueError(
            f"nothing to warm: give --model ({', '.join(catalog.MODELS)}), --diffusers, "
            "--signature or --workload. Example: jitctl warmup --model ltx2"
        )
    if model and pipeline:
        raise ValueError("--model and --diffusers are two models: warm one after the other.")
    known = pipeline.model if pipeline else catalog.model(model) if model else None
    if known is None and (sizes or variant or i2v or hq):
        raise ValueError(
            "--size, --variant, --hq and --i2v are options of a model: give --model or "
            "--diffusers, too."
        )
    if known and hq:
        variant = _high_quality(known, variant)
    _look_into(workloads)
    if known:
        known.check(variant or known.variants[0], i2v=i2v)
    parsed: tuple[Any, ...] = ()
    if known:
        given = [known.parse_size(text) for text in sizes]
        parsed = tuple(dict.fromkeys(given or known.sizes.values()))
    return Wanted(
        model=known,
        sizes=parsed,
        dtype=dtype,
        variant=variant or (known.variants[0] if known else ""),
        i2v=i2v,
        signatures=tuple(dict.fromkeys(signatures)),
        workloads=tuple(dict.fromkeys(path.absolute() for path in workloads)),
        imports=tuple(dict.fromkeys(imports)),
        pipeline=pipeline,
    )


def _high_quality(model: catalog.Model, variant: str | None) -> str:
    """The variant that `--hq` means. Raises ValueError if there is none, or for another one."""
    found = next((name for name in model.variants if name.endswith("-hq")), None)
    if found is None:
        raise ValueError(f"{model.name} has no variant of high quality: leave out --hq.")
    if variant not in (None, found):
        raise ValueError(f"--hq is --variant {found}: leave out --variant {variant}, or --hq.")
    return found


# -- ops and signatures -----------------------------------------------------------------------


def declare_ops(imports: Iterable[str]) -> None:
    """Declare jitd's own ops and those of the modules named. Imports torch. Raises ValueError."""
    for name in imports:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--import {name}: {error}.") from error
    catalog.declare_ops()


def read_signature(text: str) -> Signature:
    """A printed signature, read by its op. Raises ValueError that says what is allowed."""
    name = text.partition("[")[0]
    if name not in OPS:
        raise ValueError(
            f"signature {text!r}: no op {name!r} is declared; there are {', '.join(sorted(OPS))}. "
            "One that is declared outside jitd needs --import MODULE."
        )
    return OPS[name].parse(text)


def _look_into(workloads: Iterable[Path]) -> None:
    """Refuse a missing or damaged file before torch is imported, and say which are empty."""
    for path in workloads:
        if not path.is_file():
            what = "a folder; give a file in it" if path.is_dir() else "no such file"
            raise ValueError(f"--workload {path}: {what}.")
        if not Workload.load(path):
            note(f"--workload {path} names no signature: nothing is warmed for it.")


def _refuse_unknown(asked: Workload, paths: Sequence[Path]) -> None:
    """Raise ValueError that says how much of the files this version cannot read, and why."""
    failures = []
    for text in asked:
        try:
            read_signature(text)
        except ValueError as error:
            failures.append(str(error))
    if failures:
        raise ValueError(
            f"--workload {', '.join(map(str, paths))}: of {len(asked)} signatures {len(failures)} "
            f"cannot be read. Record anew what another version recorded. The first: {failures[0]}"
        )


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
