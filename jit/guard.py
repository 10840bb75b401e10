"""The function that models call, generated for an op's own arguments.

Generated, as dataclasses generates `__init__`: a loop over the arguments would cost more than the
launch that it protects.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .op import Argument, Op

__all__ = ["Generated", "generated"]

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

def with_slow(_slow):
    def quick({parameters}):
        if _modes():
            return _slow({arguments})
        try:
            _hit = _table[{facts}]
        except _NOT_PLAIN:
            return _slow({arguments})
        return _hit({given})
    return quick
"""

# What one tensor contributes to the key. Subclasses, other devices and misaligned pointers thus
# have keys of their own, and so has what is on meta, whose pointer is 0 and whose device the CPU's.
_TENSOR_FACTS = (
    "_type({0}), {0}.dtype, {0}.shape, {0}.stride(), ({0}.data_ptr() or {0}.is_meta) & 15, "
    "{0}.get_device()"
)
_STATE_FACTS = "_autocast(), _grad() and ({0})"


@dataclass(frozen=True)
class Generated:
    """What one op's table is reached through.

    guard      takes the op's arguments: a hit is launched, all else goes to `miss`, or to torch's
               operator under torch.compile and dispatch modes
    facts_of   the key of a call, from all arguments by position
    with_slow  `with_slow(slow)` takes the op's arguments: a hit is launched, `slow` gets all else
    """

    guard: Callable[..., Any]
    facts_of: Callable[..., Hashable]
    with_slow: Callable[[Callable[..., Any]], Callable[..., Any]]


def generated(
    op: Op,
    *,
    given: Sequence[Argument],
    table: Mapping[Hashable, Callable[..., Any]],
    miss: Callable[..., Any],
    torch_op: Callable[..., Any],
) -> Generated:
    """The functions for an op, of whose arguments a hit is called with those `given`."""
    names = [a.name for a in op.arguments]
    facts = [_facts(a, varies=a.name in op.varies) for a in op.arguments]
    facts.append(_STATE_FACTS.format(" or ".join(map(_needs_grad, op.tensors))))
    source = _GUARD.format(
        parameters=_parameters(op.arguments),
        positional=", ".join(names),
        arguments=", ".join(names),
        given=", ".join(a.name for a in given),
        facts=f"({', '.join(facts)})",
    )
    namespace: dict[str, Any] = {
        "_type": type,
        "_is_compiling": torch.compiler.is_dynamo_compiling,
        "_autocast": torch._C._is_any_autocast_enabled,
        "_modes": torch._C._len_torch_dispatch_stack,
        "_grad": torch.is_grad_enabled,
        "_table": table,
        "_miss": miss,
        "_torch_op": torch_op,
        "_NOT_PLAIN": (KeyError, AttributeError, RuntimeError, TypeError),
    }
    namespace |= {f"_default_{a.name}": a.default for a in op.arguments}
    exec(compile(source, f"<jitd guard of {op.name}>", "exec"), namespace)
    return Generated(namespace["guard"], namespace["facts_of"], namespace["with_slow"])


def _parameters(arguments: Sequence[Argument]) -> str:
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
