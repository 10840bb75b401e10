"""The arithmetic of the bound."""

import math

import pytest
import torch
from jitd.autotune.bound import Bound, EagerError, _ulp, deviation, eager_error

EXACT = EagerError(largest=0.0, rms=0.0, rms_ulp=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_ulp_is_the_distance_to_the_next_number(dtype):
    """At powers of two, between them, below zero and far down, it is what nextafter steps."""
    values = torch.tensor([1.0, 1.5, 1.99, 2.0, -3.0, 1000.0, 1e-3], dtype=dtype)
    away = torch.nextafter(values, values.sign() * math.inf)
    expected = (away.double() - values.double()).abs()
    assert torch.equal(_ulp(values.double(), dtype), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_below_the_normal_numbers_the_ulp_stays(dtype):
    """Zero and subnormals have the spacing of the smallest normal number."""
    kind = torch.finfo(dtype)
    values = torch.tensor([0.0, kind.smallest_normal / 8, kind.smallest_normal]).double()
    assert _ulp(values, dtype).tolist() == [kind.smallest_normal * kind.eps] * 3


def test_eager_error_is_its_distance_from_the_truth():
    """Largest and rms error over the finite elements, whatever the size of a chunk."""
    truth = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan], dtype=torch.float64)
    eager = torch.tensor([1.0, 2.5, 3.0, 4.0, math.nan])
    for chunk in (1, 2, 5, 100):
        error = eager_error(eager, truth, chunk)
        assert (error.largest, error.rms) == (0.5, 0.25)


def test_a_truth_with_gaps_is_refused():
    """Where the truth is NaN and eager is not, nothing could be checked: the truth is at fault."""
    with pytest.raises(ValueError, match="not finite at 1 elements"):
        eager_error(torch.ones(2), torch.tensor([1.0, math.nan]).double(), 8)


def test_one_ulp_is_allowed_where_eager_is_exact():
    """A correctly rounded neighbour passes, two steps away does not."""
    truth = torch.full((64,), 1.0, dtype=torch.float64)
    eager = truth.bfloat16()
    for steps, fault in ((1, False), (2, True)):
        result = eager.clone()
        result[5] += steps * 2**-7
        found = deviation(result, eager, truth, own=EXACT, bound=Bound(), chunk=16)
        assert bool(found.fault) == fault
        assert found.largest == steps * 2**-7
    assert "element 5 is 1.01562 instead of 1, off by 0.0156, allowed 0.00781" in found.fault


def test_small_elements_gain_nothing_from_large_ones():
    """With an exact eager the allowance of an element is its own ulp."""
    truth = torch.tensor([1024.0, 1.0], dtype=torch.float64)
    result = torch.tensor([1024.0, 1.5], dtype=torch.bfloat16)
    found = deviation(result, truth.bfloat16(), truth, own=EXACT, bound=Bound(), chunk=8)
    assert "element 1" in found.fault


def test_the_rms_refuses_what_the_maximum_lets_pass():
    """One large element with a large error must not license errors everywhere."""
    truth = torch.ones(4096, dtype=torch.float64)
    truth[0] = 1000.3
    eager = truth.bfloat16()
    own = eager_error(eager, truth, 4096)
    result = eager.clone()
    result[1:] += 0.25
    found = deviation(result, eager, truth, own=own, bound=Bound(), chunk=1000)
    assert own.largest > 0.25
    assert found.fault.startswith("rms error 0.25")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", ["result", "eager"])
def test_nan_and_inf_have_to_be_where_eager_has_them(value, at):
    """Swallowed and invented ones are both counted, as is an infinity of the other sign."""
    truth = torch.ones(8, dtype=torch.float64)
    eager, result = torch.ones(8), torch.ones(8)
    {"result": result, "eager": eager}[at][3] = value
    found = deviation(result, eager, truth, own=EXACT, bound=Bound(), chunk=3)
    assert found.fault == "NaN or Inf differ from the reference's at 1 elements"
    eager[3], result[3] = math.inf, -math.inf
    assert deviation(result, eager, truth, own=EXACT, bound=Bound(), chunk=3).fault


def test_nan_and_inf_in_the_same_places_are_right():
    """They count in no error."""
    truth = torch.tensor([1.0, math.nan, math.inf, -math.inf], dtype=torch.float64)
    own = eager_error(truth.float(), truth, 3)
    found = deviation(truth.float(), truth.float(), truth, own=own, bound=Bound(), chunk=3)
    assert (found.fault, found.largest, own.largest) == ("", 0.0, 0.0)


def test_the_chunk_does_not_change_the_answer():
    """Any chunk size gives the same worst element and the same sums, up to rounding."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1000, generator=generator, dtype=torch.float64)
    eager = truth.bfloat16()
    result = (truth * 1.02).bfloat16()
    own = eager_error(eager, truth, 1000)
    faults = {
        deviation(result, eager, truth, own=own, bound=Bound(), chunk=chunk).fault
        for chunk in (7, 128, 1000, 4096)
    }
    assert len(faults) == 1
    assert faults.pop()


def test_a_wider_bound_can_be_asked_for():
    """Tests of whole modules may allow more than an op is allowed."""
    truth = torch.full((8,), 1.0, dtype=torch.float64)
    result = truth.bfloat16() + 2**-6
    eager = truth.bfloat16()
    narrow = deviation(result, eager, truth, own=EXACT, bound=Bound(), chunk=8)
    wide = deviation(result, eager, truth, own=EXACT, bound=Bound(ulps=2.0), chunk=8)
    assert narrow.fault
    assert not wide.fault
