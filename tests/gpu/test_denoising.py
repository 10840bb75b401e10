"""Denoising on the card: ops against references, a step without one synchronisation, whole loops in
one graph, launches counted."""

import jitd
import pytest
import torch
from jitd.jit.errors import LaunchError
from jitd.models.ltx2.denoising.guidance import Guidance
from jitd.models.ltx2.denoising.noise import draw_noise
from jitd.models.ltx2.denoising.predict import Predictor, Prompt, Stream
from jitd.models.ltx2.denoising.samplers import DeviceSteps, HostSteps, denoise, res2s_at
from jitd.models.ltx2.denoising.schedule import REFINE_RES2S, shifted
from jitd.tools.bench import denoise as bench
from jitd.tools.bench import eager_denoising as eager
from jitd.tools.bench.traffic import launches

from ..models.ltx2 import eager_loops
from ..models.ltx2 import test_perturbation as passes
from ..models.ops.denoising_cases import (
    FUNCTIONS,
    PAIRS,
    ROWS,
    SCALES,
    SUBSETS,
    branches,
    tensors,
)
from ..models.ops.signed import Called, reference, signed, tensors_of, verdict_of
from .cases import answered_by_kernels, executable

pytestmark = pytest.mark.gpu

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
B, S, A, C = 1, 300, 126, 128
HQ = (Guidance(cfg=3.0, rescale=0.45, modality=3.0), Guidance(cfg=7.0, rescale=1.0, modality=3.0))

TEXTS = [
    "velocity_to_x0[bf16](1x8160x128)",
    "velocity_to_x0[fp32](1x301x127, v=bf16)",
    "velocity_to_x0[fp32](2x126x128, sigmas=fp32 2x126)",
    "velocity_to_x0[fp32](2x126x128, sigmas=fp32 1)",
    "guidance_combine[fp32](1x8160x128, perturbed=none)",
    "guidance_combine[fp32](1x8160x128, perturbed=none, rescale=0.45)",
    "guidance_combine[fp32](1x126x128, rescale=1.0)",
    "guidance_combine[fp32](3x33x31, modality=none, rescale=0.7)",
    "guidance_combine[bf16](1x8160x128, perturbed=none, rescale=0.45)",
    "guidance_combine[bf16](1x8160x128, perturbed=none, x=fp32 1x8160x128, rescale=0.45)",
    "guidance_combine[fp16](2x126x128, x=fp16 2x126x128, sigmas=fp32 2x126, rescale=0.7)",
    "euler_step[fp32](1x8160x128)",
    "euler_step[bf16](1x301x127)",
    "res2s_midpoint[fp32](1x8160x128)",
    "res2s_midpoint[bf16](1x301x127, x0=fp32, noise=none)",
    "res2s_step[fp32](1x8160x128)",
    "res2s_step[bf16](1x301x127, x0=fp32, x0_mid=fp32)",
    "res2s_step[fp32](1x126x128, noise_mid=5x1x126x128, noise=5x1x126x128, table=fp64 5x8, "
    "step=i32 1)",
]


def function_of(text):
    return FUNCTIONS[text.partition("[")[0]]


# Ops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_ops_are_as_right_as_eager(text, record_property):
    """Errors within the verifier's bound of float64; what differs from eager's bits is counted, and
    is nothing where no standard deviation is involved."""
    jitd.configure(mode="replay")
    verdict = verdict_of(text, Called(function_of(text), text), device="cuda")
    assert verdict.ok, verdict.reason
    assert answered_by_kernels()
    record_property("differing", verdict.differing)
    print(f"differing: {verdict.differing}: {text}")
    if "rescale" not in text:
        assert verdict.differing == 0


@pytest.mark.parametrize("kind", ["normal", "shifted", "huge", "tiny", "special"])
def test_guidance_of_any_inputs(kind):
    """A mean far from 0, huge and tiny values, NaN and Inf: spread as torch.std spreads them."""
    jitd.configure(mode="replay")
    text = "guidance_combine[fp32](1x8160x128, perturbed=none, rescale=0.7)"
    verdict = verdict_of(text, Called(function_of(text), text), device="cuda", kind=kind)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("present", SUBSETS, ids=str)
