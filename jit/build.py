"""What happens on a miss: `Builder.get_or_build`, one page.

The same code runs in a client and in the daemon. It imports no torch: timing and checking, which
need a GPU, are done by a `Tuner`, in a process of its own unless that is turned off.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from ..autotune.policy import Policy
from ..autotune.search import CandidateFailed
from ..cache.errors import LockUnavailable
from ..cache.keys import Key
from ..cache.locks import KeyLocks
from ..cache.store import Store
from .artifacts import Artifacts
from .binary import Binary, binary_of
from .candidates import Candidates, Pairs
from .compile import CompilePool
from .declare import Config, Device, Plan
from .errors import ColdKernelError, NotReady
from .isolated import Tuner, TunerFailed, wanted_first
from .keys import check_key, failure_key
from .op import Op
from .settings import Mode
from .shelf import GlancingShelf, Shelf
from .sign import Call
from .stats import Stats
from .task import DoesNotFit, Found, Task
from .winners import Journal, Winners

log = logging.getLogger("jitd")

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Ready:
    """A config whose binaries are here, intact and checked: all that a launch needs."""

    config: Config
    plan: Plan
    artifacts: tuple[Body, ...]


@dataclass
class Builder:
    """Gets kernels for one device: from the store, or by building them into it.

    `device` may be a stand-in, to compile for a target without having it.
    """

    store: Store
    locks: KeyLocks
    pool: Callable[[], CompilePool]
    device: Device
    toolchain: str
    stats: Stats
    tuner: Callable[[], Tuner]
    policy: Policy = Policy()  # noqa: RUF009  (frozen)
    memory_share: float = 0.5
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
    elsewhere: Callable[["Builder", Op, Call], None] = lambda builder, op, call: None
    """Given the chance to build it, in mode `tune`, before this process does: the daemon."""
    _outdated: set[str] = field(default_factory=set)

    @cached_property
    def shelf(self) -> Shelf:
        return Shelf(self.store, self.stats)

    @cached_property
    def hints(self) -> Winners:
        """The winners as they were a moment ago: good enough to guess from, and quick."""
        shelf = GlancingShelf(self.store, self.stats)
        return Winners(shelf, self.device, self.toolchain, self.policy)

    @cached_property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.shelf, self.pool, self._held, self.stats)

    @cached_property
    def winners(self) -> Winners:
        return Winners(self.shelf, self.device, self.toolchain, self.policy)

    # -- the page -----------------------------------------------------------------------------

    def get_or_build(self, op: Op, call: Call, mode: Mode, *, capturing: bool = False) -> Ready:
        """A checked kernel for `call`, built at most once on this machine if `mode` allows.

        Raises ColdKernelError in `strict`, NotReady where the reference has to answer.
        """
        ready = self.look_up(op, call, mode)
        if ready is not None:
            return ready
        if mode == "strict":
            signature = op.sign(call)
            raise ColdKernelError(
                str(signature),
                self.explain(op, call),
                f"jitctl warmup{_import_of(op)} --signature '{signature}'",
            )
        if capturing:
            raise NotReady("capturing", "a CUDA graph is being captured: nothing may be built now")
        if mode == "tune":
            self.elsewhere(self, op, call)
        key = self.tuning_key(op, call)
        with self._held(key):
            ready = self.look_up(op, call, mode)  # somebody else may have built it meanwhile
            if ready is not None:
                return ready
            self._refuse_if_failed(op, call)
            config = self.chosen(op, call, mode)
            if config is None:
                config = self.tune(op, call)
                self.artifacts.forget()
            return self.ensure_one(op, call, self.choices(op, call, config))

    def look_up(self, op: Op, call: Call, mode: Mode) -> Ready | None:
        """What is in the store and checked, without building anything."""
        chosen = self.chosen(op, call, mode)
        for config in [] if chosen is None else self.choices(op, call, chosen):
            plan = config.plan(call, self.device)
            artifacts = [self.shelf.get(b.key) for b in self.binaries(op, plan, call)]
            here = tuple(body for body in artifacts if body is not None)
            check = self.shelf.get(check_key(op, config, _cubins(here), self.device))
            if check is None or len(here) < len(artifacts):
                return None
            if check["ok"]:
                return Ready(config, plan, here)
        return None

    def at_once(self, op: Op, call: Call) -> tuple[Ready | None, bool]:
        """What is checked and can answer now, and whether it will do so for good.

        The winner; until there is one, that of before an upgrade, the nearest one's config, or the
        default. Raises NotReady where tuning is known to fail. Builds nothing.
        """
        key = self.tuning_key(op, call)
        if self.shelf.has(key) and self.winner(op, call) is not None:
            ready = self.look_up(op, call, "tune")
            if ready is not None:
                return ready, True
        elif self.shelf.has_any("negative", op.name):
            self._refuse_if_failed(op, call)
        if not self.shelf.has_any("check", op.name):
            return None, False  # nothing of this op can be launched: a caller waits for this answer
        hints = self.hints
        guesses = (hints.former(op, call), hints.guess(op, call), op.default(call, self.device))
        for config in {config.name: config for config in guesses if config is not None}.values():
            ready = self._stored(op, call, config)
            if ready is not None:
                return ready, False
        return None, False

    def _stored(self, op: Op, call: Call, config: Config) -> Ready | None:
        """A config whose binaries are in the store, and right."""
        plan = config.plan(call, self.device)
        artifacts = [self.shelf.get(b.key) for b in self.binaries(op, plan, call)]
        here = tuple(body for body in artifacts if body is not None)
        if len(here) < len(artifacts):
            return None
        check = self.shelf.get(check_key(op, config, _cubins(here), self.device))
        return Ready(config, plan, here) if check is not None and check["ok"] else None

    def ensure_one(self, op: Op, call: Call, configs: Sequence[Config]) -> Ready:
        """The first of `configs` that can be had for `call`. Raises NotReady if none can."""
        for config in configs[:-1]:
            try:
                return self.ensure(op, call, config)
            except NotReady as not_ready:
                if not_ready.cause not in ("wrong", "compile_failed"):
                    raise
        return self.ensure(op, call, configs[-1])

    def ensure(self, op: Op, call: Call, config: Config) -> Ready:
        """Compile what `config` needs for `call`, check it on this card, put both, give it."""
        plan = config.plan(call, self.device)
        artifacts = self.artifacts.get(self.binaries(op, plan, call))
        key = check_key(op, config, _cubins(artifacts), self.device)
        with self._held(key):
            check = self.shelf.get(key)
            if check is None:
                check = self.check(op, call, config, artifacts, key)
        if not check["ok"]:
            raise NotReady("wrong", f"{config} for {op.sign(call)}: {check['reason']}")
        return Ready(config, plan, artifacts)

    # -- choosing -----------------------------------------------------------------------------

    def chosen(self, op: Op, call: Call, mode: Mode) -> Config | None:
        """The config that answers `call`: the winner's, that of before an upgrade, else, where
        nothing may be tuned, a guess.

        None means: tune first.
        """
        winner = self.winner(op, call) or self._former(op, call)
        if winner is not None:
            return winner
        if mode in ("tune", "strict"):
            return None
        return self.winners.guess(op, call)

    def choices(self, op: Op, call: Call, chosen: Config) -> list[Config]:
        """`chosen`, then the default, for a binary class in which `chosen` does not work.

        A winner is checked in the class of its bucket; another class is another binary, which may
        need more registers than a cooperative launch allows.
        """
        default = op.default(call, self.device)
        return [chosen] if default is None or default.name == chosen.name else [chosen, default]

    def winner(self, op: Op, call: Call) -> Config | None:
        """The stored winner's config, if its code is still what was timed."""
        return self.winners.get(op, call)

    def _former(self, op: Op, call: Call) -> Config | None:
        """The winner of another toolchain; counted, and said once for each bucket."""
        config = self.winners.former(op, call)
        if config is not None:
            signature = op.sign(op.bucket(call)).text
            if signature not in self._outdated:
                self._outdated.add(signature)
                self.stats.count("former_winners")
                log.warning(
                    "%s: %s won under another Triton or policy and serves until it is tuned again: "
                    "jitctl warmup --signature '%s'", signature, config, signature,
                )  # fmt: skip
        return config

    # -- building -----------------------------------------------------------------------------

    def settle(self, op: Op, call: Call) -> Ready:
        """What answers `call` for good: tuned now unless its bucket has a winner, even though
        something else may serve it meanwhile. Raises NotReady.
        """
        if self.winner(op, call) is None:
            with self._held(self.tuning_key(op, call)):
                self._refuse_if_failed(op, call)
                if self.winner(op, call) is None:
                    self.tune(op, call)
                    self.artifacts.forget()
        return self.get_or_build(op, call, "tune")

    def tune_again(self, op: Op, call: Call, *, fresh: bool) -> Config:
        """Tune the bucket of `call` though something may serve it. Raises NotReady.

        What is known is not timed again unless `fresh`. The winner so far stays unless another is
        faster by more than the policy's hysteresis.
        """
        with self._held(self.tuning_key(op, call)):
            if not fresh and self.winners.complete(op, call):
                return self.winner(op, call) or self.tune(op, call)
            return self.tune(op, call, fresh=fresh)

    def tune(self, op: Op, call: Call, *, fresh: bool = False) -> Config:
        """Find, check and publish the fastest config of the call's bucket. Raises NotReady.

        The caller holds the lock of the tuning key.
        """
        bucket = op.bucket(call)
        signature = op.sign(bucket)
        log.info("tuning %s on %s", signature, self.device.name)
        configs, dropped = op.configs(bucket, self.device)
        journal = self.winners.journal(op, bucket, configs)
        journal.on_trial = lambda done, total: self.on_progress(str(signature), done, total)
        known = journal.start_from({} if fresh else self.winners.known(op, bucket, configs))
        default = op.default(bucket, self.device)
        stored = self.winner(op, bucket) or self.winners.former(op, bucket)
        task = Task(
            op=op,
            call=bucket,
            configs=configs,
            probes=[self.probes(op, bucket, config) for config in configs],
            policy=self.policy,
            default=default.name if default else None,
            stored=stored.name if stored else None,
            seeds=[config.name for config in itertools.islice(self.winners.nearest(op, bucket), 3)],
            known=known,
            memory_share=self.memory_share,
        )
        by_name = {config.name: config for config in configs}
        candidates = Candidates(lambda name: self._compiling(op, by_name[name], bucket))
        self.tuner().start()
        candidates.begin(wanted_first(task))  # compiling needs no lease
        try:
            with self._leased():
                found = self.tuner().tune(task, candidates, journal)
        except DoesNotFit as error:
            return self._tuned_smaller(op, bucket, error)
        except TunerFailed as error:
            log.warning("%s is not tuned: %s", signature, error)
            raise NotReady("tuner_failed", str(error)) from error
        finally:
            candidates.stop()
            journal.idle()
        self.stats.count("tunes")
        if found.winner is None:
            self._remember_failure(op, call, f"no config of {len(configs)} could be used", journal)
        winner = by_name[str(found.winner)]
        self._publish(op, bucket, winner, found, candidates, journal, dropped)
        return winner

    def _publish(
        self,
        op: Op,
        bucket: Call,
        winner: Config,
        found: Found,
        candidates: Candidates,
        journal: Journal,
        dropped: Sequence[tuple[str, str]],
    ) -> None:
        """Store the winner's binaries, their check and the winner; the losers' are dropped."""
        try:
            built = candidates.finished(winner.name)
        except CandidateFailed as failure:  # it was known from before, and compiled then
            raise NotReady("compile_failed", f"{winner}: {failure.detail}") from failure
        artifacts = [self.artifacts.keep(binary, body) for binary, body in built]
        if found.check is not None:
            key = check_key(op, winner, _cubins(artifacts), self.device)
            checked = self._checked(winner, found.check)
            self.shelf.put(key, found.check, op.sign(bucket).text, checked)
        trials = [journal.trials[name] for name in journal.configs if name in journal.trials]
        tuned_at = op.sign(bucket).text
        self.winners.publish(op, bucket, winner, found, trials, dropped, tuned_at)
        journal.close()

    def _tuned_smaller(self, op: Op, bucket: Call, error: DoesNotFit) -> Config:
        """The winner of the largest smaller bucket that fits into the memory, for this one."""
        smaller = op.smaller(bucket)
        if smaller is None or op.bucket(smaller) == bucket:
            raise NotReady("no_memory", f"{op.sign(bucket)}: {error}")
        log.warning("%s: %s; tuned as %s instead", op.sign(bucket), error, op.sign(smaller))
        self.stats.count("tuned_smaller")
        config = self.winner(op, smaller) or self.tune(op, smaller)
        if config.name not in {one.name for one in op.configs(bucket, self.device)[0]}:
            config = op.default(bucket, self.device) or config
        body = self.winners.body(op, smaller)
        if body is not None:
            self.winners.adopt(op, bucket, config, body)
        return config

    def _remember_failure(self, op: Op, call: Call, what: str, journal: Journal) -> NoReturn:
        signature, reason = op.sign(op.bucket(call)), f"{what}: {journal.why_not()}"
        failure = failure_key(op, call, *self._where())
        self.shelf.put(failure, {"reason": reason}, signature.text, {"target": self.device.target})
        log.warning("%s: %s", signature, reason)
        raise NotReady("tune_failed", reason)

    def check(
        self, op: Op, call: Call, config: Config, artifacts: Sequence[Body], key: Key
    ) -> Body:
        """Hold these binaries to the reference on this card and record the verdict."""
        probes = self.probes(op, call, config)
        try:
            with self._leased():
                body = self.tuner().check(op, call, config, artifacts, probes)
        except DoesNotFit as error:
            smaller = self._smaller_alike(op, call, config)
            if smaller is None:
                raise NotReady("no_memory", f"{op.sign(call)} is not checked: {error}") from error
            self.stats.count("checked_smaller")
            return self.check(op, smaller, config, artifacts, key)
        except TunerFailed as error:
            log.warning("%s is not checked: %s", op.sign(call), error)
            raise NotReady("tuner_failed", str(error)) from error
        self.stats.count("checks")
        if not body["ok"]:
            log.warning("%s for %s is wrong: %s", config, op.sign(call), body["reason"])
        return self.shelf.put(key, body, op.sign(call).text, self._checked(config, body))

    def _smaller_alike(self, op: Op, call: Call, config: Config) -> Call | None:
        """The next smaller bucket, if there the config has the very binaries that it has here."""
        smaller = op.smaller(op.bucket(call))
        if smaller is None or config.variant.applies(smaller) is not None:
            return None
        here, there = (
            [b.key for b in self.binaries(op, config.plan(c, self.device), c)]
            for c in (call, smaller)
        )
        return smaller if here == there else None

    def prefetch(self, op: Op, call: Call) -> None:
        """Start compiling the candidates of a tune that is to come."""
        bucket = op.bucket(call)
        configs = op.configs(bucket, self.device)[0]
        known = self.winners.known(op, bucket, configs)
        for config in configs:
            if config.name not in known:
                self._compiling(op, config, bucket)

    def prefetch_winner(self, op: Op, calls: Sequence[Call]) -> None:
        """Start compiling what the winner of these calls' bucket needs for them."""
        for call in calls:
            config = self.winner(op, call)
            if config is not None:
                self._compiling(op, config, call)

    # -- parts --------------------------------------------------------------------------------

    def binaries(self, op: Op, plan: Plan, call: Call) -> list[Binary]:
        """The binaries of a plan's launches, in order."""
        tensors = {
            **call.tensors,
            **plan.outputs,
            **{name: w.spec for name, w in plan.workspaces.items()},
            **{name: call[name].like(strides=(), aligned=True) for name in plan.contiguous},
        }
        target, toolchain = self.device.target, self.toolchain
        return [binary_of(launch, tensors, target, toolchain, op.name) for launch in plan.launches]

    def probes(self, op: Op, call: Call, config: Config) -> list[Call]:
        """The op's further calls to check at, as far as they use the same binaries as `call`."""
        binaries = self.binaries(op, config.plan(call, self.device), call)
        return [
            probe
            for probe in dict.fromkeys(op.probes(call))
            if probe != call
            and self.binaries(op, config.plan(probe, self.device), probe) == binaries
        ]

    def explain(self, op: Op, call: Call) -> str:
        """Why `call` is not ready, in one sentence."""
        config = self.winner(op, call)
        if config is None:
            return f"no winner is stored for its bucket on {self.device.name}"
        plan = config.plan(call, self.device)
        for binary in self.binaries(op, plan, call):
            if self.shelf.get(binary.key) is None:
                return f"the winner is {config}, but {binary} is not compiled for these arguments"
        return f"the winner is {config}, but its binaries have not passed the check here"

    def tuning_key(self, op: Op, call: Call) -> Key:
        return self.winners.key(op, call)

    def _where(self) -> tuple[Device, str, Policy]:
        return self.device, self.toolchain, self.policy

    def _compiling(self, op: Op, config: Config, call: Call) -> Pairs:
        """Start compiling what a candidate needs and the store does not have."""
        binaries = self.binaries(op, config.plan(call, self.device), call)
        return [(binary, self.artifacts.start(binary)) for binary in binaries]

    def checks(self, op: Op, config: Config, binaries: Sequence[Binary]) -> list[Key]:
        """The key of the check of these binaries on a card; none where they only get compiled."""
        artifacts = [self.shelf.get(binary.key) for binary in binaries]
        if not self.device.uuid or any(body is None for body in artifacts):
            return []
        return [check_key(op, config, _cubins([b for b in artifacts if b]), self.device)]

    def _checked(self, config: Config, check: Body) -> Body:
        """What listing shows of a check."""
        return {"ok": check["ok"], "config": config.name, "target": self.device.target}

    def _refuse_if_failed(self, op: Op, call: Call) -> None:
        failure = self.shelf.get(failure_key(op, call, *self._where()))
        if failure is not None:
            raise NotReady("tune_failed", failure["reason"])

    def _held(self, key: Key) -> AbstractContextManager[None]:
        """Be the only process to build what `key` names."""
        return self._locked(self.locks.hold(key))

    def alone(self) -> AbstractContextManager[None]:
        """Be the only process to warm this device: another finds everything done."""
        return self._locked(self.locks.hold(Key.of("receipt", "warm", device=self.device.uuid)))

    def _leased(self) -> AbstractContextManager[None]:
        """Be the only process to check or time on this GPU."""
        return self._locked(self.locks.lease(f"gpu-{self.device.uuid}"))

    @contextmanager
    def _locked(self, lock: AbstractContextManager[None]) -> Iterator[None]:
        """Hold a lock; where a file system has no locks, go on without (and count it)."""
        try:
            lock.__enter__()
        except LockUnavailable as error:
            if not self.stats["unlocked"]:
                log.warning("building without a lock, perhaps more than once: %s", error)
            self.stats.count("unlocked")
            yield
            return
        try:
            yield
        finally:
            lock.__exit__(None, None, None)


def _import_of(op: Op) -> str:
    """What the command line needs to know of an op that is declared outside jitd."""
    module = op.reference.__module__
    return "" if module.partition(".")[0] == __name__.partition(".")[0] else f" --import {module}"


def _cubins(artifacts: Sequence[Body]) -> tuple[str, ...]:
    return tuple(body["cubin_digest"] for body in artifacts)
