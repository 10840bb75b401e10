"""The transformer on its kernels, in Triton's interpreter: every call of a forward has one."""

import jitd
import pytest
import torch

from .small import build, inputs, run

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("variant", ["base", "amplified"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("history", "batch"), [("all", 1), ("none", 1), ("short", 2)])
def test_as_exact_as_the_references(variant, dtype, history, batch):
    """Kernels answer every call of a forward, and it is as near to float64 as by the references."""
    given = inputs(history, dtype=dtype, batch=batch)
    model = build(variant, dtype=dtype, num_layers=1)
    out = run(model, given)
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
    jitd.configure(mode="off")
    exact = build(variant, num_layers=1).double()
    exact.load_state_dict(model.state_dict())
    wide = {name: v.double() if v.is_floating_point() else v for name, v in given.items()}
    truth, eager = run(exact, wide), run(model, given)
    assert (out.double() - truth).norm() <= 1.5 * (eager.double() - truth).norm() + 1e-6
