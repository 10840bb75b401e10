"""Models of diffusers: stock, patched, stock compiled by torch, patched and compiled.

`patched.py` says which. Stock and patched are two trees of modules over the same parameters: the
patched one is a deep copy whose memo answers for every parameter and buffer with the tensor itself.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

from ...jit.record import Workload, record
from ...models.patch.patching import patch
from ...models.patch.report import PatchReport
from ...models.pipelines.layouts import as_on_a_card
from .calls import Refused, kernels_only, note, prefetch
from .environment import need_diffusers
from .figures import Contender, How, Ready, measure_all
from .patched import Live, lively

OURS = "patched"
# Several layers in bf16, compiled without rounding between operators: farther than one block.
HOW = How(off=0.05)
QUICK = How(off=0.05, rounds=1, rep_ms=100.0, warmup_ms=300.0, host_batches=5)

_ABOUT = (
    "Models of diffusers with random weights, in bf16 where nothing else is said; compiled: "
    "torch.compile of stock, both: of patched. Off: distance from stock."
)

Answered = Callable[[], AbstractContextManager[Any]]


def contenders(
    stock: nn.Module, given: dict[str, Any], facts: dict[str, Any], *, with_compile: bool,
    answered: Answered = kernels_only,
) -> dict[str, Contender]:  # fmt: skip
    """The four, or the two that are not compiled.

    facts     is told of the sites, of how far their first calls were from their stock forwards, and
              in how many graphs each was compiled
    answered  is open around first calls of what is patched: raises where no kernel answers
    """
    patched = twin(stock)
    report = patch(patched)
    left = {site.path: site.left for site in report.left}
    facts["sites"], facts["left"] = len(report.patched), left

    @contextmanager
    def first() -> Iterator[None]:
        begun = time.perf_counter()
        with answered():
            yield
        _hold_to_patches(report, left)
        shares = [s for site in report.sites for s in site.verified.values() if s is not None]
        facts["first_call_s"], facts["worst_share_of_bound"] = (
            time.perf_counter() - begun,
            max(shares, default=None),
        )

    them = {
        "stock": Contender(partial(stock, **given), needed=True),
        OURS: Contender(partial(patched, **given), needed=True, first=first),
    }
    if with_compile:
        torch.compiler.reset()
        graphs = facts["graphs"] = dict[str, int]()
        for name, model, inner in (("compiled", stock, nullcontext), ("both", patched, answered)):
            compiled = torch.compile(model, dynamic=False)
            opened = partial(_counted, name, graphs, inner)
            them[name] = Contender(partial(compiled, **given), compiled=True, first=opened)
    return them


@contextmanager
def _counted(name: str, graphs: dict[str, int], inner: Answered) -> Iterator[None]:
    """Says how many graphs a first call was compiled to: one, if torch traces it without a break.
    Raises Refused if none: then one of another contender has answered.
    """
    before = counters["stats"]["unique_graphs"]
    with inner():
        yield
    graphs[name] = counters["stats"]["unique_graphs"] - before
    if not graphs[name]:
        raise Refused("nothing was compiled for it")


def twin(model: nn.Module) -> nn.Module:
    """A copy of a model with the same tensors for parameters and buffers, so that both can be
    called in turns and memory holds weights once.
    """
    tensors = (*model.parameters(), *model.buffers())
    result: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return result


def run(*, cases: Sequence[Live], with_compile: bool, quick: bool, json: Path | None) -> bool:
    """Measure and print every model; True if every one could be measured. Raises NoDiffusers."""
    version = need_diffusers()

    def ready(case: Live) -> Ready:
        begun = time.perf_counter()
        workload = recorded(case)
        prefetch(workload)
        model, given = lively(case, "cuda")
        facts: dict[str, Any] = {"signatures": len(workload)}
        them = contenders(model, given, facts, with_compile=with_compile)
        note(
            f"{case.name}: {len(workload)} signatures, {facts['sites']} sites patched, "
            f"{len(facts['left'])} left; made in {time.perf_counter() - begun:.1f} s"
        )
        return Ready(them, shape_of(given), facts)

    how = QUICK if quick else HOW
    return measure_all(
        "patch", _ABOUT, cases, ready, ours=OURS, how=how, json=json, diffusers=version
    )


def recorded(case: Live) -> Workload:
    """What the patched model asks of the ops, from a call on the meta device."""
    with as_on_a_card():
        model, given = lively(case, "meta")
        patch(model)
        with record() as workload:
            model(**given)
    return workload


def shape_of(given: dict[str, Any]) -> tuple[int, ...]:
    """Of the first tensor."""
    return tuple(next(leaf.shape for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)))


def _hold_to_patches(report: PatchReport, left: dict[str, str | None]) -> None:
    """Raises Refused if a site is not patched any more, or a stock forward answered a call."""
    for site in report.left:
        if site.path not in left:
            raise Refused(f"{site.path} was left: {site.left}")
    if report.declined:
        raise Refused(f"stock forwards answered: {dict(report.declined)}")
    if not report.calls:
        raise Refused("no site was called")
