"""The ops of Helios, Z-Image and the VAEs under torch.compile: one node each, one graph for all
lengths.
"""

import pytest
import torch
from jitd.jit.check import arguments
from jitd.jit.op import OPS
from jitd.models.ops.channel_norm import channel_rms_norm_silu
from jitd.models.ops.gates import gate_residual, swiglu
from jitd.models.ops.rotary import qk_norm_rotary
from jitd.models.ops.row_norm import (
    gate_residual_layer_norm_modulate,
    layer_norm_modulate,
    layer_norm_scale,
    rms_norm,
    rms_norm_scale,
    tanh_gate_residual_rms_norm,
)
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from .cases import LAYOUTS, laid_out, randn
from .signed import answer, several, signed, tensors_of

D, HEAD = 48, 16


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
    counters.clear()


class Compiled:
    """A function, compiled as one graph without Inductor; `nodes` are what its graphs call."""

    def __init__(self, function, **how):
        self.nodes = []
        backend = aot_autograd(fw_compiler=self._keep)
        self.function = torch.compile(function, fullgraph=True, backend=backend, **how)

    def _keep(self, graph, inputs):
        self.nodes += [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        return graph.forward

    def __call__(self, *args):
        with torch.no_grad():
            return self.function(*args)

    def count(self, op):
        return self.nodes.count(f"jitd.{op}.default")


# A call of every op, with what a model gives it.
EACH = [
    "rms_norm[bf16](2x5x3x16, weight=bf16 16)",
    "rms_norm[bf16](7x48, weight=bf16 48, rounding=native)",
    "rms_norm_scale[bf16](2x5x48, weight=bf16 48)",
    "tanh_gate_residual_rms_norm[bf16](2x5x48, weight=bf16 48)",
    "tanh_gate_residual_rms_norm[bf16](2x5x48, gate=none, weight=bf16 48)",
    "layer_norm_scale[bf16](2x5x48)",
    "layer_norm_modulate[bf16](1x5x48, scale=fp32 2x48, index=i64 1x5, rounding=once)",
    "gate_residual_layer_norm_modulate[bf16](1x5x48, gate=fp32 2x48, index=i64 1x5, rounding=once)",
    "qk_norm_rotary[bf16](2x5x48, q_cos=fp32 2x5x32, layout=interleaved)",
    "qk_norm_rotary[bf16](2x5x48, wq=bf16 16, q_cos=fp32 1x5x8x2, layout=complex, rounding=each)",
    "swiglu[bf16](2x5x48:strided(480,96,1))",
    "channel_rms_norm_silu[bf16](1x12x3x4x5)",
    "channel_rms_norm_silu[bf16](1x12x3x4x5:channels_last_3d)",
    "channel_rms_norm_silu[fp32](1x12x3x4x5:strided(960,80,20,5,1), weight=fp32 12, form=l2)",
]


FUNCTIONS = {
    function.op.name: function
    for function in (
        channel_rms_norm_silu,
        gate_residual_layer_norm_modulate,
        layer_norm_modulate,
        layer_norm_scale,
        qk_norm_rotary,
        rms_norm,
        rms_norm_scale,
        swiglu,
        tanh_gate_residual_rms_norm,
    )
}


@pytest.mark.parametrize("text", EACH)
def test_an_op_is_one_node(text):
    """Compiled it is one opaque node, and gives what it gives as called, strides included."""
    function = FUNCTIONS[text.partition("[")[0]]
    args, kwargs = arguments(*signed(text), tensors_of(text))
    compiled = Compiled(lambda *args: function(*args, **kwargs))
    found, want = several(compiled(*args)), several(function(*args, **kwargs))
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one, other)
        assert laid_out(one) == laid_out(other)
    assert compiled.nodes[0] == f"jitd.{function.op.name}.default"
    assert all("getitem" in node for node in compiled.nodes[1:])
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("text", EACH)
def test_opcheck(text):
    """torch's own checks of an operator pass: schema, autograd, fake tensors, symbolic tracing."""
    op, _ = signed(text)
    operator = getattr(torch.ops.jitd, op.name).default
    answer(
        lambda *args, **kwargs: torch.library.opcheck(operator, args, kwargs),
        text,
        *tensors_of(text),
    )


def test_fp32_rms_norm_lowers():
    """An RMSNorm of fp32, which Inductor fuses better, is its reference's nodes; of bf16 not."""
    x, weight = randn(32, D), randn(D, seed=1)
    compiled = Compiled(lambda x, w: rms_norm(x, w, 1e-5) + 1)
    assert torch.equal(compiled(x, weight), rms_norm(x, weight, 1e-5) + 1)
    assert compiled.count("rms_norm") == 0
    assert any("rsqrt" in node for node in compiled.nodes)
    assert not counters["graph_break"]
    compiled(x.bfloat16(), weight.bfloat16())
    assert compiled.count("rms_norm") == 1


