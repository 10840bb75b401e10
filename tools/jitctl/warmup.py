"""`jitctl warmup`: its options. The work is in `warming`, what is said of it in `warmup_report`."""

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
from .output import note, say, say_json
from .warmup_report import report

if TYPE_CHECKING:
    from ...jit.warm import Again
    from ...models.pipelines.recording import Pipeline
    from .resume import Interrupted
    from .wanted import Request


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
        list[Path] | None,
        typer.Option(
            help="A file that Workload.save() or JITD_RECORD wrote. Repeatable: files of several "
            "processes are one workload.",
            metavar="FILE",
        ),
    ] = None,
    diffusers: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the config files of a pipeline of diffusers, or of one of its "
            "models: what it asks for once jitd.patch has patched it. No weights are needed.",
            metavar="FOLDER",
        ),
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
    frames: Annotated[
        int | None,
        typer.Option(
            help="With --diffusers: frames of a size without any; 121 if none.",
            min=1,
            metavar="N",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="With --diffusers: tokens of a prompt; as the pipeline pads them if none.",
            min=1,
            metavar="N",
        ),
    ] = None,
    vae_dtype: Annotated[
        Dtype | None,
        typer.Option(help="With --diffusers: dtype of the VAE; Helios' fp32, else --dtype."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the model's weights.")] = Dtype.bf16,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Variant of the model; the newest if none. With --diffusers guided, distilled or "
            "both (all), for Helios base or pyramid.",
            metavar="NAME",
        ),
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
    those in one forward of each of its parts and one step of each stage, however many there are; of
    files that JITD_RECORD wrote the files that name a signature.

    \b
    Examples:
      jitctl warmup --model ltx2
      jitctl warmup --model ltx2 --hq --size 1088x1920-hq
      jitctl warmup --model ltx2 --variant 2.3-distilled --i2v --size 1024x1536
      jitctl warmup --model zimage --size 1024 --size 768x1360
      jitctl warmup --model ltx2 --size 512x768x121 --arch sm_90 --arch sm_100
      jitctl warmup --diffusers ~/models/LTX-2.3 --size 1024x1536 --frames 121
      jitctl warmup --diffusers ~/models/Z-Image-Turbo --size 1024x1024 --variant distilled
      jitctl warmup --workload seen.jsonl
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
            workloads=workload or (),
            imports=imports or (),
            hq=hq,
            pipeline=_pipeline(diffusers, frames, prompt_tokens, vae_dtype),
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
            report(outcome, request, folder.place_of(store, store.root), dry_run=dry_run)
    if not dry_run and any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _pipeline(
    path: Path | None, frames: int | None, prompt_tokens: int | None, vae_dtype: Dtype | None
) -> "Pipeline | None":
    """The folder of --diffusers. Raises ValueError, for its options without it, too."""
    from ...models.pipelines.recording import pipeline_in  # noqa: PLC0415  (as `warming`)

    if path is not None:
        dtype = vae_dtype.value if vae_dtype else None
        return pipeline_in(path, frames=frames, prompt_tokens=prompt_tokens, vae_dtype=dtype)
    if frames or prompt_tokens or vae_dtype:
        raise ValueError(
            "--frames, --prompt-tokens and --vae-dtype are options of --diffusers: give that, too."
        )
    return None


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
