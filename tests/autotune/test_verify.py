"""The verifier: right runners it has to accept, and known-wrong ones it has to refuse.

The op is RMSNorm over the last dimension, in plain torch on the CPU. A runner is its formula;
`Runner` makes it write to the outputs it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from jitd.autotune.bound import Bound
from jitd.autotune.verify import check, expect, verify

ROWS, ROW = 37, 1536
EPS = 1e-6
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def reference(x, weight, eps):
    """Eager: statistics in float32, one rounding at the end."""
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (x.float() * rstd * weight.float()).to(x.dtype)


def truth(x, weight, eps):
    x, weight = x.double(), weight.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def inputs_in(dtype, rows=ROWS, row=ROW):
    """Normal rows, the last one so small that its eps counts."""

    def make(generator):
        x = torch.randn(rows, row, generator=generator)
        x[-1] *= 1e-3
        weight = torch.randn(row, generator=generator)
        return x.to(dtype), weight.to(dtype), EPS

    return make


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass
class Runner:
    """A formula whose result is copied to the given output."""

    formula: Callable[..., torch.Tensor]

    def into(self, inputs, outputs):
        outputs[0].copy_(self.formula(*inputs))


def judge(run, dtype=torch.bfloat16, make=None, **more):
    return verify(
        run, reference, truth, make or inputs_in(dtype), generator=seeded(), chunk=10_000, **more
    )


# Right ones ---------------------------------------------------------------------------------


def another_tree(x, weight, eps):
    """The same sums in blocks of 128, one after the other."""
    parts = x.float().square().unflatten(-1, (-1, 128)).sum(-1)
    total = torch.zeros_like(parts[..., 0])
    for part in parts.unbind(-1):
        total = total + part
    rstd = torch.rsqrt(total[..., None] / x.shape[-1] + eps)
    return (x.float() * rstd * weight.float()).to(x.dtype)


def another_association(x, weight, eps):
    """Statistics as above, the product taken in another order."""
    rstd = 1 / torch.sqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (weight.float() * rstd * x.float()).to(x.dtype)


def more_precise(x, weight, eps):
    return truth(x, weight, eps).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", [reference, another_tree, another_association, more_precise])
def test_right_runners_are_accepted(formula, dtype):
    """Eager itself, other orders of summation, and better arithmetic all pass in every dtype."""
    verdict = judge(Runner(formula), dtype)
    assert verdict.ok, verdict.reason
    assert verdict.reason == ""
    assert verdict.max_abs_error <= verdict.bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_does_not_flake(dtype):
    """Another order of summation passes on 40 different inputs, small ones too."""
    for seed in range(40):
        make = inputs_in(dtype, rows=1 + seed % 3, row=128 * (1 + seed % 4))
        verdict = verify(Runner(another_tree), reference, truth, make, generator=seeded(seed))
        assert verdict.ok, (seed, verdict.reason)


def test_the_verdict_has_the_numbers_for_the_record():
    """Errors, bound, differing bits, shapes and the precision of the truth are all there."""
    verdict = judge(Runner(reference))
    assert verdict.max_abs_error == verdict.eager_max_abs_error > 0
    assert verdict.differing == 0
    assert verdict.shapes == ((ROWS, ROW), (ROW,))
    assert verdict.truth == "float64"


# Known-wrong ones ---------------------------------------------------------------------------


def misses_the_tail(x, weight, eps):
    """Statistics over whole blocks of 1024 only."""
    whole = x.shape[-1] // 1024 * 1024
    rstd = torch.rsqrt(x[..., :whole].float().square().mean(-1, keepdim=True) + eps)
    return (x.float() * rstd * weight.float()).to(x.dtype)


def reads_another_eps(x, weight, eps):
    return reference(x, weight, 1e-5)


def sums_in_low_precision(x, weight, eps):
    """The running sum is kept in the dtype of the input."""
    total = torch.zeros_like(x[..., 0])
    for column in x.unbind(-1):
        total = total + column * column
    rstd = torch.rsqrt(total[..., None].float() / x.shape[-1] + eps)
    return (x.float() * rstd * weight.float()).to(x.dtype)


def forgets_the_weight_of_one_column(x, weight, eps):
    out = reference(x, weight, eps)
    out[:, 7] = reference(x, torch.ones_like(weight), eps)[:, 7]
    return out


def truncates_instead_of_rounding(x, weight, eps):
    """Drops the low bits of the float32 result and one bit more."""
    bits = truth(x, weight, eps).float().view(torch.int32) & ~0x1FFFF
    return bits.view(torch.float32).to(x.dtype)


WRONG = [
    misses_the_tail,
    reads_another_eps,
    sums_in_low_precision,
    forgets_the_weight_of_one_column,
    truncates_instead_of_rounding,
]


@pytest.mark.parametrize("formula", WRONG)
def test_wrong_formulas_are_refused(formula):
    """Each is the kind of slip that still looks plausible, and breaks the bound."""
    verdict = judge(Runner(formula))
    assert not verdict.ok
    assert "beyond the bound" in verdict.reason or "rms error" in verdict.reason
    assert verdict.differing > 0


def test_low_precision_sums_are_refused_in_float16():
    """Half precision has fewer of them to lose, and is noticed as well."""
    assert not judge(Runner(sums_in_low_precision), torch.float16).ok


def test_tf32_like_products_are_refused_in_float32():
    """A float32 op whose inputs were cut to ten bits of mantissa is far beyond its ulp."""

    def cut(x):
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)

    assert not judge(Runner(lambda x, w, eps: reference(cut(x), w, eps)), torch.float32).ok


class Racing:
    """Every second run has one other bit, as when two programs write one element."""

    runs = 0

    def into(self, inputs, outputs):
        outputs[0].copy_(reference(*inputs))
        self.runs += 1
        if self.runs % 2:
            outputs[0].view(torch.int16)[3, 5] ^= 1


def test_a_race_is_refused():
    """One bit that differs between two runs is enough, however small."""
    verdict = judge(Racing())
    assert verdict.reason == "output 0: 1 elements differ between two runs on the same inputs"
    assert verdict.max_abs_error is None


@dataclass
class WritesBeside:
    """A right result, and one element more before or behind it."""

    offset: int

    def into(self, inputs, outputs):
        (out,) = outputs
        out.copy_(reference(*inputs))
        at = out.storage_offset() + (self.offset if self.offset < 0 else out.numel())
        out.as_strided((1,), (1,), at).fill_(0)


@pytest.mark.parametrize("offset", [-1, 0])
def test_writing_beside_the_output_is_refused(offset):
    """A store without its mask lands in a guard zone, in both runs."""
    assert judge(WritesBeside(offset)).reason == "output 0: 2 elements written beside it"


class LeavesTheLastRow:
    def into(self, inputs, outputs):
        outputs[0][:-1].copy_(reference(*inputs)[:-1])


def test_unwritten_elements_are_refused():
    """Memory that happened to hold the right values would have hidden it."""
    assert judge(LeavesTheLastRow()).reason == (
        f"output 0: {ROW} of {ROWS * ROW} elements left unwritten"
    )


def with_special_values(dtype=torch.bfloat16):
    def make(generator):
        x, weight, eps = inputs_in(dtype)(generator)
        x[4, 9] = math.nan
        x[6, 2] = math.inf
        return x, weight, eps

    return make


def test_unwritten_elements_are_refused_where_the_truth_is_nan():
    """The poison is a NaN, too; that it is another one in the second run gives it away."""

    class LeavesTheNans:
        def into(self, inputs, outputs):
            result = reference(*inputs)
            outputs[0][~result.isnan()] = result[~result.isnan()]

    assert "left unwritten" in judge(LeavesTheNans(), make=with_special_values()).reason


def test_special_values_are_accepted_where_eager_has_them():
    """A row with a NaN is NaN, one with an Inf is zeros and a NaN, and the rest is compared."""
    verdict = judge(Runner(another_tree), make=with_special_values())
    assert verdict.ok, verdict.reason


def test_a_swallowed_nan_is_refused():
    """Cleaning up NaNs is not what eager does."""

    def swallows(x, weight, eps):
        return reference(x.nan_to_num(0.0), weight, eps)

    verdict = judge(Runner(swallows), make=with_special_values())
    assert "NaN or Inf differ from the reference's" in verdict.reason


def test_adding_to_the_output_is_refused():
    """A kernel that counts on zeros finds poison."""

    class Adds:
        def into(self, inputs, outputs):
            outputs[0].add_(reference(*inputs))

    assert not judge(Adds()).ok


def test_writing_to_an_input_is_refused_and_undone():
    """The next candidate finds the inputs as they were made."""

    class Spoils:
        def into(self, inputs, outputs):
            outputs[0].copy_(reference(*inputs))
            inputs[0][0, 0] = 0.0

    expected = expect(reference, truth, inputs_in(torch.bfloat16), generator=seeded())
    assert "an input was written to" in check(Spoils(), expected).reason
    assert check(Runner(reference), expected).ok


def test_what_a_runner_raises_is_raised():
    """The search makes an outcome of it; the verifier hides nothing."""

    def fails(x, weight, eps):
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        judge(Runner(fails))


# Shapes, outputs, truths --------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "row"), [(1, 128), (3, 131), (257, 7), (0, 8)])
def test_odd_prime_and_empty_shapes(rows, row):
    """A right runner passes at any size, nothing included."""

    def make(generator):
        x = torch.randn(rows, row, generator=generator)
        return x, torch.ones(row), EPS

    assert judge(Runner(more_precise), make=make).ok


def test_several_outputs_are_each_held_to_their_own_bound():
    """A fault names its output; a large error allowed in one is not allowed in the other."""

    def both(x):
        return (x.float() * 1000.1).to(x.dtype), (x.float() * 1.1).to(x.dtype)

    class Second:
        def into(self, inputs, outputs):
            first, second = both(*inputs)
            outputs[0].copy_(first)
            outputs[1].copy_(second + 0.25)

    verdict = verify(
        Second(),
        both,
        lambda x: (x.double() * 1000.1, x.double() * 1.1),
        lambda generator: (torch.randn(999, generator=generator).bfloat16(),),
        generator=seeded(),
    )
    assert verdict.reason.startswith("output 1: ")
    assert "output 0" not in verdict.reason


def test_integers_have_to_be_equal():
    """An output of indices has no tolerance."""

    def argmax(x):
        return x.argmax(-1)

    @dataclass
    class Indices:
        shift: int

        def into(self, inputs, outputs):
            outputs[0].copy_(argmax(*inputs) + self.shift)

    for shift, reason in ((0, ""), (1, "output 0: 9 elements differ from the reference's")):
        verdict = verify(
            Indices(shift),
            argmax,
            argmax,
            lambda generator: (torch.randn(9, 50, generator=generator),),
            generator=seeded(),
        )
        assert (verdict.ok, verdict.reason) == (not reason, reason)
        assert verdict.max_abs_error is None


def test_memory_formats_are_compared_element_by_element():
    """A channels_last output is checked in place, against a truth that is contiguous."""

    def double(x):
        return (x.float() * 2.2).to(x.dtype)

    def make(generator):
        x = torch.randn(2, 5, 3, 4, generator=generator).bfloat16()
        return (x.to(memory_format=torch.channels_last),)

    verdict = verify(
        Runner(double), double, lambda x: x.double().contiguous() * 2.2, make, generator=seeded()
    )
    assert verdict.ok, verdict.reason


def test_without_a_truth_the_reference_in_float32_serves():
    """For tensors too large for float64: right and wrong are told apart, the verdict says how."""

    def hold(formula):
        make = inputs_in(torch.bfloat16)
        return verify(Runner(formula), reference, None, make, generator=seeded())

    assert hold(another_tree).ok
    assert hold(another_tree).truth == "float32"
    assert not hold(misses_the_tail).ok


def test_a_float32_op_needs_a_float64_truth():
    """The reference in float32 would be held to itself."""
    with pytest.raises(ValueError, match="float64"):
        expect(reference, None, inputs_in(torch.float32), generator=seeded())


def test_a_truth_of_another_shape_is_refused():
    """Broadcasting must not make sense of it."""

    def flattened(x, weight, eps):
        return truth(x, weight, eps).flatten()

    with pytest.raises(ValueError, match="shape"):
        expect(reference, flattened, inputs_in(torch.bfloat16), generator=seeded())


def test_inputs_are_fresh_each_time():
    """The generator goes on, so a second check of the same run sees other values."""
    generator = seeded()
    first = expect(reference, truth, inputs_in(torch.float32), generator=generator)
    second = expect(reference, truth, inputs_in(torch.float32), generator=generator)
    assert not torch.equal(first.inputs[0], second.inputs[0])


def test_module_tests_may_widen_the_bound():
    """A looser bound accepts what the op's own refuses."""
    run = Runner(truncates_instead_of_rounding)
    assert not judge(run).ok
    assert judge(run, bound=Bound(factor=4.0, ulps=4.0)).ok
