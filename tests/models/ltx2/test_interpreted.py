"""The transformer on its kernels, in Triton's interpreter: every call of a block has one."""

import jitd
import pytest
import torch

from .small import build, inputs, run

pytestmark = pytest.mark.interpreter

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timesteps", ["sample", "token", "rows"])
def test_as_exact_as_the_references(variant, dtype, timesteps):
    """Kernels answer every call of a forward, and it is as near to float64 as by the references."""
    given = inputs(variant, dtype=dtype, timesteps=timesteps)
    model = build(variant, dtype=dtype, num_layers=1)
    outs = run(model, given)
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
    jitd.configure(mode="off")
    exact = build(variant, dtype=torch.float64, num_layers=1)
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    floats = {
        k: v.double() for k, v in given.items() if torch.is_tensor(v) and v.is_floating_point()
    }
    truths, eagers = run(exact, given | floats), run(model, given)
    for out, eager, truth in zip(outs, eagers, truths, strict=True):
        error, eagers_own = (out.double() - truth).norm(), (eager.double() - truth).norm()
        assert error <= 1.5 * eagers_own + 1e-6 * truth.norm(), (error, eagers_own)
