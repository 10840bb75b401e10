"""Sampler steps: the references against the loops they stand for, and what is refused."""

import jitd
import pytest
import torch
from jitd.models.ltx2.denoising.coefficients import midpoint_sigma, res2s_coefficients
from jitd.models.ops.steps import euler_step, res2s_midpoint, res2s_step
from jitd.tools.bench import eager_denoising as eager
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import laid_out, name_of, on_meta
from .denoising_cases import PAIRS, ROWS, SHAPE, tensors

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
STEP = torch.tensor([2])


def stepped(pair, x, answers, noise_mid, noise, **how):
    """(what the loop gives, what the ops give, where each asked) of a step of res_2s."""
    asked = []

    def ask(latents, sigma):
        asked.append((latents, sigma))
        return answers[len(asked) - 1]

    want = eager.res2s(x, ask, *pair, noise_mid, noise)
    row = res2s_coefficients(*pair, **how)
    mid = res2s_midpoint(x, answers[0], noise_mid, *row[:3])
    got = res2s_step(x, *answers, noise_mid, noise, *row)
    return want, got, asked[1], (mid, midpoint_sigma(*pair))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_step_is_that_of_a_hundred_rounds(pair):
    """In fp64 the closed form is the loop's result to 1e-12, at every step of every schedule; the
    model is asked at the same place."""
    x, first, second, *noise = tensors(5, dtype=FP64)
    want, got, (asked, sigma), (mid, sub) = stepped(pair, x, (first, second), *noise)
    assert float((got - want).abs().max()) < 1e-12 * float(want.abs().max())
    assert float((mid - asked).abs().max()) < 1e-12
    assert sub == pytest.approx(sigma, rel=1e-15)


def test_some_steps_are_refined_and_some_are_not():
    """Both kinds are among the schedules: 13 of HQ's 15 steps, and one of its last three."""
    kinds = [row.bong > 0 for row in ROWS]
    assert True in kinds and False in kinds
    assert [res2s_coefficients(*p).bong > 0 for p in ((0.909375, 0.725), (0.725, 0.421875))] == [
        True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16], ids=name_of)
def test_a_step_is_rounded_once(dtype):
    """Latents of fewer bits are read as they are, and the result is the fp64 one, rounded."""
    x, first, second, *noise = tensors(5, dtype=dtype)
    for pair in PAIRS[:: len(PAIRS) // 6]:
        want, got, (asked, _), (mid, _) = stepped(pair, x, (first, second), *noise)
        assert got.dtype == mid.dtype == dtype
        ulp = torch.finfo(dtype).eps * float(want.abs().max())
        assert float((got.double() - want.double()).abs().max()) <= ulp
        assert float((mid.double() - asked.double()).abs().max()) <= ulp


def test_the_last_sde_may_count_in_fp32():
    """HQ's first stage computes the last SDE's numbers in fp32: that changes what fp32 would."""
    x, first, second, *noise = tensors(5, dtype=FP64)
    pair = PAIRS[len(PAIRS) // 2]
    want, got, *_ = stepped(pair, x, (first, second), *noise, single=True)
    off = float((got - want).abs().max())
    assert 1e-12 < off < 1e-5


def test_without_noise_nothing_is_added():
    """A step to the deterministic successor: no noise, and what the loop gives without one."""
    x, first, second = tensors(3, dtype=FP64)
    pair = (0.5034, 0.1)  # too long to be refined
    row = res2s_coefficients(*pair)
    k = row.move_mid
    assert torch.equal(res2s_midpoint(x, first, None, 1.0, k, 0.7), x + k * (first - x))
    plain = row._replace(alpha=1.0, alpha_mid=1.0)
    got = res2s_step(x, first, second, None, None, *plain)
    want = x + plain.first * (first - x) + plain.second * (second - x)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)


def test_a_step_to_nothing_has_no_coefficients():
    """Where a schedule ends at 0 the driver takes x0 itself."""
    assert res2s_coefficients(0.1, 0.0) is None
    assert res2s_coefficients(0.0, 0.0) is None


@pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16, FP64], ids=name_of)
def test_eulers_step_is_the_formula(dtype):
    """The velocity is rounded to the latents' dtype, the step taken in fp32, bit for bit."""
    x, x0 = tensors(2, dtype=dtype)
    for sigma, sigma_next in (*PAIRS[::9], (0.1, 0.0)):
        got = euler_step(x, x0, sigma, sigma_next)
        if dtype == FP64:
            want = x + (x - x0) / sigma * (sigma_next - sigma)
            torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
        else:
            assert torch.equal(got, eager.euler(x, x0, sigma, sigma_next))
        assert got.dtype == dtype


