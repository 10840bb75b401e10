"""Denoising loops over a stand-in transformer, against loops written from the formulas."""

import jitd
import pytest
import torch
from jitd.models.ltx2.denoising.guidance import (
    NONE,
    Guidance,
    Pass,
    checked_passes,
    passes_of,
    perturbation_configs,
)
from jitd.models.ltx2.denoising.noise import (
    draw_noise,
    hq_generators,
    renoised,
    standardised,
)
from jitd.models.ltx2.denoising.predict import Predictor, Prompt, Stream, chunked
from jitd.models.ltx2.denoising.recipes import RECIPES
from jitd.models.ltx2.denoising.samplers import DeviceSteps, HostSteps, denoise
from jitd.models.ltx2.denoising.schedule import REFINE, REFINE_RES2S, shifted
from jitd.models.ltx2.denoising.stages import Setting, packed, run, unpacked

from . import eager_loops as eager
from .eager_loops import stand_in

B, S, A, C, T = 2, 12, 5, 8, 3
HQ = (Guidance(cfg=3.0, rescale=0.45, modality=3.0), Guidance(cfg=7.0, rescale=1.0, modality=3.0))
FULL = (
    Guidance(cfg=3.0, stg=1.0, rescale=0.7, modality=3.0, stg_blocks=(0,)),
    Guidance(cfg=7.0, stg=1.0, rescale=0.7, modality=3.0, stg_blocks=(0,)),
)
CFG = (Guidance(cfg=4.0), Guidance(cfg=4.0))
GUIDED = {"none": (NONE, NONE), "cfg": CFG, "hq": HQ, "full": FULL}
BY_GUIDANCE = pytest.mark.parametrize("guidance", GUIDED.values(), ids=GUIDED)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def latents(dtype=torch.float32):
    return randn(B, S, C, seed=1, dtype=dtype), randn(B, A, C, seed=2, dtype=dtype)


def prompts(batch=B):
    return [
        Prompt(randn(batch, T, C, seed=seed), randn(batch, T, C, seed=seed + 1)) for seed in (5, 7)
    ]


def predictor(guidance, split="no", model=None, **more):
    prompt, negative = prompts()
    return Predictor(model or stand_in(C), prompt, *guidance, negative, split, **more)


def asked(model=None):
    """The stand-in as the loops of `eager_loops` call it: pass by pass."""
    model, (prompt, negative) = model or stand_in(C), prompts()
    perturbed = {
        "perturbed": {"skip_video_self_attn_blocks": [0], "skip_audio_self_attn_blocks": [0]},
        "modality": {"disable_a2v_cross_attn": True, "disable_v2a_cross_attn": True},
    }

    def call(video, audio, sigma, name):
        text = negative if name == "neg" else prompt
        steps = torch.full((B,), sigma * 1000.0)
        return model(video, audio, text.video, text.audio, steps, steps, **perturbed.get(name, {}))

    return call


def clean(seed=9):
    """The first frame of four tokens is given, and half of the next token."""
    mask = torch.ones(1, S, 1)
    mask[:, :4], mask[:, 4] = 0.0, 0.5
    return randn(B, S, C, seed=seed), mask


def close(got, want, rtol=2e-5):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))


# Loops ---------------------------------------------------------------------------------------


@BY_GUIDANCE
def test_eulers_loop_is_the_formulas(guidance):
    """Every guidance, all passes in one call, on the CPU."""
    x, sigmas = latents(), shifted(6)
    streams = [Stream(one, by) for one, by in zip(x, guidance, strict=True)]
    got = denoise(predictor(guidance), *streams, HostSteps(sigmas))
    close(got, eager.euler(asked(), x, sigmas, guidance))


