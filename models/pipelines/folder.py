"""The config files of a diffusers pipeline, or of one of its models. Imports no torch."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "Folder", "Part", "read"]


log = logging.getLogger("jitd")


@dataclass(frozen=True)
class Family:
    """Pipelines that are run alike: their classes, and those of their models by the name of the
    part. diffusers has a class where `home` says, or at its top."""

    pipelines: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]


_LTX2_PIPELINES = (
    "LTX2Pipeline",
    "LTX2ImageToVideoPipeline",
    "LTX2ConditionPipeline",
    "LTX2LatentUpsamplePipeline",
)

FAMILIES: Mapping[str, Family] = {
    "ltx2": Family(
        _LTX2_PIPELINES,
        {
            "transformer": ("LTX2VideoTransformer3DModel",),
            "connectors": ("LTX2TextConnectors",),
            "latent_upsampler": ("LTX2LatentUpsamplerModel",),
            "vae": ("AutoencoderKLLTX2Video",),
            "audio_vae": ("AutoencoderKLLTX2Audio",),
            "vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
        },
    ),
    "helios": Family(
        ("HeliosPipeline", "HeliosPyramidPipeline"),
        {"transformer": ("HeliosTransformer3DModel",), "vae": ("AutoencoderKLWan",)},
    ),
    "zimage": Family(
        ("ZImagePipeline",),
        {"transformer": ("ZImageTransformer2DModel",), "vae": ("AutoencoderKL",)},
    ),
}

_UNLISTED = "latent_upsampler"  # lies beside a pipeline that does not list it


@dataclass(frozen=True)
class Part:
    """One model: its class, by name, and its config."""

    cls: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Folder:
    """What was read.

    family: a key of FAMILIES; pipeline: its class, empty for a folder of one model; parts: by the
    pipeline's names; index: the scalars of model_index.json, which are arguments of the pipeline;
    scheduler: None if the folder has none.
    """

    path: Path
    family: str
    pipeline: str
    parts: Mapping[str, Part]
    index: Mapping[str, Any]
    scheduler: Part | None

    @property
    def named(self) -> str:
        """The class of the pipeline, or of the one model."""
        return self.pipeline or next(iter(self.parts.values())).cls

    @property
    def digest(self) -> str:
        """Changes with anything that was read."""
        read = [
            self.pipeline,
            {name: [part.cls, dict(part.config)] for name, part in self.parts.items()},
            dict(self.index),
            [self.scheduler.cls, dict(self.scheduler.config)] if self.scheduler else None,
        ]
        text = json.dumps(read, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read(path: Path) -> Folder:
    """The pipeline or model whose config files lie in a folder, as `save_pretrained` leaves them.

    Weights are not looked at. Raises ValueError for a folder without such files, and for a class
    that is not supported, naming those that are.
    """
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    if (path / "config.json").is_file():
        return _model(path)
    what = "no model_index.json or config.json there"
    if not path.is_dir():
        what = "a file, not a folder" if path.exists() else "no such folder"
    raise ValueError(
        f"--diffusers {path}: {what}. Give the folder of a pipeline or of one of its models, as "
        "diffusers saves or downloads it; its weights are not needed."
    )


def _pipeline(path: Path) -> Folder:
    index = _json(path / "model_index.json")
    name = index.get("_class_name")
    found = next((f for f, family in FAMILIES.items() if name in family.pipelines), None)
    if found is None:
        raise _unsupported(path, "pipeline", name)
    parts = {}
    for part, classes in FAMILIES[found].parts.items():
        listed, file = _listed(path, index, part), path / part / "config.json"
        if listed is None and file.is_file() and part != _UNLISTED:
            how = "lists it as null" if part in index else "does not list it"
            what = f"{part} is left out: model_index.json {how}, although its config.json is there"
            log.warning("--diffusers %s: %s.", path, what)
        if listed is None and not (part == _UNLISTED and file.is_file()):
            continue
        config = _json(file)
        cls = config.get("_class_name") or listed
        if cls not in classes:
            raise _unsupported(path / part, part, cls)
        parts[part] = Part(cls, config)
    if not parts:
        raise ValueError(f"--diffusers {path}: {name} lists none of its models.")
    scalars = {k: v for k, v in index.items() if isinstance(v, bool | int | float | str)}
    scalars = {k: v for k, v in scalars.items() if not k.startswith("_")}
    return Folder(path, found, str(name), parts, scalars, _scheduler(path, index))


def _listed(path: Path, index: Mapping[str, Any], part: str) -> str | None:
    """The class that the index names for a part; None for one that it has not."""
    listed = index.get(part)
    match listed:
        case None | [None, None]:
            return None
        case [str(), str(cls)]:
            return cls
    raise ValueError(
        f"--diffusers {path}: model_index.json lists {part} as {json.dumps(listed)}; allowed are "
        '["diffusers", CLASS], and [null, null] for none.'
    )


def _scheduler(path: Path, index: Mapping[str, Any]) -> Part | None:
    file, listed = path / "scheduler" / "scheduler_config.json", index.get("scheduler")
    if not file.is_file() or not isinstance(listed, list):
        return None
    return Part(str(listed[-1]), _json(file))


def _model(path: Path) -> Folder:
    config = _json(path / "config.json")
    name = config.get("_class_name")
    for family, known in FAMILIES.items():
        for part, classes in known.parts.items():
            if name in classes:
                return Folder(path, family, "", {part: Part(str(name), config)}, {}, None)
    raise _unsupported(path, "model", name)


def _unsupported(path: Path, what: str, name: object) -> ValueError:
    pipelines = [cls for family in FAMILIES.values() for cls in family.pipelines]
    models = [cls for f in FAMILIES.values() for classes in f.parts.values() for cls in classes]
    return ValueError(
        f"--diffusers {path}: {what} {name} is not supported. Supported are the pipelines "
        f"{', '.join(pipelines)}, and the models {', '.join(models)}."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--diffusers: {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--diffusers: {path} is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ValueError(f"--diffusers: {path} is no config: it is a {type(data).__name__}.")
    return data
