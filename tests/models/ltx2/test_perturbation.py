"""Perturbed passes of the small transformer: one by one, and mixed in one batch."""

import pytest
import torch
from jitd.models.ltx2.denoising.guidance import Guidance, passes_of, perturbation_configs
from jitd.models.ltx2.denoising.predict import Predictor, Prompt, Stream
from jitd.models.ltx2.denoising.samplers import HostSteps, denoise
from jitd.models.ltx2.perturbation import NOTHING, Keep, perturbed_blocks

from .small import AUDIO, FRAMES, HEIGHT, TEXT, TOKENS, WIDTH, build, inputs, run

FULL = (
    Guidance(cfg=3.0, stg=1.0, rescale=0.7, modality=3.0, stg_blocks=(1,)),
    Guidance(cfg=7.0, stg=1.0, rescale=0.7, modality=3.0, stg_blocks=(0, 1)),
)
HQ = (Guidance(cfg=3.0, rescale=0.45, modality=3.0), Guidance(cfg=7.0, rescale=1.0, modality=3.0))
LIKE = torch.zeros(1)

# Half a unit of the dtype in every op of two blocks, amplified by guidance (7 + 1 + 3 times the
# difference of two predictions).
BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.25}


def predictor(guidance, split, dtype=torch.float32, device="cpu"):
    """Over the small 2.3 transformer, with two prompts of one sample."""
    prompts = []
    for seed in (5, 6):
        generator = torch.Generator().manual_seed(seed)
        video, audio = (torch.randn(1, TEXT, n, generator=generator) for n in (64, 32))
        prompts.append(Prompt(video.to(device, dtype), audio.to(device, dtype)))
    sizes = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "audio_num_frames": AUDIO}
    return Predictor(
        build("2.3", dtype=dtype, device=device), prompts[0], *guidance, prompts[1], split,
        dtype=dtype, more={**sizes, "use_cross_timestep": True},
    )  # fmt: skip


def latents(device="cpu"):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, n, 8, generator=generator).to(device) for n in (TOKENS, AUDIO)]


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("guidance", [HQ, FULL], ids=["hq", "full"])
def test_split_and_batched_passes_give_the_same(guidance, dtype):
    """HQ's calls, one for each pass told by arguments, calls told by configs, and one call of all
    passes with a config for each sample: the same guided x0 within the bound of the dtype."""
    x = latents()
    streams = [Stream(one, by) for one, by in zip(x, guidance, strict=True)]
    found = {}
    with torch.no_grad():
        for split in ("no", "configs", "arguments"):
            found[split] = predictor(guidance, split, dtype)(*streams, *x, 0.7)
    for one, other in zip(found["configs"], found["arguments"], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found["no"], found["arguments"], strict=True):
        assert float((one - other).abs().max()) <= BOUND[dtype] * float(other.abs().max())


def test_a_whole_loop_is_the_same_split_or_not():
    """Three steps of Euler's in fp32."""
    found = []
    for split in ("no", "arguments"):
        streams = [Stream(one, by) for one, by in zip(latents(), FULL, strict=True)]
        with torch.no_grad():
            found.append(denoise(predictor(FULL, split), *streams, HostSteps((1.0, 0.7, 0.3, 0.0))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "diffusers"),
    [
        ({"disable_a2v_cross_attn": True, "disable_v2a_cross_attn": True},
         {"isolate_modalities": True}),
        ({"skip_video_self_attn_blocks": [1], "skip_audio_self_attn_blocks": [1]},
         {"spatio_temporal_guidance_blocks": [1]}),
    ],
    ids=["isolated", "perturbed"],
)  # fmt: skip
def test_both_vocabularies_mean_the_same(told, diffusers):
    """SGLang's arguments and configs do what diffusers' arguments do, to the bit."""
    model, given = build("2.3"), inputs("2.3")
    want = run(model, given, **diffusers)
    names = {"disable_a2v_cross_attn": "skip_a2v_cross_attn",
             "disable_v2a_cross_attn": "skip_v2a_cross_attn"}  # fmt: skip
    config = {names.get(name, name): value for name, value in told.items()}
    for more in (told, {"perturbation_configs": [config] * 2}):
        assert all(map(torch.equal, run(model, given, **more), want))
    assert not all(map(torch.equal, run(model, given), want))


def test_samples_are_perturbed_apart():
    """In one batch each sample is what it would be alone, perturbed as its config says; each key
    does something of its own."""
    model, given = build("2.3"), inputs("2.3", batch=1)
    configs = [
        {}, {"skip_video_self_attn_blocks": [0]}, {"skip_audio_self_attn_blocks": [1]},
        {"skip_a2v_cross_attn": True}, {"skip_v2a_cross_attn": True},
    ]  # fmt: skip
    many = {
        name: t.repeat(len(configs), *[1] * (t.ndim - 1)) if torch.is_tensor(t) else t
        for name, t in given.items()
    }
    together = run(model, many, perturbation_configs=configs)
    seen = []
    for number, config in enumerate(configs):
        alone = run(model, given, perturbation_configs=[config])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[number], rtol=1e-4, atol=1e-5)
        seen.append(alone)
    video_changed, audio_changed = (
        [n for n, alone in enumerate(seen) if not torch.equal(alone[place], seen[0][place])]
        for place in (0, 1)
    )
    assert {1, 3} <= set(video_changed) and {2, 4} <= set(audio_changed)


def test_what_nobody_needs_is_not_computed():
    """Where all samples agree there is no mask: everything is kept, or nothing is."""
    passes = passes_of(*FULL)
    blocks = perturbed_blocks(3, 8, LIKE, configs=perturbation_configs(passes, 2))
    assert blocks[2].video == Keep() and blocks[2].audio == Keep()
    assert blocks[0].video == Keep() and blocks[0].audio.mask.flatten().tolist() == [
        1, 1, 1, 1, 0, 0, 1, 1,
    ]  # fmt: skip
    assert blocks[1].video.mask is blocks[1].audio.mask is blocks[0].audio.mask
    assert blocks[0].a2v.mask.flatten().tolist() == [1] * 6 + [0] * 2
    alone = perturbed_blocks(3, 2, LIKE, configs=perturbation_configs(passes[3:], 2))
    assert alone == [NOTHING._replace(a2v=Keep(skip=True), v2a=Keep(skip=True))] * 3
    assert perturbed_blocks(3, 2, LIKE) == [NOTHING] * 3


REFUSED = {
    "too few": ({"perturbation_configs": [{}]}, "1 perturbation_configs for a batch of 2"),
    "unknown": ({"perturbation_configs": [{"skip": True}] * 2}, r"have \['skip'\]; allowed are"),
    "no such block": (
        {"perturbation_configs": [{"skip_video_self_attn_blocks": [2]}] * 2}, r"names \[2\]",
    ),
    "both": (
        {"perturbation_configs": [{}] * 2, "isolate_modalities": True}, "one or the other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_do_not_fit_are_refused(name):
    """ValueError says what does not fit and what would."""
    more, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        run(build("2.3"), inputs("2.3"), **more)
