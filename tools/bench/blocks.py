"""Which blocks `bench block` measures: of each model, with what its forward gives them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...models.helios import block as helios
from ...models.helios import presets as helios_presets
from ...models.helios.workload import run_chunk
from ...models.ltx2 import block as ltx2
from ...models.ltx2.presets import Size
from ...models.ltx2.workload import run_stage
from ...models.zimage import block as zimage
from ...models.zimage import presets as zimage_presets
from ...models.zimage.workload import run_image
from .expanded import ExpandedBlock, expanded_parameters
from .vae import ResBlock

VIDEO = Size(1024, 1536)
"""Whose stage 1 has 6144 tokens, for two samples, and whose stage 2 has 24576, for one."""

CHUNK = helios_presets.PRESETS["384x640"]
"""11040 tokens with history."""

IMAGE = zimage_presets.PRESETS["1024"]
"""4096 tokens, 4128 with the shortest caption."""

DECODED = (1, 512, 61, 64, 96)
"""Where the decoder of LTX-2.3 spends its time at 1024x1536 pixels: a quarter of the height."""


def _as_it_is(block: "Caught") -> "Caught":
    return block


@dataclass(frozen=True)
class Case:
    """One block to measure.

    name      the row's
    package   whose modules run eager's functions in the place of ops, see `eager.py`
    kind      of module that is measured: the first that `forward` calls
    forward   a forward of its model with one block, on a device
    as_eager  the block as eager code has it, where that is not the same module on other functions
    facts     what the JSON says of it
    """

    name: str
    package: str
    kind: type[nn.Module]
    forward: Callable[[str], object]
    as_eager: Callable[["Caught"], "Caught"] = _as_it_is
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Caught:
    """A module and the arguments of one call of it."""

    module: nn.Module
    args: Sequence[Any]
    named: Mapping[str, Any]

    def __call__(self, module: nn.Module | None = None) -> Any:
        return (self.module if module is None else module)(*self.args, **self.named)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.args[0].shape)


class _Stop(Exception):
    """The call that was waited for has come."""


def caught(kind: type[nn.Module], run: Callable[[], object]) -> Caught:
    """The first call of a module of that kind in `run`, which is broken off there.

    Raises LookupError if there is none.
    """
    found: list[Caught] = []
    forward = kind.forward

    def stop(module: nn.Module, *args: Any, **named: Any) -> None:
        found.append(Caught(module, args, named))
        raise _Stop

    kind.forward = stop
    try:
        run()
    except _Stop:
        return found[0]
    finally:
        kind.forward = forward
    raise LookupError(f"no {kind.__name__} was called.")


def bytes_beside(one: Caught, other: Caught) -> int:
    """Bytes of the tensors that one is given, and the other is not."""
    known = {tensor.data_ptr() for tensor in _tensors(other)}
    return sum(t.nbytes for t in _tensors(one) if t.data_ptr() not in known)


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Caught):
        yield from _tensors((*given.args, *given.named.values()))
    elif isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for one in given:
            yield from _tensors(one)


def ltx2_cases(variants: Sequence[str], stages: Sequence[int], *, i2v: bool) -> Iterator[Case]:
    for variant in variants:
        for stage in stages:
            yield Case(
                name=f"{variant}, stage {stage}",
                package="jitd.models.ltx2",
                kind=ltx2.Block,
                forward=lambda device, variant=variant, stage=stage: run_stage(  # type: ignore[misc]
                    VIDEO, stage, dtype=torch.bfloat16, device=device, variant=variant, i2v=i2v,
                    num_layers=1,
                ),
                facts={"model": "ltx2", "variant": variant, "stage": stage, "i2v": i2v},
            )  # fmt: skip


def helios_cases() -> Iterator[Case]:
    yield Case(
        name="Helios",
        package="jitd.models.helios",
        kind=helios.Block,
        forward=lambda device: run_chunk(CHUNK, dtype=torch.bfloat16, device=device, num_layers=1),
        as_eager=expanded,
        facts={"model": "helios"},
    )


def zimage_cases() -> Iterator[Case]:
    yield Case(
        name="Z-Image",
        package="jitd.models.zimage",
        kind=zimage.Block,
        forward=lambda device: run_image(
            IMAGE, [zimage_presets.CAPTIONS[0]], dtype=torch.bfloat16, device=device,
            n_layers=1, n_refiner_layers=0,
        ),
        facts={"model": "zimage"},
    )  # fmt: skip


def vae_cases() -> Iterator[Case]:
    def forward(device: str) -> object:
        with torch.device(device), torch.no_grad():
            block = ResBlock(DECODED[1]).to(torch.bfloat16).eval()
            return block(torch.randn(DECODED, dtype=torch.bfloat16))

    yield Case(
        name="decoder of LTX-2.3",
        package="jitd.tools.bench.vae",
        kind=ResBlock,
        forward=forward,
        facts={"model": "vae"},
    )


def expanded(block: Caught) -> Caught:
    """A block of Helios with modulation parameters for every token."""
    x, told = block.args
    parameters = expanded_parameters(told, x)
    args = (x, told.text, parameters, told.table, told.history)
    return Caught(ExpandedBlock(block.module), args, {})
