"""The gates' kernels in Triton's interpreter, against the references: every way a gate can lie."""

import jitd
import pytest
import torch
from jitd.jit.declare import Config
from jitd.jit.interpret import Interpreted
from jitd.models.ops.gates import gate_residual, head_gate

from .cases import name_of
from .gate_cases import (
    GATES,
    HEADS,
    RESIDUAL,
    TOKENS,
    call_of,
    head_arguments,
    residual_arguments,
)

pytestmark = pytest.mark.interpreter

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPE = (2, 6, 40)


def kernel(op, args, params=None, **named):
    """What a config's kernels make of a call; the default's without `params`."""
    config = Config(op.variants[0], params) if params else None
    tensors = [a for a in args if a is not None]
    return Interpreted(op, call_of(op, args, **named), config)(*tensors)


def same(got, want):
    """Bit for bit, but for bf16, which the interpreter of Triton 3.6 cuts off instead of rounding:
    there each of at most two roundings may cost one place."""
    if want.dtype != BF16:
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    "dtype", [FP16, FP32, pytest.param(BF16, marks=pytest.mark.long)], ids=name_of
)
@pytest.mark.parametrize("rounding", ["each", "norm", "once"])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_has_eagers_bits(gate, rounding, dtype):
    """However the gate lies, kernel and reference agree bit for bit in `exact`."""
    args = residual_arguments(SHAPE, gate, dtype=dtype, chunk=True)
    same(kernel(RESIDUAL, args, rounding=rounding), RESIDUAL.reference(*args, rounding=rounding))


@pytest.mark.parametrize("gate_dtype", [FP16, FP32], ids=name_of)
@pytest.mark.parametrize("dtype", [FP16, FP32], ids=name_of)
@pytest.mark.parametrize("rounding", ["norm", "once"])
def test_a_gate_of_any_dtype(rounding, dtype, gate_dtype):
    """x and gate may differ in dtype where the product is not rounded."""
    args = residual_arguments(SHAPE, "frame", dtype=dtype, gate_dtype=gate_dtype)
    same(kernel(RESIDUAL, args, rounding=rounding), RESIDUAL.reference(*args, rounding=rounding))


@pytest.mark.parametrize("layout", TOKENS)
@pytest.mark.parametrize("gate", ["sample", "frame", "index"])
def test_tokens_may_lie_anywhere(gate, layout):
    """Slices, gaps, tokens before samples: read where they are, or copied first."""
    args = residual_arguments(SHAPE, gate, layout=layout)
    same(kernel(RESIDUAL, args), RESIDUAL.reference(*args))
    args = head_arguments(2, 6, 5, 8, layout=layout)
    torch.testing.assert_close(kernel(HEADS, args), HEADS.reference(*args), rtol=1e-6, atol=0)


@pytest.mark.parametrize("params", [
    {"ROWS": 1, "BLOCK": 128, "num_warps": 4}, {"ROWS": 4, "BLOCK": 128, "num_warps": 4},
    {"ROWS": 8, "BLOCK": 512, "num_warps": 8},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 9, 130), (1, 13, 513)], ids=str)
def test_tiles_that_are_not_full(shape, params):
    """Odd numbers of samples, tokens and channels, in one tile or several; guards around x and y
    are not read."""
    for gate in ("sample", "token", "index"):
        args = residual_arguments(shape, gate)
        same(kernel(RESIDUAL, args, params), RESIDUAL.reference(*args))


def test_an_expanded_gate_and_an_expanded_index():
    """A gate and an index of one row seen by every token or sample, stride 0."""
    x, y, gate, index = residual_arguments(SHAPE, "index")
    args = [x, y, gate, index[:1].expand(2, 6)]
    same(kernel(RESIDUAL, args), RESIDUAL.reference(*args))
    args = [x, y, gate[:1, None].expand(SHAPE), None]
    same(kernel(RESIDUAL, args), RESIDUAL.reference(*args))


def test_fast_rounds_once():
    """`fast` rounds the sum only: it is the float64 value rounded, where `exact` is eager's."""
    args = residual_arguments(SHAPE, dtype=FP16)
    truth = RESIDUAL.reference(*[a if a is None else a.double() for a in args]).half()
    fast = kernel(RESIDUAL, args, numerics="fast")
    assert torch.equal(fast, truth)
    assert not torch.equal(fast, RESIDUAL.reference(*args))


@pytest.mark.parametrize("dtype", [FP16, FP32, BF16], ids=name_of)
@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "tile"),
    [(3, 4, 8, 1024), (5, 3, 5, 1024), (7, 1, 33, 1024), (2, 5, 1, 2048), (40, 8, 64, 1024)],
)
def test_heads_are_gated(tokens, heads, head_dim, tile, numerics, dtype):
    """Each head is scaled by its own logit, in one tile or several, whatever the head's width."""
    args = head_arguments(2, tokens, heads, head_dim, dtype=dtype)
    got = kernel(HEADS, args, {"TILE": tile, "num_warps": 4}, numerics=numerics)
    want = HEADS.reference(*args)
    rtol = {FP32: 5e-7, FP16: 2**-9, BF16: 2**-6}[dtype]
    torch.testing.assert_close(got, want, rtol=rtol, atol=1e-7)


def test_large_logits_and_no_numbers():
    """The sigmoid saturates at 0 and 1 without NaN, and a NaN or Inf goes where eager puts it."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([1.0, -2.0, inf, nan]).repeat(1, 1, 6)
    logits = torch.tensor([[[200.0, -200.0, inf, -inf, nan, 0.0]]])
    got, want = kernel(HEADS, [x, logits]), HEADS.reference(x, logits)
    torch.testing.assert_close(got, want, equal_nan=True)


def test_called_as_models_call_them():
    """The ops themselves answer by a kernel, gaps between their tensors included."""
    args = residual_arguments(SHAPE, "index")
    same(gate_residual(*args), RESIDUAL.reference(*args))
    args = head_arguments(2, 6, 5, 8)
    torch.testing.assert_close(head_gate(*args), HEADS.reference(*args))
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
