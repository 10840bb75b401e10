"""What of a bundle counts on this machine, and putting that into its cache."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..cache.bundle import Bundle
from ..cache.errors import BadBundle
from ..cache.keys import Key
from ..cache.records import Header
from ..cache.store import Store
from .bodies import flaw
from .errors import JitdError

Fate = Literal["imported", "seed", "known", "verdict", "arch", "toolchain"]
"""imported   filed under its key
seed       a winner under another toolchain: serves until its bucket is tuned again
known      this machine has a record of its own under the key, which stays
verdict    a check or a failure that is not under a trusted signature: found out again here
arch       for an architecture that this machine lacks
toolchain  made by another toolchain"""

FATES: Final = get_args(Fate)
_VERDICTS: Final = frozenset({"check", "negative"})


class OtherMachine(JitdError):
    """A bundle has nothing for this machine; the message says what it is for."""


@dataclass(frozen=True)
class Here:
    """What this machine can use. `targets` is None where any will do: a machine without a card."""

    toolchain: str
    targets: frozenset[str] | None


@dataclass(frozen=True)
class Plan:
    """What becomes of each record, by path, and how many of each kind have each fate."""

    fates: Mapping[str, Fate]

    def count(self, fate: Fate, kind: str | None = None) -> int:
        return sum(
            found == fate and (kind is None or path.partition("/")[0] == kind)
            for path, found in self.fates.items()
        )

    def kinds(self, *fates: Fate) -> Counter[str]:
        return Counter(p.partition("/")[0] for p, fate in self.fates.items() if fate in fates)


def plan(
    bundle: Bundle,
    here: Here,
    has: Callable[[Key], bool],
    *,
    trusted: bool,
    seeds: bool = False,
    overwrite: bool = False,
) -> Plan:
    """What `publish` would do. Reads and verifies every record, and files none.

    `has` says whether this machine has a record of its own. `trusted`: the bundle's signature was
    verified. Raises BadBundle, and OtherMachine where nothing of it is for this machine.
    """
    fates: dict[str, Fate] = {}
    toolchains, targets = set(), set()
    for record in bundle.records():
        wrong = flaw(record)
        if wrong is not None:
            raise BadBundle(bundle.path, f"{record.header.path} is not by jitd: {wrong}")
        header = record.header
        fates[header.path] = _fate(header, here, trusted=trusted, seeds=seeds)
        if fates[header.path] in ("imported", "seed") and not overwrite and has(header.key):
            fates[header.path] = "known"
        if header.kind in ("artifact", "winner"):
            toolchains.add(toolchain_of(header))
            targets.add(target_of(header))
    made = Plan(fates)
    usable = made.kinds("imported", "seed", "known").keys() - _VERDICTS
    if made.kinds("arch", "toolchain") and not usable:
        _refuse(bundle, here, made, toolchains, targets)
    return made


def publish(bundle: Bundle, made: Plan, store: Store) -> int:
    """File what the plan says, winners last, each whole and at once; their number.

    Every record is verified again as it is read: the file may have changed since it was planned.
    Raises BadBundle, CacheWriteError; what is filed by then is whole, and stays.
    """
    wanted = {path for path, fate in made.fates.items() if fate in ("imported", "seed")}
    number = 0
    for record in bundle.records(wanted):
        header = record.header
        # Of former winners the latest serves: a seed must not pass for newer than the user's own.
        created = 0.0 if made.fates[header.path] == "seed" else None
        store.put(header.key, record.body, label=header.label, meta=header.meta, created=created)
        number += 1
    return number


def target_of(header: Header) -> str:
    """The architecture that a record is for; "" if it names none."""
    return str(header.meta.get("target") or dict(header.parts).get("target") or "")


def toolchain_of(header: Header) -> str:
    """The toolchain that a record depends on; "" if on none."""
    return str(dict(header.parts).get("toolchain") or "")


def _fate(header: Header, here: Here, *, trusted: bool, seeds: bool) -> Fate:
    target, toolchain = target_of(header), toolchain_of(header)
    if here.targets is not None and target and target not in here.targets:
        return "arch"
    if header.kind in _VERDICTS and not trusted:
        return "verdict"
    if toolchain and toolchain != here.toolchain:
        return "seed" if seeds and header.kind == "winner" else "toolchain"
    return "imported"


def _refuse(
    bundle: Bundle, here: Here, made: Plan, toolchains: set[str], targets: set[str]
) -> None:
    """Raise OtherMachine for a bundle of which nothing can be used."""
    mine = ", ".join(sorted(here.targets)) if here.targets else "any architecture"
    remedy = "Export again on a machine like this one."
    if winners := made.count("toolchain", "winner"):
        remedy = f"Its winners can serve as seeds, {winners} of them: add --seeds."
    raise OtherMachine(
        f"nothing in {bundle.path} is for this machine: it is for "
        f"{', '.join(sorted(filter(None, targets))) or 'no architecture'}, made by Triton "
        f"{', '.join(sorted(filter(None, toolchains))) or '(any)'}; here is {mine}, Triton "
        f"{here.toolchain}. {remedy}"
    )
