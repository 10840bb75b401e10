"""What happens on a miss: `Builder.get_or_build`, one page.

The same code runs in a client and in the daemon. It imports no torch: timing and checking, which
need a GPU, are in `tune` and imported when first needed.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..autotune.policy import Policy
from ..cache.errors import CacheWriteError, LockUnavailable
from ..cache.keys import Key
from ..cache.locks import KeyLocks
from ..cache.store import Store
from .binary import Binary, binary_of
from .compile import CompilePool
from .declare import Config, Device, Plan
from .errors import ColdKernelError, CompileError, JitdError
from .keys import check_key, failure_key, tuning_key
from .op import Op
from .settings import Mode
from .sign import Call
from .stats import Stats

log = logging.getLogger("jitd")

Body = Mapping[str, Any]


class NotReady(JitdError):
    """There is no checked kernel for a call and there will be none now; the reference answers.

    `cause` is a word for the counters, `detail` a sentence.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"


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
    policy: Policy = Policy()  # noqa: RUF009  (frozen)
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
    _unsaved: dict[str, Body] = field(default_factory=dict)
    _compilations: dict[str, Future[dict[str, Any]]] = field(default_factory=dict)

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
        key = self.tuning_key(op, call)
        with self._held(key):
            ready = self.look_up(op, call, mode)  # somebody else may have built it meanwhile
            if ready is not None:
                return ready
            self._refuse_if_failed(op, call)
            config = self.chosen(op, call, mode)
            if config is None:
                config = self.tune(op, call, key)
            return self.ensure_one(op, call, self.choices(op, call, config))

    def look_up(self, op: Op, call: Call, mode: Mode) -> Ready | None:
        """What is in the store and checked, without building anything."""
        chosen = self.chosen(op, call, mode)
        for config in [] if chosen is None else self.choices(op, call, chosen):
            plan = config.plan(call, self.device)
            artifacts = [self._get(b.key) for b in self.binaries(op, plan, call)]
            here = tuple(body for body in artifacts if body is not None)
            check = self._get(check_key(op, config, _cubins(here), self.device))
            if check is None or len(here) < len(artifacts):
                return None
            if check["ok"]:
                return Ready(config, plan, here)
        return None

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
        artifacts = self.artifacts(self.binaries(op, plan, call))
        key = check_key(op, config, _cubins(artifacts), self.device)
        with self._held(key):
            check = self._get(key)
            if check is None:
                check = self.check(op, call, config, artifacts, key)
        if not check["ok"]:
            raise NotReady("wrong", f"{config} for {op.sign(call)}: {check['reason']}")
        return Ready(config, plan, artifacts)

    # -- choosing -----------------------------------------------------------------------------

    def chosen(self, op: Op, call: Call, mode: Mode) -> Config | None:
        """The config that answers `call`: the winner's, else, where nothing may be tuned, a guess.

        None means: tune first.
        """
        winner = self.winner(op, call)
        if winner is not None:
            return winner
        if mode in ("tune", "strict"):
            return None
        return self.guess(op, call)

    def choices(self, op: Op, call: Call, chosen: Config) -> list[Config]:
        """`chosen`, then the default, for a binary class in which `chosen` does not work.

        A winner is checked in the class of its bucket; another class is another binary, which may
        need more registers than a cooperative launch allows.
        """
        default = op.default(call, self.device)
        return [chosen] if default is None or default.name == chosen.name else [chosen, default]

    def winner(self, op: Op, call: Call) -> Config | None:
        """The stored winner's config, if its variant is still the one that was timed."""
        body = self._get(self.tuning_key(op, call))
        return None if body is None else _config_of(op, body)

    def guess(self, op: Op, call: Call) -> Config | None:
        """The config of the nearest winner that fits `call`, else the default."""
        wanted = op.bucket(call)
        kept, _ = op.configs(wanted, self.device)
        names = {config.name for config in kept}
        for _, body in self.nearest(op, wanted):
            config = _config_of(op, body)
            if config is not None and config.name in names:
                return config
        return op.default(call, self.device)

    def nearest(self, op: Op, call: Call) -> Iterator[tuple[float, Body]]:
        """The winners of this op on this card, nearest first by log-distance in shape."""
        shape = call[op.tensors[0].name].shape
        ranked = []
        for header in self.store.headers("winner", op.name):
            other = header.meta.get("shape", ())
            if header.meta.get("device") == self.device.name and len(other) == len(shape):
                distance = sum(
                    abs(math.log2(max(a, 1) / max(b, 1))) for a, b in zip(shape, other, strict=True)
                )
                ranked.append((distance, header))
        for distance, header in sorted(ranked, key=lambda pair: (pair[0], pair[1].path)):
            record = self.store.record_for(header)
            if record is not None:
                yield distance, record.body

    # -- building -----------------------------------------------------------------------------

    def tune(self, op: Op, call: Call, key: Key, *, stored: str | None = None) -> Config:
        """Find, check and publish the fastest config of the call's bucket. Raises NotReady."""
        from .tune import tune  # noqa: PLC0415  (torch)

        bucket = op.bucket(call)
        signature = op.sign(bucket)
        log.info("tuning %s on %s", signature, self.device.name)
        configs, dropped = op.configs(bucket, self.device)
        default = op.default(bucket, self.device)
        compiling = {c.name: self._compiling(op, c, bucket) for c in configs}
        with self._leased():
            found = tune(
                op,
                bucket,
                configs,
                compiling,
                probes=lambda config: self.probes(op, bucket, config),
                device=self.device,
                policy=self.policy,
                default=default.name if default else None,
                stored=stored,
                on_progress=lambda done, total: self.on_progress(str(signature), done, total),
            )
        self.stats.count("tunes")
        if found.config is None:
            reason = f"no config of {len(configs)} could be used: {found.why_not()}"
            meta = {"target": self.device.target}
            failure = failure_key(op, call, *self._where())
            self._put(failure, {"reason": reason}, signature.text, meta)
            log.warning("%s: %s", signature, reason)
            raise NotReady("tune_failed", reason)
        self._keep(op, found.config, found.built, found.check)
        body = found.body(self.device, signature, dropped)
        self._put(key, body, signature.text, _summary(body, bucket[op.tensors[0].name].shape))
        return found.config

    def check(
        self, op: Op, call: Call, config: Config, artifacts: Sequence[Body], key: Key
    ) -> Body:
        """Hold these binaries to the reference on this card and record the verdict."""
        from .tune import check  # noqa: PLC0415  (torch)

        with self._leased():
            probes = self.probes(op, call, config)
            body = check(op, call, config, artifacts, self.device, probes)
        self.stats.count("checks")
        if not body["ok"]:
            log.warning("%s for %s is wrong: %s", config, op.sign(call), body["reason"])
        return self._put(key, body, op.sign(call).text, self._checked(config, body))

    def artifacts(self, binaries: Sequence[Binary]) -> tuple[Body, ...]:
        """The artifacts of `binaries`: stored, or compiled now, once for all processes."""
        return tuple(self._artifact(binary) for binary in binaries)

    def _artifact(self, binary: Binary) -> Body:
        body = self._get(binary.key)
        if body is None:
            with self._held(binary.key):
                body = self._get(binary.key)
                if body is None:
                    try:
                        body = self._submitted(binary).result()
                    except CompileError as error:
                        raise NotReady("compile_failed", str(error)) from error
                    return self._put_artifact(binary, body)
        return self._put_artifact(binary, body) if body.get("candidate") else body

    def compile_all(
        self,
        binaries: Iterable[Binary],
        on_done: Callable[[Binary, str | None], None],
        candidates: Collection[Binary] = (),
    ) -> None:
        """Compile and store what is missing, on all workers; nothing is checked or tuned.

        `on_done(binary, error)` is called for each one as it is ready, stored ones first. Of
        `candidates` those that win no tune are dropped by the first `warm` on a card.
        """
        missing: list[Binary] = []
        for binary in {b.key.digest: b for b in binaries}.values():
            if self.store.has(binary.key):
                on_done(binary, None)
            else:
                missing.append(binary)
        running = {self._submitted(binary): binary for binary in missing}
        for future in as_completed(running):
            binary, error = running[future], future.exception()
            if error is None:
                self._put_artifact(binary, future.result(), candidate=binary in candidates)
            elif not isinstance(error, CompileError):
                raise error
            on_done(binary, str(error) if error else None)

    def prefetch(self, op: Op, call: Call) -> None:
        """Start compiling the candidates of a tune that is to come."""
        if self.winner(op, call) is None:
            bucket = op.bucket(call)
            for config in op.configs(bucket, self.device)[0]:
                self._compiling(op, config, bucket)

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
            if self._get(binary.key) is None:
                return f"the winner is {config}, but {binary} is not compiled for these arguments"
        return f"the winner is {config}, but its binaries have not passed the check here"

    def tuning_key(self, op: Op, call: Call) -> Key:
        return tuning_key(op, call, *self._where())

    def _where(self) -> tuple[Device, str, Policy]:
        return self.device, self.toolchain, self.policy

    def _compiling(
        self, op: Op, config: Config, call: Call
    ) -> list[tuple[Binary, Body | Future[dict[str, Any]]]]:
        """Start compiling what a candidate needs and the store does not have."""
        pairs: list[tuple[Binary, Body | Future[dict[str, Any]]]] = []
        for binary in self.binaries(op, config.plan(call, self.device), call):
            body = self._get(binary.key)
            pairs.append((binary, self._submitted(binary) if body is None else body))
        return pairs

    def _submitted(self, binary: Binary) -> Future[dict[str, Any]]:
        """The compilation of a binary, under way or finished, in this process once."""
        digest = binary.key.digest
        if digest not in self._compilations or self._compilations[digest].cancelled():
            self.stats.count("compiles")
            self._compilations[digest] = self.pool().submit(binary)
        return self._compilations[digest]

    def _keep(
        self, op: Op, config: Config, built: Sequence[tuple[Binary, Body]], check: Body
    ) -> None:
        """Store the winner's binaries and their check; the losers' are dropped."""
        artifacts = [self._put_artifact(binary, body) for binary, body in built]
        key = check_key(op, config, _cubins(artifacts), self.device)
        self._put(key, check, check["signature"], self._checked(config, check))

    def checks(self, op: Op, config: Config, binaries: Sequence[Binary]) -> list[Key]:
        """The key of the check of these binaries on a card; none where they only get compiled."""
        artifacts = [self._get(binary.key) for binary in binaries]
        if not self.device.uuid or any(body is None for body in artifacts):
            return []
        return [check_key(op, config, _cubins([b for b in artifacts if b]), self.device)]

    def _checked(self, config: Config, check: Body) -> Body:
        """What listing shows of a check."""
        return {"ok": check["ok"], "config": config.name, "target": self.device.target}

    def _put_artifact(self, binary: Binary, answer: Body, *, candidate: bool = False) -> Body:
        """Store a compiled binary, unless these very bytes are stored for good already."""
        digest = hashlib.blake2b(answer["cubin"], digest_size=20).hexdigest()
        stored = self._get(binary.key)
        if stored is not None and stored["cubin_digest"] == digest and not stored["candidate"]:
            return stored
        meta = {
            "op": binary.op,
            "target": binary.target,
            "module": binary.module,
            "bytes": len(answer["cubin"]),
            "candidate": candidate,
        }
        body = {**answer, "cubin_digest": digest, "candidate": candidate}
        return self._put(binary.key, body, str(binary), meta)

    def drop_candidates(self, ops: Collection[str]) -> int:
        """Remove the binaries of these ops that were compiled to be tried and won nothing."""
        losers = [
            header
            for header in self.store.headers("artifact")
            if header.meta.get("candidate") and header.meta.get("op") in ops
        ]
        return sum(self.store.remove(header) is not None for header in losers)

    def _refuse_if_failed(self, op: Op, call: Call) -> None:
        failure = self._get(failure_key(op, call, *self._where()))
        if failure is not None:
            raise NotReady("tune_failed", failure["reason"])

    def _get(self, key: Key) -> Body | None:
        record = self.store.get(key)
        return self._unsaved.get(key.digest) if record is None else record.body

    def _put(self, key: Key, body: Body, label: str, meta: Body) -> Body:
        """Store, or, where the cache cannot be written, keep for this process and say so once."""
        try:
            return self.store.put(key, body, label=label, meta=meta).body
        except CacheWriteError as error:
            if not self.stats["put_failed"]:
                log.warning("the cache cannot be written, this process keeps its own: %s", error)
            self.stats.count("put_failed")
            self._unsaved[key.digest] = body
            return body

    def _held(self, key: Key) -> AbstractContextManager[None]:
        """Be the only process to build what `key` names."""
        return self._locked(self.locks.hold(key))

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


def _config_of(op: Op, winner: Body) -> Config | None:
    """The config that a winner's body names, if the op still has it as it was timed."""
    config = op.config(winner["variant"], winner["params"])
    if config is None or config.variant.digest != winner["variant_digest"]:
        return None
    return config


def _import_of(op: Op) -> str:
    """What the command line needs to know of an op that is declared outside jitd."""
    module = op.reference.__module__
    return "" if module.partition(".")[0] == __name__.partition(".")[0] else f" --import {module}"


def _cubins(artifacts: Sequence[Body]) -> tuple[str, ...]:
    return tuple(body["cubin_digest"] for body in artifacts)


def _summary(body: Body, shape: Sequence[int]) -> dict[str, Any]:
    """What `jitctl list` shows of a winner without reading its body."""
    names = ("config", "us", "eager_us", "floor_us", "device", "target")
    return {**{name: body[name] for name in names}, "shape": list(shape)}
