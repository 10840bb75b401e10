"""The kernels themselves, in Triton's interpreter, against float64: tiny shapes, every variant."""

import itertools
from math import prod

import jitd
import pytest
import torch
from jitd.autotune.verify import Bound, verify
from jitd.jit.declare import Config
from jitd.jit.device import stand_in
from jitd.jit.inputs import make_inputs
from jitd.jit.interpret import Interpreted

from .cases import ADD, FUNCTIONS, SILU, arguments, made_call

pytestmark = pytest.mark.interpreter

OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
VARIANTS = pytest.mark.parametrize("variant", [v.name for v in SILU.variants])
DEVICE = stand_in("sm_90")
LAYOUTS = {
    "contiguous": ("contiguous", "contiguous"),
    "frame_major": ("contiguous", "perm02134"),
    "copied": ("contiguous", "perm43210"),
    "channels_last": ("channels_last_3d", "channels_last_3d"),
    "channels_last_frame_major": ("channels_last_3d", "perm02134"),
}
# Looser than the verifier's own: the interpreter cuts bf16 off where a GPU rounds, and among so few
# elements eager's worst, which sets the bound, may be much better than usual.
BOUND = Bound(factor=4.0, ulps=2.0)


def programs(variant, params, call):
    """How many programs a config starts; None if some wait for others, which never end here, where
    one runs after the other."""
    launches = variant.plan(call, params, DEVICE).launches
    if any(launch.cooperative for launch in launches):
        return None
    return sum(prod(launch.grid) for launch in launches)


def runnable(variant, call):
    """The smallest config of a variant that can be interpreted, and the smallest of those that
    start more programs, if there is one."""
    if variant.applies(call) is not None:
        return []
    axes = variant.space.axes
    points = [dict(zip(axes, p, strict=True)) for p in itertools.product(*axes.values())]
    found = {programs(variant, params, call): params for params in reversed(points)}
    return [found[count] for count in sorted(found.keys() - {None})[:2]]


def hold(op, call, config, kind="normal"):
    """Demand that a config's kernels are within the verifier's bound of float64."""
    *_, groups, eps, _ = call.values()

    def reference(*tensors):
        return op.reference(*tensors, groups, eps)

    verdict = verify(
        Interpreted(op, call, config),
        reference,
        lambda *tensors: reference(*(t.double() for t in tensors)),
        lambda generator: make_inputs(op, call, "cpu", generator, kind),
        generator=torch.Generator().manual_seed(0),
        bound=BOUND,
    )
    assert verdict.ok, f"{config}: {verdict.reason}"


def hold_variant(op, name, call, *, configs=1, **how):
    """Demand it of some configs of the variant of that name, where it computes the call."""
    for params in runnable(named(op, name), call)[:configs]:
        hold(op, call, Config(named(op, name), params), **how)


def named(op, name):
    return next(variant for variant in op.variants if variant.name == name)


@OPS
@VARIANTS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "numerics"),
    [
        ("bf16", "exact"),
        ("fp32", "exact"),
        pytest.param("fp16", "exact", marks=pytest.mark.long),
        pytest.param("bf16", "fast", marks=pytest.mark.long),
    ],
)
def test_every_variant_is_right(op, variant, layout, dtype, numerics):
    """Each variant is within the bound of float64 in every dtype, rounding and layout."""
    x, residual = LAYOUTS[layout]
    if op is ADD or x == residual:
        how = {"x": x, "residual": residual, "dtype": dtype, "numerics": numerics}
        hold_variant(op, variant, made_call(op, (1, 4, 2, 1, 3), 2, **how))


# Odd and prime, one position, one channel a group, more samples, more than two groups.
SHAPES = {
    "prime": ((1, 4, 13, 1, 1), 2),
    "one position": ((1, 4, 1, 1, 1), 2),
    "one channel a group": ((1, 3, 2, 1, 4), 3),
    "one group": ((1, 5, 2, 1, 2), 1),
    "three samples": ((3, 2, 2, 1, 3), 1),
    "two dimensions": ((2, 6), 2),
    "three dimensions": ((1, 6, 7), 3),
    "four dimensions": ((1, 4, 3, 5), 2),
}


@VARIANTS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_odd_shapes_are_right(variant, shape, layout):
    """Each variant is right for shapes that fill no block, from two dimensions to five."""
    shape, groups = SHAPES[shape]
    if layout == "channels_last":
        layout = {4: "channels_last", 5: "channels_last_3d"}.get(len(shape), "strided")
    if layout != "strided":
        hold_variant(ADD, variant, made_call(ADD, shape, groups, x=layout, dtype="fp32"))


@VARIANTS
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 1, 1, 1, 9001), "contiguous"), ((1, 3, 7, 5, 11), "channels_last_3d")],
)
def test_several_tiles_are_right(variant, shape, layout):
    """Rows longer than a block, in parts and tiles that end in the middle, are right."""
    call = made_call(ADD, shape, 1, x=layout, dtype="fp32")
    hold_variant(ADD, variant, call, configs=2)


@VARIANTS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
def test_a_large_mean_loses_nothing(variant, layout):
    """With a mean of 64 standard deviations, and of 1e4, statistics keep eager's precision."""
    call = made_call(SILU, (1, 4, 2, 1, 5), 2, x=layout, dtype="fp32")
    hold_variant(SILU, variant, call, kind="shifted")
    for params in runnable(named(SILU, variant), call)[:1]:
        tensors = make_inputs(SILU, call, "cpu", torch.Generator().manual_seed(0), "normal")
        tensors[0] += 1e4
        out = Interpreted(SILU, call, Config(named(SILU, variant), params))(*tensors)
        truth = SILU.reference(*(t.double() for t in tensors), 2, 1e-5)
        # The mean itself is rounded to 1e4 * 2^-24; E[x²] - mean² would be off by more than 1.
        torch.testing.assert_close(out.double(), truth, rtol=0.0, atol=8e-3)


@OPS
@pytest.mark.parametrize("x", ["contiguous", "channels_last", "sliced", "reversed", "unaligned"])
def test_the_op_itself_runs_its_kernel(op, x):
    """Called as models call it, on any layout, the op answers by a kernel, close to eager."""
    args = arguments(op, (2, 4, 2, 3, 2), 2, x=x, residual="frame_major")
    out = FUNCTIONS[op.name](*args)
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
    want = op.reference(*args)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    assert out.stride() == want.stride()


@OPS
def test_eps_reaches_the_kernel(op):
    """eps is a run-time argument: two values, called in turns, each have their own result."""
    args = arguments(op, (1, 4, 2, 3), 2)
    args[0] *= 1e-3
    for eps in (1e-2, 1e-6, 1e-2):
        want = op.reference(*args, eps)
        torch.testing.assert_close(FUNCTIONS[op.name](*args, eps), want, rtol=1e-4, atol=1e-5)


@OPS
def test_not_a_number_stays_in_its_group(op):
    """NaN and infinities spread over their group as in eager, and no further."""
    args = arguments(op, (1, 6, 4), 3)
    args[0][0, 0, 1], args[0][0, 2, 3] = float("nan"), float("inf")
    want = op.reference(*args)
    out = FUNCTIONS[op.name](*args)
    assert torch.equal(out.isnan(), want.isnan())
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_residual_may_be_expanded():
    """A residual with one value for all positions is read where it is."""
    args = arguments(ADD, (2, 4, 2, 3, 2), 2, residual="expanded")
    want = ADD.reference(*args)
    torch.testing.assert_close(FUNCTIONS[ADD.name](*args), want, rtol=1e-5, atol=1e-5)
