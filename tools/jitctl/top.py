"""`jitctl top`: what the daemon does, as it does it."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from . import daemon
from .output import age, count, say, say_json, size

_JOBS, _RECENT = 8, 8


def top(
    every: Annotated[
        float, typer.Option("--every", help="Seconds between two looks.", metavar="S", min=0.1)
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, and end.")
    ] = False,
) -> None:
    """Show the daemon's queue, workers, GPUs, rates and last builds, live, until Ctrl-C.

    \b
    Examples:
      jitctl top
      jitctl top --once
    """
    from ...jit.daemon.client import DaemonTrouble  # noqa: PLC0415

    place = daemon.place_now()
    if as_json:
        say_json(daemon.facts_of(place))
        return
    from rich.console import Console  # noqa: PLC0415  (60 ms)
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    facts = daemon.facts_of(place)
    if once or not console.is_terminal:
        console.print(screen(facts, None, every))
        return
    before = None
    try:
        with Live(screen(facts, None, every), console=console, screen=True) as live:
            while True:
                time.sleep(every)
                before, facts = facts, daemon.facts_of(place)
                live.update(screen(facts, before, every), refresh=True)
    except KeyboardInterrupt:
        return
    except DaemonTrouble as trouble:
        say(f"The daemon is gone: {trouble.detail}")
        raise typer.Exit(1) from None


def screen(facts: Mapping[str, Any], before: Mapping[str, Any] | None, every_s: float) -> Any:
    """One look at the daemon, drawn. `before` is that of `every_s` seconds ago."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    up = age(time.time() - facts["uptime_seconds"])
    head = (
        f"jitd pid {facts['pid']}  up {up}  {size(facts['resident_bytes'])}  "
        f"{count(facts['connections'], 'client')}  {facts['running']} running  "
        f"{facts['queued']} queued"
    )
    counts = facts["counts"]
    lines = [
        head,
        f"built {counts.get('done', 0)}{_rate(facts, before, 'done', every_s)}   compiled "
        f"{facts['compiled']}   tunes {counts.get('tunes', 0)}   checks {counts.get('checks', 0)}"
        f"   failed {sum(n for name, n in counts.items() if name.startswith('failed:'))}",
    ]
    parts: list[Any] = [Text("\n".join(lines))]
    workers = [_worker_row(worker) for worker in facts["workers"]]
    parts.append(_drawn(("worker", "pid", "GPU busy", "free"), workers, "no worker is up"))
    jobs = [daemon.job_row(job) for job in facts["jobs"][:_JOBS]]
    names = ("queue", "state", "priority", "progress", "clients")
    parts.append(_drawn(names, jobs, "nothing is queued"))
    recent = [daemon.recent_row(one) for one in facts["recent"][:_RECENT]]
    parts.append(_drawn(("last built", "", "detail", "took"), recent, "nothing was built yet"))
    return Group(*parts)


def _rate(
    facts: Mapping[str, Any], before: Mapping[str, Any] | None, name: str, every_s: float
) -> str:
    if before is None:
        return ""
    new = facts["counts"].get(name, 0) - before["counts"].get(name, 0)
    return f" ({60 * new / every_s:.0f}/min)"


def _worker_row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    busy, free = worker["gpu_busy"], worker["gpu_free_bytes"]
    return (
        worker["place"][:16],
        str(worker["pid"]),
        "-" if busy is None else f"{100 * busy:.0f} %",
        "-" if free is None else size(free),
    )


def _drawn(columns: tuple[str, ...], rows: list[tuple[str, ...]], none: str) -> Any:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        drawn.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows:
        drawn.add_row(*map(Text, row))  # as Text: [bf16] would be read as markup
    return drawn if rows else Text(f"\n{none}\n")
