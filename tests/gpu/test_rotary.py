"""The rotary ops on the card: bits where eager's order can be kept, bounds where it cannot."""

import random

import jitd
import pytest
import torch
from jitd.autotune.verify import Bound, verify
from jitd.jit.tune import check
from jitd.models.ops.rotary import apply_split_rotary_emb, qk_norm_rotary, split_rotary

from ..models.ops.cases import name_of, randn
from ..models.ops.rotary_cases import (
    KINDS,
    QK,
    ROWS,
    SPLIT,
    TABLES,
    double,
    made_call,
    qk_arguments,
    turned_arguments,
)
from .cases import FEW_ELEMENTS, WAIT_S, answered_by_kernels

pytestmark = pytest.mark.gpu

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FUNCTIONS = {SPLIT.name: split_rotary, QK.name: qk_norm_rotary}
OPS = pytest.mark.parametrize("op", [SPLIT, QK], ids=lambda op: op.name)
CONTRACTS = pytest.mark.parametrize(
    ("dtype", "table"),
    [(BF16, BF16), (BF16, FP32), (FP16, FP16), (FP16, FP32), (FP32, FP32)],
    ids=name_of,
)

# (B, T, D) and R: LTX-2's streams and their odd neighbours, heads of other sizes, tiny ones.
SHAPES = [
    ((2, 6144, 4096), 64),
    ((1, 8160, 2048), 32),
    ((2, 126, 2048), 32),
    ((2, 1023, 3840), 64),
    ((3, 77, 480), 48),
    ((1, 1, 256), 64),
    ((5, 13, 30), 5),
    ((2, 9, 6), 1),
]


def arguments(op, shape, half, **how):
    make = turned_arguments if op is SPLIT else qk_arguments
    return make(shape, half, device="cuda", **how)


def several(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def differing(op, args, *scalars):
    """Of each result: how many elements are not eager's, and the largest difference."""
    found = []
    outputs = several(FUNCTIONS[op.name](*args, *scalars))
    assert answered_by_kernels()
    for out, want in zip(outputs, several(op.reference(*args, *scalars)), strict=True):
        assert out.stride() == want.stride()
        found.append((int((out != want).sum()), float((out.float() - want.float()).abs().max())))
    return found


def exactly(op, args, *scalars):
    """Demand eager's bits; what differs otherwise is in the message."""
    assert [found for found in differing(op, args, *scalars) if found != (0, 0.0)] == []


class Called:
    """The op as a model calls it, in the form that the verifier takes."""

    def __init__(self, op, **named):
        self.op, self.named = op, named

    def into(self, inputs, outputs):
        for to, out in zip(
            outputs, several(FUNCTIONS[self.op.name](*inputs, **self.named)), strict=True
        ):
            to.copy_(out)


def hold(op, args, **named):
    """Hold the op to the verifier's bound of float64, and give the verdict."""
    few = args[0].numel() < FEW_ELEMENTS
    verdict = verify(
        Called(op, **named),
        op.reference,
        lambda *inputs: op.reference(*double(inputs)),
        lambda generator: args,
        generator=torch.Generator(),
        bound=Bound(factor=4.0, ulps=2.0) if few else op.bound,
    )
    assert verdict.ok, verdict.reason
    assert answered_by_kernels()
    return verdict


# -- bits -------------------------------------------------------------------------------------


@CONTRACTS
@pytest.mark.parametrize(("shape", "half"), SHAPES, ids=str)
def test_split_rotary_has_eagers_bits(shape, half, dtype, table):
    """Every element is eager's, in both contracts and every dtype, whatever the heads."""
    jitd.configure(mode="replay")
    exactly(SPLIT, arguments(SPLIT, shape, half, dtype=dtype, table=table))


# (layout of x, layout of the tables): each of both, and some together.
WAYS = [*(("contiguous", layout) for layout in TABLES), *((x, "by token") for x in ROWS)]
WAYS += [("part of a row", "half of a row"), ("odd rows", "odd rows"), ("unaligned", "unaligned")]


@pytest.mark.parametrize(("x", "layout"), WAYS)
@pytest.mark.parametrize("table", [BF16, FP32], ids=name_of)
def test_split_rotary_has_eagers_bits_in_any_layout(x, layout, table):
    """The same for x and tables in any strides and at any address, and tables that serve all
    samples or heads."""
    jitd.configure(mode="replay")
    args = arguments(SPLIT, (2, 131, 1024), 64, dtype=BF16, table=table, layout=layout, x=x)
    exactly(SPLIT, args)


def test_not_a_number_goes_where_eager_puts_it():
    """NaN and infinities in x turn their pair, and nothing else, into what eager makes of it."""
    jitd.configure(mode="replay")
    args = arguments(SPLIT, (2, 131, 1024), 64, dtype=BF16)
    args[0][0, 3, 5], args[0][1, 7, 64] = float("nan"), float("inf")
    out, want = split_rotary(*args), SPLIT.reference(*args)
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    assert answered_by_kernels()


@CONTRACTS
def test_the_four_dimensional_route_has_eagers_bits(dtype, table):
    """Heads apart, as attention has them, give eager's bits in that order, too."""
    jitd.configure(mode="replay")
    x, cos, sin = arguments(SPLIT, (2, 131, 1024), 64, dtype=dtype, table=table)
    apart = x.unflatten(2, (8, 128)).transpose(1, 2)
    want = SPLIT.reference(x, cos, sin).unflatten(2, (8, 128)).transpose(1, 2)
    for heads in (apart, apart.contiguous()):
        assert torch.equal(apply_split_rotary_emb(heads, (cos, sin)), want)
    assert answered_by_kernels()


def whole(x):
    """Small integers in place of values: the sum of their squares is exact in any order."""
    return x.mul(2).round().clamp(-7, 7)


@CONTRACTS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "half"), [(4096, 64), (2048, 32)])
def test_fed_with_eagers_statistics_it_has_eagers_bits(width, half, kind, dtype, table):
    """Rows whose mean square is the same in any order of summation have eager's statistics: every
    element of queries and keys is then eager's, norm, weight, rounding and rotation."""
    jitd.configure(mode="replay")
    args = arguments(QK, (2, 1023, width), half, kind=kind, dtype=dtype, table=table, weights=dtype)
    args[:2] = [whole(x) for x in args[:2]]
    exactly(QK, args, 1e-6)


