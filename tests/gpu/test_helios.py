"""The transformer of Helios on the card: with jitd's kernels, against itself without them."""

import jitd
import pytest
import torch
from jitd.models.helios.presets import PRESETS
from jitd.models.helios.workload import run_chunk
from jitd.tools.bench.blocks import caught, helios_cases
from jitd.tools.bench.eager import Eager
from jitd.tools.bench.figures import peak_memory
from torch._dynamo.utils import counters

from ..models.helios.small import BASE, HISTORIES, VARIANTS, build, inputs, run
from .cases import answered_by_kernels
from .forwards import by_references, hold, near, widened

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
REAL = PRESETS["384x640"]  # 11040 tokens with history
ONE_BLOCK = {"dtype": torch.bfloat16, "num_layers": 1}


@pytest.fixture(autouse=True)
def _defaults():
    """Default configs, compiled and checked: what is tuned is not what these tests are about."""
    jitd.configure(mode="replay")


def truth_of(variant, model, given):
    """The forward in float64."""
    exact = build(variant, device="cuda").double()
    exact.load_state_dict(model.state_dict())
    return by_references(lambda: run(exact, widened(given)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", HISTORIES)
def test_a_small_model_is_as_exact_as_eager(variant, dtype, history):
    """In every dtype, with and without history, kernels answer each call, and the model is as near
    to float64 as it is without them.
    """
    model = build(variant, dtype=dtype, device="cuda")
    given = inputs(history, dtype=dtype, device="cuda")
    out = run(model, given)
    assert answered_by_kernels()
    hold([out], [by_references(lambda: run(model, given))], [truth_of(variant, model, given)])


@pytest.mark.diffusers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", HISTORIES)
def test_as_exact_as_diffusers(dtype, history):
    """With the same weights the model is as near to float64 as diffusers' on the same card."""
    diffusers = pytest.importorskip("diffusers")
    model = build(dtype=dtype, device="cuda")
    theirs = diffusers.HeliosTransformer3DModel(**BASE).to("cuda").eval()
    theirs.load_state_dict(model.state_dict(), strict=True, assign=True)  # some stay in fp32
    given = inputs(history, dtype=dtype, device="cuda")
    out = run(model, given)
    assert answered_by_kernels()
    with torch.no_grad():
        (expected,) = theirs(**given, return_dict=False)
    hold([out], [expected], [truth_of("base", model, given)])


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_a_block_of_real_size(scale, much_memory):
    """One block at real width asks, at every stage of the pyramid, for what was recorded on meta,
    has all of it answered by kernels, and gives what it gives without them.
    """

    def forward(device="cuda"):
        torch.manual_seed(0)
        return run_chunk(REAL, scale, device=device, **ONE_BLOCK)

    with jitd.record() as asked:
        out = forward()
    assert answered_by_kernels()
    with jitd.record() as on_meta:
        forward("meta")
    assert asked.counts == on_meta.counts
    near([out], [by_references(forward)])


def test_memory_of_a_block_of_real_size(much_memory):
    """A block holds no modulation parameter for each token: eager code's, which does, holds 1.36 GB
    more for them in fp32 alone.
    """
    (case,) = helios_cases()
    block = caught(case.kind, lambda: case.forward("cuda"))
    plain, eager = case.as_eager(block), Eager(case.package)
    with torch.no_grad():
        block()  # what is compiled and loaded is held from here on
        ours = peak_memory(block)
        with eager():
            theirs = peak_memory(plain)
    print(f"{ours / 1e9:.2f} and {theirs / 1e9:.2f} GB held")
    assert theirs - ours > 6 * 11040 * 5120 * 4


@pytest.mark.parametrize("pixels", [(6, 10), (6, 12), (8, 10)])
def test_another_size_compiles_nothing(pixels):
    """Chunks of other sizes in the same buckets run on the binaries that are there."""
    model = build(dtype=torch.bfloat16, device="cuda")
    given = {"dtype": torch.bfloat16, "device": "cuda"}
    run(model, inputs(pixels=(8, 12), **given))  # 134 tokens, of the chunk 72
    run(model, inputs(pixels=(4, 12), **given))  # 98, of the chunk 36: 33 to 64
    before = jitd.stats().get("compiles", 0)
    run(model, inputs(pixels=pixels, **given))
    assert jitd.stats().get("compiles", 0) == before
    assert answered_by_kernels()


def test_in_a_graph():
    """A forward is captured in a CUDA graph; on other latents its replay gives what a call does."""
    model = build(dtype=torch.bfloat16, device="cuda")
    given = inputs(dtype=torch.bfloat16, device="cuda")
    run(model, given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(model, given)
    given["hidden_states"].normal_(generator=torch.Generator("cuda").manual_seed(5))
    graph.replay()
    assert answered_by_kernels()
    assert torch.equal(out, run(model, given))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor_takes_it_whole(mode, c_compiler):
    """torch.compile makes one graph of the forward; kernels answer, with eager's strides and,
    closely, eager's values. With CUDA graphs, too.
    """
    torch.compiler.reset()
    counters.clear()
    model = build(dtype=torch.bfloat16, device="cuda")
    given = inputs(dtype=torch.bfloat16, device="cuda")
    wanted = run(model, given)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):
        out = run(compiled, given).clone()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert answered_by_kernels()
    assert out.stride() == wanted.stride()
    near([out], [wanted], 2e-2)
