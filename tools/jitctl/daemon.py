"""`jitctl daemon`: start, stop and look at the daemon that builds for all processes of a user."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...cache.errors import JitdError
from ...cache.paths import open_root
from ...jit.settings import Settings
from . import folder
from .output import age, count, note, say, say_json, size, table

if TYPE_CHECKING:
    from ...jit.daemon.place import Place

app = typer.Typer(
    name="daemon",
    help="Start, stop and look at the daemon that compiles and tunes in the background.",
    epilog="Example: jitctl daemon start",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)

_STOP_S = 30.0
_LOOK_S = 0.05
_Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("start", short_help="Start it, unless it runs.")
def start(as_json: _Json = False) -> None:
    """Start the daemon in the background, unless one runs, and wait until it answers.

    It is not needed for anything: mode background starts one by itself. It ends after ten minutes
    without work (JITD_DAEMON_IDLE_S).

    \b
    Example:
      jitctl daemon start
    """
    from ...jit.daemon.identity import Identity  # noqa: PLC0415  (50 ms, for these commands only)
    from ...jit.daemon.start import connect_or_start  # noqa: PLC0415

    place = place_now(create=True)
    with connect_or_start(place, Identity.of(place.cache_dir)) as client:
        pid = client.welcome.pid
    if as_json:
        say_json({"pid": pid, "socket": str(place.socket)})
    else:
        say(f"The daemon runs: pid {pid}, for {place.cache_dir}")


@app.command("stop", short_help="Let it finish what it is at, and end.")
def stop(
    kill: Annotated[
        bool, typer.Option("--kill", help="At once; for one that does not answer any more.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Stop the daemon. What it is building is finished within 20 s, or begun again by the next one.

    Nothing that was built is lost, with --kill neither.

    \b
    Examples:
      jitctl daemon stop
      jitctl daemon stop --kill
    """
    pid = _stop(place_now(), kill=kill)
    if as_json:
        say_json({"stopped": pid})
    else:
        say("No daemon runs" if pid is None else f"Stopped pid {pid}")


@app.command("restart", short_help="Stop it and start it anew.")
def restart(as_json: _Json = False) -> None:
    """Stop the daemon if it runs, and start it: with new settings, or new code.

    \b
    Example:
      jitctl daemon restart
    """
    _stop(place_now(create=True), kill=False)
    start(as_json)


@app.command("status", short_help="Say whether it runs, and what it does.")
def status(as_json: _Json = False) -> None:
    """Say whether the daemon runs and answers, and what it is doing. Exits with 1 if it does not.

    \b
    Examples:
      jitctl daemon status
      jitctl daemon status --json
    """
    from ...jit.daemon.client import DaemonTrouble  # noqa: PLC0415

    place = place_now()
    try:
        facts = facts_of(place)
    except DaemonTrouble as trouble:
        if as_json:
            say_json({"healthy": False, "cause": trouble.cause, "detail": trouble.detail})
        elif trouble.cause == "absent":
            say(f"No daemon runs for {place.cache_dir}. To start one: jitctl daemon start")
        else:
            say(f"The daemon does not answer: {trouble.detail}. See: jitctl daemon logs")
        raise typer.Exit(1) from None
    if as_json:
        say_json(facts)
        return
    _print(facts)


@app.command("logs", short_help="Print the end of its log.")
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many.", metavar="N")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines are added, until Ctrl-C.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Print the end of the daemon's log, a JSON object a line. With --json: as one document.

    \b
    Examples:
      jitctl daemon logs -n 50
      jitctl daemon logs --follow
    """
    import json  # noqa: PLC0415

    path = place_now().log
    found = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = found[-lines:] if lines > 0 else []
    if as_json:
        entries = []
        for line in found:
            with contextlib.suppress(ValueError):  # cut short by a full disk
                entries.append(json.loads(line))
        say_json({"file": str(path), "lines": entries})
        return
    if not path.exists():
        raise JitdError(f"there is no log yet at {path}. To start a daemon: jitctl daemon start")
    for line in found:
        say(line)
    if follow:
        _follow(path)


@app.command("install", short_help="Have systemd start it when it is needed.")
def install(
    user: Annotated[
        bool, typer.Option("--user", help="For this user: the only way there is.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the units again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written; write nothing.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Write a systemd socket and service for this user: the first client starts the daemon.

    The units name this Python and this cache folder. Prints the commands that enable them.

    \b
    Examples:
      jitctl daemon install --user --dry-run
      jitctl daemon install --user
    """
    from . import units  # noqa: PLC0415

    if not user:
        raise ValueError(
            "jitctl daemon install needs --user: a daemon serves the user who runs it."
        )
    place = place_now(create=not (dry_run or remove))
    written = units.units(place, Settings.read())
    home = units.folder()
    for name, text in written.items():
        path = home / name
        if dry_run and not as_json:
            say(f"# {'would remove' if remove else 'would write'} {path}")
            say("" if remove else text)
        elif remove and not dry_run:
            path.unlink(missing_ok=True)
        elif not dry_run:
            home.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if as_json:
        files = {str(home / name): text for name, text in written.items()}
        say_json({"files": files, "dry_run": dry_run, "removed": remove})
        return
    if dry_run:
        return
    say(f"{'Removed' if remove else 'Wrote'} {', '.join(str(home / name) for name in written)}")
    for line in units.next_steps(remove=remove):
        say(f"Now run: {line}")


