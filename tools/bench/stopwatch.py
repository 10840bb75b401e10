"""How the benchmarks measure: cold L2, graph replay, and host time of a call."""

# ruff: noqa: PLC0415 - torch and Triton are imported where they are used: `--help` needs neither
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .table import reason_of

Run = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Microseconds by contender, and why others have none."""

    us: Mapping[str, float]
    problems: Mapping[str, str]


class Stopwatch(Protocol):
    """What the GroupNorm benchmark asks of a clock."""

    def cold(self, runs: Mapping[str, Run]) -> Times:
        """Each run with a cold L2, launches included; the contenders take turns."""

    def graph(self, runs: Mapping[str, Run]) -> Times:
        """Each run as part of a CUDA graph that is replayed: hot L2, no launch from the CPU."""


@dataclass(frozen=True)
class CudaStopwatch:
    """Measures on the current device and stream.

    cold   the median of `rounds` medians of `triton.testing.do_bench`, `rep_ms` each, in turns;
           each turn begins with `warmup_ms` of the same, so that what ran before it, which may
           have left the card cooler, decides nothing
    graph  runs of about `graph_ms` captured one after the other; the median of `replays` replays
    """

    rounds: int = 3
    rep_ms: float = 40.0
    warmup_ms: float = 10.0
    graph_ms: float = 1.0
    replays: int = 20

    def cold(self, runs: Mapping[str, Run]) -> Times:
        from triton.testing import do_bench

        us: dict[str, list[float]] = {name: [] for name in runs}
        problems: dict[str, str] = {}
        for _ in range(self.rounds):
            for name, run in runs.items():
                if name in problems:
                    continue
                try:
                    ms = do_bench(run, warmup=self.warmup_ms, rep=self.rep_ms, return_mode="median")
                except Exception as error:  # noqa: BLE001  (one contender must not cost the rest)
                    problems[name] = reason_of(error)
                else:
                    us[name].append(1e3 * float(ms))
        medians = {n: statistics.median(v) for n, v in us.items() if v and n not in problems}
        return Times(medians, problems)

    def graph(self, runs: Mapping[str, Run]) -> Times:
        us: dict[str, float] = {}
        problems: dict[str, str] = {}
        for name, run in runs.items():
            try:
                us[name] = self._replayed(run)
            except Exception as error:  # noqa: BLE001  (as above)
                problems[name] = reason_of(error)
        return Times(us, problems)

    def _replayed(self, run: Run) -> float:
        import torch

        caller, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(caller)
        with torch.cuda.stream(side):  # what is set up per stream is set up before the capture
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        copies = max(1, min(100, int(1e3 * self.graph_ms / max(1.0, _event_us(run, 5)))))
        graph = torch.cuda.CUDAGraph()
        # A Triton kernel that is collected in a capture unloads its module, which breaks it. The
        # outer stream context puts back the caller's stream, which a failed capture would not.
        with _no_gc(), torch.cuda.stream(caller), torch.cuda.graph(graph, stream=side):
            for _ in range(copies):
                run()
        graph.replay()  # the first replay uploads it
        torch.cuda.synchronize()
        samples = [_event_us(graph.replay, 1) for _ in range(self.replays)]
        return statistics.median(samples) / copies


def _event_us(run: Run, calls: int) -> float:
    """Microseconds per call on the device, for calls enqueued back to back."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * float(start.elapsed_time(end)) / calls


def host_us(
    runs: Mapping[str, Run],
    *,
    batches: int = 200,
    calls: int = 50,
    synchronize: Callable[[], Any],
) -> Times:
    """Time of the CPU per call: the median over batches of `calls` calls, contenders in turns.

    The device is waited for before each batch, outside the time, and a batch is far shorter than
    the queue of a stream: no call ever waits for the device.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    problems: dict[str, str] = {}
    for name, run in runs.items():
        try:
            for _ in range(calls):
                run()
            synchronize()
        except Exception as error:  # noqa: BLE001  (one contender must not cost the rest)
            problems[name] = reason_of(error)
    for _ in range(batches):
        for name, run in runs.items():
            if name not in problems:
                synchronize()
                samples[name].append(_batch_us(run, calls))
    synchronize()
    return Times({n: statistics.median(v) for n, v in samples.items() if v}, problems)


def _batch_us(run: Run, calls: int) -> float:
    with _no_gc():
        start = time.perf_counter_ns()
        for _ in itertools.repeat(None, calls):
            run()
        end = time.perf_counter_ns()
    return (end - start) / 1e3 / calls


@contextmanager
def _no_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
