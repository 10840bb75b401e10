"""Recording which signatures a run asks for."""

import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import JitdError
from .sign import Signature

FORMAT = "jitd-workload-1"
LINES = "jitd-workload-lines-1"
"""What JITD_RECORD writes: a line that says so, then one for each signature, as a JSON string."""

HEADER = json.dumps({"format": LINES, "lines": "signatures, when first asked for"}) + "\n"


def as_line(signature: str) -> str:
    """A signature as files in the format LINES have it."""
    return json.dumps(signature) + "\n"


@dataclass
class Workload:
    """Signatures, in printed form, with the number of calls of each.

    `marks`: numbers are of files that name it, not of calls. Such is what JITD_RECORD writes, where
    a signature is marked when it is first asked for, and what is made of it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    marks: bool = False

    def add(self, signature: Signature | str, calls: int = 1) -> None:
        self.counts[str(signature)] += calls

    def update(self, other: "Workload") -> None:
        """Add what another process, or another run, asked for."""
        self.counts.update(other.counts)
        self.marks |= other.marks

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        calls = "calls unknown" if self.marks else f"{self.counts.total()} calls"
        return f"<Workload: {len(self)} signatures, {calls}>"

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `Workload.load` and `jitctl warmup --workload` read.

        Written aside and renamed: whoever reads it meanwhile has the old one or the new one. Raises
        OSError that names `path`, and the one before is left.
        """
        data: dict[str, Any] = {"format": FORMAT, "counts": self.counts}
        if self.marks:
            data["marks"] = True
        try:
            _write(Path(path), json.dumps(data, indent=1) + "\n")
        except OSError as error:
            what = _why_not_saved(Path(path), error)
            raise OSError(error.errno, what, str(path)) from error

    @classmethod
    def load(cls, path: str | Path) -> "Workload":
        """Read what `save` or JITD_RECORD wrote. Raises JitdError for anything else."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise JitdError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise JitdError(f"{path} is no workload of jitd: it is no text.") from error
        try:
            return _read(text)
        except (ValueError, RecursionError) as error:
            raise JitdError(f"{path} is no workload of jitd: {error}.") from error

    @classmethod
    def load_all(cls, paths: Iterable[str | Path]) -> "Workload":
        """What several processes asked for, together. Raises JitdError as `load` does."""
        together = cls()
        for path in paths:
            together.update(cls.load(path))
        return together


def _write(target: Path, text: str) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(target)
    finally:
        with suppress(OSError):  # where nothing could be written, that error tells more
            aside.unlink(missing_ok=True)


def _why_not_saved(target: Path, error: OSError) -> str:
    match error.errno:
        case errno.EISDIR:
            why = "this is a folder; name a file in it"
        case errno.ENOENT:
            why = f"make its folder {target.parent} first"
        case errno.ENOTDIR:
            why = f"{target.parent} is no folder; name another place"
        case _:
            why = f"{error.strerror or error}; make that possible, or name another place"
    return f"the workload was not saved: {why}"


def _read(text: str) -> Workload:
    """The workload in a text. Raises ValueError that says what is wrong with it."""
    first, _, rest = text.partition("\n")
    if _is_header(first):
        return Workload(Counter(_signatures(rest)), marks=True)
    data = json.loads(text)
    if not isinstance(data, dict) or "format" not in data:
        raise ValueError("it names no format")
    if data["format"] != FORMAT:
        raise ValueError(
            f"its format is {data['format']!r}, this version of jitd reads {FORMAT} and {LINES}. "
            "Record it anew, or use the version that wrote it"
        )
    counts = data.get("counts")
    if not isinstance(counts, dict) or not all(type(n) is int and n > 0 for n in counts.values()):
        raise ValueError("its counts are not signatures with numbers of calls")
    return Workload(Counter(counts), marks=data.get("marks") is True)


def _is_header(line: str) -> bool:
    try:
        data = json.loads(line)
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("format") == LINES


def _signatures(lines: str) -> dict[str, int]:
    """Those in the lines, in order, once each.

    A line that a kill or a full disk cut short begins as a string does, and ends before it.
    """
    found: dict[str, int] = {}
    for line in filter(None, lines.split("\n")):
        if line + "\n" == HEADER:
            continue  # two processes found the file empty
        try:
            text = json.loads(line)
        except ValueError:
            if line.startswith('"') and not line.endswith('"'):
                continue
            raise
        if not isinstance(text, str):
            raise ValueError(f"a line is no signature: {line[:80]}")
        found[text] = 1
    return found


_recording: list[Workload] = []
_lock = threading.Lock()


@contextmanager
def record() -> Iterator[Workload]:
    """Note the signature of every call of an op in this process: `with record() as workload:`.

    Calls of every thread are noted, in recordings that overlap by each of them. Around a real run
    it costs each call the fast path while it lasts. Around a run on the meta device, or under
    `FakeTensorMode`, nothing is computed and no memory is taken. Calls with an empty result, and
    those under autocast, which no kernel ever answers, are not noted.
    """
    from .dispatch import fast_paths_closed  # noqa: PLC0415  (torch)

    workload = Workload()
    with _lock:
        _recording.append(workload)
    try:
        with fast_paths_closed():
            yield workload
    finally:
        with _lock:
            _recording[:] = [other for other in _recording if other is not workload]


def under_way() -> bool:
    """Whether anybody records."""
    return bool(_recording)


def note(signature: Signature) -> None:
    """Tell every recording under way of a call."""
    with _lock:
        for workload in _recording:
            workload.add(signature)
