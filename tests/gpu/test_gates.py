"""The gates on the card: eager's bits, everywhere and for every logit there is."""

import jitd
import pytest
import torch
from jitd.jit.declare import Config, Problem
from jitd.jit.launch import Executable, Loaded
from jitd.jit.tensors import spec_of
from jitd.jit.tune import check
from jitd.models.ops.gates import gate_residual, head_gate

from ..models.ops.cases import name_of
from ..models.ops.gate_cases import (
    DTYPES,
    GATES,
    HEADS,
    RESIDUAL,
    TOKENS,
    call_of,
    head_arguments,
    residual_arguments,
)
from .cases import WAIT_S, answered_by_kernels

pytestmark = pytest.mark.gpu

BF16, FP16, FP32 = DTYPES
CHANNELS, ODD, WIDE = (2, 126, 2048), (3, 35, 77), (2, 6144, 4096)


def residual(shape, gate="sample 3d", *, rounding="each", **how):
    """A parameter set whose id reads like a signature."""
    dtypes = [str(how[name])[6:] for name in ("dtype", "gate_dtype") if name in how]
    words = ["x".join(map(str, shape)), *dtypes, gate, how.get("layout", "contiguous"), rounding]
    return pytest.param(RESIDUAL, shape, {"gate": gate, **how}, rounding, id="-".join(words))


def heads(shape, **how):
    words = ["x".join(map(str, shape)), str(how["dtype"])[6:], how.get("layout", "contiguous")]
    return pytest.param(HEADS, shape, how, None, id="heads-" + "-".join(words))


CASES = [
    *(residual(CHANNELS, gate, dtype=d, chunk=True) for gate in GATES for d in DTYPES),
    *(
        residual(CHANNELS, gate, dtype=BF16, gate_dtype=FP32, rounding="once")
        for gate in ("channel", "sample 3d", "frame", "token", "index")
    ),
    *(residual(ODD, dtype=d, gate_dtype=g, rounding=r) for d, g, r in (
        (BF16, FP16, "norm"), (FP16, FP32, "norm"), (FP32, BF16, "once"), (FP32, FP32, "once"),
    )),
    *(
        residual(shape, gate, dtype=d, layout=layout)
        for layout in TOKENS
        for shape, gate, d in (
            (ODD, "sample", BF16), (ODD, "index", FP32), ((3, 36, 136), "frame", BF16),
            ((3, 35, 136), "token", FP16),
        )
    ),
    residual((1, 1, 1), dtype=BF16),
    residual((5, 7, 1), "token", dtype=FP32),
    residual((1, 3, 16381), dtype=BF16),
    residual(WIDE, dtype=BF16, chunk=True),
    residual(WIDE, "index", dtype=BF16),
    residual((1, 24576, 4096), "frame", dtype=BF16),
    residual((1, 11040, 5120), "index", dtype=BF16, gate_dtype=FP32, rounding="once"),
    *(heads(shape, dtype=d) for d in DTYPES for shape in (
        (2, 126, 32, 64), (2, 1000, 32, 128), (3, 35, 7, 11), (1, 5, 1, 300), (2, 3, 5, 1),
    )),
    *(heads((3, 35, 4, 34), dtype=d, layout=layout) for layout in TOKENS for d in (BF16, FP32)),
    heads((2, 6144, 32, 128), dtype=BF16),
]  # fmt: skip


def made(op, shape, how):
    if op is HEADS:
        return head_arguments(*shape, device="cuda", **how)
    return residual_arguments(shape, device="cuda", **how)


def ahead(workers, builder, op, call):
    """The default config of a call, on its way through the compiler, and how to load it."""
    variant = op.variants[0]
    config = Config(variant, variant.space.default(Problem(call, builder.device)))
    plan = config.plan(call, builder.device)
    futures = [workers.submit(binary) for binary in builder.binaries(op, plan, call)]

    def load():
        loaded = [Loaded.load(future.result(WAIT_S), builder.device) for future in futures]
        return Executable(plan, loaded, call.tensors, builder.device)

    return load


@pytest.fixture(scope="module")
def running(workers, shared_runtime):
    """Every case's kernel, all of them compiled at once."""
    builder = shared_runtime.builder_at(0)
    found = {}
    for case in CASES:
        op, shape, how, rounding = case.values
        call = call_of(op, made(op, shape, how), **({"rounding": rounding} if rounding else {}))
        found[case.id] = ahead(workers, builder, op, call)
    return found


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def differing(got, want):
    """Elements whose bits differ; a NaN is like any other."""
    return int(((bits(got) != bits(want)) & ~(got.isnan() & want.isnan())).sum())


@pytest.mark.parametrize(("op", "shape", "how", "rounding"), CASES)
def test_bits_are_eagers(running, request, op, shape, how, rounding):
    """In `exact` the kernel has eager's bits: every dtype, every way in which a gate and tokens can
    lie, odd sizes, real ones."""
    args = made(op, shape, how)
    tensors = [a for a in args if a is not None]
    got = running[request.node.callspec.id]()(*tensors)
    want = op.reference(*args, **({"rounding": rounding} if rounding else {}))
    assert differing(got, want) == 0
    assert got.stride() == want.stride()


def sigmoids(workers, builder, logits):
    """2 * sigmoid of each logit by the kernel and by eager."""
    logits = logits.view(1, -1, 32)
    x = torch.ones(1, logits.shape[1], 32 * 2, dtype=logits.dtype, device="cuda")
    got = ahead(workers, builder, HEADS, call_of(HEADS, [x, logits]))()(x, logits)
    return got, HEADS.reference(x, logits)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=name_of)
