"""LTX-2's transformer of diffusers on the card: patched, against itself as it was."""

import jitd
import pytest
import torch
from jitd.models.ltx2.presets import PRESETS, TEXT_TOKENS, TRANSFORMERS, audio_tokens, latent_shape
from jitd.tools.examples import tiny
from jitd.tools.examples.ltx2_two_stage import two_stages

from ..models.ltx2.small import build, inputs, run
from ..models.patch import tiny_ltx2
from .cases import answered_by_kernels
from .forwards import by_references, hold, near, widened

pytestmark = [pytest.mark.gpu, pytest.mark.diffusers]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MORE = {
    "plain": {},
    "isolated": {"isolate_modalities": True},
    "perturbed": {"spatio_temporal_guidance_blocks": [1]},
}
REAL = PRESETS["1024x1536"]  # 6144 tokens in stage 1
WIDTHS = {"rope_type": "split", "num_layers": 1}  # the rest of diffusers' defaults is 2.0


@pytest.fixture(autouse=True)
def _defaults():
    """Default configs, compiled and checked: what is tuned is not what these tests are about."""
    jitd.configure(mode="replay")


def truth_of(variant, model, given, **more):
    """The forward in float64, by our own module: diffusers' takes its norms in float32."""
    exact = build(variant, dtype=torch.float64, device="cuda")
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return by_references(lambda: run(exact, widened(given), **more))


def both(model, given, **more):
    """Results of the stock forward, then of the patched one, which kernels answer wholly."""
    stock = run(model, given, return_dict=False, **more)
    report = jitd.patch(model, verify="never")
    outs = run(model, given, return_dict=False, **more)
    assert (report.left, report.declined.total()) == ((), 0)
    assert all(site.calls for site in report.sites if "_to_" not in site.path or not more)
    assert answered_by_kernels()
    return stock, outs


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timesteps", ["sample", "token"])
@pytest.mark.parametrize("more", MORE)
def test_a_small_model_is_as_exact_as_stock(variant, dtype, timesteps, more):
    """In every dtype, guided or not, with timesteps of samples or of tokens, the patched model is
    as near to float64 as the stock one on the same card.
    """
    model = tiny_ltx2.transformer(variant, dtype=dtype, device="cuda")
    given = inputs(variant, dtype=dtype, device="cuda", timesteps=timesteps)
    stock, outs = both(model, given, **MORE[more])
    hold(outs, stock, truth_of(variant, model, given, **MORE[more]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_calls_are_verified(dtype):
    """Every site agrees with its stock forward on the card, within the bound for live modules."""
    model = tiny_ltx2.transformer("2.3", dtype=dtype, device="cuda")
    report = jitd.patch(model)
    run(model, inputs("2.3", dtype=dtype, device="cuda", timesteps="token"))
    assert (report.left, report.declined.total()) == ((), 0), str(report)
    assert jitd.stats()["patch:verified"] == len(report.sites)
    assert "patch:unverified" not in jitd.stats()


def test_strict_after_tuning():
    """What tuning has seen once runs in mode strict: the same bits, nothing compiled or tuned, of
    the plain, the perturbed and the isolated forward.
    """
    model = tiny_ltx2.transformer("2.3", dtype=torch.bfloat16, device="cuda")
    given = inputs("2.3", dtype=torch.bfloat16, device="cuda")
    stock = [run(model, given, return_dict=False, **more) for more in MORE.values()]
    jitd.patch(model, verify="never")
    jitd.configure(mode="tune")
    tuned = [run(model, given, return_dict=False, **more) for more in MORE.values()]
    before = {name: jitd.stats().get(name, 0) for name in ("compiles", "tunes")}
    jitd.configure(mode="strict")
    outs = [run(model, given, return_dict=False, **more) for more in MORE.values()]
    assert {name: jitd.stats().get(name, 0) for name in before} == before
    assert answered_by_kernels()
    for out, same, want, more in zip(outs, tuned, stock, MORE.values(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(out, same, strict=True))
        hold(out, want, truth_of("2.3", model, given, **more))


def real_inputs(model, *, i2v):
    """A forward of stage 1, of one sample. i2v: timesteps of tokens, zero in the first frame."""
    config, frames, height, width = model.config, *latent_shape(REAL, 1)
    tokens, audio = frames * height * width, audio_tokens(REAL)
    newer = not config.use_prompt_embeddings
    text = (
        (config.cross_attention_dim, config.audio_cross_attention_dim)
        if newer
        else (config.caption_channels,) * 2
    )
    generator = torch.Generator("cuda").manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator, device="cuda").bfloat16()

    timestep = torch.full((1,), 725.0, device="cuda")
    of_tokens = timestep.expand(1, tokens) * (torch.arange(tokens, device="cuda") >= height * width)
    return {
        "hidden_states": random(1, tokens, config.in_channels),
        "audio_hidden_states": random(1, audio, config.audio_in_channels),
        "encoder_hidden_states": random(1, TEXT_TOKENS, text[0]),
        "audio_encoder_hidden_states": random(1, TEXT_TOKENS, text[1]),
        "timestep": of_tokens if i2v else timestep,
        "audio_timestep": timestep,
        "sigma": timestep,
        "encoder_attention_mask": torch.ones(1, TEXT_TOKENS, device="cuda"),
        "audio_encoder_attention_mask": torch.ones(1, TEXT_TOKENS, device="cuda"),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": audio,
        "use_cross_timestep": newer,
    }


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("i2v", [False, True])
def test_a_block_of_real_size(variant, i2v, much_memory):
    """One block at real width and length, its timesteps of samples or of tokens, agrees with the
    stock one site by site and as a whole, and all of it is answered by kernels.
    """
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = diffusers.LTX2VideoTransformer3DModel(**{**TRANSFORMERS[variant], **WIDTHS})
    model = model.bfloat16().eval()
    given = real_inputs(model, i2v=i2v)
    stock = run(model, given, return_dict=False)
    report = jitd.patch(model)
    near(run(model, given, return_dict=False), stock)
    near(run(model, given, return_dict=False), stock)
    assert (report.left, report.declined.total()) == ((), 0), str(report)
    assert answered_by_kernels()


def test_whole_pipelines_of_two_stages():
    """Text to video in two stages, 2.3 with all of its guidance: what is decoded is as near to
    stock's as another rounding leaves it, and every site but those of encoders has answered.
    """
    pipe, given = tiny_ltx2.pipeline("2.3", device="cuda")
    upsampler = tiny.ltx2_upsampler(pipe, "2.3")

    def generated():
        return two_stages(pipe, upsampler, given)

    stock = generated()
    reports = [jitd.patch(one) for one in (pipe, upsampler)]
    outs = generated()
    for report in reports:
        assert (report.left, report.declined.total()) == ((), 0), str(report)
        assert all(site.calls for site in report.sites if "encoder" not in site.path)
    assert answered_by_kernels()
    near(outs, stock)


@pytest.mark.parametrize("i2v", [False, True])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_a_pipeline_s_latents(i2v, version):
    """Latents of a guided run of two steps, from text or from an image, are near stock's."""
    pipe, given = tiny_ltx2.pipeline(version, i2v=i2v, device="cuda")
    stock = tiny_ltx2.latents(pipe, given)
    report = jitd.patch(pipe)
    outs = tiny_ltx2.latents(pipe, given)
    assert (report.left, report.declined.total()) == ((), 0), str(report)
    assert answered_by_kernels()
    near(outs, stock)
