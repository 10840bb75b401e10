"""Tuning and checking in a process of their own, and what to do when that process dies.

A candidate may hang the GPU or break its context. Here that costs one child process and one
candidate: the child is killed, the candidate fails with the reason, and a fresh child goes on with
what is already known.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, Protocol

from ..autotune.search import CandidateFailed, Outcome
from . import frames
from .candidates import Arrivals, Candidates
from .child import Child, Died
from .declare import Config, Device
from .errors import JitdError
from .op import Op
from .sign import Call
from .stats import STATS, Stats
from .task import (
    Body,
    DoesNotFit,
    Found,
    OtherCode,
    Task,
    Trial,
    name_of,
    outcome_of,
    pack_call,
)

log = logging.getLogger("jitd.tune")

_PREPARE_S = 300.0  # inputs, eager's answers and the truth, at the largest shapes
_NOBODYS_DEATHS = 2  # of the process, with no candidate to blame: then it is the machine's fault


class TunerFailed(JitdError):
    """Tuning or checking was not possible, for no fault of a candidate; the message says why."""


class Watcher(Protocol):
    """Who follows a tune."""

    def trial(self, record: Mapping[str, Any]) -> None:
        """What became of a candidate so far: `Trial.record`."""

    def idle(self) -> None:
        """Nothing has come for a moment: a good time to save."""


class Tuner(Protocol):
    """What checks and times kernels: `Isolated`, or `InProcess` where that cannot be.

    `duty` is the share of its time for which it may use the GPU.
    """

    duty: float

    def start(self) -> None:
        """Get ready meanwhile, if that takes time."""

    def tune(self, task: Task, candidates: Candidates, watcher: Watcher) -> Found: ...

    def check(
        self,
        op: Op,
        call: Call,
        config: Config,
        artifacts: Sequence[Body],
        probes: Sequence[Call],
    ) -> Body: ...


class InProcess:
    """Everything in the caller's own process: no second CUDA context, and no protection."""

    def __init__(self, device: Device, memory_share: float) -> None:
        self.device, self.memory_share = device, memory_share
        self.duty = 1.0  # it does not rest: the caller waits

    def start(self) -> None:
        """Nothing to start."""

    def tune(self, task: Task, candidates: Candidates, watcher: Watcher) -> Found:
        from .tune import tune  # noqa: PLC0415  (torch)

        arrivals = candidates.begin(wanted_first(task))
        source = _Source(candidates, arrivals, len(task.configs) - len(task.known))
        return tune(task, source, _Report(watcher), self.device)

    def check(
        self,
        op: Op,
        call: Call,
        config: Config,
        artifacts: Sequence[Body],
        probes: Sequence[Call],
    ) -> Body:
        from .tune import check  # noqa: PLC0415  (torch)

        return check(op, call, config, artifacts, self.device, probes, self.memory_share)


