"""Kernels of Helios, Z-Image and the VAEs compiled for a real card at their shapes, without one."""

import random

import jitd
import pytest
from jitd.jit import runtime
from jitd.jit.compile import CompilePool
from jitd.jit.device import stand_in

from .cubins import WAIT_S, sass, usage, widths
from .signed import signed

pytestmark = pytest.mark.compiler

DEVICE = stand_in("sm_90")
HELIOS = "qk_norm_rotary[bf16](1x{n}x5120, wq=bf16 5120, q_cos=fp32 1x{n}x256, layout=interleaved)"
Z_IMAGE = (
    "qk_norm_rotary[bf16](1x{n}x3840, wq=bf16 128, q_cos=fp32 1x{n}x64x2, layout=complex, "
    "rounding=each)"
)
WAN = "channel_rms_norm_silu[fp32](1x384x{n}, weight=fp32 384, form=l2)"
# A call of {n} tokens or positions, and the number that a model has.
REAL = [
    (HELIOS, 11040),
    (Z_IMAGE, 4128),
    ("swiglu[bf16](1x{n}x10240)", 4128),
    ("channel_rms_norm_silu[bf16](1x1024x{n})", 6144),
    ("channel_rms_norm_silu[bf16](1x128x{n})", 2973696),
    ("channel_rms_norm_silu[bf16](1x128x1x1x{n}:channels_last_3d)", 2973696),
    (WAN, 3840),
]
BY_CALL = pytest.mark.parametrize(("text", "count"), REAL)


@pytest.fixture(scope="module")
def pool():
    with CompilePool(2) as pool:
        yield pool


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=2)
    return runtime.current().builder(DEVICE)


def compiled(builder, pool, op, config, call):
    (binary,) = builder.binaries(op, config.plan(call, DEVICE), call)
    return pool.submit(binary).result(WAIT_S)


@BY_CALL
def test_the_default_is_wide_and_spills_nothing(builder, pool, tmp_path, text, count):
    """At real shapes the default config stores 16 bytes at a time, loads so what it needs whole,
    keeps everything in registers, and leaves room for a second program beside it."""
    op, call = signed(text.format(n=count))
    answer = compiled(builder, pool, op, op.default(op.bucket(call), DEVICE), call)
    loads, stores = widths(sass(answer["cubin"], tmp_path))
    assert 128 in loads
    assert set(stores) == {128}
    # Of the tables of the one every other entry is dropped; the other has a weight for each row.
    if text not in (HELIOS, WAN):
        assert loads.count(128) >= len(loads) - 1  # a weight of another width than x may be one
    registers, spilled = usage(answer["cubin"], tmp_path)
    assert spilled == 0
    assert registers <= 128


@BY_CALL
def test_some_of_every_space_compile(builder, pool, text, count):
    """Spaces are small, and configs from all over them compile."""
    op, call = signed(text.format(n=count))
    call = op.bucket(call)
    kept, _ = op.configs(call, DEVICE)
    assert 5 <= len(kept) <= 25
    for config in random.Random(text).sample(kept, 2):
        assert compiled(builder, pool, op, config, call)["cubin"][:4] == b"\x7fELF"


@BY_CALL
def test_a_new_length_compiles_nothing(builder, text, count):
    """Every config needs, for any length of its bucket, only binaries that warming it compiles."""
    op, real = signed(text.format(n=count))
    bucket = op.bucket(real)
    most = bucket.tensors[op.tensors[0].name].shape
    longest = max(most[1:2] if op.name != "channel_rms_norm_silu" else most[2:])
    longest = most[0] if op.name == "swiglu" else longest
    for config in op.configs(bucket, DEVICE)[0][::3]:
        warmed = {k for c in (bucket, *op.reach(bucket)) for k in keys(builder, op, config, c)}
        for length in (longest, longest - 1, longest // 2 + 1, longest // 2 + 16, longest * 3 // 4):
            _, call = signed(text.format(n=length))
            assert op.bucket(call) == bucket
            assert keys(builder, op, config, call) <= warmed


def keys(builder, op, config, call):
    return {b.key.digest for b in builder.binaries(op, config.plan(call, DEVICE), call)}


def test_heads_are_read_where_they_are():
    """A norm of heads of queries that are a part of a wider row copies nothing."""
    op, call = signed("rms_norm[bf16](2x64x30x128:strided(737280,11520,128,1), weight=bf16 128)")
    plan = op.default(op.bucket(call), DEVICE).plan(call, DEVICE)
    assert not plan.contiguous
    assert [plan.launches[0].args[name] for name in ("x_b", "x_s", "S")] == [11520, 128, 30]


def test_halves_of_one_product_are_read_where_they_are():
    """swiglu of the two halves of a merged product copies nothing; other strides are copied."""
    text = "swiglu[bf16](2x64x1024:strided({},1))"
    op, call = signed(text.format("131072,2048"))
    plan = op.default(op.bucket(call), DEVICE).plan(call, DEVICE)
    assert not plan.contiguous
    assert (plan.launches[0].args["a_t"], plan.launches[0].args["T"]) == (2048, 128)
    op, call = signed(text.format("131080,2048"))
    assert op.default(op.bucket(call), DEVICE).plan(call, DEVICE).contiguous == ("a", "b")


def test_frames_cut_off_are_read_where_they_are():
    """A VAE drops the first frame: what is left has runs of positions and is not copied; a shuffle
    of pixels, which has none, is."""
    op, call = signed("channel_rms_norm_silu[bf16](1x64x4x8x8:strided(20480,320,64,8,1))")
    plan = op.default(op.bucket(call), DEVICE).plan(call, DEVICE)
    assert not plan.contiguous
    assert plan.launches[0].args["x_c"] == 320
    op, call = signed("channel_rms_norm_silu[bf16](1x64x4x8x8:perm01432)")
    assert op.default(op.bucket(call), DEVICE).plan(call, DEVICE).contiguous == ("x",)
