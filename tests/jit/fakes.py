"""A compiler and a GPU that only pretend; everything else of a machine is real."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jitd.autotune.search import CandidateFailed, Outcome, Timing
from jitd.cache.locks import KeyLocks
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit import runtime
from jitd.jit.build import Builder
from jitd.jit.device import stand_in
from jitd.jit.errors import CompileError
from jitd.jit.stats import Stats
from jitd.jit.task import Found, Trial

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
    drift: float = 0.0
    toolchain: str = "triton-of-the-tests"
    on_tune: Callable[[], None] = lambda: None
    on_trial: Callable[[str], None] = lambda name: None
    on_check: Callable[[Any], None] = lambda call: None
    tasks: list[Any] = field(default_factory=list)
    duty: float = 1.0

    @classmethod
    def plug_in(cls, root: Path, patch: Callable[[object, str, object], None]) -> "Machine":
        """A machine whose fakes stand, by `patch`, where tuning and checking would be."""
        machine = cls(root)
        patch(runtime, "shared_tuner", lambda device, **how: machine)
        return machine

    def process(self) -> Builder:
        store = Store(open_root(self.root))
        return Builder(
            store=store,
            locks=KeyLocks(store.root, timeout_s=60),
            pool=lambda: self.pool,  # type: ignore[arg-type,return-value]
            device=CARD,
            toolchain=self.toolchain,
            stats=Stats(),
            tuner=lambda: self,
        )

    def start(self) -> None:
        """It is always ready."""

    def tune(self, task: Any, candidates: Any, watcher: Any) -> Found:
        self.tuned.append(task.op.sign(task.call).text)
        self.tasks.append(task)
        self.on_tune()
        valid = []
        for config in task.configs:
            name = config.name
            if name in task.known:
                continue
            try:
                candidates.bodies(name)
                outcome = Outcome(name, "timed", "", Timing(2.0, 0.0, 40, "graph"))
                if self.hopeless:
                    outcome = Outcome(name, "wrong", "off by one")
                else:
                    valid.append(name)
            except CandidateFailed as failed:
                outcome = Outcome(name, "failed", failed.reason, detail=failed.detail)
            watcher.trial(Trial(outcome, config).record())
            watcher.idle()
            self.on_trial(name)
        everybody = [*task.known, *valid]
        winner = None
        if everybody:
            winner = self.best if self.best in everybody else everybody[-1]
        check = self._verdict(task.op, task.call) if winner in valid else None
        return Found(winner, check, 1.0, 3.0, False, self.drift, valid)

    def check(self, op: Any, call: Any, config: Any, artifacts: Any, probes: Any) -> dict[str, Any]:
        self.on_check(call)
        self.checked.append(config.name)
        return self._verdict(op, call)

    def _verdict(self, op: Any, call: Any) -> dict[str, Any]:
        reason = "off by one" if self.wrong else ""
        return {"ok": not self.wrong, "reason": reason, "signature": op.sign(call).text}
