"""Errors of the ops on the card, called as models call them."""

import jitd
import pytest
import torch
from jitd.models.ltx2.presets import PRESETS, latent_shape

from ..models.ops.cases import LAYOUTS, expanded, randn
from .cases import ADD, FUNCTIONS, SILU, arguments, call_of, hold

pytestmark = pytest.mark.gpu

OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def latents(preset, scale):
    frames, height, width = latent_shape(PRESETS[preset])
    return 1, 1024, frames, scale * height, scale * width


def case(op, shape, groups=32, *, dtype=BF16, numerics="exact", **layouts):
    """A parameter set whose id reads like a signature."""
    words = ["x".join(map(str, shape)), str(dtype)[6:], *layouts.values(), numerics]
    return pytest.param(op, shape, groups, dtype, numerics, layouts, id="-".join([op.name, *words]))


LAST = {"x": "channels_last"}
BEFORE, BEHIND = latents("512x768", 1), latents("512x768", 2)

# Tuned: what the upsampler asks for at 512x768, both of its layouts, and small and odd shapes.
TUNED = [
    case(SILU, BEFORE),
    case(ADD, BEFORE),
    case(SILU, BEHIND),
    case(ADD, BEHIND),
    case(ADD, BEHIND, residual="frame_major"),
    case(SILU, BEHIND, **LAST),
    case(ADD, BEHIND, **LAST),
    case(SILU, (1, 4, 2, 3), 2),
    case(ADD, (2, 96, 7, 11, 13), dtype=FP32),
    case(ADD, (3, 96, 5, 8, 12), dtype=FP16, residual="frame_major"),
    case(SILU, (2, 10, 3, 5, 7), 5, **LAST),
    case(SILU, (64, 96)),
    case(ADD, (1, 64, 31, 37), numerics="fast"),
]

# Served by the config of the nearest winner, or by the default: compiled and checked, not tuned.
REPLAYED = [
    *(case(SILU, latents(p, s)) for p in list(PRESETS)[1:] for s in (1, 2)),
    case(ADD, latents("1088x1920-hq", 1)),
    *(case(ADD, latents(p, 2), residual="frame_major") for p in list(PRESETS)[1:]),
    case(SILU, (1, 512, 8, 45, 80)),
    case(SILU, (1, 512, 16, 90, 160)),
    case(ADD, (1, 512, 8, 45, 80), dtype=FP16),
    case(ADD, latents("1088x1920-hq", 2), numerics="fast", dtype=FP16),
    case(ADD, (1, 1024, 13, 17, 31), dtype=FP32),
    case(SILU, (2, 512, 3, 1021)),
    case(SILU, (3, 40, 4099), 8, dtype=FP16),
    case(SILU, (1, 7, 101), 1),
    case(SILU, (5, 320, 1), 32),
    case(ADD, (2, 48, 16, 9, 11), 12, x="channels_last", residual="frame_major"),
    case(ADD, (2, 48, 16, 9, 11), 12, x="contiguous", residual="channels_last"),
    case(SILU, (2, 320, 33, 35), **LAST, dtype=FP32),
    case(SILU, (1, 131, 8, 9, 10), 1, **LAST),
    case(ADD, (2, 64, 8, 24, 40), x="sliced", residual="sliced"),
    case(ADD, (2, 64, 8, 24, 40), x="unaligned", residual="unaligned"),
    case(ADD, (2, 64, 8, 24, 40), x="reversed", residual="every_other", dtype=FP32),
    case(SILU, (2, 64, 8, 24, 40), x="sliced_channels_last"),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled_ahead(shared_runtime):
    """Compile the candidates of all tunes to come while the first ones are timed."""
    for parameters in TUNED:
        op, shape, groups, dtype, numerics, layouts = parameters.values
        args = arguments(op, shape, groups, dtype=dtype, **layouts)
        shared_runtime.builder_at(0).prefetch(op, call_of(op, args, numerics=numerics))


def right(op, shape, groups, dtype, numerics, layouts):
    def make():
        return arguments(op, shape, groups, dtype=dtype, device="cuda", **layouts)

    verdict = hold(op, make, numerics=numerics)
    if numerics == "exact" and dtype != FP32:
        # Eager rounds a group's statistics to 16 bits: in one group they may just fall on the
        # other side of a boundary, and all of its elements differ by a bit.
        numel = make()[0].numel()
        assert verdict.differing <= 1e-3 * numel + numel // (shape[0] * groups)


@pytest.mark.parametrize(("op", "shape", "groups", "dtype", "numerics", "layouts"), TUNED)
def test_a_tuned_op_is_as_right_as_eager(op, shape, groups, dtype, numerics, layouts):
    """The winner of a tune is within 1.5 times eager's error of float64, two runs agree in every
    bit, nothing else is written, and `exact` has eager's bits nearly everywhere."""
    right(op, shape, groups, dtype, numerics, layouts)


@pytest.mark.parametrize(("op", "shape", "groups", "dtype", "numerics", "layouts"), REPLAYED)
def test_an_untuned_op_is_as_right_as_eager(op, shape, groups, dtype, numerics, layouts):
    """In mode replay, where nothing is tuned, answers are as right, and kernels give them."""
    jitd.configure(mode="replay")
    right(op, shape, groups, dtype, numerics, layouts)
    assert "tunes" not in jitd.stats()


@pytest.mark.long
@pytest.mark.parametrize(("op", "shape", "groups", "dtype", "numerics", "layouts"), REPLAYED)
def test_every_shape_tuned(op, shape, groups, dtype, numerics, layouts):
    """The same shapes, each with a tune of its own, are as right."""
    right(op, shape, groups, dtype, numerics, layouts)


@OPS
@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "dtype"), [(1e4, FP32), (64.0, BF16), (64.0, FP16)])
def test_a_large_mean_loses_nothing(op, x, mean, dtype):
    """With a mean of 1e4 (64 in 16 bits) standard deviations errors stay within eager's."""
    jitd.configure(mode="replay")
    shape = (2, 96, 16, 24, 32)

    def make():
        x_values = randn(*shape, device="cuda") + mean
        _, *rest = arguments(op, shape, 32, x=x, dtype=dtype, device="cuda")
        return [LAYOUTS[x](x_values.to(dtype)), *rest]

    hold(op, make)


