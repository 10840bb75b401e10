"""The models that can be warmed, by name. Imports no torch.

A model's workload is never written by hand: the real module runs on the meta device, which
computes nothing, while the signatures it asks for are recorded.
"""

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from ..jit.record import Workload, record
from . import ops
from .ltx2 import presets as ltx2

DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Model:
    """One model: what its command line options may be, and what it asks of the ops.

    `sizes` are the presets by name, all of them warmed unless sizes are given. `versions` begins
    with the default. `ops` are the names of the ops that it calls, for clearing.
    `parse_size(text)` raises ValueError for a size that the model cannot produce, and
    `run(size, dtype, version)` runs the module once on the meta device.
    """

    name: str
    description: str
    sizes: Mapping[str, Any]
    versions: tuple[str, ...]
    ops: tuple[str, ...]
    parse_size: Callable[[str], Any]
    run: Callable[[Any, str, str], object]

    def workload(self, sizes: Iterable[Any], dtype: str, version: str) -> Workload:
        """The signatures of one run at each size, with their counts. Imports torch."""
        if version not in self.versions:
            raise ValueError(
                f"{self.name} has no version {version!r}; there are {', '.join(self.versions)}."
            )
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(DTYPES)}.")
        with record() as workload:
            for size in sizes:
                self.run(size, dtype, version)
        return workload


def _run_ltx2(size: ltx2.Size, dtype: str, version: str) -> object:
    from ..jit.tensors import DTYPES as TORCH_DTYPES  # noqa: PLC0415  (torch)
    from .ltx2.workload import run_upsampler  # noqa: PLC0415  (torch)

    return run_upsampler(size, dtype=TORCH_DTYPES[dtype], version=version)


_LTX2 = Model(
    name="ltx2",
    description="LTX-2, the latent upsampler between its two stages",
    sizes=ltx2.PRESETS,
    versions=tuple(sorted(ltx2.UPSAMPLERS, reverse=True)),
    ops=("group_norm_silu", "group_norm_add_silu"),
    parse_size=ltx2.Size.parse,
    run=_run_ltx2,
)

MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in (_LTX2,)})


def model(name: str) -> Model:
    """The model of that name. Raises ValueError that names those there are."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}.")
    return MODELS[name]


def declare_ops() -> None:
    """Declare every op of jitd in this process, so that its signatures can be read."""
    for module in pkgutil.iter_modules(ops.__path__):
        import_module(f"{ops.__name__}.{module.name}")
