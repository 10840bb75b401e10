"""Patched models that are changed afterwards: what a recipe was fitted to is looked at again."""

import copy

import jitd
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from . import tiny_vae
from .live import TRANSFORMERS, build, run, same

pytestmark = pytest.mark.diffusers


def _eps(norm):
    norm.eps = 0.5


def _shape(norm):
    return getattr(norm, "dim", None) or norm.normalized_shape


def _weight(norm):
    norm.weight = nn.Parameter(torch.full(_shape(norm), 1.5))


def _one_weight(norm):
    norm.weight = nn.Parameter(torch.full((1,), 1.5))


def _no_weight(norm):
    norm.weight = None


def _bias(norm):
    norm.bias = nn.Parameter(torch.full((1,), 0.5))


def _affine(block, name):
    """Another norm of the class, with a weight where the first had none."""
    norm = getattr(block, name)
    made = type(norm)(_shape(norm), eps=norm.eps, elementwise_affine=True)
    nn.init.constant_(made.weight, 1.5)
    setattr(block, name, made)


def _plain_groups(block, name):
    setattr(block, name, nn.GroupNorm(8, getattr(block, name).num_channels, affine=False))


def _not_ones(model):
    """Weights of norms begin as ones: a norm that has lost them would compute the same."""
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight") and parameter.ndim == 1:
            nn.init.constant_(parameter, 1.25)


CHANGES = (
    ("ltx2_23", "transformer_blocks.0.norm1", _eps),
    ("ltx2_23", "transformer_blocks.0.norm1", _weight),
    ("ltx2_23", "transformer_blocks.0", lambda block: _affine(block, "norm1")),
    ("ltx2_23", "transformer_blocks.0.attn1.norm_k", _eps),
    ("ltx2_23", "transformer_blocks.0.attn1.norm_q", _no_weight),
    ("helios", "blocks.0.attn1.norm_k", _eps),
    ("helios", "blocks.0.norm3", _eps),
    ("helios", "blocks.0.norm1", _weight),
    ("zimage", "layers.0.attention.norm_k", _eps),
    ("zimage", "layers.0.attention.norm_q", _bias),
    ("zimage", "layers.0.attention.norm_q", _one_weight),
    ("zimage", "layers.0.attention.norm_q", _no_weight),
    ("zimage", "layers.0.ffn_norm2", _no_weight),
    ("zimage", "all_final_layer.2-1", lambda layer: _affine(layer, "norm_final")),
    ("upsampler", "res_blocks.0", lambda block: _plain_groups(block, "norm1")),
    ("upsampler", "res_blocks.0.norm2", _no_weight),
)  # fmt: skip


@pytest.mark.parametrize(("name", "path", "change"), CHANGES)
def test_other_settings(name, path, change):
    """A norm that is changed after its first call, which was verified, is diffusers' to compute:
    its bits, one call declined as `replaced`, and every other site goes on."""
    (model, call), (stock, _) = build(name), build(name)
    for m in (model, stock):
        _not_ones(m)
    report = jitd.patch(model)
    before = run(model, call)
    for m in (model, stock):
        change(m.get_submodule(path))
    expected = run(stock, call)
    assert not same(before, expected)
    assert same(run(model, call), expected)
    assert report.declined == {"replaced": 1} and not report.left
    assert jitd.stats()["patch:replaced"] == 1


@pytest.mark.parametrize("name", ["wan 2.1", "kl"])
def test_other_settings_of_a_decoder(name):
    """A bias of Wan's norm, and a norm without a weight in AutoencoderKL: diffusers' bits."""
    model, stock, x = tiny_vae.build(name), tiny_vae.build(name), tiny_vae.sample(name)
    report = jitd.patch(model)
    left = report.left
    tiny_vae.there_and_back(model, x)
    for m in (model, stock):
        block = m.decoder.mid_block.resnets[0]
        if name == "kl":
            _plain_groups(block, "norm1")
        else:
            _bias(block.norm1)
    expected = tiny_vae.there_and_back(stock, x)
    assert tiny_vae.same(tiny_vae.there_and_back(model, x), expected)
    assert report.declined.keys() == {"replaced"} and report.left == left


@pytest.fixture
def _fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_graphs")
def test_other_settings_under_compile():
    """A compiled model is the stock one where a norm was changed, and needs no break for it."""
    (model, call), (stock, _) = (build("ltx2_23", one_layer=True) for _ in range(2))
    jitd.patch(model, verify="never")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    run(compiled, call)
    for m in (model, stock):
        _eps(m.transformer_blocks[0].attn1.norm_k)
        _weight(m.transformer_blocks[0].norm1)
    assert same(run(compiled, call), run(stock, call))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_is_no_change(name):
    """Another dtype, another state dict, parameters in place of others and a copy: sites answer."""
    (model, call), (stock, _) = build(name), build(name)
    report = jitd.patch(model)
    run(model, call)
    state = {name: value * 1.25 for name, value in stock.state_dict().items()}
    for m in (model, stock):
        m.double().float()
        m.load_state_dict(state, assign=True)
    expected = run(stock, call)
    assert same(run(model, call), expected)
    assert same(run(copy.deepcopy(model), call), expected)
    assert not report.declined and not report.left
    assert "patch:replaced" not in jitd.stats()


def test_another_class():
    """A patched block that is given another class has that one's forward, on a patched model that
    hands it rows, too; given its own back, the recipe answers."""
    (model, call), (stock, _) = build("helios"), build("helios")
    report = jitd.patch(model)
    run(model, call)
    cls = type(model.blocks[0])

    class Mine(cls):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 0.5

    for m in (model, stock):
        m.blocks[0].__class__ = Mine
    assert same(run(model, call), run(stock, call))
    assert report.declined == {"replaced": 1} and not report.left
    for m in (model, stock):
        m.blocks[0].__class__ = cls
    assert same(run(model, call), run(stock, call))
    assert report.declined == {"replaced": 1}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parametrized(name):
    """Parametrizations, which make a class for each module that has one, give the stock model's
    bits, and the blocks are patched again when they are removed."""

    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    (model, call), (stock, _) = build(name), build(name)
    blocks = {"helios": "blocks", "zimage": "layers"}.get(name, "transformer_blocks")
    report = jitd.patch(model)
    run(model, call)
    changed = []
    for m in (model, stock):
        block = m.get_submodule(blocks)[0]
        parameters = dict(block.named_parameters())
        path = next((n for n in parameters if "scale_shift_table" in n), "ffn_norm1.weight")
        *home, last = path.split(".")
        changed.append((block.get_submodule(".".join(home)), last))
        parametrize.register_parametrization(*changed[-1], Half())
    assert same(run(model, call), run(stock, call))
    assert report.declined == {"replaced": 1} and not report.left
    for module, last in changed:
        parametrize.remove_parametrizations(module, last, leave_parametrized=False)
    calls = report.calls
    assert same(run(model, call), run(stock, call))
    assert report.declined == {"replaced": 1} and report.calls - calls == len(report.sites)
