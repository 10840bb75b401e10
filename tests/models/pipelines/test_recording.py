"""Recorded from config files on the meta device is what the pipeline asks for as it runs."""

import json
import logging

import pytest
import torch
from jitd.jit.check import arguments
from jitd.jit.inputs import make_inputs
from jitd.jit.record import record
from jitd.jit.warm import buckets
from jitd.models.pipelines.recording import Pipeline, pipeline_in
from jitd.tools.examples import tiny

from .live import live

pytestmark = pytest.mark.diffusers

NAMES = ["ltx2", "ltx2 2.0", "ltx2 of an image", "helios", "helios base", "zimage"]


def of_configs(pipeline, *, size, variant=None, dtype="fp32", i2v=False):
    model = pipeline.model
    return model.workload([size], dtype, variant or model.variants[0], i2v=i2v)


@pytest.mark.parametrize("name", NAMES)
def test_configs_tell_what_a_run_asks_for(name, tmp_path):
    """Every signature of a real run on the CPU, layouts included, and no other, is recorded from
    the pipeline's config files."""
    real = live(name)
    folder = tiny.save_configs(real.pipe, tmp_path / "configs", *real.others)
    pipeline = pipeline_in(folder, prompt_tokens=real.prompt_tokens)
    on_meta = of_configs(pipeline, size=real.size, variant=real.variant, i2v=real.i2v)
    assert set(on_meta) == set(real.recorded())


@pytest.mark.parametrize("name", ["ltx2", "helios", "zimage"])
def test_references_answer_all_that_a_warmup_checks(name, tmp_path):
    """Kernels are checked at more calls than were recorded, inputs that begin anywhere among them:
    the reference answers each with what the op promises."""
    real = live(name)
    folder = tiny.save_configs(real.pipe, tmp_path / "configs", *real.others)
    pipeline = pipeline_in(folder, prompt_tokens=real.prompt_tokens)
    recorded = of_configs(pipeline, size=real.size, variant=real.variant, dtype="bf16")
    generator, checked, shifted = torch.Generator().manual_seed(0), 0, 0
    for op, bucket in ((bucket.op, bucket.call) for bucket in buckets(recorded)):
        for call in dict.fromkeys((bucket, *op.reach(bucket), *op.probes(bucket))):
            args, kwargs = arguments(op, call, make_inputs(op, call, "cpu", generator, "normal"))
            answer = op.reference(*args, **kwargs)
            answers = answer if isinstance(answer, tuple) else (answer,)
            promised = op.outputs(call).values()
            assert [tuple(one.shape) for one in answers] == [spec.shape for spec in promised]
            checked += 1
            shifted += any(not spec.aligned for spec in call.tensors.values())
    assert checked > 20
    assert shifted > 5


def test_a_part_by_itself_asks_for_its_share(tmp_path):
    """The folder of one model asks for what that model does in its pipeline: the transformer, the
    upsampler and the decoder of LTX-2 are together what the pipeline is."""
    pipe, _ = tiny.ltx2()
    folder = tiny.save_configs(pipe, tmp_path, tiny.ltx2_upsampler(pipe))
    how = {"frames": 9, "prompt_tokens": 8}
    size = pipeline_in(folder, **how).model.parse_size("128x192")
    whole = set(of_configs(pipeline_in(folder, **how), size=size, variant="distilled"))
    upsampler = pipeline_in(folder / "latent_upsampler", **how)
    alone = set(of_configs(upsampler, size=size))
    assert alone
    assert alone <= whole
    transformer = pipeline_in(folder / "transformer", **how)
    guided = set(of_configs(transformer, size=type(size)(64, 96, 9), variant="guided"))
    assert guided
    assert not any("group_norm" in text for text in guided)


def test_both_ways_of_guidance_are_the_default(tmp_path):
    """Without --variant, a guided run and a distilled one are warm."""
    pipe, _ = tiny.zimage()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path), prompt_tokens=16)
    size = pipeline.model.parse_size("128x128")
    one, both = (
        set(of_configs(pipeline, size=size, variant=variant)) for variant in ("distilled", "all")
    )
    assert one < both
    assert both == one | set(of_configs(pipeline, size=size, variant="guided"))


def test_captions_of_all_lengths(tmp_path):
    """Z-Image without --prompt-tokens asks for the sixteen lengths that captions have."""
    pipe, _ = tiny.zimage()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path) / "transformer")
    found = of_configs(pipeline, size=pipeline.model.parse_size("128x128"), variant="distilled")
    rows = {text.split("(")[1].split(",")[0].rstrip(")") for text in found if "swiglu" in text}
    assert {f"1x{64 + length}x341" for length in range(32, 513, 32)} <= rows


