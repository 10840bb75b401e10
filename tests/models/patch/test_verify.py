"""The first call of each signature is held to the stock forward, and what comes of that."""

import copy
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import jitd
import pytest
import torch
from jitd.cache.errors import JitdError
from jitd.models.patch.recipe import Recipe
from jitd.models.patch.report import PatchReport
from jitd.models.patch.site import Site, bind, site_of
from torch import nn


class Doubles(nn.Module):
    """A module to be patched: twice x, a list that it writes into, random numbers if asked to."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, cache=None, *, noise=False, scale=2.0):
        self.calls += 1
        if cache is not None:
            cache.append(x)
        return x * scale + (torch.randn(x.shape) if noise else 0)


def _patched(forward, module=None, **more):
    """A module with this recipe, and its site."""
    module = Doubles().eval() if module is None else module
    recipe = Recipe("Doubles", forward, ("double",), frozenset(), **more)
    site = Site("block.0", recipe, verify="first")
    bind(module, site, "exact")
    return module, site


def _right(module, x, cache=None, *, noise=False, scale=2.0):
    if cache is not None:
        cache.append(x)
    return x * scale + (torch.randn(x.shape) if noise else 0)


def _wrong(module, x, cache=None, *, noise=False, scale=2.0):
    if cache is not None:
        cache.append("wrong")
    return x * (scale + 0.01) + (torch.randn(x.shape) if noise else 0)


def _raises(module, x, cache=None, **_):
    if cache is not None:
        cache.append("wrong")
    raise IndexError("no such row")


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(3)},
        {"x": torch.ones(2, dtype=torch.float64)},
        {"x": torch.ones(2, 2).t()},
        {"x": torch.ones(2), "cache": []},
        {"x": torch.ones(2), "noise": True},
    ],
)
def test_each_signature_once(other):
    """The stock forward runs beside the first call of a shape, dtype, stride, list or keyword, and
    never again; a float, which varies from step to step, makes no signature."""
    module, site = _patched(_right)
    for scale in (1.0, 2.0, 3.0):
        module(torch.ones(2), scale=scale)
    assert module.calls == 1
    for _ in range(2):
        module(**copy.deepcopy(other), scale=2.0)
    assert module.calls == 2
    assert site.calls == 5 and list(site.verified.values()) == [0.0, 0.0]
    assert jitd.stats() == {"patch:verified": 2}


@pytest.mark.parametrize("forward", [_wrong, _raises])
def test_a_mismatch_goes_back(forward, caplog):
    """A recipe that is wrong, or raises, is never heard: the stock result, the stock list, the
    stock random numbers; the module is stock from then on; it is logged once, counted, told."""
    module, site = _patched(forward)
    report = PatchReport([site])
    stock, x = Doubles().eval(), torch.randn(8)
    torch.manual_seed(3)
    theirs = []
    expected = [stock(x, theirs, noise=True) for _ in range(2)]
    torch.manual_seed(3)
    mine = []
    with caplog.at_level(logging.WARNING, "jitd"):
        found = [module(x, mine, noise=True) for _ in range(2)]
    assert all(map(torch.equal, found, expected))
    assert len(mine) == len(theirs) == 2 and all(value is x for value in mine)
    assert site_of(module) is None and "forward" not in vars(module)
    assert len(caplog.records) == 1 and "block.0 (Doubles) goes back" in caplog.text
    assert jitd.stats() == {"patch:mismatch": 1}
    assert site.calls == 0 and site.declined == {"mismatch": 1}
    assert "left: mismatch" in str(report) and report.left == (site,)


def test_a_mismatch_in_a_site_is_counted(caplog):
    """A site that is lost within the comparison of the one around it is counted like any other."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.site = _patched(_wrong)

        def forward(self, x):
            return self.inner(x) + 1

    module, site = _patched(lambda module, x: 1 + module.inner(x), Outer().eval())
    with caplog.at_level(logging.WARNING, "jitd"):
        assert torch.equal(module(torch.ones(4)), torch.full((4,), 3.0))
    assert site.patched and not module.site.patched and len(caplog.records) == 1
    assert module.site.declined == {"mismatch": 1}
    assert jitd.stats() == {"patch:mismatch": 1, "patch:verified": 1}


def test_a_mismatch_that_threads_find_together(caplog):
    """Threads that make the first calls of a site at once have the stock results, and one of them
    says and counts that it is lost."""
    together = threading.Barrier(4, timeout=30)

    def wrong(module, x):
        together.wait()
        return x * 3

    module, site = _patched(wrong)
    with caplog.at_level(logging.WARNING, "jitd"), ThreadPoolExecutor(4) as threads:
        found = list(threads.map(module, [torch.ones(4)] * 4))
    assert all(torch.equal(result, torch.full((4,), 2.0)) for result in found)
    assert site_of(module) is None and len(caplog.records) == 1
    assert site.declined == {"mismatch": 1} and jitd.stats() == {"patch:mismatch": 1}


