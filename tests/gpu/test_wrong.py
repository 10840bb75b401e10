"""Known-wrong kernels have to be refused on the card, races included; see tests/jit/test_wrong.py.

Those of the op `hazard`, which hang and crash, are not for a process that has other tests to run.
"""

import re

import pytest
from jitd.jit.tune import check
from wrong.ops import NORM, RACING, REFUSED, RIGHT, norm_call, norm_config

from .cases import WAIT_S

pytestmark = pytest.mark.gpu

ROWS, COLUMNS = 512, 1024  # sixteen full tiles a row; enough programs at once for races to show


def verdict(kernel, dtype, workers, builder, card):
    """The body of the check of a kernel's binaries, as a tune makes it."""
    call, config = norm_call(ROWS, COLUMNS, dtype), norm_config(kernel)
    binaries = builder.binaries(NORM, config.plan(call, card), call)
    artifacts = [future.result(WAIT_S) for future in [workers.submit(b) for b in binaries]]
    probes = builder.probes(NORM, call, config)
    assert len(probes) == 2
    return check(NORM, call, config, artifacts, card, probes)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_pass(kernel, dtype, workers, builder, card):
    """What is right passes on every kind of inputs and at the probes."""
    found = verdict(kernel, dtype, workers, builder, card)
    assert found["ok"], found["reason"]


@pytest.mark.parametrize("kernel", [*REFUSED, *RACING])
def test_wrong_kernels_are_refused(kernel, workers, builder, card):
    """Every fault is found, and called by its name."""
    found = verdict(kernel, "fp32", workers, builder, card)
    assert not found["ok"]
    assert re.search({**REFUSED, **RACING}[kernel], found["reason"]), found["reason"]


def test_squares_that_overflow_are_refused(workers, builder, card):
    """In bf16, where fp16 is precise enough for a square, it is not large enough."""
    found = verdict("squares_in_fp16", "bf16", workers, builder, card)
    assert not found["ok"]
    assert re.search(REFUSED["squares_in_fp16"], found["reason"]), found["reason"]
