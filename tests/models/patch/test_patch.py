"""`jitd.patch` and `jitd.unpatch`: which modules get a forward of ours, and that it goes away."""

import copy
import inspect
import pickle

import jitd
import pytest
import torch
from jitd.models.patch.recipe import Recipe, digest
from jitd.models.patch.recipes import RECIPES
from jitd.models.patch.site import site_of
from torch import nn

from .live import MODELS, build, pipeline, run, same

pytestmark = pytest.mark.diffusers


def _left_nothing(model):
    """Whether no module has anything of ours."""
    return not any({"forward", "_jitd_site"} & vars(m).keys() for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_same_bits(name):
    """A patched model has the bits of the stock one on the CPU, and its sites have answered."""
    model, call = build(name)
    expected = run(model, call)
    report = jitd.patch(model)
    assert report.patched and not report.left
    assert same(run(model, call), expected)  # the first call of each site, which is verified
    assert same(run(model, call), expected)
    assert all(site.calls for site in report.sites), str(report)
    assert not report.declined
    assert jitd.stats()["patch:verified"] >= len(report.sites)


@pytest.mark.parametrize("name", MODELS)
def test_unpatch_leaves_nothing(name):
    """After `unpatch` no module has anything of ours; undone twice is as good as once."""
    model, call = build(name)
    expected = run(model, call)
    report = jitd.patch(model)
    patched = len(report.patched)
    assert jitd.unpatch(model) == patched > 0
    assert jitd.unpatch(model) == 0
    assert _left_nothing(model)
    assert same(run(model, call), expected)
    assert report.calls == 0


def test_twice():
    """Patching a patched model in another way begins anew: other counts, one forward of ours, which
    is undone at once."""
    model, call = build("upsampler")
    expected = run(model, call)
    first, second = jitd.patch(model), jitd.patch(model, numerics="fast", verify="never")
    assert same(run(model, call), expected)
    assert first.calls == 0 and second.calls == len(second.sites)
    jitd.unpatch(model)
    assert _left_nothing(model)


def test_a_component_of_two_pipelines():
    """What two pipelines share is patched once, and both reports count its calls."""
    model, call = build("upsampler")
    reports = [jitd.patch(pipeline(upsampler=model)) for _ in range(2)]
    run(model, call)
    assert [report.calls for report in reports] == [3, 3]
    assert jitd.stats()["patch:verified"] == 3


def test_names_and_classes_stay():
    """Names of parameters, classes and signatures of forwards are those of the stock model."""
    model, _ = build("upsampler")
    before = list(model.state_dict()), [type(m) for m in model.modules()]
    signatures = [inspect.signature(m.forward) for m in model.modules()]
    jitd.patch(model)
    assert before == (list(model.state_dict()), [type(m) for m in model.modules()])
    assert signatures == [inspect.signature(m.forward) for m in model.modules()]


def test_state_dict_goes_there_and_back():
    """A patched model loads a stock state dict, and computes with it; a stock one loads ours."""
    (model, call), (other, _) = build("upsampler"), build("upsampler")
    nn.init.normal_(other.initial_conv.weight)
    expected = run(other, call)
    jitd.patch(model)
    model.load_state_dict(other.state_dict(), strict=True)
    assert same(run(model, call), expected)
    other.load_state_dict(model.state_dict(), strict=True)
    assert same(run(other, call), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_is_patched(name):
    """A deep copy computes with its own weights, patched, whatever becomes of the original."""
    model, call = build(name)
    report = jitd.patch(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    jitd.unpatch(model)
    stock, _ = build(name)
    assert same(run(copied, call), run(stock, call))
    sites = [site for m in copied.modules() if (site := site_of(m))]
    assert len(sites) == len(report.sites) and all(site.calls for site in sites)
    assert report.calls == 0


def test_a_pickled_model_is_stock():
    """What is pickled needs no jitd to be loaded and is a stock model, which can be patched."""
    model, call = build("upsampler")
    expected = run(model, call)
    jitd.patch(model)
    data = pickle.dumps(model)
    assert b"jitd." not in data
    loaded = pickle.loads(data)
    assert same(run(loaded, call), expected)
    assert not any(site_of(m) for m in loaded.modules())
    assert jitd.patch(loaded).patched
    assert same(run(loaded, call), expected)


def test_a_pipelines_components():
    """All modules of a pipeline are walked, each once, with the component's name before theirs."""
    model, _ = build("upsampler")
    pipe = pipeline(upsampler=model, again=model, text_encoder=nn.Linear(2, 2), tokenizer=None)
    report = jitd.patch(pipe)
    paths = [site.path for site in report.sites]
    assert paths == ["upsampler", "upsampler.res_blocks.0", "upsampler.post_upsample_res_blocks.0"]
    assert jitd.unpatch(pipe) == 3


@pytest.mark.parametrize("thing", [3, "a path", {"model": nn.Linear(1, 1)}])
def test_other_things_are_refused(thing):
    """What is neither pipeline nor module is refused, by both functions."""
    for function in (jitd.patch, jitd.unpatch):
        with pytest.raises(ValueError, match="allowed are pipelines of diffusers and modules"):
            function(thing)


def test_a_class_is_refused():
    """A class given for its instance is told to be one, by both functions."""
    model, _ = build("upsampler")
    for cls in (type(model), type(pipeline(upsampler=model))):
        for function in (jitd.patch, jitd.unpatch):
            with pytest.raises(ValueError, match=f"{cls.__name__} is a class; give an instance"):
                function(cls)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"numerics": "fp8"}, "allowed are exact, fast"),
        ({"verify": "always"}, "allowed are first, never"),
        ({"ops": ["rms_nrom"]}, "no site uses the ops rms_nrom"),
        ({"ops": "some"}, "no site uses the ops some"),
        ({"ops": None}, "ops is None; allowed are 'all' or names of ops"),
        ({"ops": [1]}, "no site uses the ops 1"),
        ({"ops": [["a"]]}, r"no site uses the ops \['a'\]"),
        ({"ops": []}, r"ops is \[\]; allowed are 'all' or names of ops"),
        ({"ops": ""}, "no site uses the ops ''. Allowed are 'all'"),
        ({"ops": ["all"]}, "write ops='all', or the names alone"),
        ({"ops": (name for name in ["rms_nrom"])}, "no site uses the ops rms_nrom"),
    ],
)
def test_other_choices_are_refused(choice, message):
    """An unknown choice is refused, with those that exist, and nothing is patched."""
    model, _ = build("upsampler")
    with pytest.raises(ValueError, match=message):
        jitd.patch(model, **choice)
    assert _left_nothing(model)


