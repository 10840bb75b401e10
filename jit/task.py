"""What is to be tuned or checked, as data that another process can be sent."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..autotune.policy import Policy
from ..autotune.search import Outcome, Timing
from .declare import Config
from .errors import JitdError
from .op import OPS, Op
from .sign import Call, Passed, TensorSpec

Body = Mapping[str, Any]


class DoesNotFit(JitdError):
    """Inputs, outputs and what the check needs exceed the GPU memory that a tune may take."""

    def __init__(self, needed_bytes: int, allowed_bytes: int) -> None:
        super().__init__(needed_bytes, allowed_bytes)
        self.needed_bytes, self.allowed_bytes = needed_bytes, allowed_bytes

    def __str__(self) -> str:
        needed, allowed = (n / 2**30 for n in (self.needed_bytes, self.allowed_bytes))
        return (
            f"tuning needs {needed:.1f} GiB of GPU memory, {allowed:.1f} GiB are allowed "
            "(JITD_TUNE_MEMORY_SHARE of what is free)"
        )


class OtherCode(JitdError):
    """A process does not have the op, or not as the process that asks declares it."""


@dataclass(frozen=True)
class Task:
    """A bucket to be tuned.

    configs  in canonical order; `probes` has the further calls to check each of them at
    default  and `stored`: names of the config that serves now and of the winner so far
    seeds    names that won nearby: worth compiling and trying early
    known    outcomes of an earlier, unfinished or smaller tune of the same code
    """

    op: Op
    call: Call
    configs: Sequence[Config]
    probes: Sequence[Sequence[Call]]
    policy: Policy
    default: str | None
    stored: str | None
    seeds: Sequence[str]
    known: Mapping[str, Outcome]
    memory_share: float

    def pack(self) -> dict[str, Any]:
        return {
            "op": name_of(self.op),
            "call": pack_call(self.call),
            "configs": [[c.variant.name, dict(c.params)] for c in self.configs],
            "probes": [[pack_call(call) for call in calls] for calls in self.probes],
            "policy": asdict(self.policy),
            "default": self.default,
            "stored": self.stored,
            "seeds": list(self.seeds),
            "known": [asdict(outcome) for outcome in self.known.values()],
            "memory_share": self.memory_share,
        }

    @classmethod
    def unpack(cls, message: Mapping[str, Any]) -> "Task":
        """Raises OtherCode if this process does not have the op or one of the configs."""
        op = find_op(message["op"])
        policy: dict[str, Any] = dict(message["policy"])
        policy["rungs"] = tuple(policy["rungs"])
        outcomes = [unpack_outcome(one) for one in message["known"]]
        return cls(
            op=op,
            call=unpack_call(message["call"]),
            configs=[config_of(op, variant, params) for variant, params in message["configs"]],
            probes=[[unpack_call(one) for one in calls] for calls in message["probes"]],
            policy=Policy(**policy),
            default=message["default"],
            stored=message["stored"],
            seeds=message["seeds"],
            known={outcome.name: outcome for outcome in outcomes},
            memory_share=message["memory_share"],
        )


@dataclass(frozen=True)
class Found:
    """What a tune found. `winner` is None if no candidate was valid.

    `check` is the body of the winner's check record; None if the winner was known from an earlier
    tune and needed no run in this one. `measured`: the candidates that were timed, in order.
    """

    winner: str | None
    check: Body | None
    floor_us: float
    eager_us: float
    stopped_early: bool
    drift: float
    measured: Sequence[str]

    def pack(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Trial:
    """What became of a candidate, with what its binaries take: a line of the landscape."""

    outcome: Outcome
    config: Config
    registers: Sequence[int] | None = None
    spills: int | None = None  # bytes per thread

    def record(self) -> dict[str, Any]:
        """As it is kept with a winner, and while a tune is under way."""
        outcome = self.outcome
        return {
            "config": outcome.name,
            "variant": self.config.variant.name,
            "params": dict(self.config.params),
            "status": outcome.status,
            "reason": outcome.reason,
            "detail": outcome.detail[:400],
            "timing": asdict(outcome.timing) if outcome.timing else None,
            "error": outcome.error,
            "registers": None if self.registers is None else list(self.registers),
            "spills": self.spills,
        }


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """The outcome that `Trial.record` was made of."""
    return unpack_outcome({**record, "name": record["config"]})


def unpack_outcome(message: Mapping[str, Any]) -> Outcome:
    status: Literal["timed", "dropped", "failed", "wrong"] = message["status"]
    return Outcome(
        name=message["name"],
        status=status,
        reason=message["reason"],
        timing=Timing(**message["timing"]) if message["timing"] else None,
        error=message["error"],
        detail=message["detail"],
    )


def name_of(op: Op) -> dict[str, str]:
    """How another process finds an op, and knows that it is the same."""
    return {
        "name": op.name,
        "module": op.reference.__module__,
        "digest": f"{op.digest} {op.reference_digest}",
    }


def find_op(name: Mapping[str, str]) -> Op:
    """The op that `name_of` names, imported. Raises OtherCode."""
    try:
        importlib.import_module(name["module"])
    except ImportError as error:
        raise OtherCode(f"op {name['name']}: cannot import {name['module']}: {error}.") from error
    op = OPS.get(name["name"])
    if op is None:
        raise OtherCode(f"importing {name['module']} declares no op {name['name']}.")
    if name_of(op)["digest"] != name["digest"]:
        raise OtherCode(f"op {op.name}: its source has changed since it was imported.")
    return op


def config_of(op: Op, variant: str, params: Mapping[str, Any]) -> Config:
    config = op.config(variant, params)
    if config is None:
        raise OtherCode(f"op {op.name} has no config {variant}({params}).")
    return config


def pack_call(call: Call) -> dict[str, Any]:
    def packed(value: Any) -> dict[str, Any]:
        match value:
            case TensorSpec():
                return {"tensor": [value.dtype, value.shape, value.strides, value.aligned]}
            case Passed():
                return {"passed": [value.name, value.example]}
        return {"scalar": value}

    return {name: packed(value) for name, value in call.items()}


def unpack_call(message: Mapping[str, Any]) -> Call:
    def value(packed: Mapping[str, Any]) -> Any:
        if "scalar" in packed:
            return packed["scalar"]
        if "passed" in packed:
            return Passed(*packed["passed"])
        dtype, shape, strides, aligned = packed["tensor"]
        return TensorSpec(dtype, tuple(shape), tuple(strides), aligned)

    return Call({name: value(packed) for name, packed in message.items()})
