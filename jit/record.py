"""Recording which signatures a run asks for."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import JitdError
from .sign import Signature

_FORMAT = "jitd-workload-1"


@dataclass
class Workload:
    """Signatures, in printed form, with the number of calls of each."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, signature: Signature | str, calls: int = 1) -> None:
        self.counts[str(signature)] += calls

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        return f"<Workload: {len(self)} signatures, {self.counts.total()} calls>"

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `Workload.load` and `jitctl warmup --workload` read."""
        text = json.dumps({"format": _FORMAT, "counts": self.counts}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Workload":
        """Read what `save` wrote. Raises JitdError for anything else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            counts: Mapping[str, int] = data["counts"]
            if data["format"] != _FORMAT or not all(
                isinstance(n, int) and n > 0 for n in counts.values()
            ):
                raise ValueError(f"its format is not {_FORMAT}")  # noqa: TRY301  (becomes the reason)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JitdError(f"{path} is no workload of jitd: {error}.") from error
        return cls(Counter(counts))


_recording: list[Workload] = []


@contextmanager
def record() -> Iterator[Workload]:
    """Note the signature of every call of an op in this process: `with record() as workload:`.

    Around a real run it costs each call the fast path while it lasts. Around a run on the meta
    device nothing is computed and no memory is taken.
    """
    from .dispatch import fast_paths_closed  # noqa: PLC0415  (torch)

    workload = Workload()
    _recording.append(workload)
    try:
        with fast_paths_closed():
            yield workload
    finally:
        _recording.remove(workload)


def note(signature: Signature) -> None:
    """Tell every recording under way of a call."""
    for workload in _recording:
        workload.add(signature)
