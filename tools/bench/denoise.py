"""LTX-2's denoising step: its ops against their limits, and all of it against eager.

The transformer is a stand-in that answers at once with velocities it has: what is measured is the
arithmetic of a step, for all passes of both streams. Eager is `eager_denoising`: the chains of
elementwise ops that a pipeline launches, with the hundred rounds of res_2s's refinement.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...jit.op import OPS
from ...jit.record import record
from ...models.ltx2.denoising.guidance import NONE, Guidance
from ...models.ltx2.denoising.noise import Noise, draw_noise
from ...models.ltx2.denoising.predict import Predictor, Prompt, Stream
from ...models.ltx2.denoising.recipes import RECIPES
from ...models.ltx2.denoising.samplers import HostSteps, euler_at, res2s_at
from ...models.ltx2.denoising.schedule import REFINE_RES2S
from . import eager_denoising as eager
from .calls import builder_for, note
from .contest import run_cases
from .environment import write_json
from .goals import DENOISE
from .stopwatch import CudaStopwatch, Stopwatch, host_us
from .table import Column, Table, number, reason_of
from .tokens import cases_of
from .traffic import Launched, launches, traffic

OURS = "jitd"
CHANNELS, AUDIO = 128, 126
_NAME_WIDTH = 58
_HOST_BATCHES = 15
_OFF = 1e-5  # of eager's largest value: fp32, and standard deviations summed in another order
_PASSES = ("cond", "neg", "perturbed", "modality")

COLUMNS = (
    Column("step", 44, left=True),
    Column("by", 6, left=True),
    Column("us", 8),
    Column("us graph", 8),
    Column("x over", 7),
    Column("launches", 8),
    Column("MB they move", 12),
    Column("host us", 8),
    Column("off", 8),
)


@dataclass(frozen=True)
class Step:
    """A step to be measured, of latents in fp32 and velocities in bf16, batch 1."""

    name: str
    tokens: int
    sigma: float
    sigma_next: float
    sampler: str = "res2s"
    video: Guidance = NONE
    audio: Guidance = NONE


_HQ = RECIPES["2.3-hq"].stages[0]
_FULL = RECIPES["2.3"].stages[0]
_AT = (0.9403, 0.9221)  # of HQ's schedule: refined, as 13 of its 15 steps are

STEPS: Sequence[Step] = (
    Step("HQ, stage 1: 8160 tokens, 3 passes", 8160, *_AT, video=_HQ.video, audio=_HQ.audio),
    Step("HQ, stage 2: 32640 tokens, 1 pass", 32640, REFINE_RES2S[0], REFINE_RES2S[1]),
    Step("HQ's guidance at 32640 tokens, 3 passes", 32640, *_AT, video=_HQ.video, audio=_HQ.audio),
    Step(
        "2.3: Euler, 6144 tokens, 4 passes", 6144, *_AT, "euler", _FULL.video, _FULL.audio
    ),
)  # fmt: skip


@dataclass
class Setup:
    """One step's tensors, and both ways to take it."""

    step: Step
    device: str
    latents: tuple[Tensor, Tensor] = field(init=False)
    velocities: Mapping[str, tuple[Tensor, Tensor]] = field(init=False)
    noise: Noise = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator(self.device).manual_seed(20_240_229)
        shapes = [(1, tokens, CHANNELS) for tokens in (self.step.tokens, AUDIO)]

        def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=self.device)
            return drawn.to(dtype)

        video, audio = (random(shape, torch.float32) for shape in shapes)
        self.latents = video, audio
        self.velocities = {
            name: (random(shapes[0], torch.bfloat16), random(shapes[1], torch.bfloat16))
            for name in _PASSES
        }
        self.noise = draw_noise(1, *shapes, step=generator, device=self.device)

    def ours(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """The step as the drivers take it, a call of the stand-in for each pass."""
        step = self.step
        names: Iterator[str] = iter(())
        text = torch.zeros(1, 1, 1, device=self.device)

        def answer(**given: Any) -> tuple[Tensor, Tensor]:
            return self.velocities[next(names)]

        predictor = Predictor(
            answer, Prompt(text, text), step.video, step.audio, Prompt(text, text), "arguments"
        )
        order = [one.name for one in predictor.passes]
        streams = Stream(self.latents[0], step.video), Stream(self.latents[1], step.audio)
        steps = HostSteps((step.sigma, step.sigma_next))
        predictor.begin(steps.asked("res2s"), self.latents[0].device)

        def run() -> tuple[Tensor, Tensor]:
            nonlocal names
            names = iter(order * 2)
            if step.sampler == "euler":
                return euler_at(predictor, *streams, self.latents, steps, 0)
            return res2s_at(predictor, *streams, self.latents, steps, 0, self.noise)

        return run

    def eager(self) -> tuple[Tensor, Tensor]:
        """The step by the formulas, stream by stream: no stream's answers depend on the other's."""
        drawn = self.noise.at(0)
        noises = ((drawn.video_mid, drawn.video), (drawn.audio_mid, drawn.audio))
        moved = []
        for place, by in enumerate((self.step.video, self.step.audio)):

            def ask(x: Tensor, sigma: float, place: int = place, by: Guidance = by) -> Tensor:
                return self._predicted(x, sigma, place, by)

            x, sigmas = self.latents[place], (self.step.sigma, self.step.sigma_next)
            if self.step.sampler == "euler":
                moved.append(eager.euler(x, ask(x, sigmas[0]), *sigmas))
            else:
                moved.append(eager.res2s(x, ask, *sigmas, *noises[place]))
        return moved[0], moved[1]

    def _predicted(self, x: Tensor, sigma: float, place: int, by: Guidance) -> Tensor:
        wanted = {
            "cond": True,
            "neg": by.cfg != 1,
            "perturbed": by.stg != 0,
            "modality": by.modality != 1,
        }
        branches = {
            name: eager.x0_of(x, self.velocities[name][place], sigma)
            for name, needed in wanted.items()
            if needed
        }
        rescale = by.rescale if len(branches) > 1 else 0.0
        scales = {"cfg": by.cfg, "stg": by.stg, "mod": by.modality, "rescale": rescale}
        return eager.combined(branches, scales)


def measure(
    setup: Setup,
    stopwatch: Stopwatch,
    *,
    count_launches: Callable[[Callable[[], object]], Launched],
    synchronize: Callable[[], Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(figures, why some are missing), by contender. Raises ValueError if jitd's step is wrong."""
    runs: dict[str, Callable[[], Any]] = {"eager": setup.eager, OURS: setup.ours()}
    off = _distance(runs[OURS](), runs["eager"]())
    if not off <= _OFF:
        raise ValueError(f"the step is off by {off:.2g} of eager's largest; allowed is {_OFF:g}.")
    cold, graph = stopwatch.cold(runs), stopwatch.graph(runs)
    host = host_us(runs, batches=_HOST_BATCHES, calls=1, synchronize=synchronize)
    problems = {**cold.problems, **host.problems}
    problems |= {f"{name} (graph)": why for name, why in graph.problems.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        one: dict[str, Any] = {
            "us": cold.us.get(name),
            "graph_us": graph.us.get(name),
            "host_us": host.us.get(name),
            "moved_bytes": traffic(run).total(),
            "launches": None,
            "off": off if name == OURS else 0.0,
        }
        try:
            kernels = count_launches(run)
        except Exception as error:  # noqa: BLE001  (no profiler here: the times stand)
            problems[f"{name} (launches)"] = reason_of(error)
        else:
            one |= {
                "launches": kernels.counts.total(),
                "kernels": dict(kernels.counts.most_common()),
                "busy_us": sum(kernels.us.values()),
            }
        figures[name] = one
    return figures, problems


def cells(title: str, name: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row of the table. `x over`: how many times faster jitd is."""
    one, ours = figures[name], figures[OURS]
    ratio = one["us"] / ours["us"] if one["us"] and ours["us"] else None
    return [
        title,
        name,
        number(one["us"]),
        number(one["graph_us"]),
        number(ratio, 2),
        number(one["launches"], 0),
        number(one["moved_bytes"] / 1e6),
        number(one["host_us"]),
        f"{one['off']:.1e}",
    ]


def run(*, with_compile: bool, quick: bool, json: Path | None) -> bool:
    """Measure and print the ops, then the steps; True if everything could be measured."""
    report: dict[str, Any] = {"benchmark": "denoise"}
    cases = cases_of(DENOISE, {})
    good = run_cases(
        cases,
        report=report,
        heading="fp32; eager: the op's reference.",
        others=["eager", "compile"] if with_compile else ["eager"],
        with_compile=with_compile,
        quick=quick,
        json=json,
        rounds=2,
        rep_ms=25.0,
        width=_NAME_WIDTH,
    )
    print(
        "\nA step: latents in fp32, velocities in bf16 from a stand-in, batch 1. us: median, cold "
        "L2, launches included; graph: CUDA-graph replay. MB they move: what every kernel reads "
        "and writes, each tensor once. Off: the largest difference from eager, as a share of its "
        "largest value.",
        flush=True,
    )
    report["steps"] = []
    stopwatch = CudaStopwatch(rounds=1 if quick else 2, rep_ms=25.0)
    with torch.no_grad():
        table = Table(COLUMNS)
        for step in STEPS:
            row: dict[str, Any] = {"step": step.name}
            try:
                setup = Setup(step, "cuda")
                row["get_s"] = _ready(setup)
                figures, problems = measure(
                    setup, stopwatch, count_launches=launches,
                    synchronize=torch.cuda.synchronize,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001  (a step that fails must not cost the rest)
                table.failed(step.name, reason_of(error))
                row["failed"] = reason_of(error)
                good = False
            else:
                for name in figures:
                    table.row(cells(step.name, name, figures))
                for name, why in problems.items():
                    print(f"  {name}: {why}", flush=True)
                row |= {"figures": figures, "problems": problems}
            report["steps"].append(row)
            write_json(json, report)
    return good


def _ready(setup: Setup) -> float:
    """Have what the step calls compiled and tuned, several at a time; gives the seconds."""
    began = time.perf_counter()
    ours = setup.ours()
    with record() as workload:
        ours()
    builder = builder_for(torch.device("cuda"))
    for text in workload:
        op = OPS[text.partition("[")[0]]
        builder.prefetch(op, op.parse(text).call)
    ours()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    note(f"{setup.step.name}: {len(workload)} signatures in {seconds:.1f} s")
    return seconds


def _distance(answers: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference as a share of the largest value, of the worse stream."""
    return max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(answers, expected, strict=True)
    )
