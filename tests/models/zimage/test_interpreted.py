"""The transformer on its kernels, in Triton's interpreter: every call of a forward has one."""

import jitd
import pytest
import torch

from .small import BATCHES, build, inputs, run

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", ["one", "three"])
def test_as_exact_as_the_references(dtype, batch):
    """Kernels answer every call of a forward, and it is as near to float64 as by the references."""
    given = inputs(BATCHES[batch], dtype=dtype)
    model = build(dtype=dtype, n_layers=1)
    outs = run(model, given)
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
    jitd.configure(mode="off")
    exact = build(dtype=torch.float64, n_layers=1)
    exact.load_state_dict(model.state_dict())
    wide = {
        "t": given["t"],
        "x": [latents.double() for latents in given["x"]],
        "cap_feats": [caption.double() for caption in given["cap_feats"]],
    }
    for out, eager, truth in zip(outs, run(model, given), run(exact, wide), strict=True):
        error, eagers_own = (out.double() - truth).norm(), (eager.double() - truth).norm()
        assert error <= 1.5 * eagers_own + 1e-6 * truth.norm(), (error, eagers_own)