def test_every_subset_of_branches(present, rescale):
    """Velocities and predictions; not rescaled bit for bit, rescaled to two standard deviations."""
    jitd.configure(mode="replay")
    combine = FUNCTIONS["guidance_combine"]
    shape = (1, 301, 128)
    given = branches(present, shape=shape, device="cuda")
    for x in (None, tensors(5, shape, device="cuda")[4]):
        how = {**SCALES, "sigma": 0.6, "rescale": rescale}
        got, want = combine(*given, x, **how), combine.op.reference(*given, x, **how)
        if rescale:
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(got, want)
    assert answered_by_kernels()


@pytest.mark.parametrize("text", [t for t in TEXTS if "rescale" in t])
def test_every_variant_and_size_of_program_is_right(workers, builder, text):
    """Two launches, and one whose programs meet, at a spread of configs, each twice in a row: the
    barrier serves again, and bits do not change. Programs that do not fit on the card at once are
    refused by the driver, as in a tune, which drops them then."""
    op, call = signed(text)
    given = tensors_of(text, device="cuda")
    want = reference(text, *given)
    tried = set()
    for config in op.configs(call, builder.device)[0][::5]:
        run = executable(workers, builder, op, config, call)
        try:
            one, two = run(*given), run(*given)
        except LaunchError as error:
            assert config.variant.name == "together" and "TOO_LARGE" in str(error)
            continue
        assert torch.equal(one, two), config
        eps = torch.finfo(want.dtype).eps
        torch.testing.assert_close(one, want, rtol=6 * eps, atol=6 * eps)
        tried.add(config.variant.name)
    assert tried == {"two_launch", "together"}


@pytest.mark.parametrize("dtype", [FP64, FP32, BF16, FP16], ids=str)
def test_a_step_is_that_of_a_hundred_rounds(dtype, cold):
    """In fp64 to 1e-12 of the loop, at every step of every schedule; in fewer bits rounded."""
    jitd.configure(mode="replay", cache_dir=cold)
    x, x0, x1, *noise = tensors(5, (1, 301, 128), dtype=dtype, device="cuda")
    step, midpoint = FUNCTIONS["res2s_step"], FUNCTIONS["res2s_midpoint"]
    for pair, row in zip(PAIRS, ROWS, strict=True):
        asked = []

        def ask(latents, sigma, asked=asked):
            asked.append(latents)
            return (x0, x1)[len(asked) - 1]

        want = eager.res2s(x, ask, *pair, *noise)
        got, mid = step(x, x0, x1, *noise, *row), midpoint(x, x0, noise[0], *row[:3])
        assert torch.equal(got, step.op.reference(x, x0, x1, *noise, *row))
        scale = float(want.double().abs().max())
        bound = 1e-12 if dtype == FP64 else torch.finfo(dtype).eps
        for one, other in ((got, want), (mid, asked[1])):
            assert float((one.double() - other.double()).abs().max()) <= bound * scale
    assert answered_by_kernels()
    assert jitd.stats()["compiles"] == 2  # whatever the coefficients


# Steps and loops -----------------------------------------------------------------------------


class StandIn:
    """A transformer of three launches a call, all on the device."""

    def __init__(self):
        generator = torch.Generator("cuda").manual_seed(1)
        self.weight = torch.randn(C, C, generator=generator, device="cuda") / C**0.5

    def __call__(self, hidden_states, audio_hidden_states, timestep, **given):
        cross = 0.0 if given.get("disable_a2v_cross_attn") else 0.25
        text = given["encoder_hidden_states"].mean(1, keepdim=True)
        level = (timestep / 1000).view(timestep.shape[0], -1, 1)
        video = hidden_states @ self.weight + level * text
        audio = audio_hidden_states @ self.weight + cross * video.mean(1, keepdim=True)
        return video, audio


