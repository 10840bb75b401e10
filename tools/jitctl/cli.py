"""The command line `jitctl`: its commands, and how each failure ends.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. A failure that was to be expected is
one line on stderr; a traceback is a bug.
"""

import logging
import os
import sys
from typing import Annotated, cast

import typer

from ...cache.errors import JitdError
from . import (
    bundles,
    clear,
    daemon,
    environment,
    gc,
    listing,
    show,
    stats,
    top,
    tune,
    verify,
    warmup,
    why,
)
from .output import NoteHandler, note

FAILED, USAGE, INTERRUPTED = 1, 2, 130

# What typer raises over a wrong command line. It is click's, or that of typer's own copy of click.
_WrongUsage = cast(type[Exception], typer.BadParameter.__bases__[0])

app = typer.Typer(
    name="jitctl",
    help="Warm, list and clear jitd's cache of compiled and tuned Triton kernels.",
    epilog="Example: jitctl warmup --model ltx2",
    add_completion=False,
    rich_markup_mode=None,  # rich costs 60 ms, and help is read in pipes, too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

app.command("warmup", short_help="Compile, tune and check ahead of a run.")(warmup.warmup)
app.command("tune", short_help="Tune an op at some shapes, and show how.")(tune.tune)
app.command("clear-cache", short_help="Remove records from the cache.")(clear.clear_cache)
app.command("export", short_help="Write records to a file, for another machine.")(bundles.export)
app.command("import", short_help="Read what another machine exported.")(bundles.import_)
app.command("keygen", short_help="Make keys to sign bundles with.")(bundles.keygen)
app.command("list", short_help="List what was tuned, and how fast it is.")(listing.list_records)
app.command("show", short_help="Show all that is known of one winner.")(show.show)
app.command("why", short_help="Say what differs from the nearest stored winner.")(why.why)
app.command("stats", short_help="Count what is stored, and what was hit and missed.")(stats.stats)
app.command("gc", short_help="Evict what was not used for longest.")(gc.gc)
app.command("verify", short_help="Read every record, find what is wrong.")(verify.verify)
app.add_typer(daemon.app, name="daemon", short_help="Start, stop, look at the daemon.")
app.command("top", short_help="Show live what the daemon does.")(top.top)
app.command("env", short_help="Print every setting.")(environment.env)
app.command("doctor", short_help="Check cache folder, GPU, driver, packages.")(environment.doctor)


@app.callback(invoke_without_command=True)
def jitctl(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of jitd, torch and triton.")
    ] = False,
) -> None:
    if version:
        environment.print_versions()
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(USAGE)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code."""
    logging.getLogger("jitd").addHandler(NoteHandler())
    try:
        code = app(args=arguments, prog_name="jitctl", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except _WrongUsage as error:
        what = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        note(f"{what}. See: jitctl{_command(arguments)} --help")
        return USAGE
    except BrokenPipeError:  # `jitctl list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (typer.Abort, KeyboardInterrupt):
        note("interrupted.")
        return INTERRUPTED
    except (ValueError, JitdError, OSError) as error:
        note(_sentence(error))
        return USAGE if isinstance(error, ValueError) else FAILED


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def _command(arguments: list[str]) -> str:
    return f" {arguments[0]}" if arguments and not arguments[0].startswith("-") else ""
