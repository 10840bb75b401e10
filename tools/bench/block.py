"""One block of a model at its real size: eager, compiled by torch, on jitd's ops.

`blocks.py` says which blocks.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...jit.record import record
from .blocks import Case, Caught, bytes_beside, caught
from .calls import kernels_only, note, prefetch
from .eager import Eager
from .figures import Contender, How, Ready, measure_all

OURS = "jitd"
HOW = How(off=0.02)  # of the length: bf16 through a block, with sums in another order

_ABOUT = (
    "One block in bf16, random weights. What jitd's block is given is not held. Off: distance "
    "from eager."
)


def contenders(case: Case, block: Caught, *, with_compile: bool) -> dict[str, Contender]:
    """Eager, torch.compile of eager, and the block as it is."""
    eager = Eager(case.package)
    plain = case.as_eager(block)
    own = bytes_beside(plain, block)  # what is made once for all blocks, and held by each

    def plainly(module: nn.Module | None = None) -> Any:
        with eager():
            return plain(module)

    them = {"eager": Contender(plainly, needed=True, beside_bytes=own)}
    if with_compile:
        torch.compiler.reset()
        compiled = torch.compile(plain.module, dynamic=False, fullgraph=True)
        them["compile"] = Contender(lambda: plainly(compiled), compiled=True, beside_bytes=own)
    return them | {OURS: Contender(block, needed=True)}


def run(*, cases: Sequence[Case], with_compile: bool, json: Path | None) -> bool:
    """Measure and print every block; True if every one could be measured."""

    def ready(case: Case) -> Ready:
        block, seconds = _ready(case)
        them = contenders(case, block, with_compile=with_compile)
        return Ready(them, block.shape, {"get_s": seconds})

    return measure_all("block", _ABOUT, cases, ready, ours=OURS, how=HOW, json=json)


def _ready(case: Case) -> tuple[Caught, float]:
    """A block with its arguments on the GPU, its ops tuned, and the seconds that took."""
    begun = time.perf_counter()
    on_meta = caught(case.kind, lambda: case.forward("meta"))
    with record() as workload:
        on_meta()
    prefetch(workload)
    block = caught(case.kind, lambda: case.forward("cuda"))
    with kernels_only() as new:
        block()
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    note(
        f"{case.name}: {len(workload)} signatures, {new['tunes']} tuned, "
        f"{new['compiles']} compiled in {seconds:.1f} s"
    )
    return block, seconds
