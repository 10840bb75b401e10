"""`jitctl verify`: read every record and say what is wrong; repair what can be."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from ...cache.records import Record
from ...cache.store import Store
from ...cache.verify import Fault
from ...cache.verify import repair as repair_fault
from ...cache.verify import verify as verify_cache
from ...jit.settings import Settings
from . import folder
from .options import AsJson
from .output import count, note, say, say_json, size, table


@dataclass
class Seen:
    """What was good: counted, and which binaries and checks belong together."""

    kinds: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    binaries: set[str] = field(default_factory=set)
    checked: list[tuple[str, ...]] = field(default_factory=list)

    def note(self, record: Record) -> None:
        self.kinds[record.header.kind] += 1
        self.bytes += record.header.file_bytes
        if record.header.kind == "artifact":
            self.binaries.add(str(record.body.get("cubin_digest")))
        elif record.header.kind == "check":
            cubins = dict(record.header.parts).get("cubins")
            self.checked.append(tuple(map(str, cubins)) if isinstance(cubins, tuple) else ())

    def orphans(self) -> Mapping[str, int]:
        """Halves of a pair. No fault: eviction takes the binary first, and it is made again."""
        known = {digest for cubins in self.checked for digest in cubins}
        return {
            "binaries without a check": len(self.binaries - known),
            "checks without a binary": sum(
                not self.binaries.issuperset(cubins) for cubins in self.checked
            ),
        }


def verify(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set bad records aside, sweep, correct modes of folders."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every record: checksum, key against path, owner, permissions; find what is foreign.

    Exits with 1 if anything is wrong and was not repaired. A record that is set aside is made again
    when it is wanted; it stays in quarantine/ for a while. Foreign files and links are never
    touched: look at them, then remove them yourself. Binaries without a check are no fault, nor are
    records of another version of jitd.

    \b
    Examples:
      jitctl verify
      jitctl verify --repair --json
    """
    place = folder.cache_dir(Settings.read())
    store = folder.open_for_reading(place)
    seen = Seen()
    found: list[Fault] = list(verify_cache(store, seen.note)) if store else []
    faults = [fault for fault in found if not fault.is_harmless]
    done = [repair and store is not None and _repaired(store, fault) for fault in faults]
    others = {name: n for name, n in seen.orphans().items() if n}
    if len(found) > len(faults):
        others["records of another version"] = len(found) - len(faults)
    left = done.count(False)
    if as_json:
        say_json(
            {
                "cache_dir": str(place),
                "records": dict(sorted(seen.kinds.items())),
                "bytes": seen.bytes,
                "faults": [
                    {**_document(fault), "repaired": one}
                    for fault, one in zip(faults, done, strict=True)
                ],
                "wrong": left,
                "others": others,
            }
        )
    else:
        if faults:
            rows = [
                (fault.what, fault.path, fault.detail, _outcome(fault, repaired=one))
                for fault, one in zip(faults, done, strict=True)
            ]
            table(("what", "path", "", "repair"), rows)
            say()
        for name, number in others.items():
            say(f"{number} {name}: no fault")
        good = f"{count(seen.kinds.total(), 'good record')}, {size(seen.bytes)}"
        say(f"{good}, {count(left, 'fault')} in {place}")
        if left and not repair and any(fault.remedy for fault in faults):
            say("To repair: jitctl verify --repair")
    if left:
        raise typer.Exit(1)


def _repaired(store: Store, fault: Fault) -> bool:
    try:
        return repair_fault(store, fault)
    except OSError as error:
        note(f"{fault.path} is not repaired: {error.strerror}")
        return False


def _outcome(fault: Fault, *, repaired: bool) -> str:
    if repaired:
        return f"done: {fault.remedy}"
    return fault.remedy and f"can be {fault.remedy}"


def _document(fault: Fault) -> dict[str, Any]:
    return {name: value for name, value in asdict(fault).items() if name != "inode"}
