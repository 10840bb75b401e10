"""What a recipe was fitted to: the modules that its forward reads, as they were when it was bound.

A norm can be given another eps, a weight or a bias while its class stays, and is not called, so
that nothing else would notice. What is remembered is compared at each call, in eager mode and by
torch.compile: plain values in plain tuples, which any copy and any pickle of the model can hold.
Dtypes, devices and values of weights are not among them: casting, offloading, LoRA and a loaded
state dict change those, and the recipe goes on.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from .hooks import has_hook

__all__ = ["Seen", "changed", "seen"]

# Of each module its class, its settings by name, and the shapes of its parameters; None: it has
# none of that name.
Seen = tuple[tuple[type, tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]], ...]

_PLAIN = (bool, int, float, str, tuple, type(None))
_ABSENT = object()


def seen(modules: Iterable[nn.Module]) -> Seen:
    """What is to be as it is now at every call."""
    return tuple((type(m), _settings(m), _shapes(m)) for m in modules)


def _settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """eps, the number of groups, `bias = None`: what a norm is told that is no module or tensor."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and name != "training" and not name.startswith("_")
    )


def _shapes(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    parameters = module._parameters.items()
    return tuple((name, None if p is None else tuple(p.shape)) for name, p in parameters)


def changed(modules: Sequence[Any], before: Seen) -> str | None:
    """`replaced` if one of the modules is not what it was, `hook` if calling it would do more than
    its forward does; None: they are what was seen before.

    Every call of every site pays for it.
    """
    if len(modules) != len(before):
        return "replaced"
    for module, (cls, settings, shapes) in zip(modules, before, strict=True):
        if type(module) is not cls:
            return "replaced"
        if has_hook(module):  # asked before weights are: it may bring them
            return "hook"
        own = module.__dict__
        for name, value in settings:
            now = own.get(name, _ABSENT)
            if now is not value and (not isinstance(now, _PLAIN) or now != value):
                return "replaced"  # `norm.bias = Parameter(...)` leaves nothing of that name
        if shapes:
            weights = own["_parameters"]
            for name, shape in shapes:
                now = weights.get(name, _ABSENT)
                if now is shape:  # None, as before
                    continue
                if now is _ABSENT:  # or a view of a sharded one: an attribute for a while
                    now = getattr(module, name, None)
                if now is None or now.shape != shape:
                    return "replaced"
    return None
