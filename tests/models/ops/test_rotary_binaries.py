"""Buckets and binaries of the rotary ops: a new length, batch or stride compiles nothing."""

import itertools

import pytest
from jitd.jit import runtime
from jitd.jit.declare import Config, Pointer, Problem
from jitd.jit.device import stand_in

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

OPS = pytest.mark.parametrize("op", [SPLIT, QK], ids=lambda op: op.name)
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 126, 128, 1021, 4096, 4097, 6144, 24576, 32640, 131071)
LAYOUTS = ("by token", "by head", "one sample", "one head", "one angle")

# (D, R): LTX-2's streams, its connectors, a head that is no power of two, an odd half.
HEADS = [(4096, 64), (2048, 32), (3840, 64), (480, 48), (30, 5)]


@pytest.fixture
def builder(tmp_path):
    runtime.configure(cache_dir=tmp_path / "cache")
    return runtime.current().builder(stand_in("sm_90"))


def keys(builder, op, config, call):
    plan = config.plan(call, builder.device)
    return {binary.key.digest for binary in builder.binaries(op, plan, call)}


def warmed(builder, op, config, bucket):
    """The binaries of a config that warming its bucket compiles."""
    return set().union(*(keys(builder, op, config, call) for call in op.reach(bucket)))


def some(builder, op, call, every=7):
    """The default and some configs of all those worth trying."""
    kept, _ = op.configs(call, builder.device)
    return [op.default(call, builder.device), *kept[::every]]


@OPS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("width", "half"), HEADS)
def test_one_binary_for_every_length(builder, op, width, half, layout):
    """A config has one binary for all lengths, batches and the strides that follow from them."""
    longest = op.bucket(made_call(op, (2, max(LENGTHS), width), half, layout=layout))
    for config in some(builder, op, longest):
        own = keys(builder, op, config, longest)
        assert len(own) == 1
        for batch, tokens in itertools.product((1, 2, 3), LENGTHS):
            call = made_call(op, (batch, tokens, width), half, layout=layout)
            assert keys(builder, op, config, call) == own, op.sign(call)


def test_queries_and_keys_of_any_lengths_share_a_binary(builder):
    """The keys' length is as free as the queries'."""
    bucket = QK.bucket(made_call(QK, (1, 32768, 2048), 32, keys=128))
    for config in some(builder, QK, bucket):
        own = keys(builder, QK, config, bucket)
        for tokens, count in itertools.product(LENGTHS, LENGTHS):
            call = made_call(QK, (2, tokens, 2048), 32, keys=count)
            assert keys(builder, QK, config, call) == own


@OPS
@pytest.mark.parametrize("x", ["contiguous", "part of a row", "odd rows", "unaligned"])
@pytest.mark.parametrize("layout", ["by token", "half of a row", "odd rows", "every other"])
def test_tensors_anywhere_need_no_other_binaries(builder, op, x, layout):
    """Tensors cut out of others, with rows of any stride and beginning anywhere, need what warming
    the bucket compiled, as long as not all of that comes together."""
    make = turned_arguments if op is SPLIT else qk_arguments
    for tokens in (9, 16):
        call = call_of(op, make((2, tokens, 64), 16, x=x, layout=layout))
        bucket = op.bucket(call)
        together = x in ("odd rows", "unaligned") and layout == "odd rows"
        if op is QK and x == "unaligned":
            call = call.replace(k=call.k.like(aligned=True, strides=call.k.strides))
        for config in some(builder, op, bucket, every=3):
            warm = warmed(builder, op, config, bucket)
            assert together or keys(builder, op, config, call) <= warm, config


@OPS
def test_few_binaries_for_each_config(builder, op):
    """Warming a bucket compiles a handful of binaries, not one for each length."""
    for layout in LAYOUTS:
        bucket = op.bucket(made_call(op, (2, 6144, 4096), 64, layout=layout))
        for config in some(builder, op, bucket):
            assert len(warmed(builder, op, config, bucket)) <= 9


@OPS
def test_a_bucket_holds_the_call_and_is_its_own(op, tmp_path):
    """A bucket has the call's heads, dtypes and kinds of tables, at least its sizes and less than
    twice those; its bucket is itself, and all of its calls have one tuning key."""
    runtime.configure(cache_dir=tmp_path / "cache")
    builder = runtime.current().builder(stand_in("sm_90"))
    kinds = KINDS if op is QK else ("both",)
    seen = {}
    for kind, layout, tokens in itertools.product(kinds, LAYOUTS, LENGTHS):
        call = made_call(
            op, (2, tokens, 64), 16, layout=layout, **({"kind": kind} if op is QK else {})
        )
        bucket = op.bucket(call)
        op.check(bucket)
        assert op.bucket(bucket) == bucket
        assert {n: s.dtype for n, s in bucket.tensors.items()} == {
            n: s.dtype for n, s in call.tensors.items()
        }
        for name, spec in call.tensors.items():
            for own, size in zip(bucket[name].shape, spec.shape, strict=True):
                assert size <= own < 2 * size
        key = builder.tuning_key(op, call).digest
        assert seen.setdefault(bucket, key) == key
    assert len(set(seen.values())) == len(seen)


