"""Many processes on one cache, some of them killed: what they do, and what must be true after it.

Run as a program this is one of them: a writer, a reader or a remover. Imported, it starts and kills
them (`soak`) and judges their journals. Who is killed, and when, is a matter of a seed and of
numbers of operations, never of time; `seconds` only says when no new operation begins.

Every process appends what it did to a journal of its own, a line of JSON for each event, with the
times at which the operation began and ended (CLOCK_MONOTONIC, which all processes share).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from jitd.cache import clear
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
from jitd.cache.paths import open_root
from jitd.cache.records import Record
from jitd.cache.store import TEMPORARIES, Store

try:
    from jitd.cache import evict
except ImportError:
    evict = None

KEPT = [Key.of("winner", "kept", n=n) for n in range(24)]
"""Nobody removes these: what was once there is there until the end."""
REMOVED = [Key.of("artifact", f"removed{n % 3}", n=n) for n in range(24)]
SECTIONS = [Key.of("receipt", "section", n=n) for n in range(2)]
WAIT_S = 120.0
CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink")

Event = dict[str, Any]


def body_for(key: Key, writer: str, number: int, size: int) -> dict[str, object]:
    """A body that says whose it is and carries a checksum of its own."""
    data = (f"{writer}:{number}:".encode() * (size // 4 + 1))[:size]
    return {
        "key": key.path,
        "writer": writer,
        "number": number,
        "data": data,
        "sum": checksum(key.path, writer, number, data),
    }


def checksum(path: str, writer: str, number: int, data: bytes) -> bytes:
    return blake2b(f"{path} {writer} {number} ".encode() + data, digest_size=16).digest()


def is_whole(key: Key, record: Record) -> bool:
    body = record.body
    right = checksum(key.path, body["writer"], body["number"], body["data"])
    return body["key"] == key.path and body["sum"] == right


class Journal:
    """Events of one process. A line that is there was there before the next operation began."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def note(self, what: str, **event: object) -> None:
        self._file.write(json.dumps({"what": what, **event}).encode() + b"\n")


