"""What a forward of the released transformer calls: counts, sites, sizes, on the meta device."""

import pytest
import torch
from jitd.jit import runtime
from jitd.jit.device import stand_in
from jitd.jit.op import OPS
from jitd.jit.record import record
from jitd.models.zimage.presets import CAPTIONS, PRESETS, Size
from jitd.models.zimage.transformer import ZImageTransformer
from jitd.models.zimage.workload import record_run, run_image

SIZE = PRESETS["1024"]  # 4096 tokens
BF16 = {"dtype": torch.bfloat16}
LAYERS, REFINERS = 30, 2
MODULATED, PLAIN = LAYERS + REFINERS, REFINERS


@pytest.fixture(scope="module", params=[64, 512])
def forward(request):
    """(tokens of the caption, counts) of one forward at full depth, one sample."""
    with record() as workload:
        (out,) = run_image(SIZE, [request.param], **BF16)
    assert out.shape == (16, 1, 128, 128)
    return request.param, workload.counts


def calls(counts, name):
    """Specs of every call of an op, and how often it is made."""
    for text, number in counts.items():
        if text.startswith(f"{name}["):
            yield OPS[name].parse(text).call, number


def counted(counts, name, tokens, fits=lambda call: True):
    """Calls of an op over so many tokens that fit."""
    return sum(
        n for call, n in calls(counts, name)
        if next(iter(call.tensors.values())).shape[1] == tokens and fits(call)
    )  # fmt: skip


def test_norms(forward):
    """The fused calls add up to the sites of a forward of diffusers' model: each block has two
    norms in front, 64 of them scaled and 4 plain, and two behind, gated or plain. The caption's
    embedder has one more, over rows of 2560.
    """
    caption, counts = forward
    gated = lambda call: call.gate is not None  # noqa: E731
    for tokens, blocks in ((4096, REFINERS), (4096 + caption, LAYERS)):
        assert counted(counts, "rms_norm_scale", tokens) == 2 * blocks
        assert counted(counts, "tanh_gate_residual_rms_norm", tokens, gated) == 2 * blocks
    assert counted(counts, "rms_norm", caption) == 2 * PLAIN
    bare = lambda call: call.gate is None  # noqa: E731
    assert counted(counts, "tanh_gate_residual_rms_norm", caption, bare) == 2 * PLAIN
    assert counted(counts, "rms_norm", 2560) == 1
    assert counted(counts, "layer_norm_scale", 4096 + caption) == 1


def test_queries_keys_and_feed_forwards(forward):
    """Each of 34 blocks normalises and turns q and k in one call (68 sites), and has one SwiGLU."""
    caption, counts = forward
    for tokens, blocks in ((4096, REFINERS), (4096 + caption, LAYERS), (caption, PLAIN)):
        assert counted(counts, "qk_norm_rotary", tokens) == blocks
        assert counted(counts, "swiglu", tokens) == blocks
    weights = {call.wq.shape for call, _ in calls(counts, "qk_norm_rotary")}
    assert weights == {(128,)}
    assert sum(counts.values()) == 6 * (MODULATED + PLAIN) + 2  # and nothing else


def test_modulation_is_a_row_for_each_sample(forward):
    """No scale or gate has a row for each token."""
    _, counts = forward
    for name, operand in (("rms_norm_scale", "scale"), ("tanh_gate_residual_rms_norm", "gate")):
        shapes = {call[operand].shape for call, _ in calls(counts, name) if call[operand]}
        assert shapes == {(1, 1, 3840)}


def test_published_size():
    """The released config has the published number of parameters."""
    with torch.device("meta"):
        model = ZImageTransformer()
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == 6.155


@pytest.fixture(scope="module")
def sixteen():
    """(op, call) of Turbo at 1024x1024 with captions of all sixteen lengths."""
    texts = record_run(SIZE, variant="turbo", **BF16)
    return [(OPS[name], OPS[name].parse(t).call) for t in texts for name in [t.partition("[")[0]]]


def test_sixteen_lengths_have_few_buckets(sixteen):
    """Calls over image and caption share one bucket for all sixteen lengths; those over captions
    alone have one for each power of two, five.
    """
    buckets: dict[str, set] = {}
    for op, call in sixteen:
        buckets.setdefault(op.name, set()).add(op.bucket(call))
    tokens = {
        name: sorted(next(iter(call.tensors.values())).shape[1] for call in found)
        for name, found in buckets.items()
        if name != "swiglu"  # rows of 10240
    }
    captions = [32, 64, 128, 256, 512]
    assert tokens == {
        "layer_norm_scale": [8192],
        "rms_norm_scale": [4096, 8192],
        "tanh_gate_residual_rms_norm": [*captions, 4096, 8192],
        "qk_norm_rotary": [*captions, 4096, 8192],
        "rms_norm": [*captions, *[2560] * 5],
    }
    assert len(buckets["swiglu"]) == 7
    assert (len(sixteen), sum(map(len, buckets.values()))) == (164, 34)


def test_every_length_runs_on_its_buckets_binaries(sixteen, tmp_path):
    """Whatever config a tune has chosen for a bucket, each length in it needs only binaries that
    were compiled for the bucket: after its first length nothing is compiled.
    """
    runtime.configure(cache_dir=tmp_path / "cache")
    builder = runtime.current().builder(stand_in("sm_90"))

    def keys(op, config, call):
        plan = config.plan(call, builder.device)
        return {binary.key.digest for binary in builder.binaries(op, plan, call)}

    by_bucket = {}
    for op, call in sixteen:
        by_bucket.setdefault((op, op.bucket(call)), []).append(call)
    missing = []
    for (op, bucket), found in by_bucket.items():
        kept, _ = op.configs(bucket, builder.device)
        for config in [op.default(bucket, builder.device), *kept[::17]]:
            warmed = set().union(*(keys(op, config, call) for call in (bucket, *op.reach(bucket))))
            missing += [op.sign(call) for call in found if not keys(op, config, call) <= warmed]
    assert missing == []


def test_guided_runs():
    """Base asks for batches of two; the negative prompt is the shorter, so that its padding
    changes no signature but the batch's.
    """
    guided = record_run(Size(128, 128), variant="base", **BF16).counts
    turbo = record_run(Size(128, 128), variant="turbo", **BF16).counts
    batches = {call.x.shape[0] for call, _ in calls(guided, "rms_norm_scale")}
    assert batches == {2}
    assert sum(guided.values()) == sum(turbo.values()) == len(CAPTIONS) * (6 * 34 + 2)


def test_real_run_of_a_small_image():
    """An image can be run small on a real device."""
    small = {"dim": 64, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4}
    small |= {"axes_dims": (8, 4, 4), "cap_feat_dim": 8}
    outs = run_image(Size(64, 96), [5, 40], dtype=torch.float32, device="cpu", **small)
    assert [tuple(out.shape) for out in outs] == [(16, 1, 8, 12)] * 2
    assert all(out.isfinite().all() for out in outs)
