"""Running a config by itself, and what counts as right. Shared by the tests here."""

import jitd
import torch
from jitd.autotune.verify import Bound, verify
from jitd.jit.launch import Executable, Loaded

from ..models.ops.cases import ADD, FUNCTIONS, SILU, arguments, call_of, made_call

__all__ = ["ADD", "FUNCTIONS", "SILU", "arguments", "call_of", "executable", "hold", "made_call"]

WAIT_S = 120.0
FEW_ELEMENTS = 20_000


class Called:
    """The op as a model calls it, in the form that the verifier takes."""

    def __init__(self, function, eps, named):
        self.function, self.eps, self.named = function, eps, named

    def into(self, inputs, outputs):
        outputs[0].copy_(self.function(*inputs, self.eps, **self.named))


def hold(op, make, *, eps=1e-5, numerics="exact"):
    """Hold the op, called with `make()`, to the verifier's bound of float64, and give the verdict.

    Among few elements eager's worst, which sets the bound, may be much better than usual.
    """
    args = make()

    def reference(*inputs):
        return op.reference(*inputs, eps)

    def truth(*inputs):
        return reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in inputs))

    few = args[0].numel() < FEW_ELEMENTS
    verdict = verify(
        Called(FUNCTIONS[op.name], eps, {"numerics": numerics}),
        reference,
        truth,
        lambda generator: make(),
        generator=torch.Generator(),
        bound=Bound(factor=4.0, ulps=2.0) if few else op.bound,
    )
    assert verdict.ok, verdict.reason
    assert answered_by_kernels()
    return verdict


def answered_by_kernels():
    """Whether no call was answered by a reference; if one was, the counters say why."""
    by_reference = {n: v for n, v in jitd.stats().items() if n.startswith("reference:")}
    print(*by_reference)
    return not by_reference


def executable(pool, builder, op, config, call):
    """A config of an op, compiled and loaded, as the op would run it for that call."""
    plan = config.plan(call, builder.device)
    futures = [pool.submit(binary) for binary in builder.binaries(op, plan, call)]
    loaded = [Loaded.load(future.result(WAIT_S), builder.device) for future in futures]
    return Executable(plan, loaded, call.tensors, builder.device).call()
