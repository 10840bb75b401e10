"""An op as an operator of torch: opcheck, torch.compile, training."""

import jitd
import pytest
import torch
from outside.ops import scale
from probes.ops import probe_norm
from torch._dynamo.backends.common import aot_autograd

WEIGHT, BIAS = torch.randn(8), torch.randn(8)
INPUTS = {
    "plain": torch.randn(2, 8, 3, 5),
    "channels_last": torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last),
    "half": torch.randn(2, 8, 3, 5).bfloat16(),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


class Graphs:
    """A backend that keeps the graphs it is given, after autograd, and runs them eagerly."""

    def __init__(self):
        self.seen = []

    @property
    def backend(self):
        def keep(graph, inputs):
            self.seen.append(graph)
            return graph.forward

        return aot_autograd(fw_compiler=keep)

    def count(self, operator):
        return sum(node.target is operator for g in self.seen for node in g.graph.nodes)


@pytest.mark.parametrize("kind", INPUTS)
def test_opcheck_of_an_op_from_outside(kind):
    """torch's own checks of an operator: schema, autograd, fake tensors, tracing."""
    x = INPUTS[kind]
    torch.library.opcheck(torch.ops.jitd.outside_scale.default, (x, 3.0))
    torch.library.opcheck(torch.ops.jitd.outside_scale.default, (x.clone().requires_grad_(), 3.0))


@pytest.mark.parametrize("bias", [None, BIAS])
def test_opcheck_of_optional_and_keyword_arguments(bias):
    """Optional tensors and keyword-only scalars pass torch's checks, too."""
    operator = torch.ops.jitd.probe_norm.default
    torch.library.opcheck(operator, (INPUTS["plain"], WEIGHT, bias, 4), {"numerics": "fast"})


@pytest.mark.parametrize("kind", INPUTS)
def test_compile_sees_one_node_for_each_call(kind):
    """Under fullgraph each call is one opaque node; results and strides are eager's."""
    x, graphs = INPUTS[kind], Graphs()

    def module(x):
        return scale(torch.relu(scale(x)) + 1, 3.0)

    compiled = torch.compile(module, fullgraph=True, backend=graphs.backend)
    with torch.no_grad():
        out, want = compiled(x), module(x)
    assert torch.equal(out, want) and out.stride() == want.stride()
    assert graphs.count(torch.ops.jitd.outside_scale.default) == 2
    assert len(graphs.seen) == 1


@pytest.mark.parametrize("kind", INPUTS)
def test_aot_eager_runs_and_keeps_strides(kind):
    """fullgraph with aot_eager: no graph break, eager's values and strides."""
    x = INPUTS[kind]
    weight = WEIGHT.to(x.dtype)

    def module(x):
        return probe_norm(scale(x), weight, None, 4) * 2

    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        out, want = compiled(x), module(x)
    assert torch.equal(out, want) and out.stride() == want.stride()


def test_another_length_is_right():
    """A compiled function called with another length, which torch may make symbolic, is right."""
    compiled = torch.compile(lambda x: scale(x, 3.0) + 1, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for n in (4, 6, 9, 17):
            x = torch.randn(n)
            assert torch.equal(compiled(x), x * 3 + 1)


def test_training_through_compile_gives_eagers_gradients():
    """A compiled training step has the eager one's gradients: the reference ran."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 8, 3, padding=1)

    def module(x, weight, bias):
        return scale(probe_norm(conv(x), weight, bias, 4), 3.0).square().mean()

    leaves = [INPUTS["plain"].clone(), WEIGHT.clone(), BIAS.clone()]
    want = _gradients(module, leaves, conv)
    got = _gradients(torch.compile(module, fullgraph=True, backend="aot_eager"), leaves, conv)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert "reference:cpu" not in jitd.stats()


def _gradients(module, leaves, conv):
    conv.zero_grad()
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    module(*leaves).backward()
    return [leaf.grad for leaf in leaves] + [p.grad.clone() for p in conv.parameters()]


def test_gradients_are_right_by_differences():
    """The gradients that autograd finds through an op agree with finite differences."""
    x = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: probe_norm(a, b, None, 4), (x, weight))


def test_autocast_is_the_references():
    """Under autocast, eager and compiled agree with the reference under autocast."""
    x = INPUTS["plain"]

    def module(x):
        return scale(torch.nn.functional.conv2d(x, torch.ones(8, 8, 1, 1)), 3.0)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = module(x)
        out = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert want.dtype == out.dtype == torch.bfloat16
    assert torch.equal(out, want)


def test_export_keeps_the_op():
    """torch.export keeps the op as one node."""

    class Module(torch.nn.Module):
        def forward(self, x):
            return scale(x, 3.0)

    program = torch.export.export(Module(), (torch.randn(4),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "jitd.outside_scale.default" in targets