def test_ops_select_sites():
    """A site is patched if all its ops are chosen; the last call of `patch` decides."""
    model, call = build("upsampler")
    expected = run(model, call)
    assert len(jitd.patch(model).patched) == 3
    report = jitd.patch(model, ops=["group_norm_silu"])
    assert [site.path for site in report.patched] == [""]
    assert {site.left for site in report.left} == {"ops not chosen"}
    assert sum(site_of(m) is not None for m in model.modules()) == 1
    assert same(run(model, call), expected)


def test_ops_that_can_be_read_once():
    """Names from a generator are heeded like those of a list."""
    model, _ = build("upsampler")
    assert len(jitd.patch(model, ops=map(str, ["group_norm_silu"])).patched) == 1


@pytest.mark.parametrize("name", ["norm1", "norm2", "activation"])
def test_other_children_are_left(name):
    """A block whose norm or activation somebody replaced before is left, with the reason."""
    model, _ = build("upsampler")
    setattr(model.res_blocks[0], name, nn.InstanceNorm3d(64, affine=True))
    (site,) = jitd.patch(model).left
    assert site.path == "res_blocks.0" and name in site.left


def test_numerics_reach_the_ops(monkeypatch):
    """What `numerics` says is what the recipes pass on."""
    from jitd.models.patch import upsampler  # noqa: PLC0415

    model, call = build("upsampler")
    seen = []
    op = upsampler.group_norm_silu

    def spy(*args, numerics):
        seen.append(numerics)
        return op(*args, numerics=numerics)

    monkeypatch.setattr(upsampler, "group_norm_silu", spy)
    for numerics in ("exact", "fast"):
        jitd.patch(model, numerics=numerics, verify="never")
        run(model, call)
    assert seen == ["exact"] * 3 + ["fast"] * 3


def test_an_unknown_version_is_left(monkeypatch):
    """A class whose source is none that the recipe was written against is left, with the reason."""
    name = "diffusers.pipelines.ltx2.latent_upsampler.ResBlock"
    known = RECIPES[name]
    stale = Recipe(**{**vars(known), "sources": frozenset({digest("inspect.Signature")})})
    monkeypatch.setitem(RECIPES, name, stale)
    report = jitd.patch(build("upsampler")[0])
    assert {site.left for site in report.left} == {"unknown version"}
    assert [site.recipe.name for site in report.patched] == ["LTX2LatentUpsamplerModel"]


def test_a_replaced_forward_is_left():
    """A forward that somebody else put onto the instance is neither replaced nor called around."""
    model, call = build("upsampler")
    block = model.res_blocks[0]
    block.forward = lambda x: x * 0
    expected = run(model, call)
    report = jitd.patch(model)
    assert [(site.path, site.left) for site in report.left] == [
        ("res_blocks.0", "forward was replaced")
    ]
    assert same(run(model, call), expected)
    jitd.unpatch(model)
    assert same(run(model, call), expected)


def test_a_replaced_class_forward_is_left(monkeypatch):
    """A forward that somebody else put onto the class is left to them."""
    model, _ = build("upsampler")
    monkeypatch.setattr(type(model.res_blocks[0]), "forward", lambda self, x: x)
    report = jitd.patch(model)
    assert {site.left for site in report.left} == {"forward was replaced"}


def test_the_report_is_a_table():
    """It has one line for all layers of a kind, and counts that go on; its repr is a sentence."""
    model, call = build("upsampler")
    report = jitd.patch(model)
    head, rule, *lines = str(report).splitlines()
    assert head.split() == [
        "module", "class", "sites", "state", "ops", "calls", "declined", "verified"
    ]  # fmt: skip
    assert set(rule) == {"-", " "}
    assert len(lines) == 3 and lines[1].startswith("res_blocks.*  ")
    assert repr(report) == "<PatchReport: 3 sites patched, 0 left, 0 calls, 0 declined>"
    run(model, call)
    assert repr(report) == "<PatchReport: 3 sites patched, 0 left, 3 calls, 0 declined>"
    assert "1 (worst 0 of the bound)" in str(report)


def test_every_recipe_knows_this_release():
    """Each class of this diffusers is one that its recipe was written against."""
    found = {cls: digest(cls, *recipe.relies) for cls, recipe in RECIPES.items()}
    assert {cls: text for cls, text in found.items() if text not in RECIPES[cls].sources} == {}
