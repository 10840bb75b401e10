"""The command line: `python -m jitd.tools.bench`. Imports torch only for what needs it."""

# ruff: noqa: PLC0415 - each command imports what it measures
import logging
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ...cache.errors import JitdError
from .environment import NoDiffusers, NoGpu, gpu, need_torch_with_cuda
from .goals import TOKENS
from .peers import BadPeer, resolve_op_peers, resolve_peers

app = typer.Typer(
    name="bench",
    help="Benchmarks of jitd, for an NVIDIA GPU. Each prints its tables.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """The dtypes that the kernels take."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class Part(StrEnum):
    """The parts of `tune`."""

    TRITON = "triton"
    PAIRS = "pairs"
    PROCESSES = "processes"
    WORKERS = "workers"
    WARMUP = "warmup"


class BlockVariant(StrEnum):
    """The blocks that there are, by the version of the model."""

    V2_3 = "2.3"
    V2_0 = "2.0"


class BlockModel(StrEnum):
    """Whose blocks there are; `vae` is the decoder of LTX-2.3."""

    LTX2 = "ltx2"
    HELIOS = "helios"
    ZIMAGE = "zimage"
    VAE = "vae"


class PatchModel(StrEnum):
    """Which models of diffusers there are; `vae`: the decoders of Z-Image, LTX-2.3 and Helios."""

    LTX2 = "ltx2"
    UPSAMPLER = "upsampler"
    HELIOS = "helios"
    ZIMAGE = "zimage"
    VAE = "vae"


class TokenPart(StrEnum):
    """The parts of `tokens`."""

    ROTARY = "rotary"
    NORM = "norm"
    LAYER_NORM = "layer_norm"
    GATES = "gates"
    HELIOS = "helios"
    ZIMAGE = "zimage"
    CHANNELS = "channels"


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse before minutes of measuring what could not be written after them."""
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}.")
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the figures and the environment here, too.",
        callback=_in_a_folder,
    ),
]


@app.command("group_norm")
def group_norm(
    dtype: Annotated[Dtype, typer.Option(help="Of x, weight and bias.")] = Dtype.BF16,
    add: Annotated[
        bool, typer.Option("--add", help="With a residual: group_norm_add_silu.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Another implementation, called as f(x, weight, bias, groups, eps), with --add "
            "as f(x, residual, weight, bias, groups, eps). Can be given several times.",
        ),
    ] = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Without torch.compile.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: rough figures.")] = False,
    json: Json = None,
) -> None:
    """GroupNorm + SiLU at the shapes of real models, against eager, torch.compile and peers.

    The first run on a card tunes every shape. Every contender is checked before it is timed.

    \b
    Example:
      python -m jitd.tools.bench group_norm --peer sglang_norm:group_norm_silu --json gn.json
    """
    try:
        peers = resolve_peers(peer or [])
    except BadPeer as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error

    def measure() -> bool:
        from .group_norm import run

        return run(
            dtype=dtype.value,
            add=add,
            peers=peers,
            with_compile=not no_compile,
            quick=quick,
            json=json,
        )

    _measure(measure)


@app.command("tokens")
def tokens(
    part: Annotated[
        list[TokenPart] | None, typer.Option(help="What to measure; repeatable. All parts if none.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OP=MODULE:FUNCTION",
            help="Another implementation of an op, called with that op's positional arguments. "
            "Can be given several times.",
        ),
    ] = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Without torch.compile.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: rough figures.")] = False,
    json: Json = None,
) -> None:
    """Rotary embeddings, norms, modulation and gates at the shapes of LTX-2, Helios, Z-Image, VAEs.

    Against eager, torch.compile and peers. The first run on a card tunes every shape: about four
    minutes with 16 cores. Every contender is checked before it is timed.

    \b
    Example:
      python -m jitd.tools.bench tokens --part rotary \\
        --peer split_rotary=sglang_rotary:apply_ltx2_split_rotary_emb --json tokens.json
    """
    try:
        peers = resolve_op_peers(peer or [], {one.signature.partition("[")[0] for one in TOKENS})
    except BadPeer as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error

    def measure() -> bool:
        from .tokens import run

        return run(
            parts=[one.value for one in part or TokenPart],
            peers=peers,
            with_compile=not no_compile,
            quick=quick,
            json=json,
        )

    _measure(measure)


@app.command("block")
def block(
    model: Annotated[
        list[BlockModel] | None,
        typer.Option(help="Whose block; vae: of LTX-2.3's decoder. Repeatable. All if none."),
    ] = None,
    variant: Annotated[
        list[BlockVariant] | None, typer.Option(help="Of LTX-2; repeatable. Both if none.")
    ] = None,
    stage: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=2, help="Of LTX-2, 1: 2x6144 tokens, 2: 1x24576; repeatable. Both if none."
        ),
    ] = None,
    i2v: Annotated[
        bool, typer.Option("--i2v", help="LTX-2, image to video: two timesteps.")
    ] = False,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Without torch.compile.")
    ] = False,
    json: Json = None,
) -> None:
    """One block of a transformer at its real size: eager, torch.compile, jitd.

    Time, kernel launches, bytes moved by kernels that are no matrix products, peak memory, time of
    the host. Helios' eager block has modulation parameters for every token, as diffusers' does. The
    first run on a card tunes what a block calls; JITD_MODE=replay takes defaults instead.

    \b
    Examples:
      python -m jitd.tools.bench block --model ltx2 --variant 2.3 --stage 1 --json block.json
      python -m jitd.tools.bench block --model helios --model zimage
    """

    def measure() -> bool:
        from .block import run
        from .blocks import helios_cases, ltx2_cases, vae_cases, zimage_cases

        of_model = {
            BlockModel.LTX2: lambda: ltx2_cases(
                [one.value for one in variant or BlockVariant], stage or [1, 2], i2v=i2v
            ),
            BlockModel.HELIOS: helios_cases,
            BlockModel.ZIMAGE: zimage_cases,
            BlockModel.VAE: vae_cases,
        }
        cases = [case for one in model or BlockModel for case in of_model[one]()]
        return run(cases=cases, with_compile=not no_compile, json=json)

    _measure(measure)


@app.command("patch")
def patch(
    model: Annotated[
        list[PatchModel] | None,
        typer.Option(
            help="Which; vae: decoders of Z-Image, LTX-2.3, Helios (Wan). Repeatable. All if none."
        ),
    ] = None,
    stage: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=2, help="Of LTX-2, 1: 2x6144 tokens, 2: 1x24576; repeatable. Both if none."
        ),
    ] = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Without torch.compile: stock and patched.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: rough figures.")] = False,
    json: Json = None,
) -> None:
    """Models of diffusers, real sizes, random weights: stock, jitd.patch, torch.compile, both.

    Two blocks of LTX-2.3 or one of Helios or Z-Image, with all around them; LTX-2's upsampler;
    decoders of VAEs. Time, kernel launches, bytes moved by kernels that are no products, peak
    memory, time of the host, distance from stock. The first run on a card tunes what is called;
    JITD_MODE=replay takes defaults instead. Needs diffusers.

    \b
    Examples:
      python -m jitd.tools.bench patch --model ltx2 --stage 1 --quick --json patch.json
      python -m jitd.tools.bench patch --model vae --no-compile
    """

    def measure() -> bool:
        from .patch import run
        from .patched import cases

        chosen = cases([one.value for one in model or PatchModel], stage or [1, 2])
        return run(cases=chosen, with_compile=not no_compile, quick=quick, json=json)

    _measure(measure)


@app.command("denoise")
def denoise(
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Without torch.compile.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: rough figures.")] = False,
    json: Json = None,
) -> None:
    """LTX-2's denoising step at the HQ shapes: guidance, res_2s, Euler's; a stand-in transformer.

    Each op against eager, torch.compile and its floor; then a whole step, all passes of video and
    audio, against eager: time, launches, bytes, time of the host.

    \b
    Example:
      python -m jitd.tools.bench denoise --json denoise.json
    """

    def measure() -> bool:
        from .denoise import run

        return run(with_compile=not no_compile, quick=quick, json=json)

    _measure(measure)


@app.command("errors")
def errors(json: Json = None) -> None:
    """How far every op is off from float64, exact and fast, and bits that are not eager's.

    One call of each op, by its default config.

    \b
    Example:
      python -m jitd.tools.bench errors --json errors.json
    """

    def measure() -> bool:
        from .errors import run

        return run(json=json)

    _measure(measure)


@app.command("host")
def host(
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Without torch.compile.")
    ] = False,
    daemon: Annotated[
        bool, typer.Option("--daemon", help="Only whole calls, with and without a daemon.")
    ] = False,
    json: Json = None,
) -> None:
    """What a call costs the CPU: torch, Triton, the driver's bindings, jitd's ops in parts.

    \b
    Example:
      python -m jitd.tools.bench host --json host.json
    """

    def measure() -> bool:
        from . import beside, host

        if daemon:
            return beside.run(json=json)
        return host.run(with_compile=not no_compile, json=json)

    _measure(measure)


@app.command("start")
def start(
    processes: Annotated[int, typer.Option(min=1, help="How many to measure.")] = 5,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A jitd cache; what is missing in it is tuned first. Default: a temporary one.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """What a fresh process waits for before its first kernels, with a warm cache.

    Each process has an empty PATH and mode strict: no compiler, no Triton, nothing built.

    \b
    Example:
      python -m jitd.tools.bench start --cache-dir ~/.cache/jitd
    """

    def measure() -> bool:
        from .start import run

        return run(processes=processes, cache_dir=cache_dir, json=json)

    _measure(measure, torch_here=False)


@app.command("tune")
def tune(
    part: Annotated[
        list[Part] | None, typer.Option(help="What to measure; repeatable. All parts if none.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Of `pairs`: tunes of each pair, in two ways.")
    ] = 10,
    seconds: Annotated[
        float,
        typer.Option(min=1, help="Of `pairs`: repeat less, 3 times at least, to end in about so."),
    ] = 300.0,
    json: Json = None,
) -> None:
    """How fast, right and steady tuning is. All of it takes about ten minutes.

    triton: against @triton.autotune over the same configs. pairs: against a long measurement, and
    against itself. processes: eight that start together on a cold cache. workers: how compiling
    scales (needs no GPU). warmup: `jitctl warmup --model ltx2`, twice.

    \b
    Example:
      python -m jitd.tools.bench tune --part triton --part processes --json tune.json
    """
    parts = [one.value for one in part or Part]

    def measure() -> bool:
        from .tune import Options, run

        return run(parts=parts, options=Options(repeats, seconds), json=json)

    gpu_here = parts != [Part.WORKERS]
    _measure(measure, gpu_here=gpu_here, torch_here=gpu_here)


@app.command("cache")
def cache(
    records: Annotated[
        list[int] | None,
        typer.Option(min=100, help="How many; repeatable. 1000, 10000 and 100000 if none."),
    ] = None,
    within: Annotated[
        Path | None,
        typer.Option("--in", metavar="FOLDER", help="Make the caches here. Default: TMPDIR."),
    ] = None,
    json: Json = None,
) -> None:
    """How the cache scales: one look-up, listing, statistics and eviction by number of records.

    Needs no GPU. The caches are made and removed; 100000 records take 400 MB for a minute.

    \b
    Example:
      python -m jitd.tools.bench cache --records 1000 --records 100000 --json cache.json
    """

    def measure() -> bool:
        from .scale import run

        return run(numbers=records or [1_000, 10_000, 100_000], within=within, json=json)

    _measure(measure, gpu_here=False, torch_here=False)


@app.command("daemon")
def daemon(json: Json = None) -> None:
    """The daemon: start to first answer, memory, a question, and a miss in mode background.

    Needs no GPU. It has a cache and a daemon of its own, which are gone afterwards.

    \b
    Example:
      python -m jitd.tools.bench daemon --json daemon.json
    """

    def measure() -> bool:
        from .daemon import run

        return run(json)

    _measure(measure, gpu_here=False, torch_here=False)


@app.command("serving")
def serving(
    seconds: Annotated[float, typer.Option(min=1, help="Of each of the three phases.")] = 40.0,
    rate: Annotated[float, typer.Option(min=1, help="Forwards begun in a second.")] = 20.0,
    duty: Annotated[
        float, typer.Option(min=0.001, max=1, help="JITD_DAEMON_DUTY of the daemon.")
    ] = 0.03,
    json: Json = None,
) -> None:
    """Requests on a card where the daemon tunes, against an idle daemon and tuning in process.

    \b
    Example:
      python -m jitd.tools.bench serving --duty 0.03 --json serving.json
    """

    def measure() -> bool:
        from .serving import run

        return run(seconds=seconds, rate=rate, duty=duty, json=json)

    _measure(measure)


def _measure(
    measure: Callable[[], bool], *, gpu_here: bool = True, torch_here: bool = True
) -> None:
    """Exit 0 if every row was measured, else 1; without a GPU say so in one line."""
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("jitd").setLevel(logging.INFO)
    try:
        if gpu_here:
            gpu()
        if torch_here:
            need_torch_with_cuda()
        good = measure()
    except (NoGpu, NoDiffusers, JitdError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if not good:
        raise typer.Exit(1)


def main() -> None:
    """The entry point of `python -m jitd.tools.bench`."""
    app(prog_name="python -m jitd.tools.bench")
