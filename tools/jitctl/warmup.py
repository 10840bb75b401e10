"""`jitctl warmup`: its options, and its report. The work is in `warming`."""

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...cache.store import Store
from ...jit.settings import Settings
from ...jit.stats import STATS
from ...jit.toolchain import toolchain
from ...models import catalog
from . import folder
from .options import AsJson, DeviceIndex, Imports, Jobs
from .output import count, microseconds, note, percent, say, say_json, table, times

if TYPE_CHECKING:
    from ...jit.warm import Again, Row
    from .resume import Interrupted
    from .wanted import Request
    from .warming import Outcome


class Dtype(StrEnum):
    """As the signatures print them."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Mode(StrEnum):
    """What to do for each signature."""

    tune = "tune"
    compile = "compile"


class Anew(StrEnum):
    """Which winners to tune again, besides what has none."""

    noisy = "noisy"
    stale = "stale"
    all = "all"


_WITH_RESUME = {"resume", "jobs", "dry_run", "as_json", "imports"}  # what changes no request


def warmup(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help=f"Model: {', '.join(catalog.MODELS)}.", metavar="NAME")
    ] = None,
    signature: Annotated[
        list[str] | None,
        typer.Option(
            help="A printed signature, as in an error or a log. Repeatable.", metavar="TEXT"
        ),
    ] = None,
    workload: Annotated[
        Path | None, typer.Option(help="A file that Workload.save() wrote.", metavar="FILE")
    ] = None,
    imports: Imports = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Size of the finished video or image, or a preset's name; repeatable. "
            "All presets if none.",
            metavar="HxW[xF]",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the model's weights.")] = Dtype.bf16,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the model; the newest if none.", metavar="NAME")
    ] = None,
    hq: Annotated[
        bool, typer.Option("--hq", help="The variant of high quality: LTX-2's is 2.3-hq.")
    ] = False,
    i2v: Annotated[
        bool, typer.Option("--i2v", help="Image-to-video: warm what that calls instead.")
    ] = False,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="Compile for this architecture; repeatable. sm_90 where there is no GPU.",
            metavar="sm_NN",
        ),
    ] = None,
    device: DeviceIndex = None,
    jobs: Jobs = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="Tune on the GPU (the default with one), or compile only."),
    ] = None,
    space: Annotated[
        bool,
        typer.Option("--space", help="Compile every candidate, not only the default config."),
    ] = False,
    again: Annotated[
        Anew | None,
        typer.Option(
            help="Tune again what was measured on a restless card, under another driver or "
            "toolchain, or all; besides what is not tuned."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the warmup that was last interrupted."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing; compile and tune nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile, tune and check what a model needs, before it runs.

    On a GPU every signature is tuned there. Without one it is compiled for --arch, and the first
    run on a GPU has only to tune and check. A second warmup answers at once. One that was
    interrupted, by Ctrl-C or by a crash, is taken up again with --resume. Of a model, "calls" are
    those in one forward of each of its parts and one step of each stage, however many there are.

    \b
    Examples:
      jitctl warmup --model ltx2
      jitctl warmup --model ltx2 --hq --size 1088x1920-hq
      jitctl warmup --model ltx2 --variant 2.3-distilled --i2v --size 1024x1536
      jitctl warmup --model zimage --size 1024 --size 768x1360
      jitctl warmup --model ltx2 --size 512x768x121 --arch sm_90 --arch sm_100
      jitctl warmup --signature 'group_norm_silu[bf16](1x1024x16x32x48, groups=32)'
      jitctl warmup --model ltx2 --again noisy
      jitctl warmup --resume
    """
    from . import warming  # noqa: PLC0415  (40 ms that the other commands do not need)
    from .wanted import Request, wanted  # noqa: PLC0415  (the same)

    settings, began = Settings.read(jobs=jobs), None
    place = folder.cache_dir(settings)
    if resume:
        interrupted = _interrupted(context, place)
        if interrupted is None:
            _nothing_to_resume(place, as_json=as_json)
            return
        request, began = interrupted.request, interrupted.began
        _refuse_unnamed_modules(request, imports or ())
        settings = Settings.read(jobs=jobs or request.jobs)
        note(f"resuming: {request.command}")
        _, targets = warming.targets(
            request.archs,
            request.index,
            request.work,
            request.again,
            whole_space=request.whole_space,
        )
    else:
        asked = wanted(
            model,
            sizes=size or (),
            dtype=dtype.value,
            variant=variant,
            i2v=i2v,
            signatures=signature or (),
            workload=workload,
            imports=imports or (),
            hq=hq,
        )
        anew: Again = again.value if again else "missing"
        work, targets = warming.targets(
            arch or (), device, mode.value if mode else None, anew, whole_space=space
        )
        archs = tuple(target.target for target in targets if not target.uuid)
        index = None if archs else targets[0].index
        request = Request(asked, work, archs, index, space, anew, jobs)
    if dry_run:
        store: Store = folder.open_for_reading(place, settings.cache_path) or Store(place)
    else:
        store = folder.open_for_writing(place, settings.cache_path)
        warming.keep(store, settings)
    outcomes = warming.warmed(store, settings, request, targets, dry_run=dry_run, began=began)

    if as_json:
        say_json(
            {
                "name": request.wanted.name,
                "mode": request.work,
                "resumed": request.command if resume else None,
                "dry_run": dry_run,
                "cache_dir": str(store.root),
                "toolchain": toolchain(),
                "targets": [outcome.document() for outcome in outcomes],
                "stats": STATS.snapshot(),
            }
        )
    else:
        for outcome in outcomes:
            _report(outcome, request, folder.place_of(store, store.root), dry_run=dry_run)
    if not dry_run and any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _interrupted(context: typer.Context, place: Path) -> "Interrupted | None":
    """What --resume goes on with. Raises ValueError for options that are the request's own."""
    from .resume import last  # noqa: PLC0415  (as `warming`)

    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _WITH_RESUME and source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"--resume goes on with the options of the interrupted warmup: leave out "
                f"{parameter.opts[0]}, or --resume. Allowed are --import, --jobs, --dry-run and "
                "--json."
            )
    store = folder.open_for_reading(place)
    return last(store) if store else None


