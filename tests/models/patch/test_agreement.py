"""How far a patched module may be from its stock forward."""

import pytest
import torch
from jitd.models.patch.agreement import TOLERANCE, agreement

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def _values(dtype=torch.float32, n=4096):
    """Normal numbers, a few of them hundreds of times as large."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[::512] *= 500
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_rounding_agrees(dtype):
    """Values that are one unit in the last place off, each up or down, use part of the bound."""
    x = _values(dtype)
    up = torch.nextafter(x, torch.full_like(x, torch.inf))
    down = torch.nextafter(x, torch.full_like(x, -torch.inf))
    found = agreement(torch.where(torch.arange(x.numel()) % 2 == 0, up, down), x)
    assert not found.fault and 0 < found.share < 1
    assert agreement(x.clone(), x).share == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_does_not(dtype):
    """Values that are all a few tolerances too large are refused."""
    x = _values(torch.float64)
    found = agreement((x * (1 + 4 * TOLERANCE[dtype])).to(dtype), x.to(dtype))
    assert found.share > 1 and "on average" in found.fault


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_element_does_not(dtype):
    """One element that is off by a tenth of the largest is refused, however right the others are,
    except where that is within what bf16 may do."""
    x = _values(dtype)
    o = x.clone()
    o[7] += 0.2 * x.abs().max()
    assert agreement(o, x).fault


def test_a_part_of_the_small_values_does_not():
    """Small values are held to their like, not to the few large ones: one in ten is missing."""
    x = _values(torch.bfloat16)
    o = torch.where((torch.arange(x.numel()) % 10 == 1) & (x.abs() < 10), 0, x)
    assert agreement(o, x).fault


@pytest.mark.parametrize(
    ("mine", "stock", "alike"),
    [
        ([1.0, torch.nan, torch.inf], [1.0, torch.nan, torch.inf], True),
        ([1.0, 2.0, torch.inf], [1.0, torch.nan, torch.inf], False),
        ([1.0, torch.nan, torch.inf], [1.0, 2.0, torch.inf], False),
        ([1.0, torch.nan, -torch.inf], [1.0, torch.nan, torch.inf], False),
    ],
)
def test_what_is_not_finite(mine, stock, alike):
    """NaN and Inf have to be where stock has them, sign included."""
    o, s = torch.tensor(mine), torch.tensor(stock)
    assert (agreement(o, s).fault == "") is alike


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (torch.ones(3), "float32 3 on cpu instead of float32 4 on cpu"),
        (torch.ones(4).double(), "float64 4 on cpu instead"),
        (None, "a NoneType instead of a tensor"),
        ((torch.ones(4),), "a tuple instead of a tensor"),
    ],
)
def test_other_kinds(mine, message):
    """Another shape, dtype or type is a fault that says both."""
    assert message in agreement(mine, torch.ones(4)).fault


def test_containers():
    """Tuples, lists and dicts are compared item by item, and the fault names the item."""
    x, y = torch.ones(2), torch.zeros(2)
    assert not agreement((x, {"a": [y, None]}), (x, {"a": [y, None]})).fault
    assert "result 1: result a: result 0" in agreement((x, {"a": [x]}), (x, {"a": [y]})).fault
    assert "1 results instead of 2" in agreement((x,), (x, y)).fault
    assert "a list instead of a tuple" in agreement([x], (x,)).fault
    assert agreement((x, 1), (x, 2)).fault == "result 1: 1 != 2"


def test_integers_and_bools():
    """Integers have to be equal."""
    assert not agreement(torch.arange(3), torch.arange(3)).fault
    assert agreement(torch.arange(3), torch.arange(3) + 1).fault == "3 elements differ"


def test_in_pieces(monkeypatch):
    """A tensor that is compared in pieces comes to the same, whatever its layout."""
    from jitd.models.patch import agreement as module  # noqa: PLC0415

    s = _values().view(1, 8, 64, 8)
    o = (s * 1.00001).transpose(1, 2).contiguous().transpose(1, 2)
    whole = agreement(o, s)
    monkeypatch.setattr(module, "_ELEMENTS", 100)
    pieces = agreement(o, s)
    assert pieces.share == pytest.approx(whole.share) and not pieces.fault
