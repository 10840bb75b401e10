"""The rotary kernels compiled for a real card at LTX-2's shapes; no GPU is needed."""

import random
import re

import jitd
import pytest
from jitd.jit import runtime
from jitd.jit.compile import CompilePool
from jitd.jit.device import stand_in

from .cubins import WAIT_S, sass, usage, widths
from .rotary_cases import KINDS, QK, SPLIT, made_call

pytestmark = pytest.mark.compiler

DEVICE = stand_in("sm_90")
JOBS = 2
OPS = pytest.mark.parametrize("op", [SPLIT, QK], ids=lambda op: op.name)

# (B, T, D) and R: video and audio streams of both stages, the connectors.
REAL = [((2, 6144, 4096), 64), ((1, 24576, 2048), 32), ((2, 126, 2048), 32), ((2, 1024, 3840), 64)]


@pytest.fixture(scope="module")
def pool():
    with CompilePool(JOBS) as pool:
        yield pool


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=JOBS)
    return runtime.current().builder(DEVICE)


def compiled(builder, pool, op, config, call):
    """(launch, answer of the compiler) of a config's one launch."""
    plan = config.plan(call, DEVICE)
    (launch,), (binary,) = plan.launches, builder.binaries(op, plan, call)
    return launch, pool.submit(binary).result(WAIT_S)


@OPS
@pytest.mark.parametrize("table", ["fp32", "bf16"])
@pytest.mark.parametrize(("shape", "half"), REAL, ids=str)
def test_the_default_is_wide_and_spills_nothing(builder, pool, tmp_path, op, table, shape, half):
    """At real shapes, aligned, the default config moves 16 bytes at a time wherever each thread has
    as many, keeps everything in registers, and takes what its launch gives."""
    call = made_call(op, shape, half, table=table)
    config = op.default(op.bucket(call), DEVICE)
    launch, answer = compiled(builder, pool, op, config, call)
    assert {name for name, _ in answer["params"]} <= set(launch.args)
    loads, stores = widths(sass(answer["cubin"], tmp_path))
    assert loads and set(loads) == {128}
    assert stores and set(stores) == {128}
    registers, spilled = usage(answer["cubin"], tmp_path)
    assert spilled == 0
    assert registers <= 128


@OPS
def test_some_of_every_space_compile_and_few_spill(builder, pool, tmp_path, op):
    """Configs from all over the space compile at every real shape; none needs scratch memory, and
    none at 16 warps or fewer spills."""
    chosen = random.Random(op.name)
    for shape, half in REAL:
        call = op.bucket(made_call(op, shape, half))
        kept, _ = op.configs(call, DEVICE)
        for config in chosen.sample(kept, min(4, len(kept))):
            _, answer = compiled(builder, pool, op, config, call)
            assert answer["cubin"][:4] == b"\x7fELF"
            assert usage(answer["cubin"], tmp_path)[1] == 0, config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, "fp32"])
def test_queries_and_keys_of_every_kind_compile(builder, pool, tmp_path, kind, weights):
    """Norm only, keys without tables, other lengths, no weights or such of fp32: without spills."""
    keys = None if kind == "same" else 1024
    call = QK.bucket(made_call(QK, (2, 6144, 4096), 64, keys=keys, kind=kind, weights=weights))
    launch, answer = compiled(builder, pool, QK, QK.default(call, DEVICE), call)
    given = {name for name, value in launch.args.items() if value is not None}
    assert {name for name, _ in answer["params"]} <= given
    assert usage(answer["cubin"], tmp_path)[1] == 0


@OPS
def test_every_class_of_a_bucket_compiles(builder, pool, tmp_path, op):
    """Tensors that begin anywhere and rows of odd strides compile, too, and are read in narrower
    accesses; results, which are contiguous, are always written 16 bytes at a time."""
    call = op.bucket(made_call(op, (2, 6144, 4096), 64))
    config = op.default(call, DEVICE)
    narrow = 0
    for reached in op.reach(call):
        _, answer = compiled(builder, pool, op, config, reached)
        loads, stores = widths(sass(answer["cubin"], tmp_path))
        assert set(stores) == {128}
        narrow += min(loads) < 128
    assert narrow == len(op.reach(call)) - 1


@OPS
def test_exact_fuses_only_where_it_says_so(builder, pool, tmp_path, op):
    """`exact` is compiled without contraction of products and sums, `fast` with it; the first
    products of 16-bit tables are rounded two at a time."""
    for numerics, fused in (("exact", False), ("fast", True)):
        call = made_call(op, (1, 6144, 4096), 64, table="bf16", numerics=numerics)
        config = op.default(call, DEVICE)
        (binary,) = builder.binaries(op, config.plan(call, DEVICE), call)
        assert dict(binary.options)["enable_fp_fusion"] == fused
        text = sass(pool.submit(binary).result(WAIT_S)["cubin"], tmp_path)
        assert "F2F." not in text
    assert re.search(r"F2FP\.BF16", text)