def _refuse_unnamed_modules(request: "Request", named: Sequence[str]) -> None:
    """Raise ValueError for modules that only the note names: no file of the cache has code run."""
    from .resume import to_go_on  # noqa: PLC0415  (as `warming`)

    unnamed = [name for name in request.wanted.imports if name not in named]
    if unnamed:
        raise ValueError(
            f"the interrupted warmup imports {', '.join(unnamed)}, and jitd imports nothing only "
            f"because a file in the cache says so. Run: {to_go_on(request.command)}"
        )


def _nothing_to_resume(place: Path, *, as_json: bool) -> None:
    if as_json:
        say_json({"resumed": None, "cache_dir": str(place), "targets": []})
    else:
        say(f"Nothing to resume in {place}: no warmup was interrupted.")


def _report(outcome: "Outcome", request: "Request", place: str, *, dry_run: bool) -> None:
    rows, where, wanted = outcome.rows, str(outcome.device), request.wanted
    if not outcome.device.uuid:
        where = f"{outcome.device.target} (as if on an {outcome.device.name})"
    if outcome.from_receipt:
        say(f"{wanted.name} for {where}: nothing to do, all of it is in {place}")
    else:
        say(f"{wanted.name} for {where}, in {place}")
    say()
    _rows(rows, request.work, dry_run=dry_run)
    say()
    for row in rows:
        if row.status == "failed":
            note(f"failed: {row.signature}: {row.detail}")
    if not dry_run:
        say(_next(outcome, request, place))


def _rows(rows: Sequence["Row"], work: str, *, dry_run: bool) -> None:
    first = [(row.signature, row.calls, row.config or "-") for row in rows]
    columns: tuple[str, ...]
    rest: list[tuple[str, ...]]
    if dry_run:
        columns, rest = ("missing",), [(row.detail,) for row in rows]
    elif work == "tune":
        columns = ("status", "us", "of floor", "x eager")
        rest = [
            (row.status, microseconds(row.us), percent(row.floor_share), times(row.speedup))
            for row in rows
        ]
    else:
        columns, rest = ("status", "binaries"), [(row.status, _binaries(row)) for row in rows]
    table(
        ("signature", "calls", "config", *columns),
        [(*one, *other) for one, other in zip(first, rest, strict=True)],
        right=("calls", "us", "of floor", "x eager", "binaries"),
    )


def _binaries(row: "Row") -> str:
    return "-" if row.status == "failed" else row.detail.removesuffix(" binaries")


def _next(outcome: "Outcome", request: "Request", place: str) -> str:
    """What to do now, in one line."""
    command = request.wanted.command
    if outcome.failed:
        return (
            f"{count(outcome.failed, 'signature')} of {len(outcome.rows)} failed; there the "
            f"reference answers, and a model still runs. {_anew(outcome, request)}"
        )
    if request.work == "tune":
        return (
            f"Warm on {outcome.device.name}. To run without ever compiling or tuning: "
            "JITD_MODE=strict python your_program.py"
        )
    if outcome.device.uuid:
        return f"Compiled. {count(len(outcome.rows), 'signature')} to tune: {command}"
    return (
        f"Next: bring {place} to a machine with an {outcome.device.target} card, such as "
        f"{outcome.device.name}, by copy, mount or jitctl export, and run `{command}` there: "
        f"{count(len(outcome.rows), 'signature is', 'signatures are')} left to tune and check."
    )


def _anew(outcome: "Outcome", request: "Request") -> str:
    """What may be done for a signature that failed: the failure is remembered."""
    if request.work == "compile":
        return "Warm again when its code has changed."
    signature = next(row.signature for row in outcome.rows if row.status == "failed")
    words = ["jitctl", "tune", signature, "--again"]
    words += [word for name in request.wanted.imports for word in ("--import", name)]
    return f"To try one anew: {shlex.join(words)}"
