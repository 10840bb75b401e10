"""The gates' binaries: which a new number of tokens needs, and what the compiler makes of them."""

import random
import re

import jitd
import pytest
from jitd.jit import runtime
from jitd.jit.compile import CompilePool
from jitd.jit.declare import Config, Pointer, Problem
from jitd.jit.device import stand_in
from jitd.jit.sign import TensorSpec

from .cases import name_of
from .gate_cases import DTYPES, GATES, HEADS, RESIDUAL, call_of, head_arguments, residual_arguments
from .test_compiler import WAIT_S, disassembled

DEVICE = stand_in("sm_90")
OPS = pytest.mark.parametrize("op", [RESIDUAL, HEADS], ids=lambda op: op.name)


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=2)
    return runtime.current().builder(DEVICE)


def call(op, batch, tokens, width=4096, *, gate="sample 3d", frames=None, dtype="bf16", **named):
    """A call of any size: specs only. `frames` of a gate, 32 heads."""
    x = TensorSpec(dtype, (batch, tokens, width))
    if op is HEADS:
        made = call_of(HEADS, head_arguments(1, 1, 1, 1), **named)
        return made.replace(x=x, logits=TensorSpec(dtype, (batch, tokens, 32)))
    made = call_of(RESIDUAL, residual_arguments((1, 4, 1)), **named)
    shape = GATES[gate](batch, tokens, width) if frames is None else (batch, frames, width)
    index = TensorSpec("i32", (batch, tokens)) if gate == "index" else None
    return made.replace(x=x, y=x, gate=TensorSpec(dtype, shape), index=index)


def keys(builder, op, config, asked):
    plan = config.plan(asked, DEVICE)
    return {binary.key.digest for binary in builder.binaries(op, plan, asked)}


def warmed(builder, op, config, bucket):
    """The binaries of a config that warming its bucket compiles."""
    return set().union(*(keys(builder, op, config, c) for c in (bucket, *op.reach(bucket))))


def configs(op, asked):
    """Every config that a tune may choose, and the default."""
    return [*op.configs(asked, DEVICE)[0], op.default(asked, DEVICE)]


def tokens_of_all_kinds():
    chosen = {*range(1, 40), 126, 1536, 6144, 8640, 11040, 24576, 32640}
    sampled = random.Random(0)
    return sorted(chosen | {sampled.randrange(1, 50_000) for _ in range(40)})


def asked_for(op):
    """Calls of many lengths, with every kind of gate there is."""
    for tokens in tokens_of_all_kinds():
        for width in (4096, 2048, 5120, 100):
            if op is HEADS:
                if width % 32 == 0:
                    yield call(op, 2, tokens, width)
                continue
            for gate in ("channel", "sample", "one row", "token", "index"):
                yield call(op, 3, tokens, width, gate=gate)
            for frames in (2, 3, 8, 9, 16):
                if tokens % frames == 0:
                    yield call(op, 1, tokens, width, frames=frames)


@OPS
def test_a_new_number_of_tokens_compiles_nothing(builder, op):
    """For any number of tokens and frames, each config of a bucket needs only binaries that warming
    the bucket has compiled."""
    missing, seen = [], {}
    for asked in asked_for(op):
        bucket = op.bucket(asked)
        chosen = random.Random(str(bucket)).sample(op.configs(bucket, DEVICE)[0], 2)
        for config in (*chosen, op.default(bucket, DEVICE)):
            known = (bucket, config.name)
            if known not in seen:
                seen[known] = warmed(builder, op, config, bucket)
            if keys(builder, op, config, asked) - seen[known]:
                missing.append((str(op.sign(asked)), config.name))
    assert missing == []
    assert len(seen) > 30


@OPS
def test_few_binaries_serve_all_lengths(builder, op):
    """One config at one width: a binary for each of four classes, however many lengths and batches
    there are."""
    config = op.default(call(op, 2, 6144), DEVICE)
    found = set()
    for batch in (1, 2, 3, 4):
        for tokens in tokens_of_all_kinds():
            for reached in (op.bucket(call(op, batch, tokens)), *op.reach(call(op, batch, tokens))):
                found |= keys(builder, op, config, reached)
    assert len(found) == 4


@OPS
def test_reach_and_probes_stay_in_the_bucket(builder, op):
    """Calls that a warmup compiles for and a check runs at are of the bucket; one of the probes is
    near the bucket's lower end and leaves tiles of four tokens and more partly empty."""
    for asked in asked_for(op):
        bucket = op.bucket(asked)
        reached, probes = op.reach(bucket), op.probes(bucket)
        for found in (*reached, *probes):
            op.check(found)
            assert op.bucket(found) == bucket, str(op.sign(found))
        assert probes[0] == bucket
        tokens = bucket.x.shape[1]
        if tokens >= 32:
            assert tokens / 2 < probes[-1].x.shape[1] < 0.9 * tokens
            assert probes[-1].x.shape[1] % 4
        config = op.default(bucket, DEVICE)
        assert len(builder.probes(op, bucket, config)) == len({*probes} - {bucket})
        smaller = op.smaller(bucket)
        assert smaller is None or smaller == op.bucket(smaller) != bucket


