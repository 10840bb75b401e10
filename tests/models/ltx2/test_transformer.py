"""The transformer by itself: layouts, rows and index, waiting, compiling. Needs no diffusers."""

import jitd
import pytest
import torch
from jitd.models.ltx2.embedding import timestep_rows
from jitd.models.ltx2.perturbation import NOTHING, Keep

from ..waits import Waits
from .small import AUDIO, FOUR, TOKENS, VARIANTS, build, inputs, recorded, run

TIMESTEPS = ["sample", "token", "rows"]
ONE_SAMPLE = {
    "spatio_temporal_guidance_blocks": [1],
    "perturbation_mask": torch.tensor([0.0, 1.0]),
}
MORE = {
    "plain": {},
    "isolated": {"isolate_modalities": True},
    "perturbed": {"spatio_temporal_guidance_blocks": [1]},
    "one perturbed": ONE_SAMPLE,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", ["plain", "isolated"])
def test_rows_are_the_expanded_form(variant, dtype, more):
    """Four timesteps and an index give the bits of a timestep for each token."""
    model = build(variant, dtype=dtype)
    expected = run(model, inputs(variant, dtype=dtype, timesteps="token"), **MORE[more])
    outs = run(model, inputs(variant, dtype=dtype, timesteps="rows"), **MORE[more])
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)


def test_rows_of_audio():
    """Audio's timesteps may be rows, too."""
    model = build("2.0")
    index = torch.arange(2 * AUDIO).view(2, AUDIO) % 4
    rows = {"audio_timestep": torch.tensor(FOUR), "audio_timestep_index": index}
    token = {"audio_timestep": torch.tensor(FOUR)[index]}
    given = inputs("2.0")
    for out, wanted in zip(run(model, given | rows), run(model, given | token), strict=True):
        assert torch.equal(out, wanted)


def test_timestep_rows():
    """Clean tokens have the row of timestep zero; the others that of their sample, or the only."""
    clean = torch.tensor([[True, False, False], [False, True, False]])
    rows, index = timestep_rows(torch.tensor([5.0]), clean)
    assert rows[index.long()].tolist() == [[0, 5, 5], [5, 0, 5]]
    assert (rows.tolist(), index.dtype) == ([5, 0], torch.int32)
    rows, index = timestep_rows(torch.tensor([5.0, 7.0]), clean)
    assert rows[index.long()].tolist() == [[0, 5, 5], [7, 0, 7]]
    with pytest.raises(ValueError, match=r"timestep is \(3,\), clean \(2, 3\)"):
        timestep_rows(torch.zeros(3), clean)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_meta_signatures_are_the_cpu_s(variant, dtype, batch, timesteps):
    """A run on meta asks for exactly the signatures of a real run, strides class included."""
    _compare_signatures("cpu", variant, dtype, batch, timesteps)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_meta_signatures_are_the_gpu_s(variant, dtype, batch, timesteps):
    """A run on meta asks for exactly the signatures of a run on the GPU."""
    jitd.configure(mode="off")  # what is asked for does not depend on who answers
    _compare_signatures("cuda", variant, dtype, batch, timesteps)


def _compare_signatures(device, variant, dtype, batch, timesteps):
    for more in MORE if batch == 2 else ("plain", "isolated"):
        found = [
            recorded(
                build(variant, dtype=dtype, device=where),
                inputs(variant, dtype=dtype, device=where, batch=batch, timesteps=timesteps),
                **MORE[more],
            )
            for where in ("meta", device)
        ]
        assert found[0] == found[1], more
        assert sum(found[0].values()) > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("timesteps", TIMESTEPS)
@pytest.mark.parametrize("more", ["plain", "isolated", "perturbed"])
def test_nothing_waits(variant, timesteps, more):
    """No value of a tensor is asked for: on a GPU a forward is queued without waiting for it."""
    model, given = build(variant), inputs(variant, timesteps=timesteps)
    with Waits() as waits:
        run(model, given, **MORE[more])
    assert waits.seen == []


def test_waits_are_seen():
    """The probe of the test above notes what would wait."""
    with Waits() as waits:
        torch.ones(2).any().item()
    assert waits.seen == ["_local_scalar_dense.default"]


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("more", list(MORE))
def test_nothing_waits_on_the_gpu(variant, more):
    """With masks on the GPU, CUDA sees no synchronisation in a forward."""
    jitd.configure(mode="off")
    model = build(variant, dtype=torch.bfloat16, device="cuda")
    given = inputs(variant, dtype=torch.bfloat16, device="cuda", timesteps="rows")
    options = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in MORE[more].items()}
    run(model, given, **options)  # libraries that start may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(model, given, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_mask_that_nobody_may_look_at():
    """Perturbing all samples gives the same whether a mask says so or not, computed or skipped."""
    model, given = build("2.3"), inputs("2.3")
    blocks = {"spatio_temporal_guidance_blocks": [0, 1]}
    skipped = run(model, given, **blocks)
    seen = run(model, given, **blocks, perturbation_mask=torch.zeros(2, 1, 1))
    hidden = []
    told = NOTHING._replace(video=Keep(torch.zeros(2, 1, 1)), audio=Keep(torch.zeros(2, 1, 1)))
    for block in model.transformer_blocks:  # as with a mask on a GPU
        handle = block.register_forward_pre_hook(lambda _, args: (*args[:4], told))
        hidden.append(handle)
    computed = run(model, given)
    assert hidden
    for out, other, third in zip(skipped, seen, computed, strict=True):
        assert torch.equal(out, other)
        assert torch.equal(out, third)


