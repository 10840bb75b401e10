"""Calls of an op as jitd sees them: what answers, by which config, and whether it is right."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...jit.build import Builder
from ...jit.op import OPS, Op
from ...jit.record import Workload
from ...jit.runtime import current
from ...jit.sign import Call, Passed
from ...jit.stats import STATS
from ...jit.tensors import spec_of

# (absolute, relative) by dtype: wide enough for another order of the sums and other rounding
# points, far too narrow for a kernel that is wrong.
_TOLERANCE = {
    torch.bfloat16: (7e-2, 2e-2),
    torch.float16: (1e-2, 4e-3),
    torch.float32: (1e-3, 1e-4),
}


class Refused(Exception):
    """Something must not be timed: it is wrong, or is not what it claims to be."""


@dataclass(frozen=True)
class Got:
    """What a first call of an op took: seconds, and how many tunes and compiles."""

    seconds: float
    tunes: int
    compiles: int
    config: str
    launches: int

    def __str__(self) -> str:
        what = f"{self.tunes} tuned, {self.compiles} compiled" if self.tunes else "was warm"
        return f"{self.seconds:.2f} s ({what}): {self.config}"


def all_arguments(op: Op, args: Sequence[Any]) -> tuple[Any, ...]:
    """`args` followed by the op's defaults."""
    return (*args, *(argument.default for argument in op.arguments[len(args) :]))


def call_of(op: Op, args: Sequence[Any], named: Mapping[str, Any] | None = None) -> Call:
    """The call with tensors replaced by their specs; `named` arguments besides positional ones."""
    values = zip((a.name for a in op.arguments), all_arguments(op, args), strict=True)
    given = dict(values) | dict(named or {})
    given |= {name: Passed(name, example) for name, example in op.varies.items()}
    return Call({n: spec_of(v) if isinstance(v, torch.Tensor) else v for n, v in given.items()})


def builder_for(device: torch.device) -> Builder:
    return current().builder_at(device.index or 0)


def prefetch(workload: Workload) -> None:
    """In mode tune: have all that was recorded compiled, at once, before it is asked for."""
    if current().settings.mode != "tune":
        return
    builder = builder_for(torch.device("cuda"))
    for text in workload:
        op = OPS[text.partition("[")[0]]
        builder.prefetch(op, op.parse(text).call)


@contextmanager
def kernels_only() -> Iterator[Counter[str]]:
    """Raises Refused if a reference answered an op in here; gives what was counted, afterwards."""
    before, new = Counter(STATS.snapshot()), Counter[str]()
    yield new
    new.update(Counter(STATS.snapshot()) - before)
    answered = [name for name in new if name.startswith("reference:")]
    if answered:
        raise Refused(f"not every op was answered by a kernel ({', '.join(answered)})")


def get(
    function: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any] | None = None
) -> Got:
    """Call an op once, which tunes it on a cold cache.

    Raises Refused if the reference answered: its time would pass for a kernel's.
    """
    before = STATS.snapshot()
    start = time.perf_counter()
    function(*args, **(named or {}))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    after = STATS.snapshot()
    new = {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}
    answered = [name for name in new if name.startswith("reference:")]
    if answered:
        raise Refused(f"no kernel answered, but the reference ({', '.join(answered)})")
    op: Op = function.op  # type: ignore[attr-defined]
    call = call_of(op, args, named)
    builder = builder_for(args[0].device)
    config = builder.winner(op, call)
    if config is None:
        raise Refused(f"{op.sign(call)} has no winner; is JITD_MODE something else than tune?")
    launches = len(config.plan(call, builder.device).launches)
    return Got(seconds, new.get("tunes", 0), new.get("compiles", 0), config.name, launches)


def hold_to(name: str, answer: Any, expected: Any) -> None:
    """Raises Refused if an answer, of one tensor or several, is not the expected one, loosely."""
    answers, wanted = _several(answer), _several(expected)
    if len(answers) != len(wanted):
        raise Refused(f"{name} gave {len(answers)} tensors, the reference {len(wanted)}")
    for one, other in zip(answers, wanted, strict=True):
        _hold_one(name, one, other)


def differing(answer: Any, expected: Any) -> int:
    """Elements that are not equal; a NaN equals any other."""
    return sum(
        int(((a != b) & ~(a.isnan() & b.isnan())).sum())
        for a, b in zip(_several(answer), _several(expected), strict=True)
    )


def _several(answer: Any) -> tuple[torch.Tensor, ...]:
    return (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)


def _hold_one(name: str, answer: torch.Tensor, expected: torch.Tensor) -> None:
    if (answer.shape, answer.dtype) != (expected.shape, expected.dtype):
        raise Refused(
            f"{name} gave {answer.dtype} {tuple(answer.shape)}, "
            f"the reference {expected.dtype} {tuple(expected.shape)}"
        )
    absolute, relative = _TOLERANCE[expected.dtype]
    allowed = expected.abs().float().mul_(relative).add_(absolute)
    error = (answer.float() - expected).abs_()
    wrong = int((~(error <= allowed)).sum())  # ~(<=) counts NaN, too
    if wrong:
        raise Refused(
            f"{name} is wrong at {wrong} of {expected.numel()} elements; "
            f"largest error {float(error.nan_to_num(nan=float('inf')).max()):.3g}"
        )


def note(text: str) -> None:
    """Progress, for people: on stderr, so that the table can be redirected."""
    print(text, file=sys.stderr, flush=True)
