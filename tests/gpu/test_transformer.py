"""The transformer of LTX-2 on the card: with jitd's kernels, against itself without them."""

import jitd
import pytest
import torch
from jitd.models.ltx2.presets import PRESETS
from jitd.models.ltx2.workload import record_stage, run_stage
from torch._dynamo.utils import counters

from ..models.ltx2.small import BASE, VARIANTS, build, inputs, run
from .cases import answered_by_kernels
from .forwards import by_references, hold

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MORE = {
    "plain": {},
    "isolated": {"isolate_modalities": True},
    "perturbed": {"spatio_temporal_guidance_blocks": [1]},
}
REAL = PRESETS["1024x1536"]  # 6144 tokens in stage 1, two samples; 24576 in stage 2
ONE_BLOCK = {"dtype": torch.bfloat16, "num_layers": 1}


@pytest.fixture(autouse=True)
def _defaults():
    """Default configs, compiled and checked: what is tuned is not what these tests are about."""
    jitd.configure(mode="replay")


def truth_of(model, given, **more):
    """The forward in float64."""
    floats = {k: v for k, v in given.items() if torch.is_tensor(v) and v.is_floating_point()}
    wide = given | {name: value.double() for name, value in floats.items()}
    exact = build(model.variant, dtype=torch.float64, device="cuda")
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return by_references(lambda: run(exact, wide, **more))


def on_the_card(variant, **how):
    model = build(variant, dtype=how["dtype"], device="cuda")
    model.variant = variant
    return model, inputs(variant, device="cuda", **how)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timesteps", ["sample", "token", "rows"])
def test_a_small_model_is_as_exact_as_eager(variant, dtype, timesteps):
    """In every dtype and with timesteps in every form, kernels answer each call, and the model is
    as near to float64 as it is without them.
    """
    model, given = on_the_card(variant, dtype=dtype, timesteps=timesteps)
    outs = run(model, given)
    assert answered_by_kernels()
    hold(outs, by_references(lambda: run(model, given)), truth_of(model, given))


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("more", ["isolated", "perturbed"])
def test_a_guided_small_model_is_as_exact_as_eager(variant, more):
    """Isolated streams and perturbed attention are as near to float64 as without kernels."""
    model, given = on_the_card(variant, dtype=torch.bfloat16)
    outs = run(model, given, **MORE[more])
    assert answered_by_kernels()
    eagers = by_references(lambda: run(model, given, **MORE[more]))
    hold(outs, eagers, truth_of(model, given, **MORE[more]))


@pytest.mark.diffusers
@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timesteps", ["sample", "token"])
@pytest.mark.parametrize("more", list(MORE))
def test_as_exact_as_diffusers(variant, dtype, timesteps, more):
    """With the same weights the model is as near to float64 as diffusers' on the same card."""
    diffusers = pytest.importorskip("diffusers")
    model, given = on_the_card(variant, dtype=dtype, timesteps=timesteps)
    theirs = diffusers.LTX2VideoTransformer3DModel(**BASE, **VARIANTS[variant])
    theirs = theirs.to("cuda", dtype).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    outs = run(model, given, **MORE[more])
    assert answered_by_kernels()
    expected = run(theirs, given, return_dict=False, **MORE[more])
    hold(outs, expected, truth_of(model, given, **MORE[more]))


def test_rows_are_the_expanded_form():
    """Rows and an index give what a timestep for each token gives, bit for bit where the matrix
    products of the timesteps are."""
    model, rows = on_the_card("2.3", dtype=torch.bfloat16, timesteps="rows")
    token = inputs("2.3", device="cuda", dtype=torch.bfloat16, timesteps="token")
    outs, wanted = run(model, rows), run(model, token)
    assert answered_by_kernels()
    for out, want in zip(outs, wanted, strict=True):
        assert (out.float() - want.float()).norm() <= 1e-2 * want.float().norm()


@pytest.mark.parametrize(("stage", "i2v"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_a_block_of_real_size(variant, stage, i2v, much_memory):
    """One block at real width and length asks for what was recorded on meta, has all of it
    answered by kernels, and gives what it gives without them.
    """

    def forward():
        torch.manual_seed(0)
        return run_stage(REAL, stage, device="cuda", variant=variant, i2v=i2v, **ONE_BLOCK)

    with jitd.record() as asked:
        outs = forward()
    assert answered_by_kernels()
    recorded = record_stage(REAL, stage, variant=variant, i2v=i2v, **ONE_BLOCK)
    assert asked.counts == recorded.counts
    for out, want in zip(outs, by_references(forward), strict=True):
        assert (out.float() - want.float()).norm() <= 1e-2 * want.float().norm()


def test_another_length_compiles_nothing():
    """Other numbers of tokens in the same buckets run on the binaries that are there."""
    model, given = on_the_card("2.3", dtype=torch.bfloat16, timesteps="rows")
    run(model, given)
    before = jitd.stats().get("compiles", 0)
    shorter = given | {
        "hidden_states": given["hidden_states"][:, :48].contiguous(),
        "timestep_index": given["timestep_index"][:, :48].contiguous(),
        "audio_hidden_states": given["audio_hidden_states"][:, :5].contiguous(),
        "width": 4,
        "audio_num_frames": 5,
    }
    run(model, shorter)
    assert jitd.stats().get("compiles", 0) == before
    assert answered_by_kernels()


def test_in_a_graph():
    """A forward is captured in a CUDA graph; on other latents its replay gives what a call does."""
    model, given = on_the_card("2.3", dtype=torch.bfloat16, timesteps="rows")
    run(model, given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = run(model, given)
    given["hidden_states"].normal_(generator=torch.Generator("cuda").manual_seed(5))
    graph.replay()
    assert answered_by_kernels()
    for out, want in zip(outs, run(model, given), strict=True):
        assert torch.equal(out, want)


def test_inductor_takes_it_whole(c_compiler):
    """torch.compile makes one graph of the forward; kernels answer, with eager's strides and,
    closely, eager's values.
    """
    torch.compiler.reset()
    counters.clear()
    model, given = on_the_card("2.3", dtype=torch.bfloat16, timesteps="rows")
    wanted = run(model, given)
    outs = run(torch.compile(model, fullgraph=True), given)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert answered_by_kernels()
    for out, want in zip(outs, wanted, strict=True):
        assert out.stride() == want.stride()
        assert (out.float() - want.float()).norm() <= 2e-2 * want.float().norm()
