"""Guidance: the references against the formulas, what missing branches cost, what is refused."""

import pytest
import torch
from jitd.models.ops.guidance import guidance_combine, velocity_to_x0
from jitd.tools.bench import eager_denoising as eager
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import laid_out, name_of, on_meta
from .denoising_cases import BRANCHES, SCALES, SHAPE, SUBSETS, branches, tensors
from .signed import signed

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16], ids=name_of)


@pytest.mark.parametrize("rescale", [0.0, 0.45, 1.0])
@pytest.mark.parametrize("present", SUBSETS, ids=str)
def test_predictions_are_combined_as_the_formula_says(present, rescale):
    """Each subset of branches, rescaled or not, has the bits of the chain of eager ops in fp32."""
    given = branches(present)
    got = guidance_combine(*given, rescale=rescale, **SCALES)
    want = eager.combined(dict(zip(BRANCHES, given, strict=True)), {**SCALES, "rescale": rescale})
    assert torch.equal(got, want)


def test_a_missing_branch_is_one_of_zero_weight():
    """None gives what a tensor with the scale that cancels it gives."""
    given = branches()
    with_all = guidance_combine(*given, cfg=3.0, stg=0.0, mod=1.0, rescale=0.7)
    without = guidance_combine(given[0], given[1], cfg=3.0, rescale=0.7)
    assert torch.equal(with_all, without)


@DTYPES
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_velocities_become_predictions_first(rescale, dtype):
    """With x each branch is x - sigma * v rounded to x's dtype, then the formula in fp32."""
    given, x = branches(), tensors(5, dtype=dtype)[4]
    x0 = {n: eager.x0_of(x, v, 0.6).float() for n, v in zip(BRANCHES, given, strict=True)}
    want = eager.combined(x0, {**SCALES, "rescale": rescale}).to(dtype)
    assert torch.equal(guidance_combine(*given, x, rescale=rescale, sigma=0.6, **SCALES), want)


@DTYPES
def test_x0_is_rounded_once(dtype):
    """x - sigma * v in fp32, of velocities in another dtype too."""
    x, v = tensors(2, dtype=dtype)
    assert torch.equal(velocity_to_x0(x, v, 0.725), eager.x0_of(x, v, 0.725))
    assert torch.equal(velocity_to_x0(x, v.bfloat16(), 0.725), eager.x0_of(x, v.bfloat16(), 0.725))


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 37), (2, 37)], ids=str)
def test_sigmas_may_differ_by_token(shape):
    """A sigma for all, for a sample or for each token, on the device."""
    x, v, other = tensors(3)
    sigmas = torch.rand(shape)
    full = (sigmas if len(shape) == 2 else sigmas[None]).expand(2, 37)[..., None]
    want = eager.x0_of(x, v, full)
    assert torch.equal(velocity_to_x0(x, v, sigmas=sigmas), want)
    got = guidance_combine(v, other, x=x, sigmas=sigmas, cfg=3.0, rescale=0.7)
    both = {"cond": want, "neg": eager.x0_of(x, other, full)}
    scales = {"cfg": 3.0, "stg": 0.0, "mod": 1.0, "rescale": 0.7}
    assert torch.equal(got, eager.combined(both, scales))


def test_all_ways_give_contiguous_memory():
    """Reference, meta, fake and torch's operator agree on shape, dtype and strides: contiguous, of
    x's dtype if there is an x."""
    given = [t.transpose(0, 1) for t in branches()]
    for x in (None, given[0].bfloat16()):
        args, how = [*given, x], {**SCALES, "rescale": 0.7}
        want = laid_out(torch.empty(given[0].shape, dtype=FP32 if x is None else BF16))
        operator = torch.ops.jitd.guidance_combine
        meta = [a if a is None else on_meta(a) for a in args]
        for out in (
            guidance_combine(*args, **how),
            operator(*args, **how),
            guidance_combine(*meta, **how),
        ):
            assert laid_out(out) == want
        with FakeTensorMode() as mode:
            fakes = [a if a is None else mode.from_tensor(a) for a in args]
            assert laid_out(guidance_combine(*fakes, **how)) == want
        torch.library.opcheck(operator.default, tuple(args), how)


def test_what_is_missing_costs_nothing():
    """The floor counts each branch that is there once, and the result."""
    op, one = signed("guidance_combine[fp32](1x64x128, neg=none, perturbed=none, modality=none)")
    size = 4 * 64 * 128
    assert op.cost(one).bytes == 2 * size
    _, hq = signed("guidance_combine[fp32](1x64x128, perturbed=none, rescale=0.45)")
    assert op.cost(hq).bytes == 4 * size
    _, velocities = signed("guidance_combine[bf16](1x64x128, perturbed=none, x=fp32 1x64x128)")
    assert op.cost(velocities).bytes == 3 * size // 2 + 2 * size


X = torch.zeros(SHAPE)
REFUSED = {
    "another branch": ((X, X[:1]), {}, r"neg is \(1, 37, 24\); allowed is \(2, 37, 24\)"),
    "integers": ((X, X.long()), {}, "neg is i64; allowed are"),
    "sigmas of tokens that there are not": (
        (X, X, X, X, X, torch.zeros(2, 36)), {}, r"sigmas is fp32 \(2, 36\) beside \(2, 37, 24\)",
    ),
    "sigmas of too many samples": (
        (X, X, X, X, X, torch.zeros(3, 37)), {}, r"sigmas is fp32 \(3, 37\)",
    ),
    "sigmas alone": ((X, X, X, X, None, torch.zeros(1)), {}, "sigmas without x"),
    "a scale that is a tensor": ((X, X), {"cfg": torch.tensor(3.0)}, "cfg is a Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    """ValueError says what does not fit and what would."""
    args, kwargs, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        guidance_combine(*args, **kwargs)
