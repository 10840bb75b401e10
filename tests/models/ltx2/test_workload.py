"""What a forward of the released transformers calls: counts, sites, sizes, on the meta device."""

import pytest
import torch
from jitd.jit.op import OPS
from jitd.jit.record import record
from jitd.models.ltx2.presets import PRESETS, TRANSFORMERS, VARIANTS
from jitd.models.ltx2.transformer import LTX2Transformer
from jitd.models.ltx2.workload import record_run, record_stage, run_stage, run_step

SIZE = PRESETS["1024x1536"]  # 6144 tokens in stage 1, 24576 in stage 2
BF16 = {"dtype": torch.bfloat16}
VIDEO, AUDIO = (2, 6144, 4096), (2, 126, 2048)
TEXT, AUDIO_TEXT = (2, 1024, 4096), (2, 1024, 2048)
NARROW = (2, 6144, 2048)  # video, as attention between the streams sees it
GATED_NORM = "gate_residual_rms_norm_modulate"
DUAL = "gate_residual_rms_norm_dual_modulate"

FORWARDS = [("2.0", False), ("2.0", True), ("2.3", False), ("2.3", True)]


@pytest.fixture(scope="module", params=FORWARDS, ids=lambda p: p[0] + " i2v" * p[1])
def forward(request):
    """(variant, i2v, recorded counts) of a whole forward of stage 1: 48 blocks, batch 2."""
    variant, i2v = request.param
    with record() as workload:
        video, audio = run_stage(SIZE, 1, variant=variant, i2v=i2v, **BF16)
    assert (video.shape, audio.shape) == ((2, 6144, 128), (2, 126, 128))
    return variant, i2v, workload.counts


def counted(counts, name, fits=lambda call: True, **shapes):
    """Calls of an op whose arguments have these shapes and fit."""
    total = 0
    for text, calls in counts.items():
        if text.startswith(f"{name}["):
            call = OPS[name].parse(text).call
            if all(call[k].shape == shape for k, shape in shapes.items()) and fits(call):
                total += calls
    return total


@pytest.mark.parametrize("x", [VIDEO, AUDIO], ids=["video", "audio"])
def test_norms_and_residuals(forward, x):
    """The fused calls of each stream add up to the sites of a forward of diffusers' model.

    96 modulated norms (2.3: 144) are norm1 by itself and norm3 (2.3: and norm2) behind a residual;
    48 norms without modulation are norm2 of 2.0; 48 have two. 144 gated residuals (2.3: 192) and 48
    plain ones of 2.0 are those in front of norm2, of the norm of both attentions between the
    streams, of norm3, and the last of a block.
    """
    variant, _, counts = forward
    new = variant == "2.3"
    norm1 = counted(counts, "rms_norm_modulate", x=x)
    bare = counted(counts, GATED_NORM, lambda call: call.scale is None, x=x)
    modulated = counted(counts, GATED_NORM, lambda call: call.scale is not None, x=x)
    dual, last = counted(counts, DUAL, x=x), counted(counts, "gate_residual", x=x)
    assert (norm1, norm1 + modulated) == (48, 144 if new else 96)
    assert (bare, dual) == (0 if new else 48, 48)
    plain = counted(counts, DUAL, lambda call: call.gate is None, x=x)
    gated = bare + modulated + dual + last - plain
    assert (gated, plain) == ((192, 0) if new else (144, 48))
    assert counted(counts, "layer_norm_modulate", x=x) == 1


def test_queries_and_keys(forward):
    """q and k of every attention are normalised in one call, and turned but for the prompt's: 48
    calls each are the 96 sites of self-attention, of either direction between the streams, and the
    48 and 48 of the prompt.
    """
    _, _, counts = forward
    turned = {(VIDEO, VIDEO): True, (AUDIO, AUDIO): True, (NARROW, AUDIO): True}
    turned |= {(AUDIO, NARROW): True, (VIDEO, TEXT): False, (AUDIO, AUDIO_TEXT): False}
    for (q, k), rotary in turned.items():
        fits = lambda call, rotary=rotary: (  # noqa: E731
            (call.q_cos is not None) == (call.k_cos is not None) == rotary
        )
        assert counted(counts, "qk_norm_rotary", fits, q=q, k=k) == 48
    assert counted(counts, "qk_norm_rotary") == 48 * len(turned)


def test_gates_and_prompts(forward):
    """2.3 gates the heads of all attentions of a block and modulates both prompts; 2.0 neither."""
    variant, _, counts = forward
    new = variant == "2.3"
    assert counted(counts, "head_gate", x=VIDEO) == 96 * new
    assert counted(counts, "head_gate", x=NARROW) == 48 * new
    assert counted(counts, "head_gate", x=AUDIO) == 144 * new
    assert counted(counts, "modulate", x=TEXT) == 48 * new
    assert counted(counts, "modulate", x=AUDIO_TEXT) == 48 * new
    assert sum(counts.values()) == 48 * (8 * 2) + 2 + (288 + 96) * new  # and nothing else