@OPS
def test_weights_and_strides_are_in_no_tuning_key(op, builder):
    """Where tensors lie is no reason for another tune; which tables there are is."""
    make = turned_arguments if op is SPLIT else qk_arguments
    digests = {builder.tuning_key(op, call_of(op, make((2, 9, 64), 16, x=x))).digest for x in ROWS}
    assert len(digests) == 1
    by_layout = {
        layout: builder.tuning_key(op, call_of(op, make((2, 9, 64), 16, layout=layout))).digest
        for layout in TABLES
    }
    assert by_layout["half of a row"] == by_layout["by head"] == by_layout["unaligned"]
    assert by_layout["by head"] != by_layout["by token"]


@OPS
def test_what_is_printed_reads_back(op):
    """A signature prints, parses to an equal one, and prints again as it was."""
    kinds = KINDS if op is QK else ("both",)
    for kind, layout, numerics in itertools.product(kinds, LAYOUTS, ("exact", "fast")):
        how = {"kind": kind, "keys": 7, "weights": None} if op is QK else {}
        if kind == "same":
            continue
        call = made_call(op, (2, 9, 64), 16, layout=layout, numerics=numerics, **how)
        signature = op.sign(call)
        again = op.parse(str(signature))
        assert again == signature
        assert {n: v for n, v in again.call.items() if n != "eps"} == {
            n: v for n, v in call.items() if n != "eps"
        }
    for layout in (*TABLES, *ROWS):
        make = turned_arguments if op is SPLIT else qk_arguments
        where = {"layout": layout} if layout in TABLES else {"x": layout}
        call = call_of(op, make((2, 5, 16), 4, **where))
        assert op.parse(str(op.sign(call))).call.replace(**_eps(call)) == call


def _eps(call):
    return {"eps": call.eps} if "eps" in call else {}


@OPS
def test_reach_and_probes_stay_in_the_bucket(builder, op):
    """Calls that reach names need no tune of their own; those at which binaries are checked use
    the same ones, and leave the last tiles partly full."""
    for (width, half), layout in itertools.product(HEADS, LAYOUTS):
        bucket = op.bucket(made_call(op, (2, 6144, width), half, layout=layout))
        for call in [*op.reach(bucket), *op.probes(bucket)]:
            op.check(call)
            assert op.bucket(call) == bucket
        config = op.default(bucket, builder.device)
        checked = builder.probes(op, bucket, config)
        lengths = [next(iter(probe.tensors.values())).shape[1] for probe in checked]
        assert lengths == [8191, 4097]
        smaller = op.smaller(bucket)
        assert (smaller is None) == (width < 1000)
        assert smaller is None or next(iter(smaller.tensors.values())).shape[1] == 4096


@OPS
def test_plans_are_whole(builder, op):
    """Each config gives its kernel exactly the arguments that it declares, points at memory that
    the plan knows, starts at least one program, and copies only what no stride describes."""
    make = turned_arguments if op is SPLIT else qk_arguments
    kinds = KINDS if op is QK else ("both",)
    copied = {}
    for x, layout, kind in itertools.product(ROWS, TABLES, kinds):
        how = {"kind": kind} if op is QK else {}
        call = call_of(op, make((2, 5, 24), 4, x=x, layout=layout, **how))
        for variant in op.variants:
            assert variant.applies(call) is None
            config = Config(variant, variant.space.default(Problem(call, builder.device)))
            plan = config.plan(call, builder.device)
            assert builder.binaries(op, plan, call)  # raises for arguments that do not fit
            known = {*call.tensors, *plan.outputs}
            for launch in plan.launches:
                assert {a.name for a in launch.args.values() if isinstance(a, Pointer)} <= known
                assert launch.grid[0] >= 1
            assert list(plan.outputs.values()) == list(op.outputs(call).values())
            copied.setdefault((x, layout), set()).update(plan.contiguous)
    assert {where for where, names in copied.items() if names} == {
        (x, layout) for x, layout in copied if "every other" in (x, layout)
    }


@OPS
def test_what_does_not_fit_a_program_is_the_references(op):
    """Rows and heads beyond what registers hold, and odd rows without tables, have a reason."""
    (variant,) = op.variants
    for width, half in ((2**16, 64), (2**15, 2**14)):
        reason = variant.applies(made_call(op, (1, 4, width), half))
        assert (reason is None) == (op is SPLIT and half == 64)
    if op is QK:
        odd = made_call(QK, (1, 4, 7), 1, kind="none")
        assert variant.applies(odd) == "7 channels: an odd number"
    for dtype in ("fp64",):
        assert "fp64" in variant.applies(made_call(op, (1, 4, 16), 4, dtype=dtype))


@OPS
def test_every_size_has_a_default_that_is_worth_trying(builder, op):
    """The default lies in the space for any heads and lengths, and the space is never empty nor
    too large to try."""
    sizes = [(4096, 64), (2048, 32), (128, 64), (8, 4), (2, 1), (8192, 128), (3072, 1536)]
    for (width, half), tokens in itertools.product(sizes, (1, 2, 126, 6144, 131072)):
        for dtype in ("bf16", "fp32"):
            call = op.bucket(made_call(op, (1, tokens, width), half, dtype=dtype))
            kept, _ = op.configs(call, builder.device)
            assert 1 <= len(kept) <= 48, op.sign(call)
            assert op.default(call, builder.device).name in {config.name for config in kept}
