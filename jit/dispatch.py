"""From a call of an op to a launch.

A hit is one look-up in a table keyed by cheap facts of the arguments, then the launch. A miss
decides who answers: a kernel from the cache, one built now, or the reference; every answer by the
reference is counted with its cause.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from . import record
from .debug import Checked, check_values
from .errors import NotReady
from .guard import generated
from .launch import Executable, loaded_once
from .op import Argument, Op
from .recorder import Recorder
from .runtime import Runtime, current
from .sign import Call, Passed, TensorSpec
from .tensors import PLAIN, empty, spec_of

log = logging.getLogger("jitd")

MAX_ENTRIES = 4096  # per op; past it the table starts anew, from the store

# Causes that hold for as long as the facts do, and those that cost too much to run into at every
# call (a tuning process that fails, no memory): the table remembers that the reference answers.
_LASTING = {"cpu", "unsupported", "empty", "tune_failed", "compile_failed", "wrong"}
_LASTING |= {"tuner_failed", "no_memory", "pending"}  # `renew` ends what is pending

_MOST_ASKED = 3  # times that one entry has something built, in mode background


class Dispatcher:
    """One op's table, and what fills it."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.table: dict[Hashable, Callable[..., Any]] = {}
        self.torch_op: Callable[..., Any] = lambda *args: None
        self.facts_of: Callable[..., Hashable] = lambda *args: None
        # Gives a function of the op's arguments: a hit's answer, else what `slow` makes of them.
        self.with_slow: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda slow: slow
        # What a hit is called with: tensors, then the scalars that vary.
        self._given = [*op.tensors, *op.varying]
        self._lock = threading.Lock()
        # While a recording is under way: what the table held, which learns nothing meanwhile.
        self._aside: dict[Hashable, Callable[..., Any]] | None = {} if _closings else None
        # In mode background: what answered until something better was built.
        self._outgoing: dict[Hashable, Callable[..., Any]] = {}
        self._asked: dict[Hashable, int] = {}
        self._logged: set[tuple[str, str]] = set()

    def guard(self) -> Callable[..., Any]:
        """The function that models call."""
        made = generated(
            self.op,
            given=self._given,
            table=self.table,
            miss=self.miss,
            torch_op=lambda *args: self.torch_op(*args),  # noqa: PLW0108  (it is set later)
        )
        self.facts_of, self.with_slow = made.facts_of, made.with_slow
        return made.guard

    def miss(self, *args: Any) -> Any:
        """Answer a call that is not in the table, and put it there if it may be."""
        op = self.op
        tensors = [a for a, d in zip(args, op.arguments, strict=True) if d.kind == "tensor"]
        self._refuse_other_types(args)
        if not all(map(_is_plain, tensors)):
            return self.torch_op(*args)  # a subclass has its own idea of this op
        kind = next(t.device.type for t in tensors if t is not None)
        if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
            return self._by_reference(args, "autocast")  # with autocast's casts, so unchecked
        call = self.call(args)
        op.check(call)
        if current().settings.debug:
            check_values(op, call, tensors)
        present = [t for t in tensors if t is not None]
        if any(t.is_meta for t in present):
            self._note(call)
            return _empty_outputs(op, call, "meta")
        self._note(call, current().recorder)
        cause = self._unfit(call, present)
        if cause is None:
            try:
                hit, for_good = self._outgoing_while_capturing(args) or self._prepared(
                    call, present
                )
            except NotReady as not_ready:
                cause = not_ready.cause
                self._log_once(call, not_ready)
            else:
                self._remember(args, hit)
                if not for_good:
                    self._ask(args, call, present)
                return hit(*self._hit_arguments(args))
        answer = self._by_reference(args, cause)
        if cause == "pending":
            self._ask(args, call, present)
        return answer

    def below_autograd(self, *args: Any) -> Any:
        """Answer a call that torch's dispatcher makes, without ever going back to it.

        A subclass arrives here as itself when it leaves the op to torch; its data pointer may
        mean anything, so the reference answers.
        """
        tensors = [a for a, d in zip(args, self.op.arguments, strict=True) if d.kind == "tensor"]
        if not all(map(_is_plain, tensors)):
            return self._by_reference(args, "subclass")
        hit = self.table.get(self.facts_of(*args)) if _have_memory(tensors) else None
        return self.miss(*args) if hit is None else hit(*self._hit_arguments(args))

    def _note(self, call: Call, recorder: Recorder | None = None) -> None:
        """Tell recordings under way, and the file of JITD_RECORD, of a call that has a result."""
        if (recorder is None and not record.under_way()) or _is_empty(self.op.outputs(call)):
            return
        signature = self.op.sign(call)
        record.note(signature)
        if recorder is not None:
            recorder.note(signature.text)

    def _hit_arguments(self, args: tuple[Any, ...]) -> list[Any]:
        by_name = dict(zip((a.name for a in self.op.arguments), args, strict=True))
        return [by_name[a.name] for a in self._given]

    # -- who answers --------------------------------------------------------------------------

    def _unfit(self, call: Call, tensors: list[torch.Tensor]) -> str | None:
        """Why no kernel can answer this call, or None."""
        settings = current().settings
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return "grad"
        kind = tensors[0].device.type
        if settings.mode == "off":
            return "off"
        if kind != "cuda" and not (kind == "cpu" and settings.interpret):
            return "cpu" if kind == "cpu" else "unsupported"
        if _is_empty(self.op.outputs(call)):
            return "empty"
        if all(variant.applies(call) is not None for variant in self.op.variants):
            return "unsupported"
        return None

    def _prepared(self, call: Call, tensors: list[torch.Tensor]) -> tuple[Callable[..., Any], bool]:
        """What answers the call, and whether it will do so for good."""
        runtime = current()
        if self._interpreted(runtime, tensors):
            from .interpret import Interpreted  # noqa: PLC0415  (imports Triton)

            return Interpreted(self.op, call), True
        capturing = torch.cuda.is_current_stream_capturing()
        builder = runtime.builder_at(tensors[0].get_device())
        ready, for_good = None, True
        if runtime.settings.mode == "auto":  # what is warm needs no daemon, and none is looked for
            ready = builder.look_up(self.op, call, "tune")
        if ready is None and runtime.mode == "background":
            ready, for_good = builder.at_once(self.op, call)
            if ready is None:
                raise NotReady("pending", "it is being built in the background")
        if ready is None:
            ready = builder.get_or_build(self.op, call, runtime.mode, capturing=capturing)
        loaded = [loaded_once(artifact, builder.device) for artifact in ready.artifacts]
        given = [place for place, a in enumerate(self.op.tensors) if call[a.name] is not None]
        places = given if len(given) < len(self.op.tensors) else None
        varying = [a.name for a in self.op.varying]
        hit = Executable(ready.plan, loaded, call.tensors, builder.device, places, varying).call()
        return hit, for_good

    @staticmethod
    def _interpreted(runtime: Runtime, tensors: list[torch.Tensor]) -> bool:
        return runtime.settings.interpret and tensors[0].device.type == "cpu"

    # -- mode background ----------------------------------------------------------------------

    def _ask(self, args: tuple[Any, ...], call: Call, tensors: list[torch.Tensor]) -> None:
        """Have something better built than what the table holds for these arguments.

        During a capture, too, which is not disturbed by it: the reference is captured for good.
        """
        runtime, facts = current(), self.facts_of(*args)
        self._asked[facts] = self._asked.get(facts, 0) + 1
        if self._asked[facts] > _MOST_ASKED:
            return  # it is built, they say, and not to be found: what answers now will do
        builder = runtime.builder_at(tensors[0].get_device())
        runtime.background.ask(builder, self.op, call, lambda: self.renew(facts))

    def renew(self, facts: Hashable) -> None:
        """The next call with these facts looks into the store again. From any thread."""
        with self._lock:
            table = self.table if self._aside is None else self._aside
            hit = table.get(facts)
            if hit is not None:
                self._outgoing[facts] = hit  # before it is gone: a capture must find one of the two
                table.pop(facts, None)

    def _outgoing_while_capturing(
        self, args: tuple[Any, ...]
    ) -> tuple[Callable[..., Any], bool] | None:
        """What answered before, during a capture: nothing is swapped in the middle of one."""
        if not self._outgoing or not torch.cuda.is_current_stream_capturing():
            return None
        hit = self._outgoing.get(self.facts_of(*args))
        return None if hit is None else (hit, True)

    def _by_reference(self, args: tuple[Any, ...], cause: str) -> Any:
        """The reference's answer, counted; for a lasting cause the table learns to ask it."""
        if cause in _LASTING:
            self._remember(args, ReferenceAnswer(self.op, args, cause, self._given))
        current().stats.count(f"reference:{cause}")
        return _reference(self.op, args)

    def _remember(self, args: tuple[Any, ...], hit: Callable[..., Any]) -> None:
        if current().settings.debug and self.op.below:
            hit = Checked(self.op, self.call(args), hit)
        with self._lock:
            if self._aside is not None:
                return
            if len(self.table) >= MAX_ENTRIES:
                self.table.clear()
                self._asked.clear()
            facts = self.facts_of(*args)
            outgoing = self._outgoing.get(facts) if self._outgoing else None
            if outgoing is hit:  # a capture is under way: look again after it
                return
            if self._outgoing:
                self._outgoing.pop(facts, None)
            self.table[facts] = hit

    def _log_once(self, call: Call, not_ready: NotReady) -> None:
        signature = str(self.op.sign(call))
        if (signature, not_ready.cause) not in self._logged:
            self._logged.add((signature, not_ready.cause))
            log.info("%s is answered by the reference: %s", signature, not_ready.detail)

    def forget(self) -> None:
        """Empty the table."""
        with self._lock:
            self.table.clear()
            self._asked.clear()
            if self._aside is not None:
                self._aside.clear()

    def set_aside(self, *, closed: bool) -> None:
        """Put the table's entries aside, or back; what is so already stays so."""
        with self._lock:
            if closed and self._aside is None:
                self._aside = dict(self.table)
                self.table.clear()
            elif not closed and self._aside is not None:
                self.table.update(self._aside)
                self._aside = None

    # -- arguments ----------------------------------------------------------------------------

    def _refuse_other_types(self, args: tuple[Any, ...]) -> None:
        for argument, value in zip(self.op.arguments, args, strict=True):
            if argument.name in self.op.varies and not isinstance(value, int | float):
                raise ValueError(
                    f"{self.op.name}: {argument.name} is a {type(value).__name__}; allowed is a "
                    "float. (To read a tensor would be to wait for its device.)"
                )
            if argument.kind != "tensor" or (value is None and argument.optional):
                continue
            if not isinstance(value, torch.Tensor):
                raise ValueError(
                    f"{self.op.name}: {argument.name} is a {type(value).__name__}; allowed is a "
                    f"Tensor{' or None' if argument.optional else ''}."
                )

    def call(self, args: tuple[Any, ...]) -> Call:
        """The call with tensors replaced by specs. Raises ValueError for mixed devices."""
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if len({t.device for t in tensors}) > 1:
            where = ", ".join(sorted({str(t.device) for t in tensors}))
            raise ValueError(f"{self.op.name}: tensors are on {where}; allowed is one device.")
        return Call(
            {
                argument.name: (
                    spec_of(value)
                    if isinstance(value, torch.Tensor)
                    else Passed(argument.name, self.op.varies[argument.name])
                    if argument.name in self.op.varies
                    else float(value)
                    if argument.kind == "float"
                    else value
                )
                for argument, value in zip(self.op.arguments, args, strict=True)
            }
        )