def setup(dtype=FP32, sigmas=REFINE_RES2S, clean=False):
    """(predictor, streams, noise) of a run of HQ's guidance."""

    def normal(tokens, seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        return torch.randn(B, tokens, C, generator=generator, device="cuda")

    video, audio = normal(S, 1), normal(A, 2)
    prompts = [Prompt(normal(8, seed), normal(8, seed + 1)) for seed in (5, 7)]
    predictor = Predictor(StandIn(), prompts[0], *HQ, prompts[1], "arguments")
    image = mask = None
    if clean:
        image, mask = torch.randn_like(video), torch.ones(1, S, 1, device="cuda")
        mask[:, :100] = 0
    streams = Stream(video.to(dtype), HQ[0], image, mask), Stream(audio.to(dtype), HQ[1])
    noise = draw_noise(
        sum(s > 0 for s in sigmas[1:]), video.shape, audio.shape,
        step=torch.Generator("cuda").manual_seed(3), standard=True, dtype=dtype,
    )  # fmt: skip
    return predictor, streams, noise


class NoSync:
    """While open, an operation of torch that waits for the device raises."""

    def __enter__(self):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *exc):
        torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_seen():
    """The guard of the tests below does raise for a synchronisation."""
    x = torch.ones(1, device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), NoSync():
        float(x)


