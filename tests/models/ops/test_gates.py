"""The gates' references: eager's bits in every form, the strides that all ways share, refusals."""

import jitd
import pytest
import torch
from jitd.models.ops.gates import gate_residual, head_gate
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import laid_out, name_of, on_meta
from .gate_cases import (
    DTYPES,
    GATES,
    HEADS,
    RESIDUAL,
    TOKENS,
    call_of,
    eager_heads,
    eager_residual,
    head_arguments,
    residual_arguments,
)

BF16, FP32 = torch.bfloat16, torch.float32
FUNCTIONS = {RESIDUAL.name: gate_residual, HEADS.name: head_gate}


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rounding", ["each", "norm", "once"])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_eagers_row_by_row(gate, rounding, dtype):
    """However the gate lies, each token is scaled by its own row, rounded as a model's chain is."""
    args = residual_arguments((2, 6, 8), gate, dtype=dtype)
    got = gate_residual(*args, rounding=rounding)
    assert torch.equal(got, eager_residual(*args, rounding))
    assert jitd.stats() == {"reference:cpu": 1}


def test_an_fp32_gate_rounds_once_beside_bf16():
    """Helios' gates are fp32: the sum is rounded, the product is not."""
    args = residual_arguments((2, 6, 8), dtype=BF16, gate_dtype=FP32)
    got = gate_residual(*args, rounding="once")
    assert got.dtype == BF16
    assert torch.equal(got, eager_residual(*args, "once"))
    assert not torch.equal(got, eager_residual(*[a if a is None else a.to(BF16) for a in args]))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 8), (3, 5), (1, 16), (6, 1)])
def test_heads_are_gated_as_eager_does(heads, head_dim, dtype):
    """Twice the sigmoid of a head's logit scales each of its channels, with eager's bits."""
    args = head_arguments(2, 3, heads, head_dim, dtype=dtype)
    assert torch.equal(head_gate(*args), eager_heads(*args))


def test_logits_of_zero_change_nothing():
    """A gate that has learnt nothing leaves x as it is, bit for bit."""
    x, logits = head_arguments(2, 3, 4, 8, dtype=BF16)
    assert torch.equal(head_gate(x, torch.zeros_like(logits)), x)


def every_call():
    for layout in TOKENS:
        for gate in GATES:
            yield RESIDUAL, residual_arguments((2, 6, 8), gate, layout=layout, chunk=True)
        yield HEADS, head_arguments(2, 6, 3, 8, layout=layout)


def test_all_ways_give_contiguous_memory():
    """Reference, meta, fake and torch's operator agree on shape, dtype and strides: contiguous."""
    for op, args in every_call():
        function = FUNCTIONS[op.name]
        want = laid_out(args[0].contiguous())
        assert laid_out(function(*args)) == want
        meta = [a if a is None else on_meta(a) for a in args]
        assert laid_out(function(*meta)) == want
        assert laid_out(getattr(torch.ops.jitd, op.name)(*args)) == want
        with FakeTensorMode() as mode:
            fakes = [a if a is None else mode.from_tensor(a) for a in args]
            assert laid_out(function(*fakes)) == want


def test_signatures_read_back():
    """A signature prints, reads back as the same call, and prints again as it was."""
    for op, args in every_call():
        for numerics in ("exact", "fast"):
            signature = op.sign(call_of(op, args, numerics=numerics))
            assert op.parse(str(signature)).call == signature.call
            assert str(op.parse(str(signature))) == str(signature)


@pytest.mark.parametrize("gate", ["sample 3d", "frame", "index"])
def test_opcheck_of_a_residual(gate):
    """torch's own checks of an operator pass: schema, autograd, fake tensors, symbolic tracing."""
    args = residual_arguments((2, 6, 8), gate)
    torch.library.opcheck(torch.ops.jitd.gate_residual.default, tuple(args))
    args[:3] = [a.requires_grad_() for a in args[:3]]
    torch.library.opcheck(torch.ops.jitd.gate_residual.default, tuple(args))


def test_opcheck_of_heads():
    """The same for the gate of heads."""
    args = tuple(head_arguments(2, 6, 3, 8, dtype=BF16))
    torch.library.opcheck(torch.ops.jitd.head_gate.default, args)


def of(*shape, dtype=FP32):
    return torch.zeros(shape, dtype=dtype)


X, INDEX = of(2, 6, 8), of(2, 6, dtype=torch.int32)
REFUSED = {
    "x of two dimensions": ((of(6, 8), of(6, 8), of(8)), r"x is \(6, 8\); allowed is \(B, S, D\)"),
    "another y": ((X, of(2, 5, 8), of(8)), r"y is fp32 \(2, 5, 8\); allowed is x's"),
    "y of another dtype": ((X, X.bfloat16(), of(8)), r"y is bf16 .* allowed is x's fp32"),
    "another width": ((X, X, of(2, 1, 7)), r"gate is \(2, 1, 7\); allowed are .* D=8"),
    "batch": ((X, X, of(3, 1, 8)), r"gate is \(3, 1, 8\): a batch of 3 does not divide x's 2"),
    "batch of rows": ((X, X, of(3, 8)), r"gate is \(3, 8\): a batch of 3 does not divide"),
    "frames": ((X, X, of(2, 4, 8)), r"6 tokens do not divide into 4 frames"),
    "index too short": ((X, X, of(3, 8), INDEX[:, :5]), r"index is \(2, 5\); .* \(2, 6\)"),
    "index of one sample": ((X, X, of(3, 8), INDEX[:1]), r"index is \(1, 6\)"),
    "index of floats": ((X, X, of(3, 8), INDEX.float()), r"index is fp32; allowed are i32 and i64"),
    "mixed dtypes": ((X, X, of(8, dtype=BF16)), r"gate is bf16, x fp32; rounding='each'"),
    "an int gate": ((X, X, of(8, dtype=torch.int32)), r"gate is i32; allowed are bf16"),
    "an int x": ((X.int(), X.int(), of(8)), r"x is i32; allowed are bf16"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name):
    """Shapes and dtypes that make no sense raise ValueError with the value and what is allowed."""
    args, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        gate_residual(*args)


@pytest.mark.parametrize(("named", "says"), [
    ({"rounding": "twice"}, "rounding='twice'; allowed are each, norm, once"),
    ({"numerics": "quick"}, "numerics='quick'; allowed are exact, fast"),
])  # fmt: skip
def test_unknown_words_are_named(named, says):
    """A rounding or a numerics that there is not is refused with those there are."""
    with pytest.raises(ValueError, match=says):
        gate_residual(X, X, of(8), **named)


@pytest.mark.parametrize(("x", "logits", "says"), [
    (X, of(2, 6, 3), "8 channels do not divide into 3 heads"),
    (X, of(2, 5, 2), r"x is \(2, 6, 8\), logits \(2, 5, 2\)"),
    (X, of(2, 6), r"logits \(2, 6\); allowed are"),
    (X, of(2, 6, 2, dtype=BF16), "x is fp32, logits bf16"),
    (X, of(2, 6, 0), "into 0 heads"),
])  # fmt: skip
def test_logits_that_do_not_fit_are_named(x, logits, says):
    """Heads that do not divide the channels, other tokens or another dtype raise ValueError."""
    with pytest.raises(ValueError, match=says):
        head_gate(x, logits)


def test_nothing_in_nothing_out():
    """No tokens give no tokens."""
    assert gate_residual(of(2, 0, 8), of(2, 0, 8), of(8)).shape == (2, 0, 8)
    assert head_gate(of(0, 3, 8), of(0, 3, 2)).shape == (0, 3, 8)
