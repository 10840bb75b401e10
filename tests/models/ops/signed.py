"""Calls written as signatures: `rms_norm_modulate[bf16](2x6x32, scale=3x32, index=i64 2x6)`.

Also used by tests/gpu.
"""

import torch
from jitd.autotune.verify import Bound, verify
from jitd.jit.check import arguments
from jitd.jit.inputs import make_inputs
from jitd.jit.op import OPS
from jitd.models import catalog

catalog.declare_ops()


def signed(text):
    """(op, call) of a printed signature."""
    op = OPS[text.partition("[")[0]]
    return op, op.parse(text).call


def tensors_of(text, *, device="cpu", seed=0, kind="normal"):
    """Random tensors for the call, in its layouts."""
    op, call = signed(text)
    return make_inputs(op, call, device, torch.Generator(device).manual_seed(seed), kind)


def made_exact(tensors):
    """Make the streams whole numbers and the rest halves, in place: a sum of squares is then exact
    in whatever order it is taken, so that a norm has eager's statistics."""
    for number, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            whole = number == 0 or tensor.shape == tensors[0].shape
            tensor.copy_((tensor * 2).round() / (1 if whole else 2))


def made_balanced(x):
    """Make the rows of a stream of few distinct values whose sum is zero, in place: no mean or
    deviation then moves a result across a rounding to 16 bits, whatever the order of its sum."""
    half = x.shape[-1] // 2
    values = (x[..., :half] * 2).round() + 0.5
    x[..., :half] = values
    x[..., half : 2 * half] = -values
    x[..., 2 * half :] = 0


def ulps_apart(got, want):
    """The largest difference, in ulps of what was wanted; of 1 where that is less than 1."""
    ulp = torch.finfo(want.dtype).eps * torch.exp2(want.double().abs().clamp(min=1).log2().floor())
    return float(((got.double() - want.double()).abs() / ulp).max())


def reference(text, *tensors):
    """Eager's answer."""
    return answer(signed(text)[0].reference, text, *tensors)


def answer(function, text, *tensors):
    """What `function` makes of the call with these tensors."""
    args, kwargs = arguments(*signed(text), tensors)
    return function(*args, **kwargs)


def truth(text, *tensors):
    """The same in float64."""
    return reference(text, *(t.double() if t.is_floating_point() else t for t in tensors))


def verdict_of(text, runnable, *, device="cpu", bound=None, kind="normal"):
    """The verifier's verdict on a runnable for that call."""
    op, call = signed(text)
    return verify(
        runnable,
        lambda *tensors: reference(text, *tensors),
        lambda *tensors: truth(text, *tensors),
        lambda generator: make_inputs(op, call, device, generator, kind),
        generator=torch.Generator(device).manual_seed(0),
        bound=bound or op.bound,
    )


class Called:
    """An op's own function, as models call it, in the form that the verifier takes."""

    def __init__(self, function, text):
        self.function, self.text = function, text

    def into(self, inputs, outputs):
        results = answer(self.function, self.text, *inputs)
        for to, result in zip(outputs, several(results), strict=True):
            assert result.stride() == to.stride()
            to.copy_(result)


def several(results):
    """One result or many as a tuple."""
    return (results,) if isinstance(results, torch.Tensor) else tuple(results)


# Among few elements eager's worst, which sets the bound, may be much better than usual; and the
# interpreter cuts bf16 off where a GPU rounds.
LOOSE = Bound(factor=4.0, ulps=2.0)