def test_only_what_was_measured_lowers():
    """The ops that leave some calls to Inductor are these."""
    ours = [op for op in OPS.values() if op.reference.__module__.startswith("jitd.models")]
    assert {op.name for op in ours if op.lowers} == {"rms_norm"}


def z_image(x, caption, weights, mod, table):
    """What the ops of a block of Z-Image are, between its matrix products."""
    s1, g1, s2, g2 = mod
    x = torch.cat([x, rms_norm(caption, weights, 1e-5).to(x.dtype)], 1)
    h = rms_norm_scale(x, s1, weights.to(x.dtype), eps=1e-5)
    head = weights[:HEAD].to(x.dtype)
    q, k = qk_norm_rotary(
        h, h, head, head, table, None, table, None, 1e-5, layout="complex", rounding="each"
    )
    x = tanh_gate_residual_rms_norm(x, q + k, g1, weights.to(x.dtype), eps=1e-5)
    h = swiglu(rms_norm_scale(x, s2, weights.to(x.dtype), eps=1e-5), x)
    return tanh_gate_residual_rms_norm(x, h, g2, weights.to(x.dtype), eps=1e-5)


def z_image_arguments(tokens):
    x = randn(1, 12, D, dtype=torch.bfloat16)
    mod = [randn(1, 1, D, dtype=torch.bfloat16, seed=seed) for seed in range(4)]
    caption, table = randn(1, tokens, D, seed=5), randn(1, 12 + tokens, HEAD // 2, 2, seed=6)
    return x, caption, randn(D, seed=7), mod, table


@pytest.mark.parametrize(("dynamic", "most"), [(True, 1), (None, 2)])
def test_sixteen_captions_are_one_graph(dynamic, most):
    """Sixteen lengths of captions: one graph with dynamic=True, else the second that Dynamo makes
    when it finds that a length varies; no break, and each answer is that of the plain call."""
    compiled = Compiled(z_image, dynamic=dynamic)
    for tokens in range(32, 544, 32):
        args = z_image_arguments(tokens)
        assert torch.equal(compiled(*args), z_image(*args))
    assert counters["stats"]["unique_graphs"] == most
    assert not counters["graph_break"]
    assert compiled.count("tanh_gate_residual_rms_norm") == 2 * most
    assert compiled.count("qk_norm_rotary") == most
    assert compiled.count("rms_norm") == 0


def helios(x, y, text, table, index, weights, angles):
    """What the ops of a block of Helios are, between its matrix products."""
    history = x.shape[1] - text.shape[1]
    h = layer_norm_modulate(x, table[0], table[1], index=index, rounding="once")
    q, k = qk_norm_rotary(h, h, weights, weights, angles, None, angles, None, layout="interleaved")
    x = gate_residual(x, q + k, table[2], index, rounding="once")
    n = layer_norm_modulate(x[:, history:], weight=weights, bias=weights, rounding="once")
    x = torch.cat([x[:, :history], x[:, history:] + n], 1)
    x, h = gate_residual_layer_norm_modulate(
        x, y, table[3], table[4], table[5], index=index, rounding="once"
    )
    return x + h


def helios_arguments(history, tokens):
    count = history + tokens
    x, y = (randn(1, count, D, dtype=torch.bfloat16, seed=seed) for seed in (7, 8))
    index = (torch.arange(count) >= history).long().unsqueeze(0)
    table = [randn(2, D, seed=seed) for seed in range(6)]
    angles = randn(1, count, 2 * HEAD, seed=10)
    return x, y, randn(1, tokens, 1), table, index, randn(D, seed=9), angles


@pytest.mark.parametrize(("dynamic", "most"), [(True, 1), (None, 2)])
def test_the_stages_of_helios_are_one_graph(dynamic, most):
    """The lengths of a pyramid's stages: one graph with dynamic=True, two otherwise."""
    compiled = Compiled(helios, dynamic=dynamic)
    for history, tokens in ((6, 12), (6, 27), (6, 90), (6, 30)):
        args = helios_arguments(history, tokens)
        assert torch.equal(compiled(*args), helios(*args))
    assert counters["stats"]["unique_graphs"] == most
    assert not counters["graph_break"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "frame_major"])
def test_channels_of_many_sizes_are_one_graph(layout):
    """Tiles of a VAE: one graph with dynamic=True, channels_last kept."""
    compiled = Compiled(channel_rms_norm_silu, dynamic=True)
    for frames, height in ((3, 4), (5, 6), (7, 8)):
        x = LAYOUTS[layout](randn(1, 12, frames, height, 6))
        found, want = compiled(x), channel_rms_norm_silu(x)
        assert torch.equal(found, want)
        assert laid_out(found) == laid_out(want)
    assert counters["stats"]["unique_graphs"] == 1
