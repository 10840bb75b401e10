"""The transformer of Z-Image on the card: with jitd's kernels, against itself without them."""

import jitd
import pytest
import torch
from jitd.models.zimage.presets import CAPTIONS, PRESETS
from jitd.models.zimage.workload import run_image
from torch._dynamo.utils import counters

from ..models.zimage.small import BASE, BATCHES, build, inputs, run
from .cases import answered_by_kernels
from .forwards import by_references, hold, near, widened

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
REAL = PRESETS["1024"]  # 4096 tokens
SIXTEEN = {"axes_lens": (1024, 32, 32), "n_layers": 1}


@pytest.fixture(autouse=True)
def _defaults():
    """Default configs, compiled and checked: what is tuned is not what these tests are about."""
    jitd.configure(mode="replay")


def truth_of(model, given):
    """The forward in float64."""
    exact = build(dtype=torch.float64, device="cuda")
    exact.load_state_dict(model.state_dict())
    return by_references(lambda: run(exact, widened(given)))


def work():
    """Compiles and tunes of this process so far."""
    return sum(jitd.stats().get(name, 0) for name in ("compiles", "tunes"))


def on_the_card(batch, dtype):
    return build(dtype=dtype, device="cuda"), inputs(BATCHES[batch], dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_a_small_model_is_as_exact_as_eager(dtype, batch):
    """In every dtype, for samples alike and not, kernels answer each call, and the model is as near
    to float64 as it is without them.
    """
    model, given = on_the_card(batch, dtype)
    outs = run(model, given)
    assert answered_by_kernels()
    hold(outs, by_references(lambda: run(model, given)), truth_of(model, given))


@pytest.mark.diffusers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_as_exact_as_diffusers(dtype, batch):
    """With the same weights the model is as near to float64 as diffusers' on the same card."""
    diffusers = pytest.importorskip("diffusers")
    model, given = on_the_card(batch, dtype)
    theirs = diffusers.ZImageTransformer2DModel(**BASE).to("cuda", dtype).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    outs = run(model, given)
    assert answered_by_kernels()
    with torch.no_grad():
        (expected,) = theirs(**given, return_dict=False)
    hold(outs, expected, truth_of(model, given))


@pytest.mark.parametrize("captions", [[32], [512, 32]], ids=["4128 tokens", "4608, guided"])
def test_a_block_of_real_size(captions):
    """One block of each kind at real width and length asks for what was recorded on meta, has all
    of it answered by kernels, and gives what it gives without them.
    """

    def forward(device="cuda"):
        torch.manual_seed(0)
        how = {"dtype": torch.bfloat16, "n_layers": 1, "n_refiner_layers": 1}
        return run_image(REAL, captions, device=device, **how)

    with jitd.record() as asked:
        outs = forward()
    assert answered_by_kernels()
    with jitd.record() as on_meta:
        forward("meta")
    assert asked.counts == on_meta.counts
    near(outs, by_references(forward))


@pytest.mark.parametrize(
    ("mode", "lengths"), [("replay", CAPTIONS[::-1]), ("tune", (480, 384, 288))]
)
def test_nothing_is_compiled_after_the_first_length_of_a_bucket(mode, lengths, cold):
    """Captions of all sixteen lengths, longest first: after the first length of each bucket nothing
    is compiled or tuned, and kernels answer every call. The same with tuned configs, in one bucket.
    """
    jitd.configure(mode=mode)
    model = build(dtype=torch.bfloat16, device="cuda", **SIXTEEN)
    seen: set[tuple[str, int]] = set()
    for length in lengths:
        tokens = 32 + length  # the image's 24 are filled up
        buckets = {("both", (tokens - 1).bit_length()), ("caption", (length - 1).bit_length())}
        before = work()
        run(model, inputs((((8, 12), length),), dtype=torch.bfloat16, device="cuda"))
        assert work() == before or buckets - seen, length
        seen |= buckets
    assert work() > 0
    assert answered_by_kernels()


@pytest.mark.parametrize(("dynamic", "graphs"), [(None, 2), (True, 1)])
def test_sixteen_lengths_under_torch_compile(dynamic, graphs, c_compiler):
    """Captions of all lengths need one graph of Inductor's, two where Dynamo first tries a fixed
    length; kernels answer. Without the padding of matrix products, which in torch 2.11 asks whether
    one is large enough to be worth it, and compiles again for the other answer.
    """
    torch.compiler.reset()
    counters.clear()
    model = build(dtype=torch.bfloat16, device="cuda", **SIXTEEN)
    options = {"shape_padding": False}
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, options=options)
    for length in (*CAPTIONS, 33, 77):
        given = inputs((((8, 12), length),), dtype=torch.bfloat16, device="cuda")
        near(run(compiled, given), run(model, given), 2e-2)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert answered_by_kernels()


def test_in_a_graph():
    """A forward is captured in a CUDA graph; on other latents its replay gives what a call does."""
    model, given = on_the_card("three", torch.bfloat16)
    run(model, given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = run(model, given)
    for latents in given["x"]:
        latents.normal_(generator=torch.Generator("cuda").manual_seed(5))
    graph.replay()
    assert answered_by_kernels()
    for out, want in zip(outs, run(model, given), strict=True):
        assert torch.equal(out, want)


def test_with_cuda_graphs_of_inductor(c_compiler):
    """mode="reduce-overhead" gives what eager does, and kernels answer."""
    torch.compiler.reset()
    model, given = on_the_card("captions of two lengths", torch.bfloat16)
    wanted = run(model, given)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        outs = [out.clone() for out in run(compiled, given)]
    assert answered_by_kernels()
    near(outs, wanted, 2e-2)