def test_the_same_random_numbers():
    """Both forwards draw the same numbers, and who comes after goes on where one of them ended."""
    module, site = _patched(_right)
    torch.manual_seed(3)
    x = torch.ones(4)
    first, after = module(x, noise=True), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(module(x, noise=True), first)
    assert torch.equal(torch.rand(1), after)
    assert module.calls == 1 and site.patched


def test_a_list_is_written_once():
    """What a forward appends to a list of its caller is there once, though both have run."""
    module, _ = _patched(_right)
    x, cache = torch.ones(4), []
    module(x, cache)
    assert len(cache) == 1 and cache[0] is x


def test_a_recipe_that_writes_into_its_input_is_found():
    """A recipe that changes an argument has not done what the stock forward does."""
    module, site = _patched(lambda module, x: x.mul_(2))
    module(torch.ones(4))
    assert "it wrote into an argument" in site.left


def test_a_stock_forward_that_writes_into_its_input_is_not_compared():
    """Where the stock forward changes an argument, its result counts, and no comparison is made."""

    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    module, site = _patched(lambda module, x: x.mul_(2), InPlace().eval())
    x = torch.ones(4)
    assert torch.equal(module(x), torch.full((4,), 2.0)) and torch.equal(x, torch.full((4,), 2.0))
    assert torch.equal(module(x), torch.full((4,), 4.0)) and torch.equal(x, torch.full((4,), 4.0))
    assert site.patched and jitd.stats() == {"patch:unverified": 1}


def test_inference_mode():
    """Tensors of inference mode, which count no writes, are compared all the same."""
    module, site = _patched(_wrong)
    with torch.inference_mode():
        assert torch.equal(module(torch.ones(4)), torch.full((4,), 2.0))
    assert not site.patched


def test_errors_of_jitd_are_raised():
    """A cold kernel in mode strict is what the caller wants to know, not a mismatch."""

    def cold(module, x):
        raise JitdError("cold")

    module, site = _patched(cold)
    with pytest.raises(JitdError, match="cold"):
        module(torch.ones(4))
    assert site.patched


def test_no_memory_to_compare():
    """A recipe that finds no memory beside the stock result is believed, and counted."""

    def full(module, x):
        if not site.verified:
            raise torch.OutOfMemoryError("full")
        return x * 2

    module, site = _patched(full)
    for _ in range(2):
        assert torch.equal(module(torch.ones(4)), torch.full((4,), 2.0))
    assert module.calls == 1 and site.patched
    assert jitd.stats() == {"patch:unverified": 1}


def test_recordings_note_each_call_once():
    """During `jitd.record()`, and on meta tensors, the stock forward does not run beside ours; the
    first call afterwards is verified."""
    module, site = _patched(_right)
    with jitd.record():
        module(torch.ones(4))
    module(torch.ones(4, device="meta"))
    assert module.calls == 0 and not site.verified
    module(torch.ones(4))
    assert module.calls == 1 and site.verified


def test_under_a_transform():
    """Under `torch.func.vmap`, which knows no rules of comparisons, nor of kernels, the stock
    forward answers, counted; the site stays, and the first call afterwards is verified."""
    module, site = _patched(_right)
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(module)(x), x * 2)
        assert torch.equal(torch.func.vmap(lambda row: module(row, scale=3.0))(x), x * 3)
        assert torch.equal(torch.func.jvp(module, (x,), (x,))[1], x * 2)
    assert site.patched and site.declined == {"transform": 3} and not site.verified
    assert jitd.stats() == {"patch:transform": 3}
    module(x)
    assert site.calls == 1 and site.verified


def test_sites_in_sites():
    """A site within a site answers in both of its runs, is held to its own stock forward, and is
    counted as often as it was asked for."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.site = _patched(_right)

        def forward(self, x):
            return self.inner(x) + 1

    module, site = _patched(lambda module, x: 1 + module.inner(x), Outer().eval())
    module(torch.ones(4))
    assert module.inner.calls == 1
    assert site.calls == module.site.calls == 1
    assert jitd.stats() == {"patch:verified": 2}


def test_a_copy_is_verified_by_itself():
    """A deep copy has other weights, maybe, and a first call of its own."""
    module, _ = _patched(_right)
    module(torch.ones(4))
    copied = copy.deepcopy(module)
    copied(torch.ones(4))
    assert copied.calls == 2


def test_never():
    """With `never` the stock forward does not run."""
    module, site = _patched(_wrong)
    site.verify = "never"
    module(torch.ones(4))
    assert module.calls == 0 and site.calls == 1