@pytest.mark.parametrize("clean", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("sampler", ["euler", "res2s"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_no_step_waits_for_the_device(where, sampler, clean):
    """A whole loop, its second run, with numbers from the host or from tensors: nothing waits."""
    jitd.configure(mode="replay")
    sigmas = shifted(4, 8160)
    predictor, streams, noise = setup(sigmas=sigmas, clean=clean)
    steps = HostSteps(sigmas) if where == "host" else DeviceSteps(sigmas, "cuda")
    want = denoise(predictor, *streams, steps, sampler=sampler, noise=noise)
    with NoSync():
        got = denoise(predictor, *streams, steps, sampler=sampler, noise=noise)
    assert all(map(torch.equal, got, want))
    assert answered_by_kernels()


@pytest.mark.parametrize("guidance", [passes.HQ, passes.FULL], ids=["hq", "full"])
@pytest.mark.parametrize("split", ["no", "configs", "arguments"])
def test_no_pass_of_the_transformer_waits_for_the_device(split, guidance):
    """The small 2.3 transformer with its passes split or mixed: masks are made on the device."""
    jitd.configure(mode="replay")
    predictor = passes.predictor(guidance, split, BF16, "cuda")
    x = passes.latents("cuda")
    streams = [Stream(one, by) for one, by in zip(x, guidance, strict=True)]
    with torch.no_grad():
        want = predictor(*streams, *x, 0.7)
        with NoSync():
            got = predictor(*streams, *x, 0.7)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("guidance", [passes.HQ, passes.FULL], ids=["hq", "full"])
def test_split_and_batched_passes_give_the_same(guidance, dtype):
    """The small 2.3 transformer: HQ's split and the batch with a config for each sample give the
    same guided x0 within the bound of the dtype."""
    jitd.configure(mode="replay")
    x = passes.latents("cuda")
    streams = [Stream(one, by) for one, by in zip(x, guidance, strict=True)]
    found = {}
    with torch.no_grad():
        for split in ("no", "arguments"):
            found[split] = passes.predictor(guidance, split, dtype, "cuda")(*streams, *x, 0.7)
    for one, other in zip(found["no"], found["arguments"], strict=True):
        assert float((one - other).abs().max()) <= passes.BOUND[dtype] * float(other.abs().max())


def captured(run):
    """(graph, what `run` gives in it), warmed up on another stream first."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out


@pytest.mark.parametrize("clean", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("sampler", ["euler", "res2s"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_a_whole_loop_is_one_graph(where, sampler, clean):
    """All steps captured once; replays equal eager to the bit, with other latents and noise, and,
    with numbers in tensors, another schedule."""
    jitd.configure(mode="replay")
    sigmas, other = shifted(4, 8160), shifted(4, 4096)
    predictor, streams, noise = setup(sigmas=sigmas, clean=clean)
    steps = HostSteps(sigmas) if where == "host" else DeviceSteps(sigmas, "cuda")

    def run(steps=steps):
        return denoise(predictor, *streams, steps, sampler=sampler, noise=noise)

    graph, out = captured(run)
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        for tensor in (*noise, streams[0].latents, streams[1].latents):
            tensor.normal_(generator=generator)
        if where == "device":
            steps.update(sigmas if seed == 0 else other)
        graph.replay()
        torch.cuda.synchronize()
        got = [one.clone() for one in out]
        assert all(map(torch.equal, got, run()))
        if where == "device":
            want = run(HostSteps(steps.sigmas))
            for one, same in zip(got, want, strict=True):
                torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-5)
    assert answered_by_kernels()


def test_one_captured_step_serves_a_schedule():
    """A step captured once, replayed with a counter on the device that counts up: its rows, its
    noise, and eager's latents after each."""
    jitd.configure(mode="replay")
    sigmas = (0.9, 0.8, 0.7, 0.5, 0.2)
    predictor, streams, noise = setup(sigmas=sigmas)
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")
    steps = DeviceSteps(sigmas, "cuda", counter=counter)
    held = [streams[0].latents.clone(), streams[1].latents.clone()]

    def run():
        moved = res2s_at(predictor, *streams, tuple(held), steps, 0, noise)
        for latents, new in zip(held, moved, strict=True):
            latents.copy_(new)
        counter.add_(1)

    graph, _ = captured(run)
    counter.zero_()
    for latents, stream in zip(held, streams, strict=True):
        latents.copy_(stream.latents)
    x = streams[0].latents, streams[1].latents
    host = HostSteps(sigmas)
    for step in range(4):
        graph.replay()
        x = res2s_at(predictor, *streams, x, host, step, noise)
        torch.cuda.synchronize()
        for one, other in zip(held, x, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_loops_are_those_of_the_formulas():
    """HQ's loop on the card against the loop of the formulas, hundred rounds and all, in fp32."""
    jitd.configure(mode="replay")
    model = eager_loops.stand_in(C)
    sigmas = shifted(5, 8160)
    _, streams, noise = setup(sigmas=sigmas)
    prompts = [torch.randn(B, 3, C, device="cuda") / 4 for _ in range(2)]
    predictor = Predictor(
        model, Prompt(*prompts[:1] * 2), *HQ, Prompt(*prompts[1:] * 2), "arguments"
    )
    isolated = {"disable_a2v_cross_attn": True, "disable_v2a_cross_attn": True}

    def call(video, audio, sigma, name):
        text = prompts[1 if name == "neg" else 0]
        level = torch.full((B,), sigma * 1000.0, device="cuda")
        more = isolated if name == "modality" else {}
        return model(video, audio, text, text, level, level, **more)

    x = tuple(stream.latents for stream in streams)
    got = denoise(predictor, *streams, HostSteps(sigmas), sampler="res2s", noise=noise)
    for one, other in zip(got, eager_loops.res2s(call, x, sigmas, HQ, noise), strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


# Launches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", bench.STEPS, ids=lambda step: step.name)
def test_launches_of_a_step(step, record_property):
    """A step of HQ is eight launches, or, untuned, with guidance in two each, twelve; by the
    formulas more than 800. Both give the same."""
    jitd.configure(mode="replay")
    setup = bench.Setup(step, "cuda")
    ours = setup.ours()
    with torch.no_grad():
        got, want = ours(), setup.eager()
        counted = launches(ours), launches(setup.eager)
    for one, other in zip(got, want, strict=True):
        assert float((one - other).abs().max()) <= bench._OFF * float(other.abs().max())
    assert answered_by_kernels()
    few, many = (one.counts.total() for one in counted)
    record_property("launches", (few, many))
    print(f"launches: {few} instead of {many}: {step.name}\n{counted[0].counts}")
    predictions = 2 if step.sampler == "res2s" else 1
    each = 2 if step.video.cfg != 1 else 1  # launches of a stream's prediction, untuned
    assert few == predictions * (2 * each + 2)
    assert many > (800 if step.sampler == "res2s" else 2 * few)
