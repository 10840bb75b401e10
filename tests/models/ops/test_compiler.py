"""The kernels compiled for a real card at the real LTX-2 shapes; no GPU is needed."""

import itertools
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jitd
import pytest
import torch
from jitd.jit import runtime
from jitd.jit.compile import CompilePool
from jitd.jit.declare import Config, Problem
from jitd.jit.device import stand_in
from jitd.jit.warm import Progress, buckets, compile_for
from jitd.models.catalog import model
from jitd.models.ltx2.presets import PRESETS, Size
from jitd.models.ltx2.workload import run_upsampler

from .cases import ADD, SILU, made_call

pytestmark = pytest.mark.compiler

DEVICE = stand_in("sm_90")
JOBS = 2
WAIT_S = 240.0


@pytest.fixture(scope="module")
def pool():
    with CompilePool(JOBS) as pool:
        yield pool


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=JOBS)
    return runtime.current().builder(DEVICE)


@cache
def real_calls():
    """One call for each bucket of one of LTX-2's presets, in bf16, and some of other kinds."""
    workload = model("ltx2").workload([PRESETS["512x768"]], "bf16", "2.3")
    found = [(bucket.op, bucket.call) for bucket in buckets(workload)]
    shape = (1, 1024, 16, 16, 24)
    last = "channels_last_3d"
    return [
        *found,
        (SILU, made_call(SILU, shape, 32, dtype="fp16")),
        (ADD, made_call(ADD, shape, 32, dtype="fp32", numerics="fast")),
        (ADD, made_call(ADD, (1, 1024, 13, 17, 31), 32)),  # nothing to vectorise
        (SILU, made_call(SILU, shape, 32, x=last)),
        (ADD, made_call(ADD, shape, 32, x=last, residual=last)),
        (ADD, made_call(ADD, shape, 32, x=last, residual="perm02134", dtype="fp32")),
    ]


def usual(variant, call):
    """The config of a variant that a tune would begin with: its default, if it is worth trying."""
    kept, _ = variant.space.configs(Problem(call, DEVICE))
    default = variant.space.default(Problem(call, DEVICE))
    return default if default in kept or not kept else kept[len(kept) // 2]


def applicable():
    """(op, call, variant's name) of every variant at every call."""
    for op, call in real_calls():
        for variant in op.variants:
            if variant.applies(call) is None and variant.space.configs(Problem(call, DEVICE))[0]:
                yield op, call, variant


def test_every_variant_compiles_for_every_class(builder, pool):
    """Each variant compiles for sm_90 at each real call and at each binary class that its bucket
    can reach; no binary needs scratch memory, and each takes what its launch gives."""
    wanted = {}
    for op, call, variant in applicable():
        config = Config(variant, usual(variant, call))
        for reached in itertools.islice(op.reach(op.bucket(call)), 4):
            if variant.applies(reached) is None:
                plan = config.plan(reached, DEVICE)
                for launch, binary in zip(
                    plan.launches, builder.binaries(op, plan, reached), strict=True
                ):
                    wanted[binary.key.digest] = (binary, launch)
    running = [(pool.submit(binary), launch) for binary, launch in wanted.values()]
    assert len(running) > 10
    for future, launch in running:
        answer = future.result(WAIT_S)
        assert answer["cubin"][:4] == b"\x7fELF"
        assert {name for name, _ in answer["params"]} <= set(launch.args)
        assert answer["shared"] <= DEVICE.max_shared_bytes


def disassembled(cubin, tmp_path):
    """The SASS of a cubin, by the cuobjdump that comes with Triton."""
    import triton  # noqa: PLC0415

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = str(tool) if tool.is_file() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump: neither in this Triton's wheel nor on PATH")
    path = tmp_path / "kernel.cubin"
    path.write_bytes(cubin)
    command = [found, "-sass", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
@pytest.mark.parametrize("layout", ["contiguous", "frame_major", "channels_last_3d"])
def test_loads_and_stores_are_16_bytes_wide(builder, pool, tmp_path, op, layout):
    """For aligned bf16 that 8 divides, each kernel that touches x reads it, and those that write y
    write it, 16 bytes at a time."""
    x, residual = layout, layout
    if layout == "frame_major":
        x, residual = "contiguous", "perm02134"
        if op is SILU:
            return
    call = made_call(op, (1, 1024, 16, 16, 24), 32, x=x, residual=residual)
    for variant in op.variants:
        if variant.applies(call) is not None:
            continue
        plan = variant.plan(call, usual(variant, call), DEVICE)
        for launch, binary in zip(plan.launches, builder.binaries(op, plan, call), strict=True):
            given = {value.name for value in launch.args.values() if hasattr(value, "name")}
            sass = disassembled(pool.submit(binary).result(WAIT_S)["cubin"], tmp_path)
            if "x" in given:
                assert re.search(r"LDG\.E\.\S*128", sass), (
                    f"{variant.name}: {launch.kernel} reads x"
                )
            if "y" in given:
                assert re.search(r"STG\.E\.\S*128", sass), (
                    f"{variant.name}: {launch.kernel} writes y"
                )


def test_a_length_that_nothing_divides(builder, pool, tmp_path):
    """For odd lengths, where rows begin anywhere, no store is 16 bytes wide."""
    call = made_call(SILU, (1, 1024, 13, 17, 31), 32)
    for variant in SILU.variants:
        if variant.applies(call) is None:
            plan = variant.plan(call, usual(variant, call), DEVICE)
            for binary in builder.binaries(SILU, plan, call):
                sass = disassembled(pool.submit(binary).result(WAIT_S)["cubin"], tmp_path)
                assert not re.search(r"STG\.E\.\S*128", sass)


def test_exact_fuses_only_where_it_says_so(builder):
    """`exact` is compiled without contraction of products and sums, `fast` with it."""
    for numerics, fused in (("exact", False), ("fast", True)):
        call = made_call(SILU, (1, 1024, 16, 16, 24), 32, numerics=numerics)
        config = SILU.default(call, DEVICE)
        binaries = builder.binaries(SILU, config.plan(call, DEVICE), call)
        assert {dict(binary.options)["enable_fp_fusion"] for binary in binaries} == {fused}


def test_the_model_can_be_compiled_without_a_card(builder):
    """Everything the upsampler asks for compiles on a machine without a GPU; a second time nothing
    is left to compile, and a size of the same buckets needs nothing new."""
    with jitd.record() as workload:
        run_upsampler(Size(512, 768), dtype=torch.bfloat16, num_blocks_per_stage=1)
    rows = compile_for(builder, workload, Progress())
    assert [row.status for row in rows] == ["compiled"] * len(rows)
    assert [row.detail for row in rows if row.detail.startswith("0 ")] == []
    compiled = builder.stats["compiles"]
    assert compiled == len(list(builder.store.headers("artifact"))) > 0
    with jitd.record() as shorter:
        run_upsampler(Size(512, 768, 113), dtype=torch.bfloat16, num_blocks_per_stage=1)
    assert set(shorter) != set(workload)
    for again in (workload, shorter):
        compile_for(builder, again, Progress())
    assert builder.stats["compiles"] == compiled