# -- bounds -----------------------------------------------------------------------------------


@CONTRACTS
@pytest.mark.parametrize(("shape", "half"), SHAPES, ids=str)
def test_queries_and_keys_are_as_right_as_eagers(shape, half, dtype, table):
    """The whole op is within 1.5 times eager's error of float64, two runs agree in every bit,
    nothing else is written, and in 16 bits one element in a thousand differs at most."""
    jitd.configure(mode="replay")
    args = arguments(QK, shape, half, dtype=dtype, table=table, weights=dtype)
    hold(QK, args)
    found = differing(QK, args)
    print(f"{shape} {half} {dtype} {table}: (differing, largest difference) {found}")
    if dtype is not FP32:
        assert all(count <= 1e-3 * args[0].numel() + 2 * shape[2] for count, _ in found)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=name_of)
@pytest.mark.parametrize("width", [4096, 2048, 3840, 128, 1026])
def test_the_norm_alone_is_within_an_ulp_of_torchs(width, dtype):
    """Without tables the op is torch.nn.RMSNorm, but for the last bit of some elements."""
    jitd.configure(mode="replay")
    args = arguments(QK, (2, 1023, width), 1, kind="none", dtype=dtype, weights=dtype)
    outputs = qk_norm_rotary(*args)
    assert answered_by_kernels()
    for out, want in zip(outputs, QK.reference(*args), strict=True):
        apart = (_ordered(out) - _ordered(want)).abs()
        print(f"{width} {dtype}: {int((apart > 0).sum())} of {apart.numel()} differ")
        # In fp32 both of two roundings of the last bits count: of the sum, and of what follows.
        assert int(apart.max()) <= (1 if dtype is not FP32 else 4)


def _ordered(values):
    """The place of each value among all those of its dtype."""
    bits = values.view(torch.int32 if values.dtype == FP32 else torch.int16).long()
    lowest = -(1 << 31) if values.dtype == FP32 else -(1 << 15)
    return torch.where(bits < 0, lowest - bits, bits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, FP32, BF16])
@pytest.mark.parametrize("keys", [6144, 1024, 126])
def test_queries_and_keys_of_every_kind_are_right(kind, weights, keys):
    """Other lengths, tables for both, one or none, weights of another dtype or none."""
    jitd.configure(mode="replay")
    if kind == "same" and keys != 6144:
        return
    shape = (2, 6144, 2048)
    args = arguments(QK, shape, 32, keys=keys, kind=kind, weights=weights, dtype=BF16)
    hold(QK, args)
    hold(QK, args, numerics="fast")


@pytest.mark.parametrize(("x", "layout"), WAYS)
@pytest.mark.parametrize("kind", ["both", "k only"])
def test_queries_and_keys_may_lie_anywhere(x, layout, kind):
    """q, k and their tables in any strides and at any address."""
    jitd.configure(mode="replay")
    args = arguments(
        QK, (2, 131, 1024), 64, kind=kind, dtype=BF16, layout=layout, x=x, weights=None
    )
    hold(QK, args)


@OPS
def test_fast_is_right(op):
    """Rounding once is nearer to float64, in both contracts."""
    jitd.configure(mode="replay")
    for table in (BF16, FP32):
        args = arguments(op, (2, 1023, 4096), 64, dtype=BF16, table=table)
        hold(op, args, numerics="fast")


