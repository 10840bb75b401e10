"""diffusers' Z-Image, patched, on the card: against itself as it was."""

import jitd
import pytest
import torch
from jitd.models.patch import patch
from jitd.models.zimage.presets import PRESETS, latent_shape
from torch._dynamo.utils import counters

from ..models.patch import tiny_zimage
from ..models.zimage.small import BATCHES, inputs
from .cases import answered_by_kernels
from .forwards import all_answered, hold, near
from .test_zimage import truth_of, work

pytestmark = [pytest.mark.gpu, pytest.mark.diffusers]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
REAL = PRESETS["1024"]  # 4096 tokens
OMNI = {"siglip_feat_dim": 20, "in_channels": 16}


@pytest.fixture(autouse=True)
def _defaults():
    """Default configs, compiled and checked: what is tuned is not what these tests are about."""
    jitd.configure(mode="replay")


def run(model, given):
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_as_exact_as_stock(dtype, batch):
    """In every dtype, for samples alike and not, a patched transformer is as near to float64 as it
    was; the second forward has its bits and compiles nothing.
    """
    model = tiny_zimage.transformer(dtype, "cuda")
    given = inputs(BATCHES[batch], dtype=dtype, device="cuda")
    stock = run(model, given)
    report = patch(model)
    outs = run(model, given)
    before = work()
    for out, again in zip(outs, run(model, given), strict=True):
        assert torch.equal(out, again)
    assert work() == before
    assert all_answered(report)
    hold(outs, stock, truth_of(model, given))


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-2), (torch.bfloat16, 2e-2)])
def test_images_that_are_given(dtype, share):
    """Rows of two timesteps and an index, in place of a scale and a gate of every token."""
    model, given = tiny_zimage.transformer(dtype, "cuda", **OMNI), tiny_zimage.omni(dtype, "cuda")
    stock = run(model, given)
    report = patch(model)
    near(run(model, given), stock, share)
    assert all_answered(report)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
def test_a_whole_pipeline(dtype, share):
    """Images of a patched pipeline are near the stock one's, and made again without a compile."""
    pytest.importorskip("transformers")
    made, given = tiny_zimage.pipeline(dtype=dtype, device="cuda")
    stock = tiny_zimage.generate(made, given)
    report = patch(made.transformer)
    images = tiny_zimage.generate(made, given)
    assert all_answered(report)
    near([images], [stock], share)
    before = work()
    near([tiny_zimage.generate(made, given)], [images])
    assert work() == before


@pytest.mark.parametrize("captions", [[32], [512, 32]], ids=["4128 tokens", "4608, guided"])
def test_blocks_of_real_size(captions, much_memory):
    """One block of each kind at real width and length, patched, is near itself."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = diffusers.ZImageTransformer2DModel(n_layers=1, n_refiner_layers=1)
        model = model.to(torch.bfloat16).eval()
        size = latent_shape(REAL)
        given = {
            "x": [torch.randn(16, 1, *size, dtype=torch.bfloat16) for _ in captions],
            "t": torch.full((len(captions),), 0.3),
            "cap_feats": [torch.randn(n, 2560, dtype=torch.bfloat16) for n in captions],
        }
    stock = run(model, given)
    report = patch(model)
    near(run(model, given), stock)
    assert all_answered(report)


@pytest.mark.parametrize("batch", ["one", "captions of two lengths"])
def test_repeated_blocks_compiled(batch, c_compiler):
    """Blocks compiled one by one, in one graph each, answer with kernels and, closely, with the
    values that they give without.
    """
    torch.compiler.reset()
    model = tiny_zimage.transformer(torch.bfloat16, "cuda")
    given = inputs(BATCHES[batch], dtype=torch.bfloat16, device="cuda")
    patch(model)
    wanted = run(model, given)
    counters.clear()
    model.compile_repeated_blocks(fullgraph=True, dynamic=True)
    near(run(model, given), wanted, 2e-2)
    assert not counters["graph_break"]
    assert answered_by_kernels()
