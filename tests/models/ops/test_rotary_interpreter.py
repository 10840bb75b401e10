"""The rotary kernels themselves, in Triton's interpreter: small shapes, configs of all kinds."""

import itertools
import random

import jitd
import pytest
import torch
from jitd.autotune.verify import Bound, verify
from jitd.jit.check import arguments as filled
from jitd.jit.declare import Config
from jitd.jit.device import stand_in
from jitd.jit.inputs import make_inputs
from jitd.jit.interpret import Interpreted
from jitd.models.ops.rotary import qk_norm_rotary, split_rotary

from .cases import DTYPES, name_of
from .rotary_cases import (
    KINDS,
    QK,
    ROWS,
    SPLIT,
    TABLES,
    call_of,
    made_call,
    qk_arguments,
    turned_arguments,
)

pytestmark = pytest.mark.interpreter

DEVICE = stand_in("sm_90")
OPS = pytest.mark.parametrize("op", [SPLIT, QK], ids=lambda op: op.name)
# The interpreter cuts bf16 off where a GPU rounds, and among so few elements eager's worst, which
# sets the bound, may be much better than usual.
BOUND = Bound(factor=4.0, ulps=2.0)

# (B, T, D) and R: two heads, heads of other sizes, one channel a half, three heads, one token.
SHAPES = [
    ((2, 5, 16), 4),
    ((1, 3, 24), 4),
    ((1, 4, 30), 5),
    ((2, 3, 6), 1),
    ((3, 1, 16), 8),
]


def points(op, call, count):
    """Points from all over the product of a space, its default first."""
    (variant,) = op.variants
    axes = variant.space.axes
    every = [dict(zip(axes, p, strict=True)) for p in itertools.product(*axes.values())]
    few = [p for p in every if p["num_warps"] == 1]  # they mean nothing to the interpreter
    return [op.default(call, DEVICE).params, *random.Random(len(call)).sample(few, count)]


def hold(op, call, params, kind="normal"):
    """Demand that the kernels of a config are within the verifier's bound of float64."""

    def reference(*tensors):
        args, kwargs = filled(op, call, tensors)
        return op.reference(*args, **kwargs)

    verdict = verify(
        Interpreted(op, call, Config(op.variants[0], params)),
        reference,
        lambda *tensors: reference(*(t.double() for t in tensors)),
        lambda generator: make_inputs(op, call, "cpu", generator, kind),
        generator=torch.Generator().manual_seed(0),
        bound=BOUND,
    )
    assert verdict.ok, f"{call} {params}: {verdict.reason}"


