"""The first call of each signature, by the recipe and by the stock forward, held together.

Both run on the same arguments, with the same random numbers. Sites below, such as the attentions of
a block, answer in both runs as they always do, and are held to their own stock forwards: what
differs comes from this site. What is returned is the recipe's result, so that a run has the same
bits whether its calls are the first or not; the stock result if the two are not alike.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...cache.errors import JitdError
from ...jit import record
from ...jit.stats import STATS
from .agreement import Agreement, agreement
from .hooks import counts_calls

if TYPE_CHECKING:
    from .site import Site

__all__ = ["MAX_SIGNATURES", "first_call", "is_comparing", "signature"]

log = logging.getLogger("jitd")

MAX_SIGNATURES = 512  # of one site; the calls of further ones are not verified
_PLAIN = (Tensor, nn.Parameter)
_HERE = threading.local()  # .comparing: this thread is in a stock forward that nobody asked for


@contextmanager
def comparing() -> Iterator[None]:
    """Calls within it are made to compare: sites do not count them."""
    before = is_comparing()
    _HERE.comparing = True
    try:
        yield
    finally:
        _HERE.comparing = before


def is_comparing() -> bool:
    return getattr(_HERE, "comparing", False)


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """What has to agree with an earlier call for this one not to be the first of its kind.

    Flat, and without a call for each tensor: every call of every site pays for it.
    """
    facts: list[Hashable] = []
    for value in args:
        if type(value) is Tensor:
            facts += (value.shape, value.stride(), value.dtype, value.get_device())
        else:
            facts.append(_facts(value))
    for name, value in kwargs.items():
        facts.append(name)
        if type(value) is Tensor:
            facts += (value.shape, value.stride(), value.dtype, value.get_device())
        else:
            facts.append(_facts(value))
    return tuple(facts)


def _facts(value: Any) -> Hashable:
    if value is None:
        return None
    kind = type(value)
    if kind is bool or kind is int or kind is str:
        return value
    if kind in _PLAIN:
        return value.shape, value.stride(), value.dtype, value.get_device()
    if kind in (list, tuple):
        return (kind, *map(_facts, value))
    if kind is dict:
        return tuple((name, _facts(item)) for name, item in value.items())
    return kind  # a float varies from step to step and selects no code


def first_call(
    site: "Site",
    module: nn.Module,
    stock: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Answer a call of a new signature, and say in `site` what came of the comparison.

    Nothing is compared during a capture, below hooks that count calls, and where memory does not
    suffice: that is counted as `patch:unverified`. Calls that a recording notes, or of tensors
    without values, are not the first: the next one is.
    """
    tensors = list(_tensors((args, kwargs)))
    if (
        record.under_way()  # what stock calls below would be noted, too
        or torch._C._len_torch_dispatch_stack()
        or not all(map(_has_values, tensors))
    ):
        return site.compute(module, args, kwargs)
    if any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing():
        STATS.count("patch:unverified")
        return site.compute(module, args, kwargs)
    key = signature(args, kwargs)
    if counts_calls(module) or len(site.verified) >= MAX_SIGNATURES:
        site.remember(key, None)
        return site.compute(module, args, kwargs)

    cards = {t.get_device() for t in tensors if t.is_cuda}
    before, versions = _random_states(cards), _versions(tensors)
    stock_args, stock_kwargs = _copied(args), _copied(kwargs)
    with comparing():
        expected = stock(module, *stock_args, **stock_kwargs)
    after = _random_states(cards)
    found: Agreement | None = None
    if _versions(tensors) == versions:  # else ours would compute from what stock left there
        _set_random_states(before)
        try:
            result = site.recipe.forward(module, *args, **kwargs)
            found = agreement(result, expected)
            if _versions(tensors) != versions:
                found = Agreement(fault="it wrote into an argument")
        except JitdError:
            raise  # a cold kernel in mode strict is what the caller asked to be told of
        except torch.OutOfMemoryError:
            log.info("jitd.patch: %s: no memory to verify a call", site.path)
        except Exception as error:  # noqa: BLE001  (stock could answer: the recipe is to blame)
            found = Agreement(fault=f"it raised {type(error).__name__}: {error}")
    if found is not None and not found.fault:
        site.remember(key, found)
        site.called()
        return result
    if found is None:
        site.remember(key, None)
    else:
        site.lose(module, found.fault)  # ours is dropped: whatever it did to a list is undone
    for mine, given in zip(
        (*args, *kwargs.values()), (*stock_args, *stock_kwargs.values()), strict=True
    ):
        _give_back(mine, given)
    _set_random_states(after)
    return expected


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _has_values(tensor: Tensor) -> bool:
    """Whether it can be compared: it is no subclass with an idea of its own, nor on meta."""
    return type(tensor) in _PLAIN and not tensor.is_meta


def _versions(tensors: list[Tensor]) -> list[int]:
    """Counters of writes; those of inference mode have none, and cannot be told."""
    return [0 if t.is_inference() else t._version for t in tensors]


def _copied(value: Any) -> Any:
    """Lists, dicts and what they hold as copies, with the same tensors in them."""
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}
    return value


def _give_back(mine: Any, stock: Any) -> None:
    """Make a list or dict of the caller what the stock forward has made of its copy."""
    if type(mine) is list:
        mine[:] = stock
    elif type(mine) is dict:
        mine.clear()
        mine.update(stock)


def _random_states(cards: set[int]) -> dict[int, Tensor]:
    """States of the generators that a forward could draw from; -1 is the CPU's."""
    return {-1: torch.get_rng_state()} | {card: torch.cuda.get_rng_state(card) for card in cards}


def _set_random_states(states: dict[int, Tensor]) -> None:
    for card, state in states.items():
        torch.set_rng_state(state) if card < 0 else torch.cuda.set_rng_state(state, card)
