"""Where the forward of a live module is kept, and which modules have something around theirs.

accelerate keeps the forward that it wraps in `module._old_forward`, diffusers' HookRegistry in
`module._diffusers_hook._fn_refs[i].forward`, or `.original_forward` if the hook has a forward of
its own. Each wraps what it finds in `module.forward`, so that exactly one of these places holds the
forward that computes; there a patch is put, whichever came first.
"""

from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["counts_calls", "has_hook", "is_only_moved", "is_ours", "is_stock", "place_of_forward"]


def place_of_forward(module: nn.Module) -> tuple[object, str] | None:
    """Owner and attribute of the forward that computes: the class's, or one that we put there.

    None if neither is found: somebody else has replaced it.
    """
    for owner, name in _places(module):
        forward = vars(owner).get(name)
        if forward is None and owner is module:
            return owner, name  # no forward of its own: the class's
        if is_stock(forward, module) or is_ours(forward):
            return owner, name
    return None


def is_stock(forward: Any, module: nn.Module) -> bool:
    """Whether this is the class's forward, bound to the module."""
    return (
        isinstance(forward, MethodType)
        and forward.__self__ is module
        and forward.__func__ is type(module).forward
    )


def is_ours(forward: Any) -> bool:
    """Whether `patch` made this."""
    return isinstance(forward, MethodType) and hasattr(forward.__func__, "_jitd_recipe")


def has_hook(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward: hooks of torch, accelerate, diffusers.

    Such a hook may bring the weights, which are elsewhere until the module is called.
    """
    own = module.__dict__
    if own["_forward_pre_hooks"] or own["_forward_hooks"]:
        return True
    forward = own.get("forward")
    return forward is not None and not is_stock(forward, module) and not is_ours(forward)


def is_only_moved(module: nn.Module) -> bool:
    """Whether all hooks on a module whose forward is ours are accelerate's and diffusers' own,
    which bring weights or skip a call and do not look into what is not a tensor.
    """
    own = module.__dict__
    place = place_of_forward(module)
    if place is None or not is_ours(vars(place[0]).get(place[1])):
        return False
    given = own.get("_hf_hook")
    hooks = [*getattr(given, "hooks", [given]), *_diffusers_hooks(module)]
    homes = {type(hook).__module__.partition(".")[0] for hook in hooks if hook is not None}
    return homes <= {"accelerate", "diffusers"}


def counts_calls(module: nn.Module) -> bool:
    """Whether something in here would notice that it is called twice: a user's hook, or one of
    diffusers' that keeps a state over steps."""
    return any(
        child._forward_pre_hooks
        or child._forward_hooks
        or any(hook._is_stateful for hook in _diffusers_hooks(child))
        for child in module.modules()
    )


def _diffusers_hooks(module: nn.Module) -> Iterable[Any]:
    return getattr(module.__dict__.get("_diffusers_hook"), "hooks", {}).values()


def _places(module: nn.Module) -> Iterator[tuple[object, str]]:
    yield module, "forward"
    if "_old_forward" in module.__dict__:
        yield module, "_old_forward"
    for reference in getattr(module.__dict__.get("_diffusers_hook"), "_fn_refs", ()):
        yield reference, "original_forward"
        yield reference, "forward"
