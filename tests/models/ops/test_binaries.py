"""A bucket's binaries: what is compiled for the lengths that `reach` names serves all others."""

import itertools
import random
from functools import cache

import pytest
from jitd.jit import runtime
from jitd.jit.declare import Config, Pointer, Problem
from jitd.jit.device import stand_in
from jitd.jit.errors import DeclarationError
from jitd.jit.source import function_source

from .cases import ADD, SILU, made_call
from .test_signatures import PAIRS

OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
CONFIGS = 24  # of each variant and bucket, drawn anew for each


@pytest.fixture
def builder(tmp_path):
    runtime.configure(cache_dir=tmp_path / "cache")
    return runtime.current().builder(stand_in("sm_90"))


def keys(builder, op, config, call):
    plan = config.plan(call, builder.device)
    return {binary.key.digest for binary in builder.binaries(op, plan, call)}


@cache
def reached(op, bucket):
    """The calls for which warming a bucket compiles."""
    return (bucket, *op.reach(bucket))


def warmed(builder, op, config, bucket):
    """The binaries of a config that warming its bucket compiles."""
    calls = [c for c in reached(op, bucket) if config.variant.applies(c) is None]
    return set().union(*(keys(builder, op, config, call) for call in calls))


def configs(builder, op, call, count=CONFIGS):
    """Some configs of every variant that computes the call, and the default, if there is one."""
    kept, _ = op.configs(call, builder.device)
    for variant in op.variants:
        own = [config for config in kept if config.variant is variant]
        yield from random.Random(len(own)).sample(own, min(count, len(own)))
    default = op.default(call, builder.device)
    yield from [default] if default else []


def divisors(length):
    return [frames for frames in (1, 2, 3, 7, 13, 14, 15, 16) if length % frames == 0]


# (channels, groups) and lengths: an LTX-2 shape, small and odd ones, a group of few channels.
BUCKETS = [
    ((1024, 32), range(5121, 6145)),
    ((1024, 32), range(1281, 1537)),
    ((512, 32), range(24577, 28673)),
    ((96, 32), range(321, 385)),
    ((10, 5), range(113, 129)),
    ((12, 3), range(29, 33)),
    ((36, 4), [5]),
]
PRIMES = {24593, 24671, 28661, 28669, 5147, 5153, 6133, 6143, 1283, 1289, 1531, 331, 383, 127}


def members(lengths):
    """Some lengths of a bucket: its ends, primes, multiples of all powers of two."""
    chosen = set(random.Random(1).sample(lengths, min(len(lengths), 12)))
    chosen |= {lengths[0], lengths[-1], *PRIMES.intersection(lengths)}
    for width in (2, 4, 8, 16, 32):
        chosen |= set([n for n in lengths if n % width == 0 and n % (2 * width)][:2])
    return sorted(chosen)