@BY_GUIDANCE
@pytest.mark.parametrize("sigmas", [shifted(6, 8160), REFINE_RES2S], ids=["to 0", "above 0"])
def test_the_loop_of_res2s_is_the_formulas(guidance, sigmas):
    """Steps that are refined, steps that are not, and the last, against the hundred rounds."""
    x = latents()
    noise = draw_noise(len(sigmas) - 1, x[0].shape, x[1].shape, step=seeded(3), standard=True)
    streams = [Stream(one, by) for one, by in zip(x, guidance, strict=True)]
    got = denoise(
        predictor(guidance, "arguments"), *streams, HostSteps(sigmas), sampler="res2s", noise=noise
    )
    close(got, eager.res2s(asked(), x, sigmas, guidance, noise))


@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_what_is_given_stays(sampler):
    """Image-to-video: tokens of a mask of 0 are the clean ones to the bit, at the end and where the
    model sees them; a mask between is a mixture; timesteps are the mask's share."""
    x, sigmas, guidance, (image, mask) = latents(), shifted(5), HQ, clean()
    seen = []
    inner = stand_in(C)

    def model(**given):
        seen.append((given["hidden_states"], given["timestep"], given["audio_timestep"]))
        return inner(**given)

    noise = draw_noise(4, x[0].shape, x[1].shape, step=seeded(3))
    streams = Stream(x[0], guidance[0], image, mask), Stream(x[1], guidance[1])
    ask = predictor(guidance, "configs", model)
    video, audio = denoise(ask, *streams, HostSteps(sigmas), sampler=sampler, noise=noise)
    assert torch.equal(video[:, :4], image[:, :4])
    for hidden, steps, audio_steps in seen:
        assert torch.equal(hidden[:, :4], image[:, :4])
        assert steps.shape == (B, S) and audio_steps.shape == (B,)
        assert torch.equal(steps[:, :4], torch.zeros(B, 4))
        torch.testing.assert_close(steps[:, 4], audio_steps / 2)
    given, (prompt, negative) = (image, mask), prompts()
    perturbed = {"modality": {"disable_a2v_cross_attn": True, "disable_v2a_cross_attn": True}}

    def call(video, audio, sigma, name):
        text = negative if name == "neg" else prompt
        steps = (mask[..., 0] * sigma * 1000.0).expand(B, S)
        whole = torch.full((B,), sigma * 1000.0)
        more = perturbed.get(name, {})
        return inner(video, audio, text.video, text.audio, steps, whole, **more)

    loop = {
        "euler": lambda: eager.euler(call, x, sigmas, guidance, (given, None)),
        "res2s": lambda: eager.res2s(call, x, sigmas, guidance, noise, (given, None)),
    }
    close((video, audio), loop[sampler]())


def test_skipped_steps_reuse_the_last_prediction():
    """Of each stream its own: video asks at every third step, audio at every second, and the model
    is called where either asks."""
    guidance = Guidance(cfg=3.0, skip_step=2), Guidance(cfg=7.0, skip_step=1)
    x, sigmas, calls = latents(), shifted(7), []
    inner = stand_in(C)

    def model(**given):
        calls.append(given["timestep"][0].item() / 1000)
        return inner(**given)

    streams = [Stream(one, by) for one, by in zip(x, guidance, strict=True)]
    got = denoise(predictor(guidance, model=model), *streams, HostSteps(sigmas))
    assert calls == pytest.approx([sigmas[n] for n in (0, 2, 3, 4, 6)])
    close(got, eager.euler(asked(), x, sigmas, guidance))


@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_numbers_on_the_device_are_those_of_the_host(sampler):
    """A table and its rows give what floats give, and an update gives another schedule's."""
    x, sigmas, other = latents(), shifted(5, 8160), shifted(5, 4096)
    noise = draw_noise(4, x[0].shape, x[1].shape, step=seeded(3))
    streams = [Stream(one, by) for one, by in zip(x, HQ, strict=True)]
    how = {"sampler": sampler, "noise": noise}
    tables = DeviceSteps(sigmas, "cpu")
    close(
        denoise(predictor(HQ), *streams, tables, **how),
        denoise(predictor(HQ), *streams, HostSteps(sigmas), **how),
    )
    tables.update(other)
    close(
        denoise(predictor(HQ), *streams, tables, **how),
        denoise(predictor(HQ), *streams, HostSteps(other), **how),
    )
    with pytest.raises(ValueError, match="5 sigmas that end at 0; allowed are 6"):
        tables.update(shifted(4))
    with pytest.raises(ValueError, match=r"end at 0\.1; allowed are 6 that end at 0 only if 0 is"):
        tables.update(shifted(6)[:-1])


