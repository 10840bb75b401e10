"""The two ops as operators of torch, by themselves and in the upsampler: compiling, training."""

import jitd
import pytest
import torch
from jitd.models.ltx2.presets import Size
from jitd.models.ltx2.workload import run_upsampler
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from ..ltx2.tiny import build, latents
from .cases import ADD, FUNCTIONS, SILU, arguments, eager

OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
REAL = {"num_blocks_per_stage": 4, "mid_channels": 32}  # blocks as released, channels few


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
    counters.clear()


def operator(op):
    return getattr(torch.ops.jitd, op.name).default


@OPS
@pytest.mark.parametrize("x", ["contiguous", "channels_last", "frame_major"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(op, x, dtype):
    """torch's own checks of an operator pass: schema, autograd, fake tensors, symbolic tracing."""
    args = arguments(op, (2, 6, 3, 2, 5), 3, x=x, residual="frame_major", dtype=dtype)
    torch.library.opcheck(operator(op), tuple(args))
    torch.library.opcheck(operator(op), (*args, 1e-3), {"numerics": "fast"})


@OPS
def test_opcheck_with_gradients(op):
    """torch's checks pass for inputs that require gradients, too."""
    *tensors, groups = arguments(op, (2, 6, 3, 5), 3)
    torch.library.opcheck(operator(op), (*(t.requires_grad_() for t in tensors), groups))


def gradients(function, tensors, groups):
    leaves = [t.clone().requires_grad_() for t in tensors]
    function(*leaves, groups).square().sum().backward()
    return [leaf.grad for leaf in leaves]


@OPS
@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
def test_gradients_are_eagers(op, x):
    """A training step has eager's gradients: bit for bit as called, closely when compiled."""
    *tensors, groups = arguments(op, (2, 6, 3, 2, 5), 3, x=x, residual="frame_major")
    function = FUNCTIONS[op.name]
    want = gradients(lambda *args: eager(op, args), tensors, groups)
    for one, other in zip(gradients(function, tensors, groups), want, strict=True):
        assert torch.equal(one, other)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(compiled, tensors, groups), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@OPS
def test_gradients_agree_with_differences(op):
    """In double precision the gradients are those that finite differences give."""
    *tensors, groups = arguments(op, (2, 4, 3), 2, dtype=torch.float64)
    for tensor in tensors:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *leaves: FUNCTIONS[op.name](*leaves, groups), tensors)


def test_the_upsampler_is_one_graph_of_17_ops():
    """torch.compile takes the upsampler, with as many blocks as released, as one graph without a
    break, in which the ops are 9 + 8 opaque nodes."""
    seen = []

    def keep(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    model, x = build("x2_23", **REAL), latents()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    with torch.no_grad():
        want, out = model(x), compiled(x)
    assert torch.equal(out, want)
    assert out.stride() == want.stride()
    assert [seen.count(operator(op)) for op in (SILU, ADD)] == [9, 8]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_the_upsampler_can_be_explained_without_breaks():
    """torch._dynamo.explain finds one graph and no reason to break it."""
    with torch.no_grad():
        found = torch._dynamo.explain(build("x2_20", **REAL))(latents())
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_a_forward_makes_9_and_8_calls():
    """A forward as released asks for 9 and 8 fused calls, on meta as on the CPU."""
    counts = []
    for device in ("meta", "cpu"):
        with jitd.record() as workload:
            run_upsampler(Size(64, 128, 9), dtype=torch.float32, device=device, mid_channels=32)
        counts.append(workload.counts)
        calls = {SILU.name: 0, ADD.name: 0}
        for signature, times in workload.counts.items():
            calls[signature.partition("[")[0]] += times
        assert calls == {SILU.name: 9, ADD.name: 8}
    assert counts[0] == counts[1]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_training_step_of_the_upsampler(channels_last, monkeypatch):
    """A training step, as called and compiled, has the gradients of plain modules."""
    model = build("x2_23", channels_last=channels_last, num_blocks_per_stage=1)
    x = latents((2, 8, 3, 4, 6), channels_last=channels_last)

    def step(forward):
        model.zero_grad()
        forward(x).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    found = [step(model), step(torch.compile(model, fullgraph=True, backend="aot_eager"))]
    with monkeypatch.context() as patch:
        patch.setattr("jitd.models.ltx2.upsampler.apply_group_norm_silu", _modules)
        patch.setattr("jitd.models.ltx2.upsampler.group_norm_add_silu", _modules_and_residual)
        want = step(model)
    for gradient in found:
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-6)


def _modules(x, norm, activation):
    return activation(norm(x))


def _modules_and_residual(x, residual, weight, bias, groups, eps):
    return eager(ADD, (x, residual, weight, bias, groups), eps)
