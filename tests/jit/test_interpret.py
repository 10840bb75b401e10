"""Plans in Triton's interpreter, on CPU tensors: an op from outside computes what it says."""

import jitd
import pytest
import torch
from outside.ops import scale

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1025), (2, 3, 5)])
def test_a_kernel_from_outside_runs(dtype, shape):
    """With JITD_INTERPRET=1 the kernel itself answers CPU tensors, and equals its reference."""
    x = torch.randn(shape, dtype=dtype)
    out = scale(x, 3.0)
    assert jitd.stats() == {}
    # The interpreter cuts bf16 off where a GPU rounds: one unit in the last place.
    ulp = 2.0**-7 if dtype is torch.bfloat16 else 0.0
    torch.testing.assert_close(out, (x.float() * 3.0).to(dtype), rtol=ulp, atol=0.0)
    assert out.stride() == x.stride()


def test_what_the_kernel_cannot_compute_is_the_references():
    """A call that no variant applies to is answered by the reference and counted."""
    x = torch.randn(4, dtype=torch.float64)
    assert torch.equal(scale(x, 3.0), (x.float() * 3.0).double())
    assert jitd.stats() == {"reference:unsupported": 1}


def test_another_scalar_is_another_launch():
    """Remembered launches keep their own scalars."""
    x = torch.randn(8)
    assert [scale(x, f)[0] / x[0] for f in (2.0, 4.0, 2.0)] == [2.0, 4.0, 2.0]


def test_compiled_functions_run_the_kernel_too():
    """torch.compile's node for the op runs the kernel."""
    x = torch.randn(8)
    compiled = torch.compile(lambda x: scale(x, 3.0) + 1, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), x * 3 + 1)
    assert jitd.stats() == {}
