"""From a call of an op to a launch.

A hit is one look-up in a table keyed by cheap facts of the arguments, then the launch. A miss
decides who answers: a kernel from the cache, one built now, or the reference; every answer by the
reference is counted with its cause.
"""

import inspect
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from . import record
from .debug import Checked, check_values
from .errors import NotReady
from .launch import Executable, loaded_once
from .op import Argument, Op
from .runtime import Runtime, current
from .sign import Call, Passed
from .tensors import PLAIN, empty, spec_of

log = logging.getLogger("jitd")

MAX_ENTRIES = 4096  # per op; past it the table starts anew, from the store

# Causes that hold for as long as the facts do, and those that cost too much to run into at every
# call (a tuning process that fails, no memory): the table remembers that the reference answers.
_LASTING = {"cpu", "unsupported", "empty", "tune_failed", "compile_failed", "wrong"}
_LASTING |= {"tuner_failed", "no_memory", "pending"}  # `renew` ends what is pending

_MOST_ASKED = 3  # times that one entry has something built, in mode background

# Its own names begin with an underscore, as no argument's may: an op may have one named `table`.
_GUARD = """
def guard({parameters}):
    if _is_compiling() or _modes():
        return _torch_op({arguments})
    try:
        _hit = _table[{facts}]
    except _NOT_PLAIN:
        return _miss({arguments})
    return _hit({given})

def facts_of({positional}):
    return {facts}
"""

# What one tensor contributes to the key. Subclasses, other devices and misaligned pointers thus
# have keys of their own, and so has a tensor without memory, which raises RuntimeError.
_TENSOR_FACTS = (
    "_type({0}), {0}.dtype, {0}.shape, {0}.stride(), {0}.data_ptr() & 15, {0}.get_device()"
)
_STATE_FACTS = "_autocast(), _grad() and ({0})"