def test_image_to_video_never_expands(forward):
    """What modulates video is one row for each sample, or with a given image two rows and an index:
    no scale, shift or gate has a row for each token.
    """
    _, i2v, counts = forward
    indexed = 0
    for text, calls in counts.items():
        call = OPS[text.partition("[")[0]].parse(text).call
        for name in ("gate", "scale", "shift", "scale2", "shift2"):
            spec = call.get(name)
            if spec is not None:
                assert spec.shape[-1:] == call.x.shape[-1:]
                assert spec.shape[:-1] in ((2, 1), (2,))
                assert len(spec.shape) == 3 or call.index.shape == call.x.shape[:2]
        indexed += calls * (call.get("index") is not None)
    assert indexed == (48 * 5 + 1 if i2v else 0)


def test_depth_by_arithmetic(forward):
    """What is reckoned from one and two blocks is what 48 blocks call, signature by signature."""
    variant, i2v, counts = forward
    reckoned = record_stage(SIZE, 1, variant=variant, i2v=i2v, **BF16)
    assert reckoned.counts == counts


@pytest.mark.parametrize(("version", "billions"), [("2.0", 18.876), ("2.3", 18.989)])
def test_published_sizes(version, billions):
    """The released configs have the published numbers of parameters."""
    with torch.device("meta"):
        model = LTX2Transformer(**TRANSFORMERS[version])
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == billions


def test_a_run_is_both_stages_and_the_upsampler():
    """A run has the calls of one forward of the upsampler and of each stage, guided or not."""
    run = record_run(SIZE, variant="2.3-distilled", **BF16).counts
    assert counted(run, "group_norm_silu") == 9
    for tokens in (6144, 24576):  # distilled: batch 1 in both
        assert counted(run, "rms_norm_modulate", x=(1, tokens, 4096)) == 48
    guided = record_run(SIZE, variant="2.3", **BF16).counts
    assert counted(guided, "rms_norm_modulate", x=(2, 6144, 4096)) == 48
    assert counted(guided, "rms_norm_modulate", x=(1, 24576, 4096)) == 48
    assert counted(guided, "rms_norm_modulate", x=AUDIO) == 48


def test_unknown_stage_and_variant():
    """A stage or variant that there is not is refused with those there are."""
    with pytest.raises(ValueError, match=r"stage is 3; allowed are \(1, 2\)"):
        run_stage(SIZE, 3, **BF16)
    with pytest.raises(ValueError, match=r"2\.3-distilled"):
        run_stage(SIZE, 1, variant="2.4", **BF16)


def test_real_run_of_a_small_stage():
    """A stage can be run small on a real device."""
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    small |= {"audio_num_attention_heads": 2, "audio_attention_head_dim": 4}
    small |= {"audio_cross_attention_dim": 8, "cross_attention_dim": 16}
    size = type(SIZE)(64, 128, 9)
    for i2v in (False, True):
        out = run_stage(size, 1, dtype=torch.float32, device="cpu", i2v=i2v, **small)
        assert [tuple(x.shape) for x in out] == [(2, 4, 128), (2, 9, 128)]
        assert all(x.isfinite().all() for x in out)


@pytest.mark.parametrize("i2v", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_ask_the_same_on_meta_and_for_real(variant, i2v):
    """What a step of either stage calls is recorded on the meta device as on the CPU, two ops for
    each stream where it is Euler's, four where it is HQ's."""
    size = type(SIZE)(64, 128, 9)
    for stage in (1, 2):
        counts = []
        for device in ("meta", "cpu"):
            with record() as workload:
                run_step(size, stage, variant=variant, i2v=i2v, device=device, **BF16)
            counts.append(workload.counts)
        assert counts[0] == counts[1]
        assert counts[0].total() == (8 if variant == "2.3-hq" else 4)
        assert i2v == any("sigmas=" in text for text in counts[0])


def test_hq_is_warmed_at_its_own_sizes():
    """HQ's steps at 8160 and 32640 tokens, and forwards of one sample, of isolated streams too."""
    run = record_run(PRESETS["1088x1920-hq"], variant="2.3-hq", **BF16).counts
    for tokens in (8160, 32640):
        assert counted(run, "res2s_step", x=(1, tokens, 128)) == 1
        assert counted(run, "res2s_midpoint", x=(1, tokens, 128)) == 1
    assert counted(run, "guidance_combine", cond=(1, 8160, 128)) == 2
    assert counted(run, "velocity_to_x0", x=(1, 32640, 128)) == 2
    assert counted(run, DUAL, x=(1, 8160, 4096)) == 48
    assert counted(run, "rms_norm_modulate", x=(1, 8160, 4096)) == 2 * 48
