"""The report of `jitd.patch` says what is so now, and says it where nothing was patched."""

import copy
import logging
import pickle

import jitd
import pytest
from torch import nn
from torch.nn.utils import parametrize

from .live import build, pipeline, run

pytestmark = pytest.mark.diffusers

BLOCK = "res_blocks.0"


def states(report):
    return {site.path: site.left for site in report.sites}


def test_nothing_that_fits_is_said(caplog):
    """What has no module for a recipe is told so once, and in the report's text, with what is
    supported."""
    with caplog.at_level(logging.WARNING, "jitd"):
        report = jitd.patch(nn.Linear(4, 4))
    (record,) = caplog.records
    assert record.getMessage().startswith("jitd.patch(Linear): none of jitd's recipes fits a")
    for said in (record.getMessage(), str(report)):
        assert "supported are LTX-2" in said and said.endswith("of diffusers.")
    assert len(str(report).splitlines()) == 1


def test_what_fits_needs_no_warning(caplog):
    """A model that is patched is nothing to warn of."""
    with caplog.at_level(logging.WARNING, "jitd"):
        jitd.patch(build("upsampler")[0])
    assert not caplog.records


def test_a_subclass_is_left():
    """A subclass may compute something else: it is left, with the class that it is one of."""
    model, _ = build("upsampler")
    block = model.res_blocks[0]
    block.__class__ = type("Other", (type(block),), {})
    report = jitd.patch(model)
    assert states(report)[BLOCK] == "Other is a subclass of ResBlock"
    assert "left: Other is a subclass of ResBlock" in str(report)
    assert not {"forward", "_jitd_site"} & vars(block).keys()


def test_what_became_a_subclass_is_let_go():
    """A patched block that torch parametrizes since is left by the next call of `patch`."""
    model, call = build("upsampler")
    first = jitd.patch(model)
    parametrize.register_parametrization(model.res_blocks[0].conv1, "weight", nn.Identity())
    assert states(jitd.patch(model)) == states(first)  # a child's class is the child's
    block = model.res_blocks[0]
    block.scale = nn.Parameter(block.norm1.weight.detach().clone())
    parametrize.register_parametrization(block, "scale", nn.Identity())
    again = jitd.patch(model)
    assert states(again)[BLOCK] == "ParametrizedResBlock is a subclass of ResBlock"
    assert states(first)[BLOCK] == states(again)[BLOCK]
    assert "_jitd_site" not in vars(block)
    run(model, call)
    assert again.calls == 2


def test_unpatched_is_said():
    """After `unpatch`, of a block or of all, every earlier report says what is patched now."""
    model, _ = build("upsampler")
    reports = [jitd.patch(pipeline(upsampler=model)) for _ in range(2)]
    jitd.unpatch(model.res_blocks[0])
    for report in reports:
        assert [site.path for site in report.left] == [f"upsampler.{BLOCK}"]
        assert "left: unpatched" in str(report)
    jitd.unpatch(model)
    for report in reports:
        assert not report.patched
        assert repr(report) == "<PatchReport: 0 sites patched, 3 left, 0 calls, 0 declined>"


def test_a_later_patch_is_said():
    """What a later call of `patch` decides otherwise, earlier reports say, whether they had patched
    the module or left it."""
    model, _ = build("upsampler")
    some = jitd.patch(model, ops=["group_norm_silu"])
    assert set(states(some).values()) == {None, "ops not chosen"}
    every = jitd.patch(model)
    assert states(some)[""] is None  # the same site answers: it is both reports'
    assert states(some)[BLOCK] == "patched by a later call of patch"
    fewer = jitd.patch(model, ops=["group_norm_silu"])
    assert states(every) == states(fewer) == states(some)
    jitd.unpatch(model)
    assert set(states(every).values()) == {"unpatched", "ops not chosen"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_is_a_snapshot(copied):
    """A copied or pickled report has text and numbers of that moment, whatever comes later, and can
    be copied again."""
    model, call = build("upsampler")
    report = jitd.patch(model)
    run(model, call)
    model.train()
    run(model, call)
    then, said, text = copied(report), repr(report), str(report)
    jitd.unpatch(model)
    assert repr(report) != said
    for one in (then, copied(then)):
        assert (repr(one), str(one)) == (said, text)
        assert (one.calls, one.declined) == (3, {"training": 3})
        assert [site.path for site in one.patched] == [site.path for site in report.sites]
