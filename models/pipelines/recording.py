"""A folder of config files as a model that can be warmed. Imports no torch until it is."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ...jit.errors import JitdError
from ...jit.record import Workload, record
from ..catalog import Model
from ..helios import presets as helios
from ..ltx2 import presets as ltx2
from ..zimage import presets as zimage
from .folder import Folder, read
from .sizes import Size

__all__ = ["Pipeline", "pipeline_in"]

log = logging.getLogger("jitd")

_OPTIONS = ("frames", "prompt_tokens", "vae_dtype")
_DEFAULT_SIZES = {
    "ltx2": Size(512, 768, ltx2.DEFAULT_FRAMES),
    "helios": Size(384, 640),
    "zimage": Size(1024, 1024),
}
_PROMPTS = {
    "ltx2": (ltx2.TEXT_TOKENS,),
    "helios": (helios.TEXT_TOKENS,),
    "zimage": zimage.CAPTIONS,
}
_VARIANTS = {
    "ltx2": ("all", "guided", "distilled"),
    "helios": ("pyramid", "base"),
    "zimage": ("all", "guided", "distilled"),
}


@dataclass(frozen=True)
class Pipeline:
    """What is in a folder, and the options of a warmup that a `Model` does not know.

    frames: of a size that names none; prompt_tokens: of a prompt, the lengths that the model's own
    pipeline gives them if None; vae_dtype: `bf16`, `fp16` or `fp32`, Helios' fp32 and others' the
    model's if None.
    """

    folder: Folder
    frames: int | None = None
    prompt_tokens: int | None = None
    vae_dtype: str | None = None

    @property
    def options(self) -> dict[str, object]:
        """All that decides the signatures besides a model's options, for the key of a receipt."""
        return {
            "configs": self.folder.digest,
            "diffusers": metadata.version("diffusers"),
            "frames": self.frames or "",
            "prompt_tokens": self.prompt_tokens or "",
            "vae_dtype": self.vae_dtype or "",
        }

    @property
    def words(self) -> list[str]:
        """The part of a command line that says the same."""
        words = ["--diffusers", str(self.folder.path)]
        words += ["--frames", str(self.frames)] if self.frames else []
        words += ["--prompt-tokens", str(self.prompt_tokens)] if self.prompt_tokens else []
        return words + (["--vae-dtype", self.vae_dtype] if self.vae_dtype else [])

    def document(self) -> dict[str, Any]:
        """This as plain data; `Pipeline.of` reads it back."""
        return {
            "folder": str(self.folder.path),
            "frames": self.frames,
            "prompt_tokens": self.prompt_tokens,
            "vae_dtype": self.vae_dtype,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Pipeline":
        """Raises ValueError where the folder is no more."""
        path, *others = (document[name] for name in ("folder", *_OPTIONS))
        return pipeline_in(Path(path), **dict(zip(_OPTIONS, others, strict=True)))

    @property
    def model(self) -> Model:
        """The folder as the command line takes models."""
        family, pipeline = self.folder.family, self.folder.pipeline
        variants = _VARIANTS[family]
        if family == "helios" and pipeline:
            variants = ("pyramid",) if pipeline == "HeliosPyramidPipeline" else ("base",)
        size = _DEFAULT_SIZES[family]
        frames = self.frames or size.frames
        if self.frames and size.frames is None:
            what = "makes images" if family == "zimage" else "makes every video of chunks of 33"
            raise ValueError(f"--frames {self.frames}: {family} {what}; leave it out.")
        return Model(
            name=f"diffusers-{family}",
            description=f"{self.folder.named} of diffusers",
            sizes={str(size): Size(size.height, size.width, frames)},
            variants=variants,
            i2v=family != "zimage",
            ops=(),
            parse_size=lambda text: Size.parse(text, frames),
            record=self._recorder(),
        )

    def _recorder(self) -> Callable[[Any, str, str, bool], Workload]:
        built = cache(lambda dtype: _built(self, dtype))

        def recorder(size: Size, dtype: str, variant: str, i2v: bool) -> Workload:
            return _recorded(self, built(dtype), size, dtype, variant, i2v=i2v)

        return recorder


def pipeline_in(
    path: Path,
    *,
    frames: int | None = None,
    prompt_tokens: int | None = None,
    vae_dtype: str | None = None,
) -> Pipeline:
    """What a warmup of the folder needs. Raises ValueError as `folder.read` does, and without
    diffusers."""
    folder = read(path.absolute())
    try:
        metadata.version("diffusers")
    except metadata.PackageNotFoundError:
        raise ValueError("--diffusers needs diffusers: pip install 'jitd[diffusers]'.") from None
    return Pipeline(folder, frames, prompt_tokens, vae_dtype)


def _built(pipeline: Pipeline, dtype: str) -> tuple[Any, Any]:
    """Models and the report of their patch. Raises ValueError where none has a class to patch."""
    from torch import nn  # noqa: PLC0415

    from ...jit.tensors import DTYPES  # noqa: PLC0415  (torch)
    from ..patch.patching import patch  # noqa: PLC0415
    from ..patch.recipes import SUPPORTED, recipe_above, recipe_for  # noqa: PLC0415
    from .building import build  # noqa: PLC0415

    own = "fp32" if pipeline.folder.family == "helios" else dtype
    models = build(pipeline.folder, DTYPES[dtype], DTYPES[pipeline.vae_dtype or own])
    whole = nn.ModuleDict(models)
    classes = set(map(type, whole.modules()))
    if not any(recipe_for(cls) or recipe_above(cls) for cls in classes):
        raise ValueError(
            f"--diffusers: nothing to warm: no class in {pipeline.folder.path} is one that "
            f"jitd.patch knows; those are of {SUPPORTED}."
        )
    return models, patch(whole, verify="never")


def _recorded(
    pipeline: Pipeline, built: tuple[Any, Any], size: Size, dtype: str, variant: str, *, i2v: bool
) -> Workload:
    """What one run calls: a step of each stage, and the decoders.

    Raises ValueError for a size that the pipeline refuses, and where nothing is patched.
    """
    from ...jit.tensors import DTYPES  # noqa: PLC0415  (torch)
    from .building import refused  # noqa: PLC0415
    from .layouts import as_on_a_card  # noqa: PLC0415
    from .runs import Asked, run  # noqa: PLC0415

    models, report = built
    lengths = (pipeline.prompt_tokens,) if pipeline.prompt_tokens else None
    tokens = lengths or _PROMPTS[pipeline.folder.family]
    with as_on_a_card(), record() as workload:
        try:
            run(pipeline.folder, models, Asked(size, variant, i2v, tokens, DTYPES[dtype]))
        except JitdError:
            raise
        except Exception as error:  # of others' code: what of a config or size does not fit
            what = f"{pipeline.folder.named} does not run at --size {size}"
            raise refused(what, error) from error
    left = [f"{site.path}: {site.left}" for site in report.left]
    if not workload:
        why = left[0] if left else "no module that is patched was called"
        raise ValueError(f"--diffusers: nothing to warm: {why}.")
    if left:
        log.warning("%d sites stay diffusers' own, the first: %s", len(left), left[0])
    if report.declined:
        causes = ", ".join(f"{cause} {n}" for cause, n in sorted(report.declined.items()))
        log.warning("calls that stay diffusers' own: %s", causes)
    return workload
