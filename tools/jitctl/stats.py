"""`jitctl stats`: what is in the cache by kind, op and arch, and what processes counted."""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ...cache import counters
from ...cache.evict import TEMPORARY_S, aside
from ...cache.store import Store
from ...jit.settings import Settings
from . import folder
from .clear import owner, target
from .options import AsJson
from .output import count, percent, say, say_json, size, table

Sums = dict[str, dict[str, int]]


def stats(
    as_json: AsJson = False,
) -> None:
    """Count entries and bytes by kind, op and architecture, and hits, misses, compiles and tunes.

    The counters are sums over the processes that used this cache and ended; each adds its own as it
    ends, a killed one nothing. Of the hits, hits_behind were in the read-only folders of
    JITD_CACHE_PATH, whose records are not counted here. A process that runs is asked from within,
    by jitd.stats().

    \b
    Examples:
      jitctl stats
      jitctl stats --json
    """
    settings = Settings.read()
    place = folder.cache_dir(settings)
    store = folder.open_for_reading(place)
    found = figures(store, settings) if store else None
    if as_json:
        say_json({"cache_dir": str(place), **(found or {})})
    elif found is None:
        say(f"Nothing is cached in {place} yet. Begin: jitctl warmup --model ltx2")
    else:
        _print(found, str(place))


def figures(store: Store, settings: Settings) -> dict[str, Any]:
    """All that `jitctl stats` shows of a cache."""
    groups: dict[str, Sums] = {"kinds": {}, "ops": {}, "archs": {}}
    files = total = 0
    for header in store.headers():
        files, total = files + 1, total + header.file_bytes
        names = {"kinds": header.kind, "ops": owner(header), "archs": target(header) or "any"}
        for group, name in names.items():
            sums = groups[group].setdefault(name, {"files": 0, "bytes": 0})
            sums["files"] += 1
            sums["bytes"] += header.file_bytes
    others: dict[str, dict[str, int]] = defaultdict(lambda: {"files": 0, "bytes": 0, "stale": 0})
    for entry in aside(store):
        others[entry.kind]["files"] += 1
        others[entry.kind]["bytes"] += entry.bytes
        others[entry.kind]["stale"] += time.time() - entry.last_used > TEMPORARY_S
    return {
        "records": {"files": files, "bytes": total},
        "bounds": {"bytes": settings.cache_max_bytes, "files": settings.cache_max_files},
        **{group: dict(sorted(sums.items())) for group, sums in groups.items()},
        "quarantined": {name: others["quarantined"][name] for name in ("files", "bytes")},
        "temporaries": others["temporary"],
        "unreadable": sum(n for name, n in store.snapshot().items() if name != "puts"),
        "counters": dict(sorted(counters.total(store.root).items())),
    }


def _print(found: Mapping[str, Any], place: str) -> None:
    for group, name in (("kinds", "kind"), ("ops", "op"), ("archs", "arch")):
        rows = [(key, sums["files"], size(sums["bytes"])) for key, sums in found[group].items()]
        if rows:
            table((name, "entries", "bytes"), rows, right=("entries", "bytes"))
            say()
    if found["counters"]:
        table(("counted", "times"), [*found["counters"].items()], right=("times",))
        say()
    if found["counters"].get("left_out"):
        say("left_out: folders of JITD_CACHE_PATH that could not be used. Why: jitctl doctor")
        say()
    records, bounds = found["records"], found["bounds"]
    shares = [percent(records[name] / bounds[name]) for name in ("files", "bytes")]
    entries = count(records["files"], "entry", "entries")
    say(f"{entries} ({shares[0]} of the bound), {size(records['bytes'])} ({shares[1]}) in {place}")
    quarantined, temporaries = found["quarantined"], found["temporaries"]
    say(
        f"{quarantined['files']} quarantined, {size(quarantined['bytes'])}; "
        f"{count(temporaries['files'], 'temporary', 'temporaries')}, {temporaries['stale']} stale"
    )
    if found["unreadable"]:
        say(f"{count(found['unreadable'], 'file')} cannot be read: jitctl verify")
