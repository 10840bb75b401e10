"""The kernel of the token norms compiled for a real card at the shapes of LTX-2 and Helios."""

import re

import jitd
import pytest
from jitd.jit import runtime
from jitd.jit.compile import CompilePool
from jitd.jit.device import stand_in

from .signed import signed
from .test_compiler import WAIT_S, disassembled

pytestmark = pytest.mark.compiler

DEVICE = stand_in("sm_90")
REAL = [
    "rms_norm_modulate[bf16](2x6144x4096, scale=:strided(24576,4096,1))",
    "rms_norm_modulate[bf16](2x6144x4096, scale=4x4096:strided(24576,1), index=i64 2x6144)",
    "gate_residual_rms_norm_modulate[bf16](2x126x2048, gate=none, scale=none)",
    "gate_residual_rms_norm_dual_modulate[bf16](1x24576x4096)",
    "gate_residual_rms_norm_dual_modulate[fp32](1x1024x4096)",
    "layer_norm_modulate[bf16](1x11040x5120, scale=fp32 2x5120, index=i64 1x11040, rounding=once)",
    "rms_norm[bf16](122880x128, weight=bf16 128, rounding=once)",
    "modulate[bf16](2x1024x4096)",
    "tanh_gate_residual_rms_norm[bf16](1x4128x3840, weight=bf16 3840)",
    "rms_norm_scale[bf16](1x4128x3840, weight=bf16 3840, rounding=native)",
    "gate_residual_layer_norm_modulate[bf16](1x11040x5120, gate=fp32 2x5120, index=i64 1x11040, "
    "rounding=once)",
]


@pytest.fixture(scope="module")
def pool():
    with CompilePool(2) as pool:
        yield pool


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=2)
    return runtime.current().builder(DEVICE)


@pytest.mark.parametrize("text", REAL)
def test_untuned_calls_get_a_good_binary(builder, pool, tmp_path, text):
    """The default config spills nothing, needs no scratch, and reads and writes 16 bytes at a time,
    or writes 8 where what it reads of the same channels is twice as wide."""
    op, call = signed(text)
    plan = op.default(call, DEVICE).plan(call, DEVICE)
    (binary,) = builder.binaries(op, plan, call)
    answer = pool.submit(binary).result(WAIT_S)
    sass = disassembled(answer["cubin"], tmp_path)
    assert not re.search(r"\b(STL|LDL)\b", sass)
    assert re.search(r"LDG\.E\.\S*128", sass)
    mixed = "[bf16]" in text and "fp32" in text
    assert re.search(rf"STG\.E\.\S*{64 if mixed else 128}", sass)
    assert answer["shared"] <= DEVICE.max_shared_bytes


@pytest.mark.parametrize("text", REAL)
def test_a_new_number_of_tokens_compiles_nothing(builder, text):
    """Every config of a bucket needs, for any number of samples and tokens in it, only binaries
    that warming the bucket compiles."""
    op, real = signed(text)
    bucket = op.bucket(real)
    samples, most = (1, bucket.x.shape[0]) if len(real.x.shape) == 2 else bucket.x.shape[:2]
    kept, _ = op.configs(bucket, DEVICE)
    assert kept
    for config in kept[::3]:
        warmed = {k for c in (bucket, *op.reach(bucket)) for k in keys(builder, op, config, c)}
        for tokens in {most, most - 1, most // 2 + 1, most // 2 + 16, 3 * most // 4}:
            call = with_tokens(real, samples, tokens)
            if op.bucket(call) == bucket:
                assert keys(builder, op, config, call) <= warmed


def keys(builder, op, config, call):
    return {b.key.digest for b in builder.binaries(op, config.plan(call, DEVICE), call)}


def with_tokens(call, samples, tokens):
    """The call with other numbers of samples and tokens, in the layouts that it has."""
    if len(call.x.shape) == 2:
        return call.replace(x=call.x.like(shape=(tokens, call.x.shape[1])))
    changes = {}
    for name, spec in call.tensors.items():
        if name == "index":
            changes[name] = spec.like(shape=(samples, tokens))
        elif spec.shape[:2] == call.x.shape[:2]:
            changes[name] = spec.like(shape=(samples, tokens, spec.shape[2]))
        elif len(spec.shape) == 3 and spec.shape[1] == 1:
            changes[name] = spec.like(shape=(samples, 1, spec.shape[2]), strides=spec.strides)
    return call.replace(**changes)


def test_exact_is_not_contracted(builder):
    """`exact` is compiled without contraction of products and sums, `fast` with it."""
    for numerics, fused in (("exact", False), ("fast", True)):
        op, call = signed(
            f"rms_norm_modulate[bf16](2x64x4096, numerics={numerics})".replace(
                ", numerics=exact", ""
            )
        )
        (binary,) = builder.binaries(op, op.default(call, DEVICE).plan(call, DEVICE), call)
        assert dict(binary.options)["enable_fp_fusion"] is fused
