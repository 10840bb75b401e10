"""Poisoned outputs: aligned, shaped as asked, and telling."""

import pytest
import torch
from jitd.autotune.poison import GUARD_ELEMENTS, PATTERNS, flat, poisoned

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_an_output_looks_like_its_model(dtype):
    """Shape, strides, dtype are the model's, channels_last too; it is aligned like a fresh one."""
    model = torch.zeros(2, 3, 5, 7, dtype=dtype).to(memory_format=torch.channels_last)
    output = poisoned(model)
    assert output.tensor.shape == model.shape
    assert output.tensor.stride() == model.stride()
    assert output.tensor.dtype == dtype
    assert (output.tensor.data_ptr() - output._buffer.data_ptr()) % 512 == 0
    assert output.overrun() == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("second", [False, True])
def test_floats_are_poisoned_with_nan(dtype, second):
    """A kernel that adds to its output instead of writing it ends with NaN."""
    assert poisoned(torch.zeros(9, dtype=dtype), second).tensor.isnan().all()


@pytest.mark.parametrize("patterns", PATTERNS.values())
def test_the_two_patterns_differ(patterns):
    """No written value can look unwritten both times."""
    assert patterns[0] != patterns[1]


@pytest.mark.parametrize("at", [-1, 10, -GUARD_ELEMENTS, 10 + GUARD_ELEMENTS - 1])
def test_writing_beside_the_output_shows(at):
    """One element, right beside the output or at the end of a guard zone, is counted."""
    output = poisoned(torch.zeros(10))
    output._buffer.view(torch.float32)[GUARD_ELEMENTS + at] = 1.0
    assert output.overrun() == 1


def test_writing_the_output_does_not_count_as_an_overrun():
    """Filling all of it leaves the guard zones as they were, and the bits are what was written."""
    output = poisoned(torch.zeros(3, 4).t())
    output.tensor.copy_(torch.arange(12.0).view(3, 4).t())
    assert output.overrun() == 0
    assert output.bits().view(torch.float32).tolist() == list(range(12))


def test_an_empty_output_has_guards_only():
    """Nothing to write is no special case."""
    output = poisoned(torch.zeros(0, 4))
    assert output.tensor.shape == (0, 4)
    assert output.bits().numel() == 0


def test_flat_is_a_view_in_the_order_of_memory():
    """Permuted dense tensors flatten without a copy."""
    tensor = torch.arange(24).view(2, 3, 4)
    assert flat(tensor.permute(2, 0, 1)).data_ptr() == tensor.data_ptr()
    assert flat(tensor.permute(2, 0, 1)).tolist() == list(range(24))


@pytest.mark.parametrize("tensor", [torch.zeros(4, 8)[:, :4], torch.zeros(1, 4).expand(3, 4)])
def test_holes_and_overlaps_are_refused(tensor):
    """Strides that are not dense would be compared at the wrong places."""
    with pytest.raises(ValueError, match="not dense"):
        flat(tensor)