def test_a_table_gives_what_numbers_give():
    """Rows of a table that a counter names, and the noise of all steps, mean what the numbers of
    that step mean."""
    x, x0, x1, *noise = tensors(5, dtype=FP64)
    table = torch.tensor(ROWS[:4], dtype=FP64)
    stacks = [torch.stack([n * 7, n * 9, n, n * 3]) for n in noise]
    for counter in (torch.tensor(2), STEP, STEP.int()):
        at = {"table": table, "step": counter}
        want = res2s_midpoint(x, x0, noise[0], *ROWS[2][:3])
        assert torch.equal(res2s_midpoint(x, x0, noise[0], **at), want)
        assert torch.equal(res2s_midpoint(x, x0, stacks[0], **at), want)
        want = res2s_step(x, x0, x1, *noise, *ROWS[2])
        assert torch.equal(res2s_step(x, x0, x1, *noise, **at), want)
        assert torch.equal(res2s_step(x, x0, x1, *stacks, **at), want)
        schedule = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.0], dtype=FP64)
        want = euler_step(x, x0, 0.7, 0.3)
        assert torch.equal(euler_step(x, x0, table=schedule, step=counter), want)


def test_all_ways_give_contiguous_memory():
    """Reference, meta, fake and torch's operator agree on shape, dtype and strides."""
    x, x0, x1, *noise = (t.transpose(0, 1) for t in tensors(5))
    want = laid_out(torch.empty(x.shape))
    for function, args in (
        (euler_step, (x, x0, 0.7, 0.3)),
        (res2s_midpoint, (x, x0, noise[0], 0.9, 0.4, 0.3)),
        (res2s_step, (x, x0, x1, *noise, *ROWS[3])),
    ):
        operator = getattr(torch.ops.jitd, function.op.name)
        meta = [on_meta(a) if isinstance(a, torch.Tensor) else a for a in args]
        for out in (function(*args), operator(*args), function(*meta)):
            assert laid_out(out) == want
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
            assert laid_out(function(*fakes)) == want
        torch.library.opcheck(operator.default, args)


def test_signatures_read_back():
    """A signature prints, reads back as the same call, and names no coefficient."""
    for text in (
        "euler_step[bf16](1x126x128)",
        "res2s_step[bf16](1x126x128, x0=fp32, x0_mid=fp32)",
        "res2s_midpoint[fp32](1x126x128, noise=none)",
        "res2s_midpoint[fp32](1x126x128, noise=15x1x126x128, table=fp64 15x8, step=i32 1)",
    ):
        function = {"euler_step": euler_step, "res2s_step": res2s_step}.get(
            text.partition("[")[0], res2s_midpoint
        )
        signature = function.op.parse(text)
        assert str(signature) == text
        assert str(function.op.parse(str(signature))) == text


def test_one_entry_serves_all_steps():
    """A whole schedule fills one entry of the in-process table."""
    from jitd.jit.dispatch import _dispatchers  # noqa: PLC0415

    jitd.configure()
    x, x0, x1, *noise = tensors(5)
    for row in ROWS:
        res2s_step(x, x0, x1, *noise, *row)
    assert len(_dispatchers["res2s_step"].table) == 1


X = torch.zeros(SHAPE)
TABLE = torch.zeros(4, 8, dtype=FP64)
REFUSED = {
    "another x0": (euler_step, (X, X[:1]), {}, r"x0 is \(1, 37, 24\); allowed is \(2, 37, 24\)"),
    "integers": (euler_step, (X, X.int()), {}, "x0 is i32; allowed are bf16, fp16, fp32, fp64"),
    "a table alone": (res2s_midpoint, (X, X, X), {"table": TABLE}, "table and step go together"),
    "a table of fp32": (
        res2s_midpoint, (X, X, X), {"table": TABLE.float(), "step": STEP}, "table is fp32",
    ),
    "a table of another width": (
        res2s_step, (X, X, X, X, X), {"table": TABLE[:, :7], "step": STEP}, r"fp64 \(steps, 8\)",
    ),
    "steps": (
        euler_step, (X, X), {"table": TABLE[:, 0].contiguous(), "step": torch.arange(2)},
        r"step is i64 \(2,\)",
    ),
    "one sigma": (
        euler_step, (X, X), {"table": TABLE[0, :1], "step": STEP}, "two sigmas or more",
    ),
    "noise of all steps, without a table": (
        res2s_midpoint, (X, X, torch.stack([X, X])), {}, r"noise is \(2, 2, 37, 24\)",
    ),
    "noise of all steps and of one": (
        res2s_step, (X, X, X, torch.stack([X, X]), X), {"table": TABLE, "step": STEP},
        "one noise is of all steps",
    ),
    "a sigma that is a tensor": (euler_step, (X, X, torch.tensor(0.5)), {}, "sigma is a Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    """ValueError says what does not fit and what would."""
    function, args, kwargs, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        function(*args, **kwargs)