def test_the_sigmoid_of_every_number_is_torchs(workers, builder, dtype):
    """All 65536 logits of a 16-bit dtype, subnormals, infinities and NaN included."""
    logits = torch.arange(-(1 << 15), 1 << 15, device="cuda").to(torch.int16).view(dtype)
    assert differing(*sigmoids(workers, builder, logits)) == 0


@pytest.mark.parametrize("which", ["every 256th", "usual", "around the ends"])
def test_the_sigmoid_in_fp32_is_torchs(workers, builder, which):
    """2^24 logits of fp32 each: from all of them, from those that occur, and from where the
    exponential overflows or the result is subnormal."""
    count, generator = 1 << 24, torch.Generator("cuda").manual_seed(0)
    if which == "every 256th":
        number = torch.arange(count, dtype=torch.int64, device="cuda") * 256 + 129
        logits = (number - (1 << 31)).to(torch.int32).view(FP32)
    else:
        uniform = torch.rand(count, generator=generator, device="cuda") * 2 - 1
        logits = 12 * uniform if which == "usual" else uniform.sign() * (84 + 24 * uniform.abs())
    assert differing(*sigmoids(workers, builder, logits)) == 0


CHECKED = {
    "sample": call_of(RESIDUAL, residual_arguments((2, 100, 4096), dtype=BF16)),
    "index": call_of(RESIDUAL, residual_arguments((2, 100, 1000), "index", dtype=FP16)),
    "frame": call_of(RESIDUAL, residual_arguments((3, 96, 136), "frame", dtype=FP32)),
    "fast": call_of(RESIDUAL, residual_arguments((2, 33, 640), dtype=BF16), numerics="fast"),
    "heads": call_of(HEADS, head_arguments(2, 100, 32, 128, dtype=BF16)),
    "odd heads": call_of(HEADS, head_arguments(3, 35, 5, 33, dtype=FP32)),
    "fast heads": call_of(HEADS, head_arguments(2, 50, 32, 64, dtype=FP16), numerics="fast"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_every_config_passes_the_check(workers, builder, card, name):
    """Each config that a tune may choose is within the verifier's bound of float64 on all kinds of
    inputs and at sizes that leave its tiles partly full, and writes nothing beside its output."""
    call = CHECKED[name]
    op = HEADS if "logits" in call else RESIDUAL
    kept, _ = op.configs(call, card)
    running = [
        (config, [workers.submit(b) for b in builder.binaries(op, config.plan(call, card), call)])
        for config in kept
    ]
    for config, futures in running:
        artifacts = [future.result(WAIT_S) for future in futures]
        verdict = check(op, call, config, artifacts, card, builder.probes(op, call, config))
        assert verdict["ok"], f"{config}: {verdict['reason']}"


def test_a_new_number_of_tokens_compiles_nothing():
    """Called as models call them: after the first call of a bucket no other length compiles, and
    kernels answer all of them, with eager's bits."""
    jitd.configure(mode="replay")
    compiled = set()
    for tokens in (2048, 2047, 1153, 1536):
        args = residual_arguments((2, tokens, 2048), dtype=BF16, device="cuda", chunk=True)
        assert differing(gate_residual(*args), RESIDUAL.reference(*args)) == 0
        args = head_arguments(2, tokens, 32, 64, dtype=BF16, device="cuda")
        assert differing(head_gate(*args), HEADS.reference(*args)) == 0
        compiled.add(jitd.stats().get("compiles", 0))
    assert len(compiled) == 1
    assert answered_by_kernels()


def test_a_tuned_gate_has_eagers_bits():
    """Whichever config a tune chooses."""
    for args, function, op in (
        (residual_arguments(CHANNELS, dtype=BF16, device="cuda"), gate_residual, RESIDUAL),
        (head_arguments(2, 126, 32, 64, dtype=BF16, device="cuda"), head_gate, HEADS),
    ):
        assert differing(function(*args), op.reference(*args)) == 0
    assert answered_by_kernels()


def test_more_than_two_to_the_31_elements(much_memory, workers, builder):
    """Tokens at the beginning, in the middle and at the end of 2.4e9 elements are right: offsets
    are counted in 64 bits."""
    shape = (1, 300_001, 8192)
    x = torch.empty(shape, dtype=BF16, device="cuda")
    x.normal_(generator=torch.Generator("cuda").manual_seed(0))
    gate = torch.randn(1, 1, 8192, device="cuda").to(BF16)
    call = call_of(RESIDUAL, [x, x, gate, None])
    out = ahead(workers, builder, RESIDUAL, call)()(x, x, gate)
    logits = torch.randn(1, shape[1], 64, device="cuda").to(BF16)
    gated = ahead(workers, builder, HEADS, call_of(HEADS, [x, logits]))()(x, logits)
    for part in (slice(0, 3), slice(262_143, 262_146), slice(300_000, 300_001)):
        own = x[:, part]
        assert differing(out[:, part], RESIDUAL.reference(own, own, gate)) == 0
        assert differing(gated[:, part], HEADS.reference(own, logits[:, part])) == 0


def test_specs_of_cases_are_what_was_asked():
    """The layouts above reach what they are named for: pointers off 16 bytes, gaps, copies."""
    unaligned = residual_arguments(ODD, layout="unaligned", device="cuda")
    assert not spec_of(unaligned[0]).aligned
    gapped = residual_arguments(ODD, layout="gapped", device="cuda")
    assert gapped[0].stride(1) == ODD[2] + 1
    assert residual_arguments(ODD, layout="channels first", device="cuda")[0].stride(-1) != 1