@OPS
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
def test_not_a_number_goes_where_eager_puts_it(op, x, dtype):
    """NaN and infinities in x, residual, weight and bias end up where eager has them."""
    jitd.configure(mode="replay")
    shape, nan, inf = (2, 64, 8, 12, 16), float("nan"), float("inf")

    def make():
        tensors = arguments(op, shape, 32, x=x, dtype=dtype, device="cuda")
        tensors[0][0, 0, 1, 2, 3], tensors[0][1, 5, 0, 0, 0] = nan, inf
        if op is ADD:
            tensors[1][0, 9, 0, 0, :3] = torch.tensor([nan, inf, -inf], device="cuda")
        tensors[-3][20] = tensors[-2][31] = nan
        return tensors

    hold(op, make)


@OPS
def test_eps_is_respected_without_another_binary(op):
    """Two values of eps have their own results, from the same binaries."""
    args = arguments(op, (1, 64, 31, 37), 32, dtype=FP32, device="cuda")
    args[0] *= 1e-3
    jitd.configure(mode="replay")
    function, compiled = FUNCTIONS[op.name], set()
    for eps in (1e-2, 1e-6, 1e-2):
        want = op.reference(*args, eps)
        torch.testing.assert_close(function(*args, eps), want, rtol=1e-4, atol=1e-5)
        compiled.add(jitd.stats().get("compiles", 0))
    assert len(compiled) == 1
    assert not torch.allclose(function(*args, 1e-2), function(*args, 1e-6))


@OPS
@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
def test_every_run_has_the_same_bits(op, x):
    """Twenty runs, with other work between them, agree in every bit."""
    jitd.configure(mode="replay")
    args = arguments(op, (2, 96, 7, 33, 35), 32, x=x, dtype=BF16, device="cuda")
    first = FUNCTIONS[op.name](*args)
    for _ in range(20):
        torch.randn(1 << 20, device="cuda").sum()
        assert torch.equal(FUNCTIONS[op.name](*args), first)


def strided(values):
    return values.repeat_interleave(2)[::2]


@OPS
@pytest.mark.parametrize("lay_out", [LAYOUTS["unaligned"], strided], ids=["unaligned", "strided"])
def test_weights_may_lie_anywhere(op, lay_out):
    """Weight and bias that begin between 16-byte boundaries, or have gaps, are read right."""
    jitd.configure(mode="replay")

    def make():
        *tensors, weight, bias, groups = arguments(
            op, (2, 64, 8, 24, 40), 32, dtype=BF16, device="cuda"
        )
        return [*tensors, lay_out(weight), lay_out(bias), groups]

    hold(op, make)


@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
def test_a_residual_may_be_expanded(x):
    """A residual with one value for all positions and samples is added right."""
    jitd.configure(mode="replay")

    def make():
        args = arguments(ADD, (2, 64, 8, 24, 40), 32, x=x, dtype=BF16, device="cuda")
        args[1] = expanded(args[1])
        return args

    hold(ADD, make)


def test_more_than_two_to_the_31_elements(much_memory):
    """Groups at the beginning, in the middle and at the end of 2.3e9 elements are right: offsets
    are counted in 64 bits."""
    jitd.configure(mode="replay")
    x = torch.empty(1, 64, 1, 6000, 6000, dtype=BF16, device="cuda")
    x.normal_(generator=torch.Generator("cuda").manual_seed(0))
    weight, bias = (randn(64, dtype=BF16, device="cuda", seed=seed) for seed in (1, 2))
    out = FUNCTIONS[SILU.name](x, weight, bias, 32)
    assert [n for n in jitd.stats() if n.startswith("reference:")] == []
    for group in (0, 16, 31):
        part = slice(2 * group, 2 * group + 2)
        want = SILU.reference(x[:, part].contiguous(), weight[part], bias[part], 1)
        torch.testing.assert_close(out[:, part], want, rtol=2e-2, atol=2e-2)


@OPS
def test_double_precision_is_the_references(op):
    """float64 on the card is computed by the reference, bit for bit, and counted."""
    args = arguments(op, (2, 12, 3, 5), 4, dtype=torch.float64, device="cuda")
    assert torch.equal(FUNCTIONS[op.name](*args), op.reference(*args))
    assert jitd.stats() == {"reference:unsupported": 1}


@OPS
@pytest.mark.parametrize("shape", [(0, 6, 3), (2, 6, 0)])
def test_nothing_in_nothing_out(op, shape):
    """A tensor without elements launches nothing and gives one of its shape."""
    out = FUNCTIONS[op.name](*arguments(op, shape, 3, dtype=BF16, device="cuda"))
    assert out.shape == shape
    assert out.is_cuda


def test_gradients_are_eagers():
    """With an input that requires a gradient the reference answers: gradients are eager's."""
    *tensors, groups = arguments(ADD, (2, 12, 3, 5), 4, device="cuda")
    results = []
    for function in (FUNCTIONS[ADD.name], ADD.reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        function(*leaves, groups).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*results)
    assert jitd.stats() == {"reference:grad": 1}