# -- configs ----------------------------------------------------------------------------------

TUNED = [
    ((1, 6144, 4096), 64, {"dtype": BF16, "table": BF16}),
    ((1, 6144, 4096), 64, {"dtype": BF16, "table": FP32}),
    ((2, 126, 2048), 32, {"dtype": BF16, "table": FP32}),
]


@OPS
@pytest.mark.parametrize(("shape", "half", "how"), TUNED, ids=str)
def test_a_tuned_op_is_as_right_as_eager(op, shape, half, how):
    """The winner of a tune is as right as any config, and split_rotary has eager's bits."""
    if op is QK:
        how = {**how, "kind": "same", "weights": BF16}
    args = arguments(op, shape, half, **how)
    hold(op, args)
    if op is SPLIT:
        exactly(op, args)


@OPS
@pytest.mark.parametrize(("shape", "half"), [SHAPES[0], SHAPES[2], SHAPES[4]], ids=str)
def test_configs_from_all_over_the_space_are_right(workers, builder, card, op, shape, half):
    """Configs of every kind are within the verifier's bound, also where tiles are partly full."""
    call = op.bucket(made_call(op, shape, half))
    kept, _ = op.configs(call, card)
    chosen = random.Random(op.name).sample(kept, min(10, len(kept)))
    running = [
        (config, [workers.submit(b) for b in builder.binaries(op, config.plan(call, card), call)])
        for config in chosen
    ]
    for config, futures in running:
        artifacts = [future.result(WAIT_S) for future in futures]
        verdict = check(op, call, config, artifacts, card, builder.probes(op, call, config))
        assert verdict["ok"], f"{config}: {verdict['reason']}"
        assert verdict["local_bytes"] == [0], config


@OPS
def test_a_new_length_compiles_nothing(op, cold):
    """After the first call of a bucket no length of it, no batch, and no stride that follows from
    them compiles, checks or tunes anything; nor do strides that allow the same accesses."""
    jitd.configure(mode="replay")
    for tokens, x in [(4101, "contiguous"), (8192, "contiguous"), (6144, "contiguous")] + [
        (tokens, "part of a row") for tokens in (4097, 5003, 8191)
    ]:
        args = arguments(op, (1, tokens, 1024), 64, dtype=BF16, x=x)
        FUNCTIONS[op.name](*args)
        counts = {n: jitd.stats().get(n, 0) for n in ("compiles", "checks", "tunes")}
        assert counts == {"compiles": 1, "checks": 1, "tunes": 0}, (tokens, x)
    assert answered_by_kernels()


@OPS
def test_every_run_has_the_same_bits(op):
    """Ten runs, with other work between them, agree in every bit."""
    jitd.configure(mode="replay")
    args = arguments(op, (2, 1023, 4096), 64, dtype=BF16)
    first = several(FUNCTIONS[op.name](*args))
    for _ in range(10):
        torch.randn(1 << 20, device="cuda").sum()
        for out, want in zip(several(FUNCTIONS[op.name](*args)), first, strict=True):
            assert torch.equal(out, want)


def test_more_than_two_to_the_31_elements(much_memory):
    """The first, middle and last tokens of 2.2e9 elements are right: offsets have 64 bits."""
    jitd.configure(mode="replay")
    tokens, width = 540_000, 4096
    x = torch.empty(1, tokens, width, dtype=BF16, device="cuda")
    x.normal_(generator=torch.Generator("cuda").manual_seed(0))
    angle = randn(1, 1, tokens, 64, device="cuda")
    cos, sin = angle.cos(), angle.sin()
    outputs = {
        "turned": split_rotary(x, cos, sin),
        "normalised": qk_norm_rotary(x, x[:, :8], None, None, cos, sin)[0],
    }
    assert answered_by_kernels()
    for at in (0, tokens // 2, tokens - 64):
        part = slice(at, at + 64)
        own = x[:, part].contiguous(), cos[:, :, part].contiguous(), sin[:, :, part].contiguous()
        assert torch.equal(outputs["turned"][:, part], SPLIT.reference(*own))
        want, _ = QK.reference(own[0], own[0], None, None, *own[1:])
        torch.testing.assert_close(outputs["normalised"][:, part], want, rtol=2e-2, atol=2e-2)


@OPS
def test_double_precision_is_the_references(op):
    """float64 on the card is computed by the reference, bit for bit, and counted."""
    args = double(arguments(op, (2, 9, 16), 4))
    for out, want in zip(
        several(FUNCTIONS[op.name](*args)), several(op.reference(*args)), strict=True
    ):
        assert torch.equal(out, want)
    assert jitd.stats() == {"reference:unsupported": 1}
