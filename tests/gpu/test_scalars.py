"""Floats that vary from call to call, on the card: one binary, one entry, every value its own."""

import jitd
import pytest
import torch
from jitd.jit.dispatch import _dispatchers
from outside.ops import fade

pytestmark = pytest.mark.gpu

VALUES = [(0.5, 0.25), (1.0, 0.0), (0.1, 1e-12), (-3.0, 2.0)]


def test_every_value_is_its_own_and_nothing_is_built_twice():
    """Calls that differ in such scalars compile once, are remembered once, and are right to the
    bit, in fp32 and fp64."""
    jitd.configure(mode="replay")
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(5000, device="cuda", dtype=dtype)
        for late, early in VALUES:
            assert torch.equal(fade(x, late, early), fade.op.reference(x, late, early))
    stats = jitd.stats()
    assert stats["compiles"] == stats["checks"] == 2
    assert len(_dispatchers["outside_fade"].table) == 2
    assert not [name for name in stats if name.startswith("reference:")]


def test_the_operator_of_torch_passes_them_too():
    """Calls by torch's dispatcher, which look into the same table, use their own values."""
    jitd.configure(mode="replay")
    x = torch.randn(5000, device="cuda")
    for late, early in VALUES:
        out = torch.ops.jitd.outside_fade(x, late, early)
        assert torch.equal(out, fade.op.reference(x, late, early))


def test_a_graph_keeps_the_values_it_was_captured_with():
    """Each captured call replays with its own value, whatever is called in between."""
    jitd.configure(mode="replay")
    x = torch.randn(5000, device="cuda")
    fade(x, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [fade(x, late, early) for late, early in VALUES]
    fade(x, 99.0, 99.0)
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    for out, (late, early) in zip(outs, VALUES, strict=True):
        assert torch.equal(out, fade.op.reference(x, late, early))
