"""Patched models under torch.compile: one graph, as many as stock has, nothing counted in it."""

import jitd
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from .live import TRANSFORMERS, build, run, same, tensors

pytestmark = pytest.mark.diffusers


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("upsampler", "compile first"),
        *((name, "patch first") for name in ("upsampler", "ltx2_23", "helios", "zimage")),
    ],
)
def test_one_graph(name, order):
    """A patched model is one graph (fullgraph) with jitd's ops in it, whichever came first; what is
    traced is not counted."""
    model, call = build(name, one_layer=True)
    expected = run(model, call)
    nodes = set()

    def backend(graph, inputs):
        nodes.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    if order == "patch first":
        report = jitd.patch(model, verify="never")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    if order == "compile first":
        run(compiled, call)
        assert not any(node.startswith("jitd.") for node in nodes)
        report = jitd.patch(compiled, verify="never")
    run(compiled, call)
    found = {node.split(".")[1] for node in nodes if node.startswith("jitd.")}
    assert found <= {op for site in report.sites for op in site.recipe.ops}
    assert found
    assert report.calls == 0 and not report.declined
    for ours, stock in zip(run(compiled, call), expected, strict=True):
        torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_repeated_blocks_are_compiled_once(name):
    """`compile_repeated_blocks` makes as many graphs of a patched model as of the stock one: one
    for each kind of block, not one for each block."""
    graphs = []
    for patched in (False, True):
        torch._dynamo.reset()
        model, call = build(name)
        expected = run(model, call)
        if patched:
            jitd.patch(model)
        counter = CompileCounter()
        model.compile_repeated_blocks(fullgraph=True, backend=counter)
        for _ in range(2):
            for ours, stock in zip(run(model, call), expected, strict=True):
                torch.testing.assert_close(ours, stock)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


def test_symbolic_shapes():
    """With dynamic shapes a patched model has as many graphs as the stock one: one for all sizes
    but those that torch itself makes another of."""
    graphs = []
    for patched in (False, True):
        torch._dynamo.reset()
        model, call = build("upsampler")
        if patched:
            jitd.patch(model)
        counter = CompileCounter()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
        x = call["hidden_states"]
        for other in (x, x[..., :3], torch.cat([x, x], dim=-1), torch.cat([x, x], dim=2)):
            run(compiled, {"hidden_states": other})
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1] < 3


@pytest.mark.parametrize("name", ["upsampler", "helios"])
def test_gradients_under_compile(name):
    """A compiled model that is trained gets the stock forward's gradients."""
    (model, call), (stock, _) = (build(name, one_layer=name != "upsampler") for _ in range(2))
    jitd.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for m in (compiled, stock):
        sum(t.square().sum() for t in tensors(m(**call))).backward()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_under_compile():
    """Under autocast a compiled model is the stock one, and says the same as it does in eager."""
    (model, call), (stock, _) = build("upsampler"), build("upsampler")
    jitd.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert same(run(compiled, call), run(stock, call))
