"""Tiny pipelines, patched, and recorded as they really run. Shared with the tests on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jitd
import torch
from jitd.jit.record import Workload
from jitd.models.pipelines.sizes import Size
from jitd.tools.examples import steps, tiny
from jitd.tools.examples.ltx2_two_stage import two_stages


@dataclass
class Live:
    """A pipeline, what runs it, and what is asked of a warmup to ask for the same."""

    pipe: Any
    others: tuple[Any, ...]
    run: Callable[[], Any]
    size: Size
    variant: str
    prompt_tokens: int
    i2v: bool = False

    def recorded(self) -> Workload:
        """What a real run asks for."""
        with torch.no_grad(), jitd.record() as workload:
            self.run()
        return workload


def live(name, *, device="cpu", dtype=torch.float32) -> Live:
    """A pipeline that is patched."""
    how = {"device": device, "dtype": dtype}
    family, _, variant = name.partition(" ")
    if family == "ltx2":  # both stages, guided in the first
        version, i2v = "2.0" if variant == "2.0" else "2.3", variant == "of an image"
        pipe, given = tiny.ltx2(version, i2v=i2v, **how)
        upsampler = tiny.ltx2_upsampler(pipe, version)
        run = lambda: two_stages(pipe, upsampler, given)  # noqa: E731
        made = Live(pipe, (upsampler,), run, Size(128, 192, 9), "guided", 8, i2v)
    else:
        if family == "helios":
            pipe, given = tiny.helios(pyramid=not variant, **how)
            asked = Size(64, 64), variant or "pyramid"
        else:
            pipe, given = tiny.zimage(**how)
            asked = Size(128, 128), "guided"
        run = lambda: pipe(**given, **steps.seeded(), output_type="pt")  # noqa: E731
        made = Live(pipe, (), run, *asked, prompt_tokens=16)
    for one in (made.pipe, *made.others):
        jitd.patch(one, verify="never")
    return made
