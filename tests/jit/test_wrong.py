"""Known-wrong kernels have to be refused: here in Triton's interpreter, in tests/gpu on a card.

The package `wrong` holds them; each has one fault that a kernel may well have.
"""

import re

import pytest
import torch
from jitd.autotune.verify import check, expect, pooled
from jitd.jit.binary import binary_of
from jitd.jit.device import stand_in
from jitd.jit.inputs import make_inputs, sample_kinds
from jitd.jit.interpret import Interpreted
from jitd.jit.sign import TensorSpec
from wrong.ops import (
    HAZARD,
    HAZARD_CALL,
    NORM,
    RACING,
    REFUSED,
    RIGHT,
    norm_call,
    norm_config,
    partly_full,
)

interpreter = pytest.mark.interpreter
DEVICE = stand_in("sm_90")
CALL = norm_call(4, 128)  # two full tiles a row
DRAWS = 4  # to learn how wrong eager usually is
WAIT_S = 240.0


def reason(kernel, call, kind):
    """What the verifier says of a kernel on inputs of a kind; empty if the kernel is right."""

    def reference(x, w):
        return NORM.reference(x, w, call.eps)

    def truth(x, w):
        return reference(x.double(), w.double())

    def make(generator):
        return make_inputs(NORM, call, "cpu", generator, kind)

    generator = torch.Generator().manual_seed(0)
    drawn = [expect(reference, truth, make, generator=generator) for _ in range(DRAWS)]
    run = Interpreted(NORM, call, norm_config(kernel))
    return check(run, pooled(drawn)[0], bound=NORM.bound).reason


def reasons(kernel, call, probes=()):
    """What it says of all kinds of inputs, and of normal ones at the probes, as in a tune."""
    found = [reason(kernel, call, kind) for kind in sample_kinds(NORM, call)]
    return [why for why in (*found, *(reason(kernel, p, "normal") for p in probes)) if why]


@interpreter
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_pass(kernel, dtype):
    """What is right passes on every kind of inputs, at full tiles and at partly full ones."""
    call = norm_call(4, 128, dtype)
    assert reasons(kernel, call, NORM.probes(call)) == []


@interpreter
@pytest.mark.parametrize("kernel", [*REFUSED, "apply_without_waiting"])
def test_wrong_kernels_are_refused(kernel):
    """Every fault that does not depend on who comes first is found, and called by its name."""
    expected = {**REFUSED, **RACING}[kernel]
    found = reasons(kernel, CALL, NORM.probes(CALL))
    assert found
    for why in found:
        assert re.search(expected, why), why


TAIL = [
    "misses_the_tail",
    "sums_no_tail",
    "miscounts_the_tail",
    "reads_past_the_end",
    "writes_past_the_end",
]


@interpreter
@pytest.mark.parametrize("kernel", TAIL)
def test_only_probes_show_faults_of_the_tail(kernel):
    """At full tiles, which a bucket's largest call has, such a kernel is right by any measure."""
    assert reasons(kernel, CALL) == []
    for probe in partly_full(CALL):
        assert reason(kernel, probe, "normal")


@interpreter
@pytest.mark.parametrize(
    ("kernel", "kind", "dtype"),
    [
        ("cancels", "shifted", "fp32"),
        ("squares_in_fp16", "huge", "bf16"),
        ("ignores_eps", "tiny", "fp16"),
        ("takes_another_eps", "tiny", "bf16"),
        ("drops_nan", "special", "fp32"),
    ],
)
def test_every_kind_of_inputs_is_needed(kernel, kind, dtype):
    """For each kind there is a wrong kernel that no other kind gives away."""
    call = norm_call(4, 128, dtype)
    found = {kind for kind in sample_kinds(NORM, call) if reason(kernel, call, kind)}
    assert found == {kind}


@interpreter
def test_the_good_config_of_hazard_is_right():
    """What a tune of it has to find is there."""
    x = torch.randn(1500)
    call = HAZARD_CALL.replace(x=TensorSpec("fp32", (1500,)))
    assert torch.equal(Interpreted(HAZARD, call)(x), 2 * x)


@pytest.mark.compiler
def test_all_of_them_compile(pools):
    """Each kernel of the package compiles for a real card, the ones included that hang or crash."""
    calls = [norm_call(512, 1024, dtype) for dtype in ("fp32", "bf16")]
    wanted = []
    for op, call in [*((NORM, call) for call in calls), (HAZARD, HAZARD_CALL)]:
        kept, dropped = op.configs(call, DEVICE)
        assert dropped == []
        for config in kept:
            plan = config.plan(call, DEVICE)
            tensors = {
                **call.tensors,
                **plan.outputs,
                **{name: workspace.spec for name, workspace in plan.workspaces.items()},
            }
            wanted += [binary_of(launch, tensors, "sm_90", "") for launch in plan.launches]
    pool = pools(2)
    futures = [pool.submit(binary) for binary in {b.key.digest: b for b in wanted}.values()]
    answers = [future.result(WAIT_S) for future in futures]
    assert {a["symbol"] for a in answers} >= {*RIGHT, *REFUSED, *RACING, "hangs", "crashes"}
    assert {a["scratch_pointers"] for a in answers} <= {0, 1, 2}
