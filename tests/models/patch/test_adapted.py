"""Patched transformers whose weights or attention their user changes: LoRA, attention backends."""

import sys
from collections import Counter
from functools import cache, partial

import jitd
import pytest
import torch
from torch import nn

from .live import MODELS, TRANSFORMERS, build, run, same

pytestmark = pytest.mark.diffusers


def _adapter(model):
    """Weights of a LoRA for all Linear layers of all blocks."""
    peft = pytest.importorskip("peft")
    blocks = ("transformer_blocks.", "blocks.", "layers.")
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(blocks)
    ]
    torch.manual_seed(5)
    model.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    )
    state = peft.get_peft_model_state_dict(model)
    model.unload_lora()
    return {f"transformer.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("order", ["patch first", "load first"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_lora(name, order):
    """A LoRA over all Linear layers of the blocks that is loaded, scaled, fused, unfused and
    unloaded does to a patched model what it does to stock, bit for bit, and no site is lost."""
    (model, call), (stock, _) = build(name), build(name)
    adapter = _adapter(stock)
    if order == "patch first":
        report = jitd.patch(model)
        plain = run(model, call)
    for m in (model, stock):
        m.load_lora_adapter(dict(adapter))
    if order == "load first":
        report = jitd.patch(model)
        plain = run(build(name)[0], call)
    assert not report.left
    adapted = run(stock, call)
    assert not same(adapted, plain)
    assert same(run(model, call), adapted)
    for step in ("fuse_lora", "unfuse_lora", "disable_lora", "enable_lora", "unload_lora"):
        for m in (model, stock):
            getattr(m, step)()
        assert same(run(model, call), run(stock, call)), step
    assert not report.left and not report.declined
    assert all(site.calls for site in report.sites)


@pytest.mark.parametrize("order", ["patch first", "backend first"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention_backend(name, order, monkeypatch):
    """`set_attention_backend`, before or after patching, decides what computes the attention."""
    from diffusers.models import attention_dispatch  # noqa: PLC0415

    registry = attention_dispatch._AttentionBackendRegistry
    backend = attention_dispatch.AttentionBackendName._NATIVE_MATH
    calls = []

    def spy(*args, compute=registry._backends[backend], **kwargs):
        calls.append(backend)
        return compute(*args, **kwargs)

    monkeypatch.setitem(registry._backends, backend, spy)
    (model, call), (stock, _) = build(name), build(name)
    if order == "patch first":
        report = jitd.patch(model, verify="never")
        run(model, call)
        assert not calls
    model.set_attention_backend("_native_math")
    if order == "backend first":
        report = jitd.patch(model, verify="never")
    stock.set_attention_backend("_native_math")
    expected, wanted = run(stock, call), len(calls)
    assert same(run(model, call), expected)
    assert len(calls) == 2 * wanted > 0
    assert not report.left and not report.declined
    jitd.unpatch(model)
    assert same(run(model, call), expected)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_dispatcher_is_looked_up_where_diffusers_does(name, monkeypatch):
    """Whoever replaces the dispatcher of the stock processors' module attends for ours, too, and is
    told what stock tells: whether there is a mask, each processor's backend and parallel config."""
    model, call = build(name)
    theirs = sys.modules[type(model).__module__]
    dispatch, told = theirs.dispatch_attention_fn, []

    def noting(*args, **kwargs):
        masked = kwargs["attn_mask"] is not None
        told.append((kwargs["backend"], kwargs["parallel_config"], masked))
        return dispatch(*args, **{**kwargs, "parallel_config": None})

    monkeypatch.setattr(theirs, "dispatch_attention_fn", noting)
    processors = [m.processor for m in model.modules() if hasattr(m, "processor")]
    for number, processor in enumerate(processors):
        processor._parallel_config = f"config {number}"
    processors[0]._attention_backend = "native"
    run(model, call)
    wanted = Counter(told)
    assert wanted.total() == len(processors) and any(backend for backend, *_ in wanted)
    told.clear()
    jitd.patch(model, verify="never")
    run(model, call)
    assert Counter(told) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_norms_that_are_replaced_later(name):
    """A norm that somebody puts in the place of one that recipes read is called from then on, also
    by what `torch.compile` traces; the first call of the signature was long verified."""
    (model, call), (stock, _) = build(name, one_layer=True), build(name, one_layer=True)
    report = jitd.patch(model)
    run(model, call)
    for m in (model, stock):
        for norm in m.modules():
            if type(norm).__name__.endswith("Norm") and not list(norm.children()):
                norm.__class__ = _doubled(type(norm))
    expected = run(stock, call)
    assert same(run(model, call), expected)
    assert report.declined["replaced"] == jitd.stats()["patch:replaced"] > 0
    compiled = torch.compile(model, backend="eager")
    assert same(run(compiled, call), run(torch.compile(stock, backend="eager"), call))


@cache
def _doubled(cls):
    """A class of norms, twice as large."""
    return type(f"Doubled{cls.__name__}", (cls,), {"forward": _twice(cls.forward)})


def _twice(forward):
    return lambda self, *args, **kwargs: 2 * forward(self, *args, **kwargs)


def test_a_wrapper_that_stays():
    """Who wrapped a patched forward has the stock one after `unpatch`, compiled or not."""
    torch._dynamo.reset()  # graphs of tests before it count towards the limit of a forward's
    model, _ = build("zimage")
    jitd.patch(model, verify="never", numerics="fast")
    module = model.layers[0].feed_forward
    x = torch.randn(1, 4, module.w1.in_features)
    ours = module.forward
    module.forward = partial(ours)
    jitd.unpatch(model)
    nodes = []

    def backend(graph, inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(module, backend=backend)(x)
        assert torch.equal(compiled, module(x))
    assert nodes and not any(node.startswith("jitd.") for node in nodes)
