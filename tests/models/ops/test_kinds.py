"""GroupNorm on every kind of inputs that a check uses: the reference serves, the kernels pass."""

import pytest
import torch
from jitd.autotune.verify import check, expect
from jitd.jit.declare import Config
from jitd.jit.inputs import make_inputs, sample_kinds

from .cases import ADD, SILU, made_call
from .test_interpreter import hold, named, runnable

KINDS = ("normal", "shifted", "huge", "tiny", "special")
BY_KIND = pytest.mark.parametrize("kind", KINDS)
OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)


def test_all_kinds_are_here():
    """No kind can be added that GroupNorm is not held to below."""
    assert sample_kinds(SILU, made_call(SILU, (1, 64, 8), 32)) == KINDS


class Reference:
    """Eager as a runnable."""

    def __init__(self, function):
        self.function = function

    def into(self, inputs, outputs):
        outputs[0].copy_(self.function(*inputs))


@OPS
@BY_KIND
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
def test_the_reference_can_be_checked_against(op, kind, dtype, layout):
    """The truth is finite wherever eager is, in every dtype; most groups are; and eager, which
    sets the bound, keeps it."""
    call = made_call(op, (2, 64, 4, 6, 8), 32, x=layout, dtype=dtype)

    def reference(*tensors):
        return op.reference(*tensors, 32, 1e-5)

    expected = expect(
        reference,
        lambda *tensors: reference(*(t.double() for t in tensors)),
        lambda generator: make_inputs(op, call, "cpu", generator, kind),
        generator=torch.Generator().manual_seed(0),
    )
    (answer,) = expected.answers
    finite = float(answer.flat.isfinite().float().mean())
    assert finite == (1.0 if kind != "special" else 61 / 64)
    assert check(Reference(reference), expected, bound=op.bound).reason == ""


@pytest.mark.interpreter
@OPS
@BY_KIND
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("variant", [v.name for v in SILU.variants])
def test_every_variant_passes_every_kind(op, kind, layout, variant):
    """The kernels themselves are within the bound, and NaN and Inf spread as in eager."""
    call = made_call(op, (1, 10, 2, 1, 3), 5, x=layout, dtype="fp32")
    for params in runnable(named(op, variant), call)[:1]:
        hold(op, call, Config(named(op, variant), params), kind)
