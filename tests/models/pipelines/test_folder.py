"""Reading the config files of a pipeline: what is found, and what is said where nothing is."""

import json
import logging
from importlib import metadata

import pytest
from jitd.models.pipelines.folder import FAMILIES, read
from jitd.models.pipelines.recording import pipeline_in
from jitd.models.pipelines.sizes import Size


def write(folder, **files):
    """Puts a config.json into folders, by their names; `.` is the folder itself."""
    for name, data in files.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = data if isinstance(data, str) else json.dumps(data)
        (folder / name / "config.json").write_text(text)
    return folder


def index(folder, **entries):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(entries))
    return folder


def test_a_pipeline(tmp_path):
    """Its models are found by the names of its parts; others, and those it lists as null, are left
    alone; scalars are its arguments; an upsampler beside it belongs to it."""
    write(
        tmp_path,
        transformer={"_class_name": "LTX2VideoTransformer3DModel", "num_layers": 48},
        latent_upsampler={"_class_name": "LTX2LatentUpsamplerModel"},
        text_encoder={"architectures": ["Gemma3ForConditionalGeneration"]},
    )
    index(
        tmp_path,
        _class_name="LTX2Pipeline",
        _diffusers_version="0.38.0",
        transformer=["diffusers", "LTX2VideoTransformer3DModel"],
        text_encoder=["transformers", "Gemma3ForConditionalGeneration"],
        vae=[None, None],
        is_fine=True,
    )
    folder = read(tmp_path)
    assert (folder.family, folder.pipeline) == ("ltx2", "LTX2Pipeline")
    assert list(folder.parts) == ["transformer", "latent_upsampler"]
    assert folder.parts["transformer"].config["num_layers"] == 48
    assert dict(folder.index) == {"is_fine": True}
    assert folder.scheduler is None


@pytest.mark.parametrize(
    ("listed", "how"),
    [({"transformer": [None, None]}, "lists it as null"), ({}, "does not list it")],
)
def test_a_part_that_is_left_out_is_said(tmp_path, caplog, listed, how):
    """A part whose config is there, but which the pipeline does not have, is noted in a sentence;
    one that is neither there nor listed is none to speak of."""
    write(
        tmp_path,
        transformer={"_class_name": "ZImageTransformer2DModel"},
        vae={"_class_name": "AutoencoderKL"},
    )
    index(tmp_path, _class_name="ZImagePipeline", vae=["diffusers", "AutoencoderKL"], **listed)
    with caplog.at_level(logging.WARNING, "jitd"):
        assert list(read(tmp_path).parts) == ["vae"]
    (record,) = caplog.records
    assert f"transformer is left out: model_index.json {how}, although" in record.getMessage()
    write(tmp_path / "whole", vae={"_class_name": "AutoencoderKL"})
    index(tmp_path / "whole", _class_name="ZImagePipeline", vae=["diffusers", "AutoencoderKL"])
    read(tmp_path / "whole")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_one_model(tmp_path, family):
    """The folder of any model of a family is one of that family."""
    for part, classes in FAMILIES[family].parts.items():
        for cls in classes:
            folder = read(write(tmp_path / cls, **{".": {"_class_name": cls}}))
            assert (folder.family, folder.pipeline) == (family, "")
            assert {name: found.cls for name, found in folder.parts.items()} == {part: cls}


def test_the_digest_follows_every_file(tmp_path):
    """A change in a config is another digest; the place of the folder is not."""

    def digest(name, layers):
        config = {"_class_name": "ZImageTransformer2DModel", "n_layers": layers}
        return read(write(tmp_path / name, **{".": config})).digest

    assert digest("a", 30) == digest("b", 30)
    assert digest("a", 30) != digest("c", 2)


def _nothing(folder):
    return folder


def _other_pipeline(folder):
    return index(folder, _class_name="FluxPipeline")


def _other_model(folder):
    return write(folder, **{".": {"_class_name": "FluxTransformer2DModel"}})


def _no_config(folder):
    return index(
        folder, _class_name="ZImagePipeline", transformer=["diffusers", "ZImageTransformer2DModel"]
    )


def _no_json(folder):
    return write(folder, **{".": "{"})


def _a_list(folder):
    return write(folder, **{".": []})


def _other_part(folder):
    write(folder, vae={"_class_name": "AutoencoderTiny"})
    return index(folder, _class_name="ZImagePipeline", vae=["diffusers", "AutoencoderTiny"])


def _a_string(folder):
    write(folder, transformer={"_class_name": "ZImageTransformer2DModel"})
    return index(folder, _class_name="ZImagePipeline", transformer="ZImageTransformer2DModel")


def _half_a_pair(folder):
    write(folder, transformer={"_class_name": "ZImageTransformer2DModel"})
    return index(folder, _class_name="ZImagePipeline", transformer=["diffusers", None])


def _a_file(folder):
    (folder / "model").touch()
    return folder / "model"


def _empty(folder):
    return index(folder, _class_name="HeliosPipeline", transformer=[None, None])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_nothing, r"no model_index\.json or config\.json there"),
        (_other_pipeline, "FluxPipeline is not supported. .*LTX2Pipeline.*ZImagePipeline"),
        (_other_model, "FluxTransformer2DModel is not supported. .*ZImageTransformer2DModel"),
        (_no_config, r"transformer/config\.json cannot be read: No such file"),
        (_no_json, "is no JSON"),
        (_a_list, "it is a list"),
        (_other_part, "vae AutoencoderTiny is not supported"),
        (_a_string, 'transformer as "ZImageTransformer2DModel"; allowed are .*null, null'),
        (_half_a_pair, r'transformer as \["diffusers", null\]; allowed are'),
        (_a_file, "a file, not a folder. Give the folder"),
        (_empty, "lists none of its models"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, made, said):
    """Each is an error that names the file or the class, and what is supported."""
    with pytest.raises(ValueError, match=said):
        read(made(tmp_path))


def test_without_diffusers(tmp_path, monkeypatch):
    """Where diffusers is missing, what to install is said."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ValueError, match=r"pip install 'jitd\[diffusers\]'"):
        pipeline_in(write(tmp_path, **{".": {"_class_name": "ZImageTransformer2DModel"}}))


def test_a_missing_folder(tmp_path):
    """A path of nothing is said to be that."""
    with pytest.raises(ValueError, match="no such folder"):
        read(tmp_path / "none")


def test_sizes():
    """Sizes are read with and without frames, and printed as they are read."""
    assert str(Size.parse("512x768", 121)) == "512x768x121"
    assert Size.parse("512x768x9", 121) == Size(512, 768, 9)
    assert str(Size.parse("64x64")) == "64x64"
    for text, frames in (("64", None), ("64x64x9", None), ("0x64", 9), ("64x64x9x1", 9)):
        with pytest.raises(ValueError, match="not readable"):
            Size.parse(text, frames)