def test_a_counter_names_the_step():
    """One step's code serves every step, with the rows and the noise that a counter on the device
    names, as a captured step is replayed."""
    from jitd.models.ltx2.denoising.samplers import res2s_at  # noqa: PLC0415

    x, sigmas = latents(), REFINE_RES2S
    noise = draw_noise(3, x[0].shape, x[1].shape, step=seeded(3))
    streams = [Stream(one, by) for one, by in zip(x, HQ, strict=True)]
    want = denoise(predictor(HQ), *streams, HostSteps(sigmas), sampler="res2s", noise=noise)
    counter = torch.zeros(1, dtype=torch.int32)
    steps, ask = DeviceSteps(sigmas, "cpu", counter=counter), predictor(HQ)
    for _ in range(3):
        x = res2s_at(ask, *streams, x, steps, 0, noise)
        counter += 1
    close(x, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_keep_their_dtype(dtype):
    """Whatever the transformer is given: it may be of fewer bits than the latents."""
    x = latents(dtype)
    streams = [Stream(one, by) for one, by in zip(x, HQ, strict=True)]
    noise = draw_noise(3, x[0].shape, x[1].shape, step=seeded(3), dtype=dtype)
    seen = []
    inner = stand_in(C)

    def model(**given):
        seen.append(given["hidden_states"].dtype)
        given = {n: t.bfloat16() if torch.is_tensor(t) else t for n, t in given.items()}
        return inner(**given)

    ask = predictor(HQ, model=model, dtype=torch.bfloat16)
    got = denoise(ask, *streams, HostSteps(shifted(3)), sampler="res2s", noise=noise)
    assert [one.dtype for one in got] == [dtype, dtype]
    assert set(seen) == {torch.bfloat16}


def test_a_step_asks_as_few_ops_as_it_can():
    """HQ's step calls eight: guidance, midpoint, guidance, step, for each stream."""
    x = latents()
    streams = [Stream(one, by) for one, by in zip(x, HQ, strict=True)]
    noise = draw_noise(1, x[0].shape, x[1].shape, step=seeded(3))
    with jitd.record() as workload:
        denoise(
            predictor(HQ, "arguments"), *streams, HostSteps((0.9, 0.8)), sampler="res2s",
            noise=noise,
        )  # fmt: skip
    assert workload.counts.total() == 8


def test_timesteps_are_put_on_the_device_once():
    """A run makes those of its schedule before its steps, and another of the same takes them again:
    a graph that reads them must not lose them."""
    x = latents()
    streams = [Stream(one, by) for one, by in zip(x, HQ, strict=True)]
    seen = []
    inner = stand_in(C)

    def model(**given):
        seen.append(given["sigma"].untyped_storage().data_ptr())
        return inner(**given)

    ask = predictor(HQ, "arguments", model)
    for sigmas in (shifted(3), shifted(4), shifted(3)):
        denoise(ask, *streams, HostSteps(sigmas))
    first, other, again = seen[:9], seen[9:21], seen[21:]
    assert len(set(first)) == len(set(other)) == 1
    assert first == again and set(first) != set(other)


# Passes --------------------------------------------------------------------------------------


def test_passes_come_in_order():
    """cond, neg, perturbed, modality: those that any stream needs."""
    assert [one.name for one in passes_of(*FULL)] == ["cond", "neg", "perturbed", "modality"]
    assert [one.name for one in passes_of(*HQ)] == ["cond", "neg", "modality"]
    assert [one.name for one in passes_of(*CFG)] == ["cond", "neg"]
    assert [one.name for one in passes_of(NONE, NONE)] == ["cond"]
    assert [one.name for one in passes_of(NONE, Guidance(stg=1.0))] == ["cond", "perturbed"]


def test_configs_are_those_of_each_pass_for_each_sample():
    """Pass by pass, with the names that SGLang's pipelines use."""
    configs = perturbation_configs(passes_of(*FULL), 2)
    assert len(configs) == 8
    nothing = {
        "skip_video_self_attn_blocks": [], "skip_audio_self_attn_blocks": [],
        "skip_a2v_cross_attn": False, "skip_v2a_cross_attn": False,
    }  # fmt: skip
    assert configs[:4] == [nothing] * 4
    skipped = {"skip_video_self_attn_blocks": [0], "skip_audio_self_attn_blocks": [0]}
    assert configs[4:6] == [{**nothing, **skipped}] * 2
    isolated = {"skip_a2v_cross_attn": True, "skip_v2a_cross_attn": True}
    assert configs[6:] == [{**nothing, **isolated}] * 2


@pytest.mark.parametrize("split", ["no", "configs", "arguments"])
def test_how_calls_are_split(split):
    """One call of all passes, or one for each, told by configs or by plain arguments."""
    calls = []
    inner = stand_in(C)

    def model(**given):
        calls.append(given)
        return inner(**given)

    x = latents()
    streams = [Stream(one, by) for one, by in zip(x, FULL, strict=True)]
    predictor(FULL, split, model)(*streams, *x, 0.7)
    if split == "no":
        (call,) = calls
        assert call["hidden_states"].shape[0] == len(call["perturbation_configs"]) == 4 * B
        return
    assert len(calls) == 4
    assert all(call["hidden_states"].shape[0] == B for call in calls)
    told = [{k: v for k, v in call.items() if not torch.is_tensor(v)} for call in calls]
    if split == "configs":
        assert told[:2] == [{}, {}]
        assert [len(one["perturbation_configs"]) for one in told[2:]] == [B, B]
    else:
        skipped = {"skip_video_self_attn_blocks": [0], "skip_audio_self_attn_blocks": [0]}
        isolated = {"disable_a2v_cross_attn": True, "disable_v2a_cross_attn": True}
        assert told == [{}, {}, skipped, isolated]


# Noise ---------------------------------------------------------------------------------------


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_noise_is_standard():
    """Mean 0 and deviation 1 over the last two dimensions, in fp64."""
    noise = standardised(torch.randn(3, 50, 8, dtype=torch.float64) * 3 + 2)
    torch.testing.assert_close(noise.mean(dim=(-2, -1)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(noise.std(dim=(-2, -1)), torch.ones(3, dtype=torch.float64))


def test_noise_is_drawn_in_the_known_order():
    """Step by step: midpoint video, midpoint audio, video, audio, each from its own generator."""
    step, substep = hq_generators("cpu")
    noise = draw_noise(2, (B, S, C), (B, A, C), step=step, substep=substep, standard=True)
    generators = {"step": seeded(-1), "substep": seeded(9999)}
    for n in range(2):
        drawn = noise.at(n)
        for which, shape, got in (
            ("substep", (B, S, C), drawn.video_mid), ("substep", (B, A, C), drawn.audio_mid),
            ("step", (B, S, C), drawn.video), ("step", (B, A, C), drawn.audio),
        ):  # fmt: skip
            raw = torch.randn(shape, generator=generators[which], dtype=torch.float64)
            assert torch.equal(got, standardised(raw).float())


def test_one_generator_draws_all_in_turn():
    """Without a second generator one draws everything; one for each sample draws its own."""
    noise = draw_noise(1, (B, S, C), (B, A, C), step=seeded(4))
    generator = seeded(4)
    for got, tokens in zip(noise.at(0), (S, A, S, A), strict=True):
        assert torch.equal(got, torch.randn(B, tokens, C, generator=generator))
    both = draw_noise(1, (B, S, C), (B, A, C), step=[seeded(4), seeded(6)])
    alone = draw_noise(1, (1, S, C), (1, A, C), step=seeded(6))
    assert all(torch.equal(two[:, 1:], one) for two, one in zip(both, alone, strict=True))
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        draw_noise(1, (B, S, C), (B, A, C), step=[seeded(4)])


def test_latents_are_taken_back():
    """What stage 2 begins with: the first sigma's share of noise, in fp32."""
    x, noise = latents()[0], randn(B, S, C, seed=8)
    want = noise * 0.909375 + x * (1 - 0.909375)
    assert torch.equal(renoised(x, noise, REFINE[0]), want)


# Whole runs ----------------------------------------------------------------------------------


def doubled(x):
    return torch.nn.functional.interpolate(x, scale_factor=(1, 2, 2))


@pytest.mark.parametrize("name", ["2.0", "2.3", "2.3-two-stage", "2.3-distilled", "2.3-hq"])
def test_recipes_run(name):
    """Each released recipe: stage by stage, as the loops of the formulas with the same draws."""
    recipe, shape = RECIPES[name], (2, 2, 3)
    prompt, negative = prompts()
    begun = []
    setting = Setting(stand_in(C), prompt, negative)
    video, audio = run(
        recipe, setting, shape, A, channels=C, generator=seeded(11), upsample=doubled,
        begin=lambda number, stage: begun.append((number, stage.lora)),
    )  # fmt: skip
    generator, x = seeded(11), []
    for tokens in (12, A):
        x.append(torch.randn(B, tokens, C, generator=generator))
    for number, stage in enumerate(recipe.stages):
        sigmas = stage.sigmas(12 if number == 0 else 48)
        if number:
            shape = (2, 4, 6)
            x = [packed(doubled(unpacked(x[0], (2, 2, 3)))), x[1]]
            x = [
                sigmas[0] * torch.randn(one.shape, generator=generator) + (1 - sigmas[0]) * one
                for one in x
            ]
        guidance = stage.video, stage.audio
        if stage.sampler == "euler":
            x = eager.euler(asked(), x, sigmas, guidance)
        else:
            step, substep = hq_generators("cpu")
            drawn = sum(s > 0 for s in sigmas[1:])
            noise = draw_noise(
                drawn, x[0].shape, x[1].shape, step=step, substep=substep, standard=True
            )
            x = eager.res2s(asked(), x, sigmas, guidance, noise)
    close((packed(video), audio), x, rtol=2e-3 if name == "2.0" else 2e-4)
    assert tuple(video.shape[2:]) == shape
    assert begun == [(n, stage.lora) for n, stage in enumerate(recipe.stages)]


def test_two_stages_with_an_image():
    """A stage with an image makes a call for each pass, and keeps what is given at its own size."""
    recipe, images = RECIPES["2.3-two-stage"], []
    for tokens, seed in ((12, 20), (48, 21)):
        mask = torch.ones(1, tokens, 1)
        mask[:, : tokens // 2] = 0
        images.append((randn(B, tokens, C, seed=seed), mask))
    batches = []
    inner = stand_in(C)

    def model(**given):
        batches.append(given["hidden_states"].shape[0])
        return inner(**given)

    prompt, negative = prompts()
    video, _ = run(
        recipe, Setting(model, prompt, negative), (2, 2, 3), A, channels=C, generator=seeded(11),
        upsample=doubled, clean=images,
    )  # fmt: skip
    assert set(batches) == {B}
    assert torch.equal(packed(video)[:, :24], images[1][0][:, :24])


def test_tokens_and_latents():
    """Frames lie outermost among the tokens; there and back is the same."""
    x = randn(B, C, 2, 3, 4)
    assert torch.equal(unpacked(packed(x), (2, 3, 4)), x)
    assert torch.equal(packed(x)[:, 1 * 12 + 2 * 4 + 3], x[:, :, 1, 2, 3])
    with pytest.raises(ValueError, match=r"24 tokens are no latents of \(2, 3, 5\)"):
        unpacked(packed(x), (2, 3, 5))


# Bad input -----------------------------------------------------------------------------------


def test_passes_without_cond_are_refused():
    """As are two of a name, and unknown ones."""
    with pytest.raises(ValueError, match=r"passes are \['neg'\]; one must be 'cond'"):
        checked_passes([Pass("neg")])
    with pytest.raises(ValueError, match=r"allowed is each of .* once"):
        checked_passes([Pass("cond"), Pass("cond")])
    with pytest.raises(ValueError, match=r"passes are \['cond', 'more'\]"):
        checked_passes([Pass("cond"), Pass("more")])
    with pytest.raises(ValueError, match="one must be 'cond'"):
        predictor((NONE, NONE), passes=(Pass("modality", isolated=True),))


def test_a_batch_that_does_not_divide_is_refused():
    """By the number of passes, named."""
    with pytest.raises(ValueError, match=r"batch of 5 does not divide into 2 passes \(cond, neg\)"):
        chunked(torch.zeros(5, 3, 2), passes_of(*CFG))
    x = latents()
    streams = [Stream(one[:1]) for one in x]
    with pytest.raises(ValueError, match="prompts are 4 samples for 2 passes of 1 latents"):
        predictor(CFG)(*streams, x[0][:1], x[1][:1], 0.5)


@pytest.mark.parametrize("shape", [(B, S), (1, S - 1, 1), (3, S, 1), (B, S, C)])
def test_masks_of_another_shape_are_refused(shape):
    """ValueError names the mask's shape and those that fit."""
    with pytest.raises(ValueError, match=r"mask is .*; allowed are \(2, 12, 1\) and \(1, 12, 1\)"):
        Stream(latents()[0], NONE, latents()[0], torch.ones(shape))


def test_what_goes_together_is_refused_alone():
    """A mask without latents, latents of another shape, noise and prompts that are missing."""
    x = latents()
    with pytest.raises(ValueError, match="clean latents and mask go together"):
        Stream(x[0], NONE, None, torch.ones(1, S, 1))
    with pytest.raises(ValueError, match=r"clean latents are \(2, 5, 8\)"):
        Stream(x[0], NONE, x[1], torch.ones(1, S, 1))
    with pytest.raises(ValueError, match=r"latents are \(12, 8\)"):
        Stream(x[0][0])
    with pytest.raises(ValueError, match="give one, or cfg=1"):
        Predictor(stand_in(C), prompts()[0], *CFG)
    streams = [Stream(one) for one in x]
    with pytest.raises(ValueError, match="noise of 0 steps; res2s takes that of 2"):
        denoise(predictor((NONE, NONE)), *streams, HostSteps(shifted(3)), sampler="res2s")
    with pytest.raises(ValueError, match=r"sigmas: 0\.5 is followed by 0.7"):
        HostSteps((0.5, 0.7))
    with pytest.raises(ValueError, match="needs an upsampler"):
        run(
            RECIPES["2.3-hq"], Setting(stand_in(C), prompts()[0]), (1, 1, 1), A, generator=seeded(0)
        )


def test_prompts_that_do_not_match_are_refused():
    """Shapes and masks of both prompts have to be alike."""
    prompt, negative = prompts()
    with pytest.raises(ValueError, match=r"encoder_hidden_states: \(2, 3, 8\), \(2, 2, 8\)"):
        Predictor(stand_in(C), prompt, *CFG, Prompt(negative.video[:, :2], negative.audio))
    masked = Prompt(negative.video, negative.audio, torch.ones(B, T))
    with pytest.raises(ValueError, match="one prompt has it, one has not"):
        Predictor(stand_in(C), prompt, *CFG, masked)
