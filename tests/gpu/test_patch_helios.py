"""diffusers' Helios, patched, on the card: against itself as it was."""

import jitd
import pytest
import torch
from jitd.models.helios.presets import HISTORY, PRESETS, chunk_shape
from jitd.models.helios.workload import run_chunk
from jitd.models.patch import patch, unpatch
from jitd.tools.bench.figures import peak_memory
from torch._dynamo.utils import counters

from ..models.helios.small import HISTORIES, cast, inputs
from ..models.patch import tiny_helios
from .cases import answered_by_kernels
from .forwards import all_answered, hold, near
from .test_helios import truth_of

pytestmark = [pytest.mark.gpu, pytest.mark.diffusers]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
REAL = PRESETS["384x640"]  # 11040 tokens with history


@pytest.fixture(autouse=True)
def _defaults():
    """Default configs, compiled and checked: what is tuned is not what these tests are about."""
    jitd.configure(mode="replay")


def run(model, given):
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", HISTORIES)
def test_as_exact_as_stock(dtype, history):
    """In every dtype, with and without history, a patched transformer is as near to float64 as it
    was; the second forward has its bits and compiles nothing.
    """
    model = tiny_helios.transformer(dtype=dtype, device="cuda")
    given = inputs(history, dtype=dtype, device="cuda")
    stock = run(model, given)
    report = patch(model)
    out = run(model, given)
    before = jitd.stats().get("compiles", 0)
    assert torch.equal(run(model, given), out)
    assert jitd.stats().get("compiles", 0) == before
    assert all_answered(report)
    hold([out], [stock], [truth_of("base", model, given)])


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
def test_a_whole_pipeline(pyramid, dtype, share):
    """Video of a patched pipeline is near the stock one's, and made again without a compile."""
    pytest.importorskip("transformers")
    made, given = tiny_helios.pipeline(pyramid=pyramid, dtype=dtype, device="cuda")
    stock = tiny_helios.generate(made, given)
    report = patch(made.transformer)
    video = tiny_helios.generate(made, given)
    assert all_answered(report)
    near([video], [stock], share)
    before = jitd.stats().get("compiles", 0)
    near([tiny_helios.generate(made, given)], [video])
    assert jitd.stats().get("compiles", 0) == before


def _one_block():
    """diffusers' transformer with a block of real width, and a chunk of real size with history."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = cast(diffusers.HeliosTransformer3DModel(num_layers=1), torch.bfloat16).eval()
        frames, height, width = chunk_shape(REAL, 1)
        times = torch.arange(sum(n for n, _ in HISTORY.values()) + frames)[None]
        given = {
            "hidden_states": torch.randn(1, 16, frames, height, width, dtype=torch.bfloat16),
            "timestep": torch.tensor([725]),
            "encoder_hidden_states": torch.randn(1, 512, 4096, dtype=torch.bfloat16),
            "indices_hidden_states": times[:, -frames:],
        }
        start = 0
        for term in reversed(HISTORY):
            count, _ = HISTORY[term]
            latents = torch.randn(1, 16, count, height, width, dtype=torch.bfloat16)
            given[f"latents_history_{term}"] = latents
            given[f"indices_latents_history_{term}"] = times[:, start : start + count]
            start += count
    return model, given


def test_a_block_of_real_size(much_memory):
    """One block at real width, patched, is near itself, asks for what the preset's workload is
    recorded from, and holds no modulation parameter for each token, which stock does in fp32.
    """
    model, given = _one_block()
    stock = run(model, given)
    theirs = peak_memory(lambda: run(model, given))
    report = patch(model)
    near([run(model, given)], [stock])
    assert all_answered(report)
    with jitd.record() as asked:
        run(model, given)
    with jitd.record() as on_meta:
        run_chunk(REAL, dtype=torch.bfloat16, num_layers=1)
    assert asked.counts == on_meta.counts
    ours = peak_memory(lambda: run(model, given))
    print(f"{ours / 1e9:.2f} and {theirs / 1e9:.2f} GB held")
    assert theirs - ours > 6 * 11040 * 5120 * 4  # as much as one such tensor, at least


def test_blocks_without_the_transformer_of_real_size(much_memory):
    """Blocks that are patched alone are given parameters by token, read where they lie, and are
    near stock.
    """
    model, given = _one_block()
    stock = run(model, given)
    reports = [patch(block) for block in model.blocks]
    near([run(model, given)], [stock])
    assert all(map(all_answered, reports))


@pytest.mark.parametrize("history", ["none", "all"])
def test_inductor_takes_it_whole(history, c_compiler):
    """torch.compile makes one graph of a patched transformer; kernels answer, with the strides and,
    closely, the values of what it gives without; and it is near the stock one compiled.
    """
    torch.compiler.reset()
    model = tiny_helios.transformer(dtype=torch.bfloat16, device="cuda")
    given = inputs(history, dtype=torch.bfloat16, device="cuda")
    stock = run(model, given)
    patch(model)
    wanted = run(model, given)
    counters.clear()
    out = run(torch.compile(model, fullgraph=True), given)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert answered_by_kernels()
    assert out.stride() == wanted.stride()
    near([out, out], [wanted, stock], 2e-2)


def test_repeated_blocks_compiled(c_compiler):
    """Blocks compiled one by one share one graph, and take rows and an index."""
    torch.compiler.reset()
    model = tiny_helios.transformer(dtype=torch.bfloat16, device="cuda")
    given = inputs(dtype=torch.bfloat16, device="cuda")
    patch(model)
    wanted = run(model, given)
    counters.clear()
    model.compile_repeated_blocks(fullgraph=True)
    near([run(model, given)], [wanted], 2e-2)
    assert counters["stats"]["unique_graphs"] == 1
    assert answered_by_kernels()


def test_as_it_was_after_unpatching():
    """Unpatched, the model has its old bits."""
    model = tiny_helios.transformer(dtype=torch.bfloat16, device="cuda")
    given = inputs(dtype=torch.bfloat16, device="cuda")
    stock = run(model, given)
    patch(model)
    run(model, given)
    unpatch(model)
    assert torch.equal(run(model, given), stock)
