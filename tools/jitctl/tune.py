"""`jitctl tune`: tune one op at the shapes given, and show the landscapes."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated

import typer

from ...jit.settings import Settings
from ...jit.stats import STATS
from ...jit.toolchain import toolchain
from . import folder
from .options import AsJson, DeviceIndex, Imports, Jobs
from .output import note, say_json
from .show import print_winners, winner_documents
from .warmup import Dtype

if TYPE_CHECKING:
    from ...jit.declare import Device
    from ...jit.op import Op
    from ...jit.record import Workload

_SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*)*(:.+)?")


def tune(
    op: Annotated[str, typer.Argument(help="An op, or a printed signature.", metavar="OP")],
    shapes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Shapes of its first tensor: 1x64x32x32, or 1x64x32x32:channels_last.",
            metavar="SHAPE",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the first tensor; bf16 if none.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another argument, as signatures print it. Repeatable.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    imports: Imports = None,
    device: DeviceIndex = None,
    jobs: Jobs = None,
    again: Annotated[
        bool, typer.Option("--again", help="Tune although there is a winner.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tune an op at one or more shapes, and show the landscape of each, as `jitctl show` does.

    A shape is tuned for its whole bucket, so that two shapes may share one landscape. What has a
    winner is shown without tuning it; --again tunes it anew.

    \b
    Examples:
      jitctl tune group_norm_silu 1x1024x16x32x48 1x512x16x64x96 --set groups=32
      jitctl tune 'group_norm_silu[bf16](1x1024x24576, groups=32)' --again
      jitctl tune scale 4096 --dtype fp32 --import mypackage.ops --json
    """
    from . import warming  # noqa: PLC0415  (40 ms that the other commands do not need)
    from .wanted import declare_ops  # noqa: PLC0415  (the same)

    settings = Settings.read(jobs=jobs)
    texts = _given(op, shapes or (), dtype, sets or ())
    declare_ops(imports or ())
    workload = _workload(op, texts)
    card = warming.the_card(device, "jitctl tune needs one; jitctl warmup compiles without.")
    _refuse_the_hopeless(workload, card)
    store = folder.open_for_writing(folder.cache_dir(settings), settings.cache_path)
    warming.keep(store, settings)
    rows, winners = warming.tuned(store, settings, workload, card, anew=again)

    if as_json:
        say_json(
            {
                "device": card.name,
                "arch": card.target,
                "cache_dir": str(store.root),
                "toolchain": toolchain(),
                "rows": [asdict(row) for row in rows],
                "winners": winner_documents(winners),
                "stats": STATS.snapshot(),
            }
        )
    else:
        print_winners(winners)
    for row in rows:
        if row.status == "failed":
            note(f"failed: {row.signature}: {row.detail}")
        elif row.status == "known" and not again:
            note(f"{row.signature} was tuned before; to tune it anew: --again")
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(1)


def _given(op: str, shapes: Sequence[str], dtype: Dtype | None, sets: Sequence[str]) -> list[str]:
    """The signatures in printed form, not yet read by their op. Raises ValueError."""
    if "[" in op:
        if dtype or sets:
            raise ValueError(f"{op!r} is a whole signature: --dtype and --set are part of it.")
        return [op, *shapes]
    if not shapes:
        raise ValueError(
            f"no SHAPE of {op}'s first tensor is given. "
            f"Example: jitctl tune {op} 1x64x32x32; or give a printed signature."
        )
    names = [text.partition("=")[0] for text in sets]
    for text, name in zip(sets, names, strict=True):
        if not re.fullmatch(r"\w+=.+", text):
            raise ValueError(f"--set {text!r}: write NAME=VALUE, such as --set groups=32.")
        if names.count(name) > 1:
            raise ValueError(f"--set {name} is given twice.")
    for shape in shapes:
        if not _SHAPE.fullmatch(shape):
            raise ValueError(
                f"SHAPE {shape!r}: write sizes from 1 with x in between, such as 1x64x32x32, and "
                "behind them another layout than contiguous, such as :channels_last."
            )
    word = dtype.value if dtype else Dtype.bf16.value
    return [f"{op}[{word}]({', '.join([shape, *sets])})" for shape in shapes]


def _workload(op: str, texts: Sequence[str]) -> "Workload":
    """The signatures, read by their ops. Imports torch. Raises ValueError that says what can be."""
    from ...jit.op import OPS  # noqa: PLC0415
    from ...jit.record import Workload  # noqa: PLC0415
    from .wanted import read_signature  # noqa: PLC0415

    workload = Workload()
    if "[" not in op and op not in OPS:
        raise ValueError(
            f"no op {op!r} is declared; there are {', '.join(sorted(OPS))}. "
            "One that is declared outside jitd needs --import MODULE."
        )
    for text in texts:
        try:
            workload.add(read_signature(text))
        except ValueError as error:
            if "[" in op:
                raise
            raise ValueError(f"{text}: {error.__cause__ or error} {_arguments(OPS[op])}") from error
    return workload


def _arguments(op: "Op") -> str:
    """What may be set of an op, in one sentence."""
    needed, optional = [], []
    for argument in op.arguments[1:]:
        if argument.kind == "tensor":
            optional.append(f"{argument.name}=DTYPE SHAPE:LAYOUT")
        elif argument.name in op.selects and argument.default is Parameter.empty:
            needed.append(f"{argument.name}={argument.kind.upper()}")
        else:
            optional.append(f"{argument.name}={argument.kind.upper()}")
    words = [f"{op.name} takes SHAPE"]
    words += [f"--set {text}" for text in needed]
    may = f"; it may have --set {', '.join(optional)}" if optional else ""
    return f"{', '.join(words)}{may}. Dtypes are {', '.join(Dtype)}."


def _refuse_the_hopeless(workload: "Workload", card: "Device") -> None:
    """Raise ValueError for a signature that no variant of its op can compute."""
    from ...jit.warm import buckets  # noqa: PLC0415

    for bucket in buckets(workload):
        configs, dropped = bucket.op.configs(bucket.call, card)
        if not configs:
            reasons = "; ".join(dict.fromkeys(f"{name}: {reason}" for name, reason in dropped[:3]))
            raise ValueError(f"{bucket.signature}: nothing to tune on {card.name}: {reasons}.")