class Dispatcher:
    """One op's table, and what fills it."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.table: dict[Hashable, Callable[..., Any]] = {}
        self.torch_op: Callable[..., Any] = lambda *args: None
        self.facts_of: Callable[..., Hashable] = lambda *args: None
        # What a hit is called with: tensors, then the scalars that vary.
        self._given = [*op.tensors, *op.varying]
        self._lock = threading.Lock()
        # In mode background: what answered until something better was built.
        self._outgoing: dict[Hashable, Callable[..., Any]] = {}
        self._retired: list[Callable[..., Any]] = []
        self._asked: dict[Hashable, int] = {}
        self._logged: set[tuple[str, str]] = set()

    def guard(self) -> Callable[..., Any]:
        """The function that models call, generated for the op's own arguments.

        Generated, as dataclasses generates `__init__`: a loop over the arguments would cost more
        than the launch that it protects.
        """
        arguments = self.op.arguments
        names = [a.name for a in arguments]
        given = [a.name for a in self._given]
        facts = [_facts(a, varies=a.name in self.op.varies) for a in arguments]
        facts.append(_STATE_FACTS.format(" or ".join(_needs_grad(a) for a in self.op.tensors)))
        source = _GUARD.format(
            parameters=_parameters(arguments),
            positional=", ".join(names),
            arguments=", ".join(names),
            given=", ".join(given),
            facts=f"({', '.join(facts)})",
        )
        namespace = {
            "_type": type,
            "_is_compiling": torch.compiler.is_dynamo_compiling,
            "_autocast": torch._C._is_any_autocast_enabled,
            "_modes": torch._C._len_torch_dispatch_stack,
            "_grad": torch.is_grad_enabled,
            "_table": self.table,
            "_miss": self.miss,
            "_torch_op": lambda *args: self.torch_op(*args),  # noqa: PLW0108  (it is set later)
            "_NOT_PLAIN": (KeyError, AttributeError, RuntimeError, TypeError),
        }
        namespace |= {f"_default_{a.name}": a.default for a in arguments}
        exec(compile(source, f"<jitd guard of {self.op.name}>", "exec"), namespace)
        self.facts_of = namespace["facts_of"]
        guard: Callable[..., Any] = namespace["guard"]
        return guard

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
        record.note(op.sign(call)) if record._recording else None
        present = [t for t in tensors if t is not None]
        if any(t.is_meta for t in present):
            return _empty_outputs(op, call, "meta")
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
        if any(spec.numel == 0 for spec in self.op.outputs(call).values()):
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
        hit = self.table.get(facts)
        if hit is not None:
            self._outgoing[facts] = hit  # before it is gone: a capture must find one of the two
            self.table.pop(facts, None)

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
        if record._recording:
            return
        if current().settings.debug and self.op.below:
            hit = Checked(self.op, self.call(args), hit)
        with self._lock:
            if len(self.table) >= MAX_ENTRIES:
                self.table.clear()
                self._asked.clear()
            facts = self.facts_of(*args)
            outgoing = self._outgoing.get(facts) if self._outgoing else None
            if outgoing is hit:  # a capture is under way: look again after it
                return
            if outgoing is not None:
                # Graphs that captured it know its workspaces by their addresses only.
                self._retired.append(self._outgoing.pop(facts))
            self.table[facts] = hit

    def _log_once(self, call: Call, not_ready: NotReady) -> None:
        signature = str(self.op.sign(call))
        if (signature, not_ready.cause) not in self._logged:
            self._logged.add((signature, not_ready.cause))
            log.info("%s is answered by the reference: %s", signature, not_ready.detail)

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
    dispatcher.torch_op = define(op, dispatcher.below_autograd)
    function = wraps(op.reference)(guard)
    function.__wrapped__ = op.reference
    function.op = op  # type: ignore[attr-defined]
    _dispatchers[op.name] = dispatcher
    return function


_dispatchers: dict[str, Dispatcher] = {}


def forget() -> None:
    """Empty every table: the next call of each signature is looked up again."""
    for dispatcher in _dispatchers.values():
        dispatcher.table.clear()
        dispatcher._asked.clear()


@contextmanager
def fast_paths_closed() -> Iterator[None]:
    """Send every call through `Dispatcher.miss` while open; the tables come back afterwards."""
    saved = {name: dict(d.table) for name, d in _dispatchers.items()}
    forget()
    try:
        yield
    finally:
        for name, table in saved.items():
            _dispatchers[name].table.update(table)


def fake(op: Op, *args: Any) -> Any:
    """What the op returns for tensors without memory: shapes, dtypes and strides only.

    By the op's own `fake` rule, which may keep sizes symbolic, else by `outputs`, which makes
    torch.compile specialise on them.
    """
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


def _is_plain(value: Any) -> bool:
    """Whether a tensor (or None) is what it looks like: no subclass, no functorch wrapper."""
    return value is None or (
        type(value) in PLAIN and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _have_memory(tensors: list[Any]) -> bool:
    return not any(t is not None and t.is_meta for t in tensors)


def _parameters(arguments: tuple[Argument, ...]) -> str:
    words: list[str] = []
    for argument in arguments:
        if argument.keyword_only and "*" not in words:
            words.append("*")
        default = (
            "" if argument.default is inspect.Parameter.empty else f"=_default_{argument.name}"
        )
        words.append(argument.name + default)
    return ", ".join(words)


def _facts(argument: Argument, *, varies: bool) -> str:
    if varies:  # by its type alone: a tensor in its place must not be read
        return f"_type({argument.name})"
    if argument.kind != "tensor":
        return argument.name
    facts = _TENSOR_FACTS.format(argument.name)
    return f"None if {argument.name} is None else ({facts})" if argument.optional else facts


def _needs_grad(argument: Argument) -> str:
    text = f"{argument.name}.requires_grad"
    return f"({argument.name} is not None and {text})" if argument.optional else text