@OPS
@pytest.mark.parametrize("table", ["fp32", "own"])
@pytest.mark.parametrize(
    ("dtype", "numerics"),
    [
        ("bf16", "exact"),
        ("fp32", "exact"),
        pytest.param("fp16", "exact", marks=pytest.mark.long),
        pytest.param("bf16", "fast", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(("shape", "half"), SHAPES, ids=str)
def test_every_shape_is_right(op, shape, half, dtype, numerics, table):
    """Configs of all kinds are within the bound of float64, in both contracts and every dtype."""
    table = dtype if table == "own" else table
    call = made_call(op, shape, half, dtype=dtype, table=table, numerics=numerics, weights=dtype)
    for params in points(op, call, 2):
        hold(op, call, params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "keys"), [(3, 3), (2, 5), (7, 1)])
@pytest.mark.parametrize("weights", [None, "fp32"])
def test_queries_and_keys_of_every_kind_are_right(kind, tokens, keys, weights):
    """q and k of other lengths, with tables for both, one or none, with and without weights."""
    if kind == "same" and keys != tokens:
        return
    call = made_call(QK, (2, tokens, 12), 3, keys=keys, kind=kind, weights=weights, dtype="fp16")
    for params in points(QK, call, 3):
        hold(QK, call, params)


@OPS
@pytest.mark.parametrize("layout", TABLES)
def test_tables_are_read_where_they_are(op, layout):
    """Called as models call it, the op answers by a kernel for tables in any strides, or for one
    that serves every sample or head; in 16 bits with their own tables bit for bit."""
    make = turned_arguments if op is SPLIT else qk_arguments
    args = make((2, 5, 16), 4, layout=layout, dtype=torch.float16, table=torch.float16)
    out = op_function(op)(*args)
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
    same(op, out, op.reference(*args))


@OPS
@pytest.mark.parametrize("x", ROWS)
def test_rows_are_read_where_they_are(op, x):
    """The same for x, q and k: parts of a wider row, token by token, between 16-byte boundaries."""
    make = turned_arguments if op is SPLIT else qk_arguments
    args = make((2, 5, 16), 4, x=x, dtype=torch.float16, table=torch.float16)
    out = op_function(op)(*args)
    assert not [cause for cause in jitd.stats() if cause.startswith("reference:")]
    same(op, out, op.reference(*args))


def op_function(op):
    return split_rotary if op is SPLIT else qk_norm_rotary


def same(op, out, want):
    """Bit for bit for elementwise work; a reduction may differ in the last bit."""
    if op is SPLIT:
        assert torch.equal(out, want)
    for one, other in zip(*((out, want) if op is QK else ([out], [want])), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("table", [torch.float16, torch.float32])
def test_first_products_are_rounded_to_the_tables(table):
    """With tables of x's dtype the first product is rounded and the sum is not exact any more; with
    fp32 tables it is: the two contracts differ, and each is the reference's."""
    args = turned_arguments((2, 9, 64), 8, dtype=torch.float16, table=torch.float16)
    args[1:] = [a.to(table) for a in args[1:]]
    out, want = split_rotary(*args), SPLIT.reference(*args)
    another = torch.float16 if table is torch.float32 else torch.float32
    other = [args[0], *(a.to(another) for a in args[1:])]
    if table is torch.float16:
        assert torch.equal(out, want)
    # The interpreter's fma rounds its product: an ulp now and then.
    assert (out != want).float().mean() < 0.01 < (SPLIT.reference(*other) != want).float().mean()


def test_statistics_that_are_exact_give_eagers_bits():
    """Rows of plus and minus a power of two have an exact rstd whatever the order of summation:
    the rest of the op, fed with it, is eager's bit for bit."""
    args = qk_arguments((2, 3, 32), 8, weights=torch.float16, dtype=torch.float16,
                        table=torch.float16)  # fmt: skip
    args[:2] = [torch.where(x > 0, 2.0, -2.0).half() for x in args[:2]]
    for out, want in zip(qk_norm_rotary(*args, 0.0), QK.reference(*args, 0.0), strict=True):
        assert torch.equal(out, want)


@pytest.mark.parametrize("kind", ["huge", "tiny", "special", "shifted"])
@OPS
def test_every_kind_of_inputs_is_right(op, kind):
    """Huge and tiny values, NaN and infinities go where eager has them."""
    call = made_call(op, (2, 6, 16), 4, dtype="fp32", weights="fp32")
    for params in points(op, call, 1):
        hold(op, call, params, kind)


def test_eps_reaches_the_kernel():
    """eps is a run-time argument: two values, called in turns, each have their own result."""
    args = qk_arguments((1, 2, 16), 4)
    args[0] = args[0] * 1e-3
    for eps in (1e-2, 1e-6, 1e-2):
        for out, want in zip(qk_norm_rotary(*args, eps), QK.reference(*args, eps), strict=True):
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


@OPS
def test_only_the_results_are_written(op):
    """Odd sizes in every config: nothing is written beside a result, nothing left out."""
    call = made_call(op, (1, 7, 20), 5, dtype="fp32", weights="fp32")
    for params in points(op, call, 6):
        hold(op, call, params)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_calls_are_those_of_tensors(dtype):
    """The calls that these tests make without tensors are those that tensors make."""
    args = turned_arguments((2, 5, 16), 4, dtype=dtype)
    assert call_of(SPLIT, args) == made_call(SPLIT, (2, 5, 16), 4, dtype=name_of(dtype))
