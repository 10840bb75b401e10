"""Kernels of guidance and of steps compiled for a real card, at the shapes of an HQ run."""

import re

import jitd
import pytest
from jitd.jit import runtime
from jitd.jit.compile import CompilePool
from jitd.jit.declare import Config, Problem
from jitd.jit.device import stand_in

from .signed import signed
from .test_compiler import WAIT_S, disassembled

pytestmark = pytest.mark.compiler

DEVICE = stand_in("sm_90")
VIDEO, AUDIO = "1x32640x128", "1x126x128"
X, STACK = f"x={VIDEO}", f"15x{VIDEO}"
REAL = [
    f"velocity_to_x0[bf16]({VIDEO})",
    f"velocity_to_x0[fp32]({VIDEO}, v=bf16)",
    f"velocity_to_x0[bf16]({VIDEO}, sigmas=fp32 1x32640)",
    f"guidance_combine[fp32]({VIDEO}, perturbed=none)",
    f"guidance_combine[fp32]({VIDEO}, perturbed=none, rescale=0.45)",
    f"guidance_combine[bf16]({VIDEO}, perturbed=none, x=fp32 {VIDEO}, rescale=0.45)",
    f"guidance_combine[bf16]({AUDIO}, x=fp32 {AUDIO}, sigmas=fp32 1x126, rescale=1.0)",
    f"guidance_combine[bf16]({VIDEO}, perturbed=none, {X}, rescale=0.45)",
    f"euler_step[fp32]({VIDEO})",
    f"euler_step[bf16]({VIDEO}, table=fp64 31, step=i32 1)",
    f"res2s_midpoint[fp32]({VIDEO})",
    f"res2s_midpoint[bf16]({VIDEO}, x0=fp32, noise=none)",
    f"res2s_step[fp32]({VIDEO})",
    f"res2s_step[bf16]({VIDEO}, x0=fp32, x0_mid=fp32)",
    f"res2s_step[fp32]({VIDEO}, noise_mid={STACK}, noise={STACK}, table=fp64 15x8, step=i64 1)",
]


@pytest.fixture(scope="module")
def pool():
    with CompilePool(2) as pool:
        yield pool


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=2)
    return runtime.current().builder(DEVICE)


def configs(call, op):
    """The default of every variant that can compute a call."""
    for variant in op.variants:
        if variant.applies(call) is None:
            yield Config(variant, variant.space.default(Problem(call, DEVICE)))


@pytest.mark.parametrize("text", REAL)
def test_untuned_calls_get_good_binaries(builder, pool, tmp_path, text):
    """Defaults spill nothing, read and write 16 bytes at a time, and take scalars in the types that
    the arithmetic needs: all but those of fp32 as doubles."""
    op, call = signed(text)
    for config in configs(call, op):
        plan = config.plan(call, DEVICE)
        for binary in builder.binaries(op, plan, call):
            answer = pool.submit(binary).result(WAIT_S)
            sass = disassembled(answer["cubin"], tmp_path)
            assert not re.search(r"\b(STL|LDL)\b", sass)
            assert re.search(r"LDG\.E\.\S*(128|64)", sass)
            if binary.kernel != "guidance_statistics":
                assert re.search(r"STG\.E\.\S*(128|64)", sass)
            assert answer["shared"] <= DEVICE.max_shared_bytes
            taken = dict(answer["params"])
            assert {taken[name] for name in op.varies if name in taken} <= {"f64"}
            assert taken.get("rescale", "f64") == "f64"


@pytest.mark.parametrize("text", REAL)
def test_another_size_compiles_nothing(builder, text):
    """Every config of a bucket needs, for any number of elements in it, only binaries that warming
    the bucket compiles."""
    op, real = signed(text)
    bucket = op.bucket(real)
    kept, _ = op.configs(bucket, DEVICE)
    assert kept
    for config in kept[::3]:
        warmed = {k for c in (bucket, *op.reach(bucket)) for k in keys(builder, op, config, c)}
        for tokens in (32640, 32641, 17000, 16385, 32768) if VIDEO in text else (126, 65, 128):
            call = op.parse(text.replace("32640" if VIDEO in text else "126", str(tokens))).call
            assert op.bucket(call) == bucket
            assert keys(builder, op, config, call) <= warmed


def keys(builder, op, config, call):
    return {b.key.digest for b in builder.binaries(op, config.plan(call, DEVICE), call)}


def test_scalars_are_part_of_no_key(builder):
    """What varies, and how much is rescaled, selects no binary and no winner."""
    op, one = signed("guidance_combine[fp32](1x64x128, rescale=0.45)")
    _, two = signed("guidance_combine[fp32](1x64x128, rescale=1.0)")
    assert op.sign(op.bucket(one)) == op.sign(op.bucket(two))
    config = op.default(one, DEVICE)
    assert keys(builder, op, config, one) == keys(builder, op, config, two)
