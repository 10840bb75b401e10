"""Floats that vary from call to call: no key knows them, and every call gets its own."""

import struct
from types import SimpleNamespace

import jitd
import pytest
import torch
from jitd.jit.check import arguments
from jitd.jit.declare import Launch
from jitd.jit.dispatch import _dispatchers
from jitd.jit.errors import DeclarationError, LaunchError
from jitd.jit.scalars import Words
from jitd.jit.sign import Passed
from jitd.jit.task import pack_call, unpack_call
from outside.ops import FADE_KERNEL, fade
from torch import Tensor

X = torch.linspace(-2, 2, 1000)
VALUES = [(0.5, 0.25), (1.0, 0.0), (0.1, 1e-12), (-3.0, 2.0)]


def expected(late, early):
    late = torch.tensor(late, dtype=torch.float32).double()
    return (X.double() * late + early).float()


def test_one_entry_serves_every_value():
    """The table remembers a call once, whatever its scalars, and answers each with its own."""
    for late, early in VALUES:
        assert torch.equal(fade(X, late, early), expected(late, early))
    assert torch.equal(fade(X, early=0.5, late=2.0), expected(2.0, 0.5))
    assert len(_dispatchers["outside_fade"].table) == 1
    assert jitd.stats() == {"reference:cpu": len(VALUES) + 1}


def test_the_operator_of_torch_passes_them_too():
    """What torch's dispatcher calls, and what it has found in the table, uses the call's values."""
    for late, early in VALUES:
        out = torch.ops.jitd.outside_fade(X, late, early)
        assert torch.equal(out, expected(late, early))
    torch.library.opcheck(torch.ops.jitd.outside_fade.default, (X, 0.5, 0.25))


def test_whole_numbers_are_floats():
    """An int in the place of such a float is one."""
    assert torch.equal(fade(X, 2, 1), expected(2.0, 1.0))


def test_a_tensor_is_refused_before_it_is_read():
    """A tensor in the place of a float raises, also after floats: reading it waits for the GPU."""
    fade(X, 0.5)
    with pytest.raises(ValueError, match="late is a Tensor; allowed is a float"):
        fade(X, torch.tensor(0.5))
    with pytest.raises(ValueError, match="early is a str; allowed is a float"):
        fade(X, 0.5, "0.5")


def test_calls_hold_the_example():
    """In rules and plans a call has a stand-in, equal for all values and no number."""
    op = fade.op
    call = _dispatchers[op.name].call((X, 0.5, 0.25))
    assert call == _dispatchers[op.name].call((X, 7.0, 8.0)) == op.parse(str(op.sign(call))).call
    assert str(op.sign(call)) == "outside_fade[fp32](1000)"
    assert call.late == Passed("late", 0.75)
    with pytest.raises(TypeError):
        call.late * 2
    assert unpack_call(pack_call(call)) == call
    assert arguments(op, call, [X]) == ([X, 0.75, -0.3], {})


def binary_taking(*params):
    return SimpleNamespace(params=params)


LAUNCH = Launch(
    FADE_KERNEL, (1, 1, 1), {"early": Passed("early", -0.3), "late": Passed("late", 0.75), "n": 3}
)


def test_words_have_the_bits_of_the_type():
    """A value is packed as what the binary takes: a float for .f32, a double for .f64, in order."""
    binary = binary_taking(("early", "f64"), ("late", "f32"), ("n", "u32"))
    words = Words.of([LAUNCH], [binary], ["late", "early"])
    assert words.wanted == (("early", "f64"), ("late", "f32"))
    for late, early in VALUES:
        first, second = (struct.pack("<Q", word) for word in words.pack([late, early]))
        assert first == struct.pack("<d", early)
        assert second == struct.pack("<f", late) + bytes(4)
    assert words.examples == words.pack([0.75, -0.3])


def test_one_value_in_two_types():
    """Launches of one plan may want a value as float and as double, and one twice."""
    double, single = binary_taking(("early", "f64")), binary_taking(("early", "f32"))
    words = Words.of([LAUNCH, LAUNCH, LAUNCH], [double, single, double], ["early"])
    assert words.wanted == (("early", "f64"), ("early", "f32"))
    assert words.pack([0.5]) == words.pack([0.5])
    assert len(words.pack([0.5])) == 2


def test_what_cannot_be_passed_is_refused():
    """A parameter of another type, and a scalar that the op does not declare, raise LaunchError."""
    with pytest.raises(LaunchError, match=r"early is a \.b16; .* passed as f32 or f64"):
        Words.of([LAUNCH], [binary_taking(("early", "b16"))], ["early", "late"])
    with pytest.raises(LaunchError, match="late is given late, which is not among early"):
        Words.of([LAUNCH], [binary_taking(("late", "f32"))], ["early"])


@pytest.mark.parametrize(
    ("varies", "selects", "says"),
    [
        ({"nothing": 1.0}, (), "varies names .'nothing'."),
        ({"x": 1.0}, (), "varies names x, a tensor"),
        ({"late": 1.0}, ("late",), "varies names late, a float that selects code"),
    ],
)
def test_only_floats_that_select_nothing_vary(varies, selects, says):
    """Anything else cannot be left out of the keys."""

    def outside_refused(x: Tensor, late: float) -> Tensor: ...

    with pytest.raises(DeclarationError, match=says):
        jitd.op(
            variants=fade.op.variants, outputs=fade.op.outputs, cost=fade.op.cost, varies=varies,
            selects=selects,
        )(outside_refused)  # fmt: skip


@pytest.mark.interpreter
def test_kernels_get_the_values_of_the_call():
    """One prepared call computes with the scalars of each call, fp64 where the kernel has it."""
    for late, early in VALUES:
        torch.testing.assert_close(
            fade(X, late, early), expected(late, early), rtol=1e-6, atol=1e-7
        )
    assert jitd.stats() == {}
    assert len(_dispatchers["outside_fade"].table) == 1