def die_in_call(number: int) -> None:
    """Be killed (SIGKILL) in the `number`th system call of `CALLS`: before it, after it, or, when
    it writes, half way."""
    calls = count(1)

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            is_last = next(calls) == number
            if is_last and number % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if is_last and real is os_write:
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            else:
                result = real(*arguments, **options)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os_write = os.write
    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def write(store: Store, journal: Journal, name: str, chance: random.Random) -> Iterator[None]:
    """Put records under all keys; every fifth operation is an exclusive section."""
    locks = KeyLocks(store.root, timeout_s=WAIT_S)
    sections = os.open(
        store.root.parent / "sections.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    )

    def mark(what: str, key: Key, number: int) -> None:
        line = {"what": what, "lock": key.digest[:2], "writer": name, "n": number}
        # Both ends: what a killed writer wrote half must not spoil the next line.
        os.write(sections, b"\n" + json.dumps(line).encode() + b"\n")

    def put(key: Key, number: int) -> None:
        body = body_for(key, name, number, chance.choice((10, 1000, 100_000)))
        began = time.monotonic()
        journal.note("putting", key=key.path, number=number, began=began)
        store.put(key, body)
        journal.note("put", key=key.path, number=number, began=began, ended=time.monotonic())

    for number in count():
        if number % 5 == 4:
            # Two locks in the order of `ORDER`, with strangers behind the same lock files.
            key = chance.choice(SECTIONS)
            inner = chance.choice(KEPT)
            with locks.hold(key), locks.hold(inner):
                mark("begin", key, number)
                put(inner, number)  # takes long enough for others to come in, if they could
                mark("end", key, number)
        else:
            key = chance.choice(KEPT + REMOVED)
            put(key, number)
        yield


def read(store: Store, journal: Journal, name: str, chance: random.Random) -> Iterator[None]:
    """Get records, and find each whole, no older than the last one seen, and never lost."""
    seen: dict[tuple[Key, str], int] = {}
    there: set[Key] = set()
    while True:
        key = chance.choice(KEPT + REMOVED)
        if chance.random() < 0.02:
            for header in store.headers():
                assert header.path == header.key.path
        began = time.monotonic()
        record = store.get(key)
        if record is None:
            if key in there:
                journal.note("lost", key=key.path, began=began)
        else:
            writer, number = record.body["writer"], record.body["number"]
            if not is_whole(key, record):
                journal.note("torn", key=key.path, writer=writer, number=number)
            if seen.get((key, writer), -1) > number:
                journal.note("older", key=key.path, writer=writer, number=number)
            seen[key, writer] = number
            if key in KEPT:
                there.add(key)
        yield


def remove(store: Store, journal: Journal, name: str, chance: random.Random) -> Iterator[None]:
    """Remove listed records that may be removed, some a while after they were listed."""
    waiting: list[Any] = []
    removable = {key.op for key in REMOVED}
    while True:
        listed = clear.select(store, ops=removable, predicate=lambda _: chance.random() < 0.2)
        waiting += listed
        chance.shuffle(waiting)
        for header in waiting[: len(waiting) // 2]:
            began = time.monotonic()
            journal.note("removing", key=header.path, began=began)
            cleared = clear.clear(store, [header])
            journal.note(
                "removed" if cleared.files else "spared",
                key=header.path,
                began=began,
                ended=time.monotonic(),
            )
        waiting = waiting[len(waiting) // 2 :]
        store.sweep_temporaries(3600)
        if evict is not None and chance.random() < 0.2:
            for key in REMOVED:
                journal.note("removing", key=key.path, began=time.monotonic())
            # Everything that is not dear, however lately it was used; winners stay.
            evict.evict(store, evict.Bounds(), older_than_s=0.0)
        yield


ROLES = {"write": write, "read": read, "remove": remove}


@dataclass
class Outcome:
    """What happened, and `wrong`: what must not."""

    operations: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    temporaries: int = 0
    lock_files: int = 0
    sections: int = 0
    spared: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{dict(self.operations)} operations, {self.killed} killed, {self.temporaries} "
            f"temporaries left, {self.lock_files} lock files, {self.sections} sections, "
            f"{self.spared} not removed because replaced or gone, "
            f"wrong: {self.wrong}"
        )


class Process:
    """One role in a process of its own, which prints a byte for each operation."""

    def __init__(self, folder: Path, role: str, name: str, seed: int, limit: int, die: int) -> None:
        self.role, self.name = role, name
        self.errors = (folder / f"{name}.err").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, __file__, folder, role, name, str(seed), str(limit), str(die)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        os.set_blocking(self.output.fileno(), False)
        self.done = 0

    def operations(self) -> int:
        """How many operations it has done by now."""
        self.done += len(self.output.read() or b"")
        return self.done

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)
        self.output.close()
        self.errors.close()


def soak(
    folder: Path, *, writers: int, readers: int, operations: int, seconds: float, seed: int = 1
) -> Outcome:
    """Let them all loose on a new cache in `folder`, until every writer's place has seen
    `operations` operations or `seconds` are over; then judge.

    Two of three writers are killed: every other one by its own hand in some system call, the others
    from outside after some number of operations; another takes the place of each.
    """
    chance = random.Random(seed)
    root = open_root(folder / "cache")
    names = (f"process-{number}" for number in count())
    outcome, until = Outcome(), time.monotonic() + seconds
    killed: set[str] = set()

    with ExitStack() as stack:

        def start(role: str, limit: int, die: int = 0) -> Process:
            name = next(names)
            process = Process(folder, role, name, chance.randrange(1 << 30), limit, die)
            stack.callback(process.close)
            return process

        others = [start("read", 0) for _ in range(readers)] + [start("remove", 0)]
        places = [_Place(start, operations, chance) for _ in range(writers)]
        deadline = until + WAIT_S
        while any([place.step(killed, time.monotonic() < until) for place in places]):
            if time.monotonic() > deadline:
                outcome.wrong.append("somebody hangs")
                break
            time.sleep(0.002)  # how often to look; nothing depends on it
        for process in others:
            while process.operations() == 0 and process.process.poll() is None:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            process.process.send_signal(signal.SIGTERM)
        for process in others:
            try:
                if process.process.wait(WAIT_S) != 0:
                    outcome.wrong.append(f"{process.role} failed: {_said(folder, process)}")
            except subprocess.TimeoutExpired:
                outcome.wrong.append(f"{process.role} {process.name} hangs")
            outcome.operations[process.role] += process.operations()
        for place in places:
            outcome.operations["write"] += place.done
            outcome.wrong += place.wrong
    outcome.killed = len(killed)
    _judge(folder, Store(root), killed, outcome)
    return outcome


class _Place:
    """The place of one writer, taken by one after the other as they are killed."""

    def __init__(
        self, start: Callable[..., Process], operations: int, chance: random.Random
    ) -> None:
        self._start, self._chance, self._left = start, random.Random(chance.random()), operations
        self.done, self.wrong = 0, list[str]()
        self._next()

    def _next(self) -> None:
        self._fate = self._chance.choice(("lives", "call", "outside"))
        self._kill_at = self._chance.randrange(1, 30)
        die = self._chance.randrange(1, 300) if self._fate == "call" else 0
        self._process: Process | None = self._start("write", self._left, die)

    def step(self, killed: set[str], go_on: bool) -> bool:
        """Look after the writer; whether there is still one."""
        process = self._process
        if process is None:
            return False
        code = process.process.poll()
        done = process.operations()
        if code is None:
            if not go_on or (self._fate == "outside" and done >= self._kill_at):
                killed.add(process.name)
                process.process.kill()
            return True
        self.done += done
        self._left -= done
        self._process = None
        if code == -signal.SIGKILL:
            killed.add(process.name)
        elif code != 0:
            self.wrong.append(
                f"a writer failed: {_said(Path(process.errors.name).parent, process)}"
            )
            return False
        if self._left > 0 and go_on:
            self._next()
        return self._process is not None


def _said(folder: Path, process: Process) -> str:
    return (folder / f"{process.name}.err").read_text(errors="replace")[-500:]


def _events(path: Path) -> Iterator[Event]:
    for line in path.read_bytes().split(b"\n"):
        if line.endswith(b"}"):  # the last line of a killed process may be cut
            yield json.loads(line)


def _judge(folder: Path, store: Store, killed: set[str], outcome: Outcome) -> None:
    events: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("process-*.jsonl")):
        for event in _events(path):
            if event["what"] in ("torn", "lost", "older", "bad"):
                outcome.wrong.append(f"{path.stem}: {event}")
            else:
                events[event["what"]][event["key"]].append({**event, "writer": path.stem})
    outcome.spared = sum(map(len, events["spared"].values()))
    for key in KEPT + REMOVED:
        record = store.get(key)
        if record is not None and not is_whole(key, record):
            outcome.wrong.append(f"torn at the end: {key}")
        outcome.wrong += lost(record, *(events[what][key.path] for what in _KINDS_OF_EVENTS))
    judge_sections(folder / "sections.jsonl", killed, outcome)
    outcome.temporaries = len(store.names_in(TEMPORARIES))
    if outcome.temporaries > outcome.killed:
        outcome.wrong.append(f"{outcome.temporaries} temporaries of {outcome.killed} killed")
    if store.sweep_temporaries(-1) != outcome.temporaries or store.names_in(TEMPORARIES):
        outcome.wrong.append("a temporary cannot be swept")
    outcome.lock_files = len(store.names_in("locks"))
    expected = {f"receipt-{key.digest[:2]}" for key in SECTIONS}
    expected |= {f"winner-{key.digest[:2]}" for key in KEPT}
    if not {name.removesuffix(".lock") for name in store.names_in("locks")} <= expected:
        outcome.wrong.append("more lock files than lock names")
    if bad := {name: n for name, n in store.counters.items() if ":" in name}:
        outcome.wrong.append(f"bad at the end: {bad}")
    for key in SECTIONS:  # every lock is free
        with KeyLocks(store.root, timeout_s=0).hold(key):
            pass


