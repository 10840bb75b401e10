"""Kernels of guidance and steps in Triton's interpreter, against the references."""

import jitd
import pytest
import torch
from jitd.jit.declare import Config
from jitd.jit.interpret import Interpreted

from .cases import name_of
from .denoising_cases import (
    FUNCTIONS,
    PAIRS,
    ROWS,
    SCALES,
    SUBSETS,
    branches,
    tensors,
)
from .signed import answer, reference, signed, tensors_of

pytestmark = pytest.mark.interpreter

FP16, FP32, FP64 = torch.float16, torch.float32, torch.float64
combine, x0_of, euler, midpoint, step = FUNCTIONS.values()


def close(got, want):
    """Within the rounding of two standard deviations, of their quotient and of what follows."""
    eps = torch.finfo(want.dtype).eps
    torch.testing.assert_close(got, want, rtol=4 * eps, atol=1e-6 * eps)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=name_of)
@pytest.mark.parametrize("present", SUBSETS, ids=str)
def test_every_subset_of_branches(present, dtype):
    """Not rescaled bit for bit, rescaled to the rounding of two sums; velocities or predictions."""
    given, x = branches(present, dtype=dtype), tensors(5, dtype=dtype)[4]
    for latents in (None, x, x.float()):
        args = [*given, latents]
        how = {**SCALES, "sigma": 0.6}
        assert torch.equal(combine(*args, **how), combine.op.reference(*args, **how))
        close(combine(*args, rescale=0.7, **how), combine.op.reference(*args, rescale=0.7, **how))
    assert jitd.stats() == {}


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 37), (2, 37)], ids=str)
def test_sigmas_by_token(shape):
    """Of all, of a sample, of each token, in any strides."""
    v, other, x = tensors(3)
    for sigmas in (torch.rand(shape), torch.rand(*shape, 2)[..., 0]):
        assert torch.equal(x0_of(x, v, sigmas=sigmas), x0_of.op.reference(x, v, sigmas=sigmas))
        args = (v, other, None, None, x, sigmas)
        want = combine.op.reference(*args, cfg=3.0, rescale=0.7)
        close(combine(*args, cfg=3.0, rescale=0.7), want)


@pytest.mark.parametrize("elements", [(1, 1, 7), (1, 5, 128), (3, 171, 8), (1, 4096, 1)], ids=str)
def test_tiles_that_are_not_full(elements):
    """Odd numbers of elements, several parts of several tiles; what lies beside is not read."""
    shape = "x".join(map(str, elements))
    for rescale in ("", ", rescale=0.7"):
        text = f"guidance_combine[fp32]({shape}, perturbed=none{rescale})"
        given = tensors_of(text)
        op, call = signed(text)
        want = reference(text, *given)
        close(answer(combine, text, *given), want)
        if rescale:
            small = Config(op.variants[0], {"PARTS": 32, "BLOCK": 512, "num_warps": 4})
            close(Interpreted(op, call, small)(*given, 3.0, 1.25, 2.5, 0.725), want)


def test_a_mean_far_from_zero():
    """64 standard deviations from zero the spread is still right: nothing is squared before the
    mean is taken away."""
    text = "guidance_combine[fp32](1x64x128, perturbed=none, modality=none, rescale=1.0)"
    given = tensors_of(text, kind="shifted")
    close(answer(combine, text, *given), reference(text, *given))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("branch", [0, 1])
def test_what_is_no_number_spreads(branch, value):
    """One NaN or Inf makes the whole rescaled result NaN, as torch.std does."""
    given = branches()
    given[branch][1, 3, 5] = value
    got = combine(*given, rescale=0.7, **SCALES)
    want = combine.op.reference(*given, rescale=0.7, **SCALES)
    assert torch.equal(got.isnan(), want.isnan()) and want.isnan().all()


@pytest.mark.parametrize("dtype", [FP64, FP32, FP16], ids=name_of)
def test_steps_have_the_references_bits(dtype):
    """fp64 arithmetic with fp64 coefficients, rounded once: every bit, at every step of every
    schedule, refined or not."""
    x, x0, x1, *noise = tensors(5, dtype=dtype)
    for pair, row in zip(PAIRS, ROWS, strict=True):
        args = (x, x0, noise[0], *row[:3])
        assert torch.equal(midpoint(*args), midpoint.op.reference(*args))
        args = (x, x0, x1, *noise, *row)
        assert torch.equal(step(*args), step.op.reference(*args))
        assert torch.equal(euler(x, x0, *pair), euler.op.reference(x, x0, *pair))
    assert set(jitd.stats()) <= {"reference:unsupported"}  # Euler's step of fp64 latents
    assert dtype == FP64 or jitd.stats() == {}


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=str)
def test_steps_without_noise(given):
    """Noise that is missing, in either place, is not added."""
    x, x0, x1, *noise = tensors(5)
    noise = [n if here else None for n, here in zip(noise, given, strict=True)]
    args = (x, x0, x1, *noise, *ROWS[5])
    assert torch.equal(step(*args), step.op.reference(*args))
    args = (x, x0, noise[0], *ROWS[5][:3])
    assert torch.equal(midpoint(*args), midpoint.op.reference(*args))


def test_tables_and_stacked_noise():
    """Rows that a counter names, and the noise of that step."""
    x, x0, x1, *noise = tensors(5)
    table = torch.tensor(ROWS[:4], dtype=FP64)
    stacks = [torch.stack([n * 7, n * 9, n, n * 3]) for n in noise]
    schedule = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.0], dtype=FP64)
    for counter in (torch.tensor(2), torch.tensor([2], dtype=torch.int32)):
        at = {"table": table, "step": counter}
        want = step.op.reference(x, x0, x1, *noise, *ROWS[2])
        assert torch.equal(step(x, x0, x1, *noise, **at), want)
        assert torch.equal(step(x, x0, x1, *stacks, **at), want)
        want = midpoint.op.reference(x, x0, noise[0], *ROWS[2][:3])
        assert torch.equal(midpoint(x, x0, stacks[0], **at), want)
        want = euler.op.reference(x, x0, 0.7, 0.3)
        assert torch.equal(euler(x, x0, table=schedule, step=counter), want)
    assert jitd.stats() == {}


def test_latents_may_lie_anywhere():
    """What is not contiguous is copied first, and the result is contiguous."""
    x, x0, x1, *noise = (t.transpose(0, 1) for t in tensors(5))
    args = (x, x0, x1, *noise, *ROWS[5])
    got = step(*args)
    assert got.is_contiguous() and torch.equal(got, step.op.reference(*args))
    given = [t.transpose(0, 1) for t in branches()]
    close(
        combine(*given, rescale=0.7, **SCALES), combine.op.reference(*given, rescale=0.7, **SCALES)
    )