class Isolated:
    """A child process for one card, started when first needed, and again after it died.

    Where it cannot work (the op is not importable there, no memory for a second context), the
    caller's process does, which is counted as `in_process:` and the cause.
    """

    def __init__(
        self, device: Device, *, step_timeout_s: float, memory_share: float, stats: Stats = STATS
    ) -> None:
        self.device, self.step_timeout_s, self.memory_share = device, step_timeout_s, memory_share
        self.stats = stats
        self.duty = 1.0  # the child rests between steps
        self._instead = InProcess(device, memory_share)
        self._child: Child | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        state = f"pid {self._child.process.pid}" if self._child else "not started"
        return f"<Isolated: {self.device}, {state}>"

    def start(self) -> None:
        with self._lock:
            if self._child is None:
                try:
                    self._child = Child(self.device)
                except OSError as error:  # said and counted when the child is needed
                    log.debug("no tuning process yet: %s", error)

    def close(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._child = None

    def tune(self, task: Task, candidates: Candidates, watcher: Watcher) -> Found:
        if task.op.reference.__module__ == "__main__":
            return self._tune_here(task, candidates, watcher, "op of __main__")
        known = dict(task.known)
        deaths = 0
        while True:
            arrivals = candidates.begin(wanted_first(task, known))
            try:
                return self._attempt(
                    replace(task, known=known), candidates, arrivals, watcher, known
                )
            except Died as died:
                name = died.name
                if not name:
                    deaths += 1
                    if deaths == _NOBODYS_DEATHS:
                        raise TunerFailed(f"the tuning process {died}") from died
                    continue
                config = next(one for one in task.configs if one.name == name)
                outcome = Outcome(name, "failed", str(died), detail=died.detail)
                known[name] = outcome
                watcher.trial(Trial(outcome, config).record())
                log.warning("%s: %s %s", task.op.name, name, died)
                self.stats.count("tuner_deaths")
            except OtherCode as error:
                log.warning("%s", error)
                return self._tune_here(task, candidates, watcher, "other_code")
            except _NoStart as error:
                log.warning("%s", error)
                return self._tune_here(task, candidates, watcher, "no_start")
            finally:
                arrivals.close()

    def check(
        self,
        op: Op,
        call: Call,
        config: Config,
        artifacts: Sequence[Body],
        probes: Sequence[Call],
    ) -> Body:
        if op.reference.__module__ == "__main__":
            self.stats.count("in_process:op of __main__")
            return self._instead.check(op, call, config, artifacts, probes)
        request = {
            "do": "check",
            "op": name_of(op),
            "call": pack_call(call),
            "config": [config.variant.name, dict(config.params)],
            "artifacts": [dict(artifact) for artifact in artifacts],
            "probes": [pack_call(probe) for probe in probes],
            "memory_share": self.memory_share,
            "duty": self.duty,
        }
        try:
            answer = self._checked(request)
        except Died as died:
            if not died.name:
                raise TunerFailed(f"the checking process {died}") from died
            return _refused(op, call, probes, self.device, str(died))
        except (OtherCode, _NoStart) as error:
            log.warning("%s", error)
            cause = "other_code" if isinstance(error, OtherCode) else "no_start"
            self.stats.count(f"in_process:{cause}")
            return self._instead.check(op, call, config, artifacts, probes)
        body: Body = answer["checked"]
        return body

    # -- one attempt --------------------------------------------------------------------------

    def _checked(self, request: dict[str, Any], attempts: int = 2) -> dict[str, Any]:
        with self._lock:
            child = self._ready()
            try:
                child.send(request)
                return self._listen(child, lambda message: None)
            except Died as died:
                if died.name or attempts == 1:
                    raise
        return self._checked(request, attempts - 1)

    def _attempt(
        self,
        task: Task,
        candidates: Candidates,
        arrivals: Arrivals,
        watcher: Watcher,
        known: dict[str, Outcome],
    ) -> Found:
        with self._lock:
            child = self._ready()
            child.tunes += 1
            coming = len(task.configs) - len(task.known)
            request = {"do": "tune", "number": child.tunes, "coming": coming, "task": task.pack()}
            request["duty"] = self.duty
            child.send(request)
            feeder = threading.Thread(
                target=_feed,
                args=(child, candidates, arrivals, coming),
                name="jitd-tuner-feed",
                daemon=True,
            )
            feeder.start()

            def hear(message: dict[str, Any]) -> None:
                if "trial" in message:
                    outcome = outcome_of(message["trial"])
                    if outcome.timing or outcome.status in ("failed", "wrong"):
                        known[outcome.name] = outcome
                    watcher.trial(message["trial"])
                elif "need" in message:
                    _send_binaries(child, candidates, message["need"])

            answer = self._listen(child, hear, watcher.idle)
            return Found(**answer["found"])

    def _listen(
        self,
        child: Child,
        hear: Callable[[dict[str, Any]], None],
        idle: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Messages to `hear` until the last one, which is returned. Raises what the child did.

        `idle` is called at each step of the child's while no message waits. Unless it ended with an
        answer the child is killed: it may be anywhere in its work.
        """
        name, stage, answered = "", "prepare", False
        try:
            while True:
                message = child.receive(self._limit_s(stage))
                if "step" in message:
                    name, stage = message["step"]
                    if not child.has_more():
                        idle()
                    continue
                answered = not message.keys().isdisjoint(_ANSWERS)
                if answered:
                    return _raised(message)
                hear(message)
        except frames.FrameTimeout:
            seconds = self._limit_s(stage)
            raise Died(name, f"hung for {seconds:g} s during {stage}") from None
        except frames.FrameError:
            code = child.ended()
            raise Died(name, f"crashed its process during {stage} (exit {code})") from None
        except Died:
            answered = False
            raise
        finally:
            if not answered:
                self.close()

    def _limit_s(self, stage: str) -> float | None:
        if stage == "wait":  # for the compilers, which have a limit of their own
            return None
        if stage == "prepare":
            return _PREPARE_S
        return self.step_timeout_s * (8 if stage == "final" else 1)

    def _ready(self) -> Child:
        """A child that has greeted. Raises _NoStart."""
        for attempt in (1, 2):
            if self._child is not None and self._child.process.poll() is not None:
                self.close()
            if self._child is None:
                try:
                    self._child = Child(self.device)
                except OSError as error:
                    raise _NoStart(f"no tuning process could be started: {error}") from error
            if self._child.greeted or self._child.greet():
                return self._child
            reason = self._child.last_words()
            self.close()
            if attempt == 1:  # it may have ended by itself, after idling, just now
                continue
        raise _NoStart(f"no tuning process could be started: {reason}")

    def _tune_here(self, task: Task, candidates: Candidates, watcher: Watcher, cause: str) -> Found:
        self.stats.count(f"in_process:{cause}")
        return self._instead.tune(task, candidates, watcher)


_ANSWERS = {"found", "checked", "ready", "no_fit", "other_code", "lost", "error"}


def _raised(answer: dict[str, Any]) -> dict[str, Any]:
    """The last message of a request, or what it says went wrong, raised."""
    if "no_fit" in answer:
        raise DoesNotFit(*answer["no_fit"])
    if "other_code" in answer:
        raise OtherCode(answer["other_code"])
    if "lost" in answer:
        name, stage, detail = answer["lost"]
        raise Died(name, f"broke the CUDA context during {stage}", detail)
    if "error" in answer:
        log.debug("the tuning process: %s", answer["detail"])
        raise TunerFailed(f"the tuning process: {answer['error']}")
    return answer


class _NoStart(JitdError):
    """No child process could be made to work."""


class _Source:
    """Candidates of this process, as `tune.Source` wants them."""

    def __init__(self, candidates: Candidates, arrivals: Arrivals, coming: int) -> None:
        self._candidates, self._arrivals, self._coming = candidates, arrivals, coming

    def arrivals(self) -> Any:
        return self._arrivals.take(self._coming)

    def bodies(self, name: str) -> Sequence[Body]:
        return self._candidates.bodies(name)


class _Report:
    """`tune.Report` for a watcher in the same process."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def step(self, name: str, stage: str) -> None:
        """Nobody holds a clock here."""

    def trial(self, trial: Trial) -> None:
        self._watcher.trial(trial.record())
        self._watcher.idle()


def wanted_first(task: Task, known: Mapping[str, Any] | None = None) -> list[str]:
    """The candidates that are not known yet: the stored winner, what won nearby, the default."""
    skipped = task.known if known is None else known
    early = [name for name in (task.stored, *task.seeds, task.default) if name]
    place = {name: rank for rank, name in reversed(list(enumerate(early)))}
    names = [config.name for config in task.configs if config.name not in skipped]
    return sorted(names, key=lambda name: place.get(name, len(early)))


def _feed(child: Child, candidates: Candidates, arrivals: Arrivals, coming: int) -> None:
    """Send binaries as they are ready, until all are sent or the child is gone."""
    for name in arrivals.take(coming):
        try:
            _send_binaries(child, candidates, name)
        except Died:
            return  # whoever listens to the child learns it, too, and knows what to do


def _send_binaries(child: Child, candidates: Candidates, name: str) -> None:
    message: dict[str, Any] = {"do": "binaries", "tune": child.tunes, "of": name}
    try:
        message["bodies"] = [dict(body) for body in candidates.bodies(name)]
    except CandidateFailed as failure:
        message["failed"] = [failure.reason, failure.detail]
    except CancelledError:
        return  # the tune that wanted it is over
    child.send(message)


def _refused(
    op: Op, call: Call, probes: Sequence[Call], device: Device, reason: str
) -> dict[str, Any]:
    """The body of the check of a binary that took the checking process with it."""
    return {
        "ok": False,
        "reason": reason,
        "signature": op.sign(call).text,
        "probes": [op.sign(probe).text for probe in probes],
        "device": device.name,
        "driver": device.driver,
    }


_shared: dict[str, Isolated] = {}
_shared_lock = threading.Lock()


def shared_tuner(device: Device, *, step_timeout_s: float, memory_share: float) -> Isolated:
    """The process's own tuner for a card, made at the first call and closed at exit."""
    with _shared_lock:
        if device.uuid not in _shared:
            if not _shared:
                atexit.register(_close_shared)
            _shared[device.uuid] = Isolated(
                device, step_timeout_s=step_timeout_s, memory_share=memory_share
            )
        return _shared[device.uuid]


def _close_shared() -> None:
    for tuner in _shared.values():
        tuner.close()


def _forget_after_fork() -> None:
    """The parent's child is not this process's."""
    global _shared_lock  # noqa: PLW0603
    _shared.clear()
    _shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