def facts_of(place: "Place") -> dict[str, Any]:
    """What the daemon says of itself. Raises DaemonTrouble."""
    from ...jit.daemon.client import Client  # noqa: PLC0415
    from ...jit.daemon.identity import Identity  # noqa: PLC0415
    from ...jit.daemon.protocol import Status  # noqa: PLC0415

    with Client(place, Identity.of(place.cache_dir)) as client:
        return client.ask(Status())


def place_now(*, create: bool = False) -> "Place":
    """Where the daemon of the cache is that the settings name; `create` makes the cache."""
    from ...jit.daemon.place import Place  # noqa: PLC0415

    settings = Settings.read()
    where = folder.cache_dir(settings)
    return Place.of(open_root(where) if create else where, settings.daemon_dir)


def _stop(place: "Place", *, kill: bool) -> int | None:
    """End the daemon of a place, however it is: its pid, None if there is none."""
    from ...jit.daemon.client import Client, DaemonTrouble  # noqa: PLC0415
    from ...jit.daemon.identity import Identity  # noqa: PLC0415
    from ...jit.daemon.protocol import Shutdown  # noqa: PLC0415

    if (pid := _holder(place)) is None:
        return None
    asked = False
    if not kill:
        with contextlib.suppress(DaemonTrouble):
            with Client(place, Identity.of(place.cache_dir)) as client:
                client.ask(Shutdown())
            asked = True
    if not asked and not pid:
        raise JitdError(
            f"a daemon runs, but {place.lock} does not say which. Run: fuser {place.lock}"
        )
    if not asked:  # it is hung, or of another version, or has lost its socket
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while _holder(place) == pid:
        if time.monotonic() > deadline:
            raise JitdError(
                f"the daemon (pid {pid}) did not end within {_STOP_S:g} s. "
                "Run: jitctl daemon stop --kill"
            )
        time.sleep(_LOOK_S)
    return pid


def _holder(place: "Place") -> int | None:
    """The pid of the daemon that has the lock; None if nobody has it."""
    from ...jit.daemon.place import lock_now, unlock  # noqa: PLC0415

    if not place.lock.exists():
        return None
    descriptor = lock_now(place.lock)
    if descriptor is not None:
        unlock(descriptor)
        return None
    text = place.lock.read_text(encoding="ascii").strip()
    return int(text) if text.isdigit() else 0


def _follow(path: Path) -> None:
    """Print what is added to a log, also after it was rotated, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        file = path.open(encoding="utf-8")
        file.seek(0, os.SEEK_END)
        while True:
            if line := file.readline():
                print(line, end="", flush=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    file.close()
                    file = path.open(encoding="utf-8")
            time.sleep(0.2)


def _print(facts: Mapping[str, Any]) -> None:
    say(
        f"The daemon runs: pid {facts['pid']}, up {age(time.time() - facts['uptime_seconds'])}, "
        f"{size(facts['resident_bytes'])}, {count(facts['connections'], 'client')}"
    )
    say(f"cache: {facts['cache_dir']}")
    say(f"{facts['running']} running, {facts['queued']} queued, {facts['compiled']} compiled")
    if facts["jobs"]:
        say()
        names = ("signature", "state", "priority", "progress", "clients")
        table(names, [job_row(job) for job in facts["jobs"][:20]])
    if facts["recent"]:
        say()
        table(
            ("last built", "", "detail", "took"), [recent_row(one) for one in facts["recent"][:10]]
        )
    if sys.stdout.isatty():
        note("live: jitctl top")


def job_row(job: Mapping[str, Any]) -> tuple[str, ...]:
    """A job of a status, for a table."""
    progress = f"{job['done']}/{job['total']}" if job["total"] else ""
    return job["signature"], job["state"], job["priority"], progress, str(job["clients"])


def recent_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """A finished job of a status, for a table."""
    what = one["detail"] if one["state"] == "done" else f"{one['cause']}: {one['detail'][:60]}"
    us = f"{one['us']:.1f} us " if one["us"] else ""
    return one["signature"], one["state"], us + what, f"{one['seconds']:.1f} s"
