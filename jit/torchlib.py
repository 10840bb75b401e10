"""Ops as operators of torch: one opaque node for torch.compile, eager's gradients for training."""

from collections.abc import Callable
from typing import Any

import torch

from .op import Op

NAMESPACE = "jitd"
_libraries: dict[str, torch.library.Library] = {}


def define(op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
    """Register `torch.ops.jitd.<name>` and return it.

    Below autograd it is `function`, called with all arguments by position, which is a kernel where
    there is one and must not call the operator; at autograd, with an
    input that requires a gradient, the differentiable reference; under autocast the reference,
    with autocast's own casts; for fake tensors the op's shape rule. An op that is declared again (a
    notebook cell, a reloaded module) replaces the one before.

    What is returned is that operator, or in a graph that torch.compile traces the reference, where
    the op `lowers`.
    """
    if op.name in _libraries:
        _libraries.pop(op.name)._destroy()
    library = _libraries[op.name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(op.name + op.schema)
    operator = getattr(getattr(torch.ops, NAMESPACE), op.name).default

    def with_gradients(*args: Any, **kwargs: Any) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return op.reference(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args, **kwargs)

    def shapes(*args: Any, **kwargs: Any) -> Any:
        from .dispatch import fake  # noqa: PLC0415  (imports this module)

        return fake(op, *_positional(op, args, kwargs))

    def computed(*args: Any, **kwargs: Any) -> Any:
        return function(*_positional(op, args, kwargs))

    for key in ("CPU", "CUDA"):
        library.impl(op.name, computed, key)
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(op.name, op.reference, key)
    library.impl(op.name, with_gradients, "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", shapes, lib=library)

    def call(*args: Any) -> Any:
        keywords = {a.name: v for a, v in zip(op.arguments, args, strict=True) if a.keyword_only}
        positional = args[: len(args) - len(keywords)]
        if op.lowers is not None and torch.compiler.is_dynamo_compiling() and op.lowers(*args):
            return op.reference(*positional, **keywords)
        return operator(*positional, **keywords)

    return call


def _positional(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in the op's order, defaults filled in."""
    values = dict(zip((a.name for a in op.arguments), args, strict=False)) | kwargs
    return [values.get(a.name, a.default) for a in op.arguments]
