"""The steps that all examples take: record, warm, run strict, and say what came of it."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...jit import runtime
from ...jit.device import devices, stand_in
from ...jit.record import Workload
from ...jit.stats import STATS
from ...jit.warm import Progress, Row, compile_for, warm
from ...models.pipelines.recording import pipeline_in
from ...models.pipelines.sizes import Size
from . import tiny

__all__ = ["compared", "options", "place", "recorded", "seeded", "strict", "warmed"]

ARCH = "sm_90"
"""What is compiled for on a machine without a GPU."""


def options(description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of an example."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--signatures",
        type=int,
        metavar="N",
        help="warm only the first N; all on a GPU, 3 without one, if none",
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="keep the workload, for jitctl warmup --workload"
    )
    return parser.parse_args(arguments)


def place() -> dict[str, Any]:
    """Where a pipeline runs here, and in what dtype."""
    if torch.cuda.is_available():
        return {"device": "cuda", "dtype": torch.bfloat16}
    return {"device": "cpu", "dtype": torch.float32}


def seeded() -> dict[str, Any]:
    """The generator of a run; the same noise each time, wherever it runs."""
    return {"generator": torch.Generator().manual_seed(0)}


def recorded(
    pipe: Any, size: Size, *others: Any, prompt_tokens: int, variant: str, save: Path | None
) -> Workload:
    """What the pipeline will ask for, told by its config files alone.

    The same as `jitctl warmup --diffusers FOLDER` does: the pipeline runs on the meta device, where
    nothing is computed. To record a run of your own instead: `with jitd.record() as workload:`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.save_configs(pipe, Path(folder) / "configs", *others)
        model = pipeline_in(path, prompt_tokens=prompt_tokens).model
        dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[place()["dtype"]]
        workload = model.workload([size], dtype, variant)
    print(f"recorded on the meta device: {workload!r}")
    if save:
        workload.save(save)
        print(f"kept in {save}")
    return workload


def warmed(workload: Workload, signatures: int | None) -> list[Row]:
    """Have it all in the cache: tuned on the GPU, or a part compiled for one elsewhere."""
    cards = devices()
    count = signatures or (len(workload) if cards else 3)
    some = Workload()
    for text in list(workload)[:count]:
        some.add(text, workload.counts[text])
    current = runtime.current()
    if cards:
        rows = warm(current.builder_at(0), some, Progress(_told))
        print(f"warm on {cards[0]}: {_counted(rows)}")
    else:
        rows = compile_for(current.builder(stand_in(ARCH)), some, Progress())
        print(
            f"no GPU here: {_counted(rows)} for {ARCH}, of {len(workload)} signatures. The first "
            "run on such a card would tune and check them."
        )
    for row in rows:
        if row.status == "failed":
            print(f"  failed: {row.signature}: {row.detail}")
    return rows


def strict(run: Callable[[], Any]) -> Any:
    """The result of a run that may compile and tune nothing; prints what it did instead."""
    runtime.configure(mode="strict")
    before = STATS.snapshot()
    with torch.no_grad():
        result = run()
    done = {name: n - before.get(name, 0) for name, n in STATS.snapshot().items()}
    work = {name: done.get(name, 0) for name in ("compiles", "tunes", "checks")}
    print(f"strict: {', '.join(f'{n} {name}' for name, n in work.items())}")
    answered = {name: n for name, n in done.items() if name.startswith("reference:") and n}
    if answered:
        print(f"answered by the eager reference: {answered}")
    return result


def compared(result: torch.Tensor, stock: torch.Tensor) -> float:
    """How far the result is from the stock pipeline's at most."""
    far = float((result.float() - stock.float()).abs().max())
    print(f"against the stock pipeline: {'the same bits' if far == 0 else f'off by {far:.2g}'}")
    return far


def _told(progress: Progress) -> None:
    if progress.signature and progress.step == 0 and progress.steps == 0:
        print(f"  {progress.done + 1} of {progress.total}: {progress.signature}", flush=True)


def _counted(rows: Sequence[Row]) -> str:
    kinds = [row.status for row in rows]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
