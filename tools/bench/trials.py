"""The candidates of a bucket, compiled, loaded and checked once, to be timed again and again."""

from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

import torch

from ...autotune.policy import Policy
from ...autotune.search import Candidate, CandidateFailed, Runnable
from ...autotune.verify import Verdict
from ...jit.build import Builder
from ...jit.check import Checker, Runner, allowed_bytes
from ...jit.declare import Config
from ...jit.errors import CompileError, LaunchError
from ...jit.launch import Executable, Loaded
from ...jit.op import Op
from ...jit.sign import Call
from ...jit.tune import admitted

COMPILE_S = 300.0


class Trials:
    """What a tune makes of each candidate, made in this process and kept. Use in a `with`.

    valid    names of those that passed the check, in canonical order
    refused  why the others did not
    """

    def __init__(
        self,
        builder: Builder,
        op: Op,
        call: Call,
        policy: Policy,
        *,
        only: Collection[str] | None = None,
    ) -> None:
        self.op, self.call, self.device = op, op.bucket(call), builder.device
        every = op.configs(self.call, self.device)[0]
        self.configs = {c.name: c for c in every if only is None or c.name in only}
        self.verdicts: dict[str, Verdict] = {}
        self.refused: dict[str, str] = {}
        self._loaded: dict[str, list[Loaded]] = {}
        self._builder = builder
        card = torch.device("cuda", self.device.index)
        checker = Checker(op, card, allowed_bytes(card, builder.memory_share))
        checker.fit(self.call, policy.input_sets)
        self._sets = checker.input_sets(self.call, policy.input_sets)
        default = op.default(self.call, self.device)
        self.default = default.name if default else None
        try:
            for config in self.configs.values():
                try:
                    self._admit(config, checker)
                except (CandidateFailed, CompileError, LaunchError) as error:
                    self.refused[config.name] = str(error)
        except BaseException:
            self.close()
            raise
        checker.clear()

    @property
    def valid(self) -> list[str]:
        return [name for name in self.configs if name not in self.refused]

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the binaries; no runner may be used any more."""
        torch.cuda.synchronize()
        for binaries in self._loaded.values():
            for binary in binaries:
                binary.unload()
        self._loaded.clear()
        self._sets.clear()
        torch.cuda.empty_cache()

    def runner(self, name: str) -> Runnable:
        """A new runner of a candidate.

        One for each search: an executable with a barrier has memory for some captures only, after
        which a graph has to zero its barriers itself, and is slower.
        """
        plan = self.configs[name].plan(self.call, self.device)
        executable = Executable(plan, self._loaded[name], self.call.tensors, self.device)
        return Runner(executable, self._sets)

    def candidates(self) -> list[Candidate]:
        """All of them for one search, each built anew there; those that were refused fail."""

        def candidate(name: str) -> Candidate:
            def build() -> Runnable:
                if name in self.refused:
                    raise CandidateFailed(self.refused[name])
                return self.runner(name)

            return Candidate(name, build)

        return [candidate(name) for name in self.configs]

    def verify(self, candidate: Candidate, run: Any) -> Verdict:
        """The verdict that was found before."""
        return self.verdicts[candidate.name]

    def _admit(self, config: Config, checker: Checker) -> None:
        """Load and check one. Raises CandidateFailed, CompileError or LaunchError."""
        plan = config.plan(self.call, self.device)
        binaries = self._builder.binaries(self.op, plan, self.call)
        started = [self._builder.artifacts.start(binary) for binary in binaries]
        bodies = [one.result(COMPILE_S) if isinstance(one, Future) else one for one in started]
        loaded = admitted(plan, bodies, self.device, seeded=config.name == self.default)
        self._loaded[config.name] = loaded
        calls = [self.call, *self._builder.probes(self.op, self.call, config)]
        verdict = checker.verdict(calls, config, loaded, self.device)
        if not verdict.ok:
            raise CandidateFailed("wrong", verdict.reason)
        self.verdicts[config.name] = verdict