class ReferenceAnswer:
    """The reference in the place of a kernel, for facts that no kernel can answer."""

    def __init__(
        self, op: Op, args: tuple[Any, ...], cause: str, given: Sequence[Argument]
    ) -> None:
        self.op, self.cause = op, f"reference:{cause}"
        # Scalars are part of the facts unless they vary; tensors are not held.
        self.args = [None if isinstance(a, torch.Tensor) else a for a in args]
        self.places = [op.arguments.index(a) for a in given]

    def __call__(self, *given: Any) -> Any:
        args = list(self.args)
        for place, value in zip(self.places, given, strict=True):
            args[place] = value
        current().stats.count(self.cause)
        return _reference(self.op, args)


def register(op: Op) -> Callable[..., Any]:
    """Make `op` callable: the guard for eager calls, an operator of torch for all others."""
    from .torchlib import define  # noqa: PLC0415  (imports this module)

    dispatcher = Dispatcher(op)
    guard = dispatcher.guard()
    dispatcher.torch_op = define(op, dispatcher.below_autograd, dispatcher.with_slow)
    function = wraps(op.reference)(guard)
    function.__wrapped__ = op.reference
    function.op = op  # type: ignore[attr-defined]
    _dispatchers[op.name] = dispatcher
    return function


_dispatchers: dict[str, Dispatcher] = {}


