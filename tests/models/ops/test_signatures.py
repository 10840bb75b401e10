"""Signatures of the two ops and the buckets that share a tune."""

import random

import pytest
from jitd.jit import runtime
from jitd.jit.device import stand_in
from jitd.models.ops.group_norm_problem import quarter_step

from .cases import ADD, LAYOUTS, SILU, arguments, call_of, fits, made_call, randn

OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)


def lengths(most=200_000, count=120):
    """Lengths of all kinds: small ones, powers of two and their neighbours, primes, any others."""
    chosen = {*range(1, 70), 127, 251, 257, 1021, 1531, 4093, 8191, 12289, 65537, 104729, 131071}
    for power in range(6, 17):
        chosen |= {2**power + d for d in (-1, 0, 1)} | {2**power * q // 4 for q in (5, 6, 7)}
    sampled = random.Random(0)
    chosen |= {sampled.randrange(1, most) for _ in range(count)}
    return sorted(n for n in chosen if n <= most)


def shapes_of(length, channels):
    """Ways in which a channel of that length comes, up to five dimensions."""
    yield 2, channels, length
    for frames in (13, 16, 15, 3, 1):
        if length % frames == 0:
            rest = length // frames
            height = next(h for h in (8, 5, 3, 2, 1) if rest % h == 0)
            yield 1, channels, frames, height, rest // height


# (layout of x, layout of the residual), as TensorSpec names them in five dimensions.
PAIRS = [
    ("contiguous", "contiguous"),
    ("contiguous", "perm02134"),
    ("contiguous", "channels_last_3d"),
    ("contiguous", "perm43210"),
    ("channels_last_3d", "channels_last_3d"),
    ("channels_last_3d", "perm02134"),
    ("channels_last_3d", "contiguous"),
]


def calls(op, channels=96, dtypes=("bf16",), every=1, **how):
    """Calls of many lengths, in every layout."""
    for length in lengths()[::every]:
        for shape in shapes_of(length, channels):
            for x, residual in PAIRS if len(shape) == 5 else PAIRS[:1]:
                if op is SILU and x != residual:
                    continue
                for dtype in dtypes:
                    how = {**how, "x": x, "residual": residual, "dtype": dtype}
                    yield made_call(op, shape, 32, **how)


@OPS
def test_what_is_printed_reads_back(op):
    """A signature prints, parses to an equal one, and prints again as it was."""
    for dtype in ("bf16", "fp16", "fp32"):
        for numerics in ("exact", "fast"):
            for call in calls(op, dtypes=[dtype], numerics=numerics, every=9):
                signature = op.sign(call)
                again = op.parse(str(signature))
                assert again == signature
                assert again.call == call
                assert str(op.sign(again.call)) == str(signature)


@OPS
@pytest.mark.parametrize("x", LAYOUTS)
def test_signatures_of_tensors_read_back(op, x):
    """Whatever strides a tensor has, expanded and sliced ones too, its signature reads back."""
    for shape, groups in (((2, 12, 7), 4), ((1, 12, 3, 5), 4), ((2, 12, 3, 2, 5), 4)):
        for residual in [r for r in (*LAYOUTS, "expanded") if r == "expanded" or fits(r, shape)]:
            if fits(x, shape):
                call = call_of(op, arguments(op, shape, groups, x=x, residual=residual))
                assert op.parse(str(op.sign(call))).call == call


def test_a_signature_as_it_is_written():
    """The printed forms that the README and the command line show are these."""
    call = made_call(SILU, (1, 1024, 16, 32, 48), 32)
    assert str(SILU.sign(call)) == "group_norm_silu[bf16](1x1024x16x32x48, groups=32)"
    call = made_call(ADD, (1, 64, 4, 2, 3), 32, residual="perm02134", dtype="fp16", numerics="fast")
    assert str(ADD.sign(call)) == (
        "group_norm_add_silu[fp16](1x64x4x2x3, residual=:perm02134, groups=32, numerics=fast)"
    )


def test_weights_of_another_alignment_are_another_signature():
    """A weight that begins anywhere else than at 16 bytes shows in the signature."""
    x, weight = randn(1, 8, 4), randn(9)[1:]
    call = call_of(SILU, [x, weight, randn(8), 4])
    text = str(SILU.sign(call))
    assert "weight=:unaligned" in text
    assert SILU.parse(text).call == call


@OPS
def test_a_bucket_is_its_own_bucket(op):
    """The call that is tuned for a bucket belongs to it: a bucket's bucket is itself."""
    wrong = [str(op.sign(c)) for c in calls(op) if op.bucket(op.bucket(c)) != op.bucket(c)]
    assert wrong == []


@OPS
def test_a_bucket_holds_the_call(op):
    """A bucket is at least as large as the call, by a third in length at most (or it has 64
    positions), and has its channels, groups, dtype and layouts."""
    for call in calls(op):
        bucket = op.bucket(call)
        op.check(bucket)
        (batch, channels), positions = call.x.shape[:2], _positions(call)
        assert bucket.x.shape[1] == channels
        assert batch <= bucket.x.shape[0] < 2 * batch
        assert positions <= _positions(bucket) <= max(64, 1.34 * positions)
        assert (bucket.x.dtype, bucket.groups) == (call.x.dtype, call.groups)
        last = [c.x.layout.startswith("channels_last") for c in (call, bucket)]
        assert last[0] == last[1]


def _positions(call):
    return call.x.numel // (call.x.shape[0] * call.x.shape[1])


@OPS
@pytest.mark.parametrize(("x", "residual"), PAIRS)
def test_a_bucket_has_one_tuning_key(op, x, residual, tmp_path):
    """Every length of a bucket, and its bucket itself, asks for one winner: what is tuned for one
    serves all."""
    runtime.configure(cache_dir=tmp_path / "cache")
    builder = runtime.current().builder(stand_in("sm_90"))
    for most in (8, 160, 1536, 6144):
        before = max(n for n in range(1, most) if quarter_step(n) != most)
        members = range(before + 1, most + 1)
        keys = set()
        for length in members[:: max(1, len(members) // 60)]:
            for frames in (1, 2, 3, 5, 8, 13, 15, 16):
                if length % frames == 0:
                    # Two rows at least: with one, layouts become one another.
                    shape = (1, 96, frames, 1, length // frames)
                    if min(frames, length // frames) > 1:
                        call = made_call(op, shape, 32, x=x, residual=residual)
                        keys.add(builder.tuning_key(op, call).digest)
                        keys.add(builder.tuning_key(op, op.bucket(call)).digest)
        assert len(keys) == 1, f"bucket of {most}"


@OPS
def test_what_selects_code_is_in_the_tuning_key(op, tmp_path):
    """Groups, numerics, dtype, channels and layout have winners of their own; eps has not."""
    runtime.configure(cache_dir=tmp_path / "cache")
    builder = runtime.current().builder(stand_in("sm_90"))
    shape = (1, 64, 4, 6, 8)
    usual = made_call(op, shape, 32)
    others = [
        made_call(op, shape, 16),
        made_call(op, shape, 32, numerics="fast"),
        made_call(op, shape, 32, dtype="fp16"),
        made_call(op, (1, 96, 4, 6, 8), 32),
        made_call(op, shape, 32, x="channels_last_3d"),
        made_call(op, (1, 64, 4, 6, 12), 32),
        made_call(op, (3, 64, 4, 6, 8), 32),
    ]
    if op is ADD:
        others.append(made_call(op, shape, 32, residual="perm02134"))
    keys = {builder.tuning_key(op, call).digest for call in [usual, *others]}
    assert len(keys) == 1 + len(others)
    same = made_call(op, shape, 32, eps=1e-3)
    assert builder.tuning_key(op, same) == builder.tuning_key(op, usual)


@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [*LAYOUTS, "expanded"])
def test_any_residual_has_a_bucket_of_its_own_kind(x, residual):
    """Residuals of all strides, expanded and sliced ones too, have a bucket that is its own and is
    computed by the variants that compute the call."""
    args = arguments(ADD, (2, 12, 16, 3, 4), 4, x=x, residual=residual)
    call = call_of(ADD, args)
    bucket = ADD.bucket(call)
    assert ADD.bucket(bucket) == bucket
    for variant in ADD.variants:
        assert (variant.applies(bucket) is None) == (variant.applies(call) is None)
