"""The models that can be warmed, by name. Imports no torch.

A model's workload is never written by hand: the real modules run on the meta device, which
computes nothing, while the signatures they ask for are recorded.
"""

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from ..jit.record import Workload
from . import ops
from .helios import presets as helios
from .ltx2 import presets as ltx2
from .zimage import presets as zimage

DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Model:
    """One model: what its command line options may be, and what it asks of the ops.

    `sizes` are the presets by name, all of them warmed unless sizes are given. `variants` begins
    with the default. `i2v` says whether it makes a video of an image, too. `ops` are the names of
    the ops that it calls, for clearing. `parse_size(text)` raises ValueError for a size that the
    model cannot produce, and `record(size, dtype, variant, i2v)` gives what a run calls.
    """

    name: str
    description: str
    sizes: Mapping[str, Any]
    variants: tuple[str, ...]
    i2v: bool
    ops: tuple[str, ...]
    parse_size: Callable[[str], Any]
    record: Callable[[Any, str, str, bool], Workload]

    def workload(
        self, sizes: Iterable[Any], dtype: str, variant: str, *, i2v: bool = False
    ) -> Workload:
        """The signatures of one run at each size. A count is the calls in one forward of each part
        of the model: denoising steps are not multiplied. Imports torch.
        """
        self.check(variant, i2v=i2v)
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(DTYPES)}.")
        workload = Workload()
        for size in sizes:
            workload.counts += self.record(size, dtype, variant, i2v).counts
        return workload

    def check(self, variant: str, *, i2v: bool) -> None:
        """Raise ValueError for a variant that there is not, and where no image can be given."""
        if variant not in self.variants:
            raise ValueError(
                f"{self.name} has no variant {variant!r}; there are {', '.join(self.variants)}."
            )
        if i2v and not self.i2v:
            raise ValueError(f"{self.name} makes no video of an image: leave out --i2v.")


def _record_ltx2(size: ltx2.Size, dtype: str, variant: str, i2v: bool) -> Workload:
    from ..jit.tensors import DTYPES as TORCH_DTYPES  # noqa: PLC0415  (torch)
    from .ltx2.workload import record_run  # noqa: PLC0415  (torch)

    return record_run(size, dtype=TORCH_DTYPES[dtype], variant=variant, i2v=i2v)


_LTX2 = Model(
    name="ltx2",
    description="LTX-2, both stages of denoising and the latent upsampler between them",
    sizes=ltx2.PRESETS,
    variants=tuple(ltx2.VARIANTS),
    i2v=True,
    ops=(
        "group_norm_silu",
        "group_norm_add_silu",
        "rms_norm_modulate",
        "gate_residual_rms_norm_modulate",
        "gate_residual_rms_norm_dual_modulate",
        "layer_norm_modulate",
        "modulate",
        "qk_norm_rotary",
        "gate_residual",
        "head_gate",
        "velocity_to_x0",
        "guidance_combine",
        "euler_step",
        "res2s_midpoint",
        "res2s_step",
    ),
    parse_size=ltx2.Size.parse,
    record=_record_ltx2,
)


def _record_helios(size: helios.Size, dtype: str, variant: str, i2v: bool) -> Workload:
    """An image that is given is history: a run of one calls what any run does."""
    from ..jit.tensors import DTYPES as TORCH_DTYPES  # noqa: PLC0415  (torch)
    from .helios.workload import record_run  # noqa: PLC0415  (torch)

    return record_run(size, dtype=TORCH_DTYPES[dtype], variant=variant)


_HELIOS = Model(
    name="helios",
    description="Helios, the transformer at each stage of a chunk of 33 frames",
    sizes=helios.PRESETS,
    variants=tuple(helios.VARIANTS),
    i2v=True,
    ops=(
        "layer_norm_modulate",
        "gate_residual_layer_norm_modulate",
        "qk_norm_rotary",
        "gate_residual",
    ),
    parse_size=helios.Size.parse,
    record=_record_helios,
)


def _record_zimage(size: zimage.Size, dtype: str, variant: str, i2v: bool) -> Workload:
    from ..jit.tensors import DTYPES as TORCH_DTYPES  # noqa: PLC0415  (torch)
    from .zimage.workload import record_run  # noqa: PLC0415  (torch)

    return record_run(size, dtype=TORCH_DTYPES[dtype], variant=variant)


_ZIMAGE = Model(
    name="zimage",
    description="Z-Image, the transformer with captions of up to 512 tokens",
    sizes=zimage.PRESETS,
    variants=tuple(zimage.VARIANTS),
    i2v=False,
    ops=(
        "rms_norm",
        "rms_norm_scale",
        "tanh_gate_residual_rms_norm",
        "qk_norm_rotary",
        "swiglu",
        "layer_norm_scale",
    ),
    parse_size=zimage.Size.parse,
    record=_record_zimage,
)

MODELS: Mapping[str, Model] = MappingProxyType(
    {model.name: model for model in (_LTX2, _HELIOS, _ZIMAGE)}
)


def model(name: str) -> Model:
    """The model of that name. Raises ValueError that names those there are."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}.")
    return MODELS[name]


def declare_ops() -> None:
    """Declare every op of jitd in this process, so that its signatures can be read."""
    for module in pkgutil.iter_modules(ops.__path__):
        import_module(f"{ops.__name__}.{module.name}")
