"""Ops as operators of torch: one opaque node for torch.compile, eager's gradients for training."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from .op import Op

NAMESPACE = "jitd"
_libraries: dict[str, torch.library.Library] = {}


def define(
    op: Op,
    function: Callable[..., Any],
    with_slow: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[..., Any]:
    """Register `torch.ops.jitd.<name>` and return it.

    Below autograd it is `function`, called with all arguments by position, which is a kernel where
    there is one and must not call the operator; at autograd, with an
    input that requires a gradient, the differentiable reference; under autocast the reference,
    with autocast's own casts; for fake tensors the op's shape rule. An op that is declared again (a
    notebook cell, a reloaded module) replaces the one before.

    What is returned is that operator, or in a graph that torch.compile traces the reference, where
    the op `lowers`.

    `with_slow(slow)` is a function of the op's arguments that answers what is in the op's table,
    and asks `slow` otherwise: a hit is launched from where torch enters, without another round
    through its dispatcher.
    """
    if op.name in _libraries:
        _libraries.pop(op.name)._destroy()
    library = _libraries[op.name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(op.name + op.schema, tags=(torch.Tag.needs_exact_strides,))
    operator = getattr(getattr(torch.ops, NAMESPACE), op.name).default

    def with_gradients(*args: Any) -> Any:
        positional, keywords = _split(op, args)
        if torch.is_grad_enabled() and any(
            a.requires_grad for a in args if isinstance(a, torch.Tensor)
        ):
            return op.reference(*positional, **keywords)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*positional, **keywords)

    def shapes(*args: Any, **kwargs: Any) -> Any:
        from .dispatch import fake  # noqa: PLC0415  (imports this module)

        _announce(op)
        return fake(op, *_positional(op, args, kwargs))

    for key in ("CPU", "CUDA"):
        library.impl(op.name, with_slow(function), key)
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(op.name, op.reference, key)
    library.impl(op.name, with_slow(with_gradients), "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", shapes, lib=library)

    def call(*args: Any) -> Any:
        positional, keywords = _split(op, args)
        if op.lowers is not None and torch.compiler.is_dynamo_compiling() and op.lowers(*args):
            return op.reference(*positional, **keywords)
        return operator(*positional, **keywords)

    return call


def _announce(op: Op) -> None:
    """Tell Inductor, if it is there, that the op is one to be called as it is.

    Before torch 2.13 it writes down, for its log, all that goes into an operator which it meets for
    the first time and was not told of: more than minutes in a transformer, where that is deep.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    known = getattr(lowering, "FALLBACK_ALLOW_LIST", None)  # torch's own business: it may go
    if known is not None:
        known.add(f"{NAMESPACE}::{op.name}")


def _split(op: Op, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All arguments as they are passed: by position, and by keyword."""
    keywords = {a.name: v for a, v in zip(op.arguments, args, strict=True) if a.keyword_only}
    return args[: len(args) - len(keywords)], keywords


def _positional(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in the op's order, defaults filled in."""
    values = dict(zip((a.name for a in op.arguments), args, strict=False)) | kwargs
    return [values.get(a.name, a.default) for a in op.arguments]