@OPS
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("x", "residual"), PAIRS)
@pytest.mark.parametrize(("channels", "lengths"), BUCKETS, ids=lambda value: str(value)[:24])
def test_a_new_length_compiles_nothing(builder, op, channels, lengths, x, residual, dtype):
    """Every config that a tune may choose needs, for any length of its bucket, in any number of
    frames, only binaries that warming the bucket has compiled."""
    if op is SILU and x != residual:
        return
    how = {"x": x, "residual": residual, "dtype": dtype}
    by_bucket = {}
    for length in members(lengths):
        for frames in divisors(length):
            shape = (1, channels[0], frames, 1, length // frames)
            call = made_call(op, shape, channels[1], **how)
            by_bucket.setdefault(op.bucket(call), []).append(call)
    missing = []
    for bucket, calls in by_bucket.items():
        for config in configs(builder, op, bucket, count=6):
            warm = warmed(builder, op, config, bucket)
            for call in calls:
                if config.variant.applies(call) is None and keys(builder, op, config, call) - warm:
                    missing.append((str(op.sign(call)), config.name))
    assert missing == []


@OPS
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_new_batch_compiles_nothing(builder, op, batch):
    """Any batch size of a bucket needs the bucket's binaries only."""
    shape = (batch, 96, 3, 1, 128)
    call = made_call(op, shape, 32)
    bucket = op.bucket(call)
    for config in configs(builder, op, bucket):
        assert keys(builder, op, config, call) <= warmed(builder, op, config, bucket)


@OPS
@pytest.mark.parametrize("x", ["contiguous", "channels_last_3d"])
def test_an_unaligned_input_compiles_nothing(builder, op, x):
    """An x that begins anywhere else than at 16 bytes has its binaries warmed, too."""
    call = made_call(op, (1, 96, 16, 3, 8), 32, x=x)
    call = call.replace(x=call.x.like(aligned=False, strides=call.x.strides))
    bucket = op.bucket(call)
    assert bucket.x.aligned
    for config in configs(builder, op, bucket):
        assert keys(builder, op, config, call) <= warmed(builder, op, config, bucket)


@OPS
@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 8), (1000, 20), (4, 1)])
@pytest.mark.parametrize(("x", "residual"), PAIRS[:3])
def test_huge_lengths_compile_nothing(builder, op, channels, groups, x, residual):
    """Where counts and offsets pass 2^31 within a bucket, reach covers both widths of integers."""
    if op is SILU and x != residual:
        return
    missing = []
    for most in (2**29, 2**28, 2**27, 2**21, 2 * 10**8, 36_000_000):
        for length in (most, most - 1, most - 8, most * 15 // 16):
            for frames in divisors(length):
                shape = (1, channels, frames, 1, length // frames)
                call = made_call(op, shape, groups, x=x, residual=residual)
                bucket = op.bucket(call)
                for config in configs(builder, op, bucket, count=2):
                    if keys(builder, op, config, call) - warmed(builder, op, config, bucket):
                        missing.append((str(op.sign(call)), config.name))
    assert missing == []


@OPS
def test_reach_stays_in_the_bucket(op):
    """Every call that reach names is one of the bucket, so that it needs no tune of its own."""
    for (channels, groups), lengths in BUCKETS:
        for x, residual in PAIRS:
            shape = (1, channels, 1, 1, lengths[-1])
            bucket = op.bucket(made_call(op, shape, groups, x=x, residual=residual))
            for call in op.reach(bucket):
                op.check(call)
                assert op.bucket(call) == bucket, str(op.sign(call))


@OPS
def test_checks_see_the_longest_and_a_barely_longer_than_the_next_bucket(builder, op):
    """Probes share bucket and binaries with the call, and the shortest leaves tiles nearly empty:
    a check at the bucket's own, full size would not see a kernel that miscounts a tail."""
    for (channels, groups), lengths in BUCKETS:
        for x, residual in PAIRS:
            shape = (1, channels, 1, 1, lengths[-1])
            bucket = op.bucket(made_call(op, shape, groups, x=x, residual=residual))
            probes = op.probes(bucket)
            assert all(op.bucket(probe) == bucket for probe in probes)
            config = op.default(bucket, builder.device)
            if config is None or not probes:
                continue
            checked = builder.probes(op, bucket, config)
            binaries = keys(builder, op, config, bucket)
            assert all(keys(builder, op, config, probe) == binaries for probe in checked)
            if lengths[-1] > 1000 and residual in (None, "contiguous"):
                assert any(probe.x.numel < 0.9 * bucket.x.numel for probe in checked)


@OPS
def test_few_binaries_for_each_config(builder, op):
    """Warming a bucket compiles a handful of binaries for each launch, not one for each length."""
    for x, residual in PAIRS:
        bucket = op.bucket(made_call(op, (1, 96, 16, 3, 8), 32, x=x, residual=residual))
        for config in configs(builder, op, bucket):
            found = warmed(builder, op, config, bucket)
            launches = len(config.plan(bucket, builder.device).launches)
            assert len(found) <= 12 * launches, (op.sign(bucket), config.name)


@OPS
def test_plans_are_whole(builder, op):
    """Each launch of every config gives its kernel exactly the arguments that it declares, points
    at memory that the plan knows, and starts at least one program."""
    for x, residual in PAIRS:
        for length in (1, 7, 64, 385):
            call = made_call(op, (3, 12, 1, 1, length), 4, x=x, residual=residual)
            for variant, params in _points(op, call, 40):
                plan = Config(variant, params).plan(call, builder.device)
                assert builder.binaries(op, plan, call)  # raises for arguments that do not fit
                known = {*call.tensors, *plan.outputs, *plan.workspaces}
                for launch in plan.launches:
                    pointers = {a.name for a in launch.args.values() if isinstance(a, Pointer)}
                    assert pointers <= known
                    assert all(1 <= n < 2**31 for n in launch.grid)
                assert list(plan.outputs.values()) == list(op.outputs(call).values())


def _points(op, call, count):
    """Some points of the whole product of each variant that computes the call."""
    for variant in op.variants:
        if variant.applies(call) is None:
            axes = variant.space.axes
            every = list(itertools.product(*axes.values()))
            for point in random.Random(3).sample(every, min(count, len(every))):
                yield variant, dict(zip(axes, point, strict=True))


def test_kernels_can_be_read_without_triton():
    """Each kernel that a plan launches is found and digested from its source."""
    kernels = set()
    device = stand_in("sm_90")
    for op, (x, residual) in itertools.product((SILU, ADD), PAIRS):
        call = made_call(op, (1, 96, 16, 3, 8), 32, x=x, residual=residual)
        for variant in op.variants:
            if variant.applies(call) is None:
                params = variant.space.default(Problem(call, device))
                kernels |= {launch.kernel for launch in variant.plan(call, params, device).launches}
    assert len({kernel.source.digest for kernel in kernels}) == len(kernels) > 1
    with pytest.raises(DeclarationError):
        function_source("jitd.models.kernels.group_norm", "no_such_kernel")