def test_perturbing_all_skips_what_nobody_needs():
    """Where every sample is perturbed, self-attention normalises and turns nothing."""
    model, given = build("2.3"), inputs("2.3")
    calls = [
        sum(n for text, n in counts.items() if text.startswith("qk_norm_rotary"))
        for counts in (recorded(model, given), recorded(model, given, **MORE["perturbed"]))
    ]
    assert calls == [12, 10]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("timesteps", ["sample", "rows"])
def test_compiles_without_graph_breaks(variant, timesteps):
    """torch.compile takes the forward as one graph, with eager's result and strides."""
    torch.compiler.reset()  # variants share the code of forward, and its limit on recompiling
    model, given = build(variant), inputs(variant, timesteps=timesteps)
    expected = run(model, given, **ONE_SAMPLE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for out, wanted in zip(run(compiled, given, **ONE_SAMPLE), expected, strict=True):
        assert torch.equal(out, wanted)
        assert out.stride() == wanted.stride()


ALLOWED_INDEX = rf"\(2, {TOKENS}\) of torch.int32 or torch.int64"
WRONG = {
    "index too short": ({"timestep_index": torch.zeros(2, 7, dtype=torch.int32)}, ALLOWED_INDEX),
    "index of floats": ({"timestep_index": torch.zeros(2, TOKENS)}, ALLOWED_INDEX),
    "rows by token": (
        {"timestep_index": torch.zeros(2, TOKENS).int(), "timestep": torch.ones(2, TOKENS)},
        r"it is rows, \(R,\)",
    ),
    "timestep of three samples": ({"timestep": torch.ones(3)}, r"timestep is \(3,\).*\(2,\)"),
    "audio index too short": (
        {"audio_timestep_index": torch.zeros(2, 1, dtype=torch.int64)},
        rf"audio_timestep_index.*\(2, {AUDIO}\)",
    ),
    "no timestep of audio": (
        {"audio_timestep": None, "timestep": torch.ones(2, TOKENS)},
        "audio_timestep is missing",
    ),
    "no sigma": ({"sigma": None}, "sigma is missing"),
    "sigma by token": ({"sigma": torch.ones(2, TOKENS)}, r"sigma is .*allowed is \(2,\)"),
    "audio of another batch": ({"audio_hidden_states": torch.ones(3, AUDIO, 8)}, "2 samples.* 3"),
    "other channels": ({"hidden_states": torch.ones(2, TOKENS, 9)}, r"\(B, tokens, 8\)"),
    "prompt of another batch": (
        {"encoder_hidden_states": torch.ones(3, 8, 64)},
        r"encoder_hidden_states is \(3, 8, 64\); allowed is \(2, T, 64\)",
    ),
    "prompt of other channels": (
        {"audio_encoder_hidden_states": torch.ones(2, 8, 64)},
        r"allowed is \(2, T, 32\)",
    ),
    "sizes of other tokens": ({"num_frames": 4}, rf"video_coords.*{TOKENS} tokens"),
    "no sizes": ({"height": None}, "num_frames, height and width, or video_coords"),
    "no sizes of audio": ({"audio_num_frames": None}, "audio_num_frames or audio_coords"),
    "coordinates of three samples": (
        {"video_coords": torch.ones(3, 3, TOKENS, 2)},
        "allowed is .2 or 1, 3",
    ),
    "a mask of one dimension": ({"encoder_attention_mask": torch.ones(8)}, r"\(B, T\)"),
    "a block that is not there": (
        {"spatio_temporal_guidance_blocks": [0, 28]},
        r"names \[28\]; allowed are 0 to 1",
    ),
    "a mask of three samples": (
        {"spatio_temporal_guidance_blocks": [0], "perturbation_mask": torch.ones(3)},
        r"perturbation_mask is \(3,\)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs(wrong):
    """An input that does not fit is refused by its name, with what would fit."""
    change, allowed = WRONG[wrong]
    with pytest.raises(ValueError, match=allowed):
        run(build("2.3"), inputs("2.3") | change)


def test_no_sigma_where_none_is_needed():
    """2.0 needs no sigma, unless the attention between the streams is to be modulated by it."""
    model, given = build("2.0"), inputs("2.0")
    assert all(x.isfinite().all() for x in run(model, given | {"sigma": None}))
    with pytest.raises(ValueError, match="sigma is missing"):
        run(model, given | {"sigma": None, "use_cross_timestep": True})


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"rope_type": "interleaved"}, "'split'"),
        ({"norm_elementwise_affine": True}, "False"),
        ({"activation_fn": "gelu"}, "'gelu-approximate'"),
        ({"qk_norm": "rms_norm"}, "'rms_norm_across_heads'"),
        ({"audio_cross_attention_dim": 64}, "audio stream's width, 32"),
    ],
)
def test_impossible_configs(wrong, allowed):
    """A config that no released model has is refused with what is allowed."""
    with torch.device("meta"), pytest.raises(ValueError, match=allowed):
        build("2.3", **wrong)