def test_parameters_have_the_dtypes_of_from_pretrained(tmp_path):
    """Helios keeps its tables and norms in fp32, and its VAE: signatures say so."""
    pipe, _ = tiny.helios()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path), prompt_tokens=16)
    found = of_configs(pipeline, size=pipeline.model.parse_size("64x64"), dtype="bf16")
    assert any("layer_norm_modulate[bf16]" in text and "scale=fp32" in text for text in found)
    assert not any("channel_norm" in text and "[bf16]" in text for text in found)


def test_an_impossible_size_is_the_pipelines_own_error(tmp_path):
    """A size that the pipeline refuses is refused in its words, with the option's name."""
    pipe, _ = tiny.ltx2()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path), frames=9)
    said = r"LTX2Pipeline does not run at --size 100x64x9: .*divisible by 32"
    with pytest.raises(ValueError, match=said):
        of_configs(pipeline, size=pipeline.model.parse_size("100x64"))


def test_nothing_patched_is_an_error_with_the_reason(tmp_path, monkeypatch):
    """A model of a version that no recipe knows warms nothing, and says why."""
    from jitd.models.patch import patching  # noqa: PLC0415

    monkeypatch.setattr(patching, "digest", lambda *names: "another")
    pipe, _ = tiny.zimage()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path), prompt_tokens=16)
    with pytest.raises(ValueError, match=r"nothing to warm: .*unknown version"):
        of_configs(pipeline, size=pipeline.model.parse_size("128x128"))


def test_a_config_that_its_class_does_not_take(tmp_path):
    """A config of nonsense is an error of one line."""
    pipe, _ = tiny.zimage()
    tiny.save_configs(pipe, tmp_path)
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "block_out_channels": "wide"}))
    pipeline = pipeline_in(tmp_path)
    with pytest.raises(ValueError, match="AutoencoderKL does not take its config"):
        of_configs(pipeline, size=pipeline.model.parse_size("128x128"))


def test_a_model_of_which_nothing_is_patched_is_an_error(tmp_path, caplog):
    """A model without a class that a recipe knows warms nothing, which is said once."""
    pipe, _ = tiny.ltx2()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path) / "vocoder", frames=9)
    with pytest.raises(ValueError, match=r"nothing to warm: no class in .*vocoder is one that"):
        of_configs(pipeline, size=pipeline.model.parse_size("64x64"))
    assert not [record for record in caplog.records if record.name == "jitd"]


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (tiny.zimage, {"dim": -4}, "ZImage.*: [A-Z][a-zA-Z]+Error: "),
        (tiny.zimage, {"axes_dims": [3, 5]}, "ZImage.*: [A-Z][a-zA-Z]+Error$"),
        (tiny.zimage, {"n_layers": None}, "ZImage.*: TypeError: "),
        (tiny.helios, {"patch_size": [1, 2]}, "Helios.*: [A-Z][a-zA-Z]+Error: "),
    ],
)
def test_a_config_that_its_class_cannot_run(tmp_path, caplog, make, change, said):
    """What a class takes but can neither build nor run is an error of one line with the class and
    the error, whose traceback is logged for who debugs it."""
    pipe, _ = make()
    tiny.save_configs(pipe, tmp_path)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    model = pipeline_in(tmp_path, prompt_tokens=16)
    with (
        caplog.at_level(logging.DEBUG, "jitd"),
        pytest.raises(ValueError, match=f"--diffusers: {said}"),
    ):
        of_configs(model, size=model.model.parse_size("128x128"))
    assert next(record.exc_info for record in caplog.records if record.name == "jitd")


def test_ctrl_c_is_no_error_of_a_config(tmp_path, monkeypatch):
    """Ctrl-C while a model is built or run ends the warmup as Ctrl-C."""
    pipe, _ = tiny.zimage()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path) / "transformer", prompt_tokens=16)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for method in ("forward", "from_config"):
        monkeypatch.setattr(type(pipe.transformer), method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            of_configs(pipeline, size=pipeline.model.parse_size("128x128"))


def test_it_is_written_down_and_read_back(tmp_path):
    """What a resumed warmup is told is what was asked for."""
    pipe, _ = tiny.helios()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path), prompt_tokens=16, vae_dtype="bf16")
    assert Pipeline.of(json.loads(json.dumps(pipeline.document()))) == pipeline


def test_the_dtype_and_the_device_are_as_before(tmp_path):
    """Building and running on the meta device leaves torch's defaults and autocast alone."""
    autocast = torch.autocast
    pipe, _ = tiny.helios()
    pipeline = pipeline_in(tiny.save_configs(pipe, tmp_path), prompt_tokens=16)
    with record():
        of_configs(pipeline, size=pipeline.model.parse_size("64x64"), dtype="bf16")
    assert torch.autocast is autocast
    assert torch.zeros(1).dtype == torch.float32
    assert torch.zeros(1).device.type == "cpu"
