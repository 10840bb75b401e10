"""A compiler and a GPU that only pretend; everything else of a machine is real."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jitd.jit.tune
from jitd.autotune.search import Outcome, Result, Timing
from jitd.cache.locks import KeyLocks
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit.build import Builder
from jitd.jit.device import stand_in
from jitd.jit.errors import CompileError
from jitd.jit.stats import Stats
from jitd.jit.tune import Found

CARD = replace(stand_in("sm_90"), uuid="card-of-the-tests", memory_bytes=80 << 30)


@dataclass
class FakePool:
    """A compile pool that answers at once, and fails for the kernels named in `broken`."""

    broken: set[str] = field(default_factory=set)
    compiled: list[str] = field(default_factory=list)

    def submit(self, binary: Any) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        self.compiled.append(binary.key.digest)
        if binary.kernel in self.broken:
            future.set_exception(CompileError(f"{binary}: it is broken"))
        else:
            runtime = [n for n, kind in binary.classes if kind[0] != "constexpr"]
            future.set_result(
                {
                    "cubin": b"code of " + binary.key.digest.encode(),
                    "symbol": binary.kernel,
                    "shared": 0,
                    "num_warps": 4,
                    "params": [[name, "u64"] for name in runtime],
                    "scratch_pointers": 2,
                }
            )
        return future


@dataclass
class Machine:
    """One card and one cache folder. `process()` is a process that uses them."""

    root: Path
    pool: FakePool = field(default_factory=FakePool)
    tuned: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    best: str = ""  # the config that wins every tune; by default the last one
    hopeless: bool = False  # no config of any tune is right
    wrong: bool = False  # every check fails
    on_tune: Callable[[], None] = lambda: None

    @classmethod
    def plug_in(cls, root: Path, patch: Callable[[object, str, object], None]) -> "Machine":
        """A machine whose fakes stand, by `patch`, where tuning and checking would be."""
        machine = cls(root)
        patch(jitd.jit.tune, "tune", machine._tune)
        patch(jitd.jit.tune, "check", machine._check)
        return machine

    def process(self) -> Builder:
        store = Store(open_root(self.root))
        locks = KeyLocks(store.root, timeout_s=60)
        return Builder(store, locks, lambda: self.pool, CARD, "triton-of-the-tests", Stats())  # type: ignore[arg-type,return-value]

    def _tune(self, op: Any, call: Any, configs: Any, compiling: Any, **rest: Any) -> Found:
        self.tuned.append(op.sign(call).text)
        self.on_tune()
        built = {
            name: [(b, body.result() if isinstance(body, Future) else body) for b, body in pairs]
            for name, pairs in compiling.items()
        }
        if self.hopeless:
            failed = [Outcome(c.name, "wrong", "off by one") for c in configs]
            return Found(None, Result(None, failed, False), (), {}, 1.0, 3.0)
        winner = next((c for c in configs if c.name == self.best), configs[-1])
        outcomes = [Outcome(c.name, "timed", "", Timing(2.0, 0.0, 40, "graph")) for c in configs]
        check = self._verdict(op, call)
        result = Result(winner.name, outcomes, False)
        return Found(winner, result, built[winner.name], check, 1.0, 3.0)

    def _check(
        self, op: Any, call: Any, config: Any, artifacts: Any, device: Any, probes: Any
    ) -> dict[str, Any]:
        self.checked.append(config.name)
        return self._verdict(op, call)

    def _verdict(self, op: Any, call: Any) -> dict[str, Any]:
        reason = "off by one" if self.wrong else ""
        return {"ok": not self.wrong, "reason": reason, "signature": op.sign(call).text}