_closings = 0  # recordings under way, which every call has to reach
_closing = threading.Lock()


def forget() -> None:
    """Empty every table: the next call of each signature is looked up again."""
    for dispatcher in _dispatchers.values():
        dispatcher.forget()


@contextmanager
def fast_paths_closed() -> Iterator[None]:
    """Send every call of any thread through `Dispatcher.miss` while open.

    The tables come back when the last of those who closed them has left, without what was
    forgotten meanwhile.
    """
    _close(1)
    try:
        yield
    finally:
        _close(-1)


def _close(by: int) -> None:
    global _closings  # noqa: PLW0603  (one count for all tables is the point)
    with _closing:
        _closings += by
        for dispatcher in list(_dispatchers.values()):
            dispatcher.set_aside(closed=_closings > 0)


def fake(op: Op, *args: Any) -> Any:
    """What the op returns for tensors without memory: shapes, dtypes and strides only.

    By the op's own `fake` rule, which may keep sizes symbolic, else by `outputs`, which makes
    torch.compile specialise on them. A recording hears of it, but not of what a compiler traces:
    what the compiled code calls is recorded as it runs.
    """
    if record.under_way() and not _is_traced(args):
        dispatcher = _dispatchers[op.name]
        dispatcher._note(dispatcher.call(args))
    if op.fake is not None:
        return op.fake(*args)
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    return _empty_outputs(op, _dispatchers[op.name].call(args), tensors[0].device)


def _reference(op: Op, args: Any) -> Any:
    positional = [v for a, v in zip(op.arguments, args, strict=True) if not a.keyword_only]
    keywords = {a.name: v for a, v in zip(op.arguments, args, strict=True) if a.keyword_only}
    return op.reference(*positional, **keywords)


def _empty_outputs(op: Op, call: Call, device: torch.device | str) -> Any:
    outputs = [empty(spec, device) for spec in op.outputs(call).values()]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _is_empty(outputs: Mapping[str, TensorSpec]) -> bool:
    return any(spec.numel == 0 for spec in outputs.values())


def _is_traced(args: tuple[Any, ...]) -> bool:
    """Whether fake arguments are those of a compiler, or their sizes are symbols."""
    if torch._guards.TracingContext.try_get() is not None:
        return True
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    return any(type(n) is not int for t in tensors for n in (*t.shape, *t.stride()))


def _is_plain(value: Any) -> bool:
    """Whether a tensor (or None) is what it looks like: no subclass, no functorch wrapper."""
    return value is None or (
        type(value) in PLAIN and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _have_memory(tensors: list[Any]) -> bool:
    return not any(t is not None and t.is_meta for t in tensors)