@OPS
def test_there_is_something_to_tune(op):
    """From tiny to wide rows, the default is among a handful of configs worth trying, or nearly
    nothing is."""
    for width in (32, 96, 128, 320, 2048, 3840, 4096, 5120, 16384):
        for dtype in ("bf16", "fp32"):
            asked = op.bucket(call(op, 2, 6144, width, dtype=dtype))
            kept, _ = op.configs(asked, DEVICE)
            assert 2 <= len(kept) <= 16
            assert op.default(asked, DEVICE) in kept


@OPS
def test_plans_are_whole(builder, op):
    """Each config gives its kernel exactly the arguments that it declares, points at memory that
    the plan knows, and covers every element."""
    for gate in ("sample", "token", "index"):
        asked = call(op, 3, 77, 160, gate=gate)
        for config in configs(op, asked):
            plan = config.plan(asked, DEVICE)
            assert builder.binaries(op, plan, asked)  # raises for arguments that do not fit
            (launch,) = plan.launches
            pointers = {a.name for a in launch.args.values() if isinstance(a, Pointer)}
            assert pointers == {*asked.tensors, *plan.outputs}
            tile = launch.args["BLOCK"] * launch.args["ROWS" if op is RESIDUAL else "HEADS"]
            assert launch.grid[0] * tile >= asked.x.numel
            assert list(plan.outputs.values()) == list(op.outputs(asked).values())


@OPS
def test_what_no_kernel_takes_is_refused(op):
    """float64, and counts past 32 bits, are left to the reference, with the reason."""
    (variant,) = op.variants
    assert variant.applies(call(op, 2, 6144)) is None
    assert "fp64" in variant.applies(call(op, 2, 6144, dtype="fp64"))
    assert "2^30" in variant.applies(call(op, 1, (1 << 30) + 1, 32))
    if op is HEADS:
        assert "channels" in variant.applies(call(op, 1, 4, 32 * 8193))


# -- compiled ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    with CompilePool(2) as pool:
        yield pool


def sass(builder, pool, tmp_path, op, asked):
    config = Config(op.variants[0], op.variants[0].space.default(Problem(asked, DEVICE)))
    (binary,) = builder.binaries(op, config.plan(asked, DEVICE), asked)
    answer = pool.submit(binary).result(WAIT_S)
    assert not answer["scratch_pointers"] or answer["shared"] <= DEVICE.max_shared_bytes
    return disassembled(answer["cubin"], tmp_path)


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("gate", ["sample", "frame", "index"])
def test_a_residual_is_moved_16_bytes_at_a_time(builder, pool, tmp_path, gate, dtype):
    """Aligned rows whose width 16 bytes divide are read and written 16 bytes at a time, the gate's
    included, and nothing goes through shared memory."""
    asked = call(RESIDUAL, 2, 6144, gate=gate, dtype=name_of(dtype))
    text = sass(builder, pool, tmp_path, RESIDUAL, asked)
    widths = set(re.findall(r"\b(?:LDG|STG)\.E(?:\.[A-Z]+)*(?:\.(\d+))?", text))
    assert widths - ({"64", ""} if gate == "index" else set()) == {"128"}
    assert "STS" not in text


@pytest.mark.compiler
def test_a_gap_between_rows_is_not_vectorised(builder, pool, tmp_path):
    """Where a stride is odd, no access is wider than an element: it would be misaligned."""
    asked = call(RESIDUAL, 2, 6144)
    asked = asked.replace(x=TensorSpec("bf16", asked.x.shape, (6144 * 4097, 4097, 1)))
    text = sass(builder, pool, tmp_path, RESIDUAL, asked)
    assert re.search(r"LDG\.E\.U16", text)
    assert not re.search(r"(LDG|STG)\.E\.(64|128)", text)


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_heads_take_cudas_expf_and_a_true_division(builder, pool, tmp_path, dtype):
    """The sigmoid is the sequence that nvcc makes of expf and of an IEEE division; x and the result
    move 16 bytes at a time."""
    asked = call(HEADS, 2, 6144, dtype=name_of(dtype))
    text = sass(builder, pool, tmp_path, HEADS, asked)
    assert re.search(r"FFMA\.FTZ\.RM .*12582913", text)  # reduction of the argument, rounded down
    assert re.search(r"1\.925963033500011079e-08", text)  # the tail of log2(e)
    assert "MUFU.EX2" in text
    assert "CALL.REL" in text  # of the division: denormals and overflow
    assert set(re.findall(r"STG\.E(?:\.(\d+))?", text)) == {"128"}


@pytest.mark.compiler
@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_exact_does_not_fuse(builder, pool, tmp_path, numerics):
    """In fp32 `exact` multiplies, then adds; only `fast` fuses the two."""
    asked = call(RESIDUAL, 2, 6144, dtype="fp32", numerics=numerics)
    text = sass(builder, pool, tmp_path, RESIDUAL, asked)
    assert ("FFMA" in text) == (numerics == "fast")
    assert ("FADD" in text) == (numerics == "exact")