_KINDS_OF_EVENTS = ("put", "putting", "removing")


def lost(
    record: Record | None, puts: list[Event], begun: list[Event], removals: list[Event]
) -> Iterator[str]:
    """What is wrong with the record that is there, or not there, at the end."""
    if not puts:
        return
    last = max(puts, key=lambda put: put["began"])
    # Removals after the last put, or while it went on, may have taken it.
    if record is None:
        if not any(removal.get("ended", 1e18) > last["began"] for removal in _closed(removals)):
            yield f"lost at the end: {last}"
        return
    its = [
        put
        for put in begun
        if (put["writer"], put["number"]) == (record.body["writer"], record.body["number"])
    ]
    ended = [
        put["ended"]
        for put in puts
        if (put["writer"], put["number"]) == (record.body["writer"], record.body["number"])
    ]
    if not its:
        yield f"a record that nobody put: {record.body['writer']} {record.body['number']}"
    elif ended and ended[0] < last["began"]:
        yield f"an old record came back or a new one was lost: {its[0]}, last {last}"


def _closed(removals: list[Event]) -> Iterator[Event]:
    """Removals with the time they ended, which is that of the next one's beginning at most."""
    for removal, after in zip(removals, [*removals, {}][1:], strict=True):
        yield {**removal, "ended": after.get("began", 1e18)}


def judge_sections(path: Path, killed: set[str], outcome: Outcome) -> None:
    """No two writers are in one section, except that a killed one never leaves it."""
    inside: dict[str, str] = {}
    for event in _events(path) if path.exists() else ():
        lock, writer = event["lock"], event["writer"]
        if event["what"] == "begin":
            outcome.sections += 1
            if inside.get(lock, writer) not in killed | {writer}:
                outcome.wrong.append(f"{writer} and {inside[lock]} are both in {lock}")
            inside[lock] = writer
        elif inside.pop(lock, None) != writer:
            outcome.wrong.append(f"{writer} left {lock}, where it was not alone")


def main(folder: str, role: str, name: str, seed: str, limit: str, die: str) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    store = Store(Path(folder) / "cache")
    journal = Journal(Path(folder) / f"{name}.jsonl")
    if int(die):
        die_in_call(int(die))
    steps = ROLES[role](store, journal, name, random.Random(int(seed)))
    output = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115 - it has no path
    done = 0
    while not stopped and (not int(limit) or done < int(limit)):
        next(steps)
        output.write(b".")
        done += 1
    if bad := {name: n for name, n in store.counters.items() if ":" in name}:
        journal.note("bad", counters=bad)


if __name__ == "__main__":
    main(*sys.argv[1:])
