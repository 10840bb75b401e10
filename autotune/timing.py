"""Timing runnables on a CUDA device with a cold L2, and the bandwidth its floor is made of."""

# ruff: noqa: PLC0415 - torch is imported where it is used, so that importing this stays cheap
from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .policy import Policy
from .search import How, Runnable, Samples

if TYPE_CHECKING:
    import torch

GRAPH_COPIES = 10
"""Runs in one graph. The jitter of a graph launch, about a microsecond, is divided by it."""

WARM_CALLS = 3
"""Eager calls before anything is timed: they load modules and fill torch's allocator."""

PROBE_REPS = 3
"""Repetitions by events that decide whether a run is short enough for a graph."""

LEAD_FLUSHES = 10
"""Flushes enqueued ahead of the first repetition, so that the GPU never waits for the CPU."""

IDLE_S = 0.5
"""After so long without a measurement the clocks may have fallen, and are raised again."""

UNKNOWN_L2_FLUSH = 256 << 20
"""Bytes to flush on a device that does not report the size of its L2."""

COPY_REPS = 20


class CudaTimer:
    """Times runnables on one device, on the caller's current stream; an implementation of `Timer`.

    Every repetition finds a cold L2: a buffer of twice its size is filled before it, by a kernel
    (`fill_`, not `zero_`, which would be a memset node and a different kind of neighbour in a
    graph), outside of what is counted. Without `policy.flush_l2` the buffer is one element.

    Runs of at least `graph_below_us` are timed by CUDA events around each one. The flush keeps the
    GPU busy while the CPU enqueues the run, so launch latency of the CPU is hidden; what remains
    is about 2 us between event and kernel, too much only for short runs.

    Shorter runs are timed by CUDA graphs. One graph holds GRAPH_COPIES times [flush, run], another
    as many flushes alone; both are replayed back to back and a sample is
    (time of the first - time of the second) / GRAPH_COPIES. Why not flush, event, replay of one
    run, event: starting a graph costs several microseconds on the GPU, which can be more than the
    run and would count in full. In the difference it cancels, as does the flush, and so does a
    drift of the clocks, the two being a fraction of a millisecond apart. What remains is what a
    run adds to a stream of kernels: its launches, its gaps between them, its reads from a cold L2,
    and the write-back of what it wrote, which its successor would pay.

    Runs compared with each other in one call are all timed by the same method: by graphs if each
    can be captured and one of them is short, as events read it. The two methods differ by a
    microsecond or two.
    """

    def __init__(self, device: torch.device | str | int, policy: Policy) -> None:
        import torch

        self._device = _cuda_device(device)
        self._policy = policy
        with torch.cuda.device(self._device):
            nbytes = (2 * _l2_bytes(self._device) or UNKNOWN_L2_FLUSH) if policy.flush_l2 else 4
            self._buffer = torch.empty(nbytes // 4, dtype=torch.int32, device=self._device)
            self._side = torch.cuda.Stream(self._device)
        self._flushes_alone: torch.cuda.CUDAGraph | None = None
        self._last_busy: float | None = None

    def __repr__(self) -> str:
        flush = f"{self._buffer.numel() * 4 / 2**20:.0f} MiB flushed before each repetition"
        return f"CudaTimer({self._device}, {flush})"

    def measure(self, run: Runnable, reps: int) -> Samples:
        """`reps` repetitions of one run."""
        return self.interleaved([run], reps)[0]

    def interleaved(self, runs: Sequence[Runnable], rounds: int) -> list[Samples]:
        """`rounds` repetitions of each run, taken in turns."""
        import torch

        with torch.cuda.device(self._device):
            self._raise_clocks()
            how = self._method(runs)
            samplers = [
                self._by_graph(run) if how == "graph" else self._by_events(run) for run in runs
            ]
            samples = self._sample(samplers, rounds)
            self._last_busy = time.monotonic()
        return [Samples(us, how) for us in samples]

    def _method(self, runs: Sequence[Runnable]) -> How:
        """Warm every run, and say how this company is to be timed."""
        for run in runs:
            for i in range(WARM_CALLS):
                run(i % self._policy.input_sets)
        if not all(getattr(run, "capturable", True) for run in runs):
            return "events"
        eager = self._sample([self._by_events(run) for run in runs], PROBE_REPS)
        return "graph" if min(map(min, eager)) < self._policy.graph_below_us else "events"

    def _sample(self, samplers: Sequence[_Sampler], rounds: int) -> list[list[float]]:
        """Enqueue all repetitions, then wait once: a wait between them would drain the queue."""
        import torch

        for _ in range(LEAD_FLUSHES):
            self._flush()
        readers = [[sampler(i) for sampler in samplers] for i in range(rounds)]
        torch.cuda.current_stream().synchronize()
        return [[read() for read in column] for column in zip(*readers, strict=True)]

    def _by_events(self, run: Runnable) -> _Sampler:
        def sample(i: int) -> _Reader:
            self._flush()
            start = _mark()
            run(i % self._policy.input_sets)
            end = _mark()
            return lambda: 1e3 * float(start.elapsed_time(end))

        return sample

    def _by_graph(self, run: Runnable) -> _Sampler:
        if self._flushes_alone is None:
            self._flushes_alone = self._capture(None)
        alone, together = self._flushes_alone, self._capture(run)
        together.replay()  # the first replay of a graph uploads it

        def sample(_: int) -> _Reader:
            self._flush()
            start = _mark()
            alone.replay()
            middle = _mark()
            together.replay()
            end = _mark()

            def read() -> float:
                more_ms = float(middle.elapsed_time(end)) - float(start.elapsed_time(middle))
                return 1e3 * more_ms / GRAPH_COPIES

            return read

        return sample

    def _capture(self, run: Runnable | None) -> torch.cuda.CUDAGraph:
        """A graph of GRAPH_COPIES flushes, each followed by `run` if there is one."""
        import torch

        caller = torch.cuda.current_stream()
        # What the caller has enqueued so far (its inputs) happens before the capture, and the
        # capture before what the caller enqueues next (the replays).
        self._side.wait_stream(caller)
        with torch.cuda.stream(self._side):
            if run is not None:
                run(0)  # libraries set up their workspace per stream; not during the capture
        graph = torch.cuda.CUDAGraph()
        # The outer context puts the caller's stream back where a failed capture would not.
        # thread_local: an allocation in another thread of a serving process must not break this.
        with (
            torch.cuda.stream(caller),
            torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"),
        ):
            for i in range(GRAPH_COPIES):
                self._flush()
                if run is not None:
                    run(i % self._policy.input_sets)
        caller.wait_stream(self._side)
        return graph

    def _flush(self) -> None:
        self._buffer.fill_(1)

    def _raise_clocks(self) -> None:
        if self._last_busy is None or time.monotonic() - self._last_busy > IDLE_S:
            _keep_busy(self._flush, self._policy.clock_warmup_ms)


def copy_bandwidth(device: torch.device | str | int) -> float:
    """Bytes per second, read and written, of a large copy within the device's memory.

    The median of COPY_REPS copies of a buffer eight times the L2. Measured once per process and
    device; an op's floor is its bytes over this.
    """
    return _copy_bandwidth(_cuda_device(device).index)


@functools.cache
def _copy_bandwidth(index: int) -> float:
    import torch

    with torch.cuda.device(index):
        nbytes = max(8 * _l2_bytes(torch.device("cuda", index)), UNKNOWN_L2_FLUSH)
        source = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        _keep_busy(lambda: target.copy_(source), Policy().clock_warmup_ms)
        marks = [_mark()]
        for _ in range(COPY_REPS):
            target.copy_(source)
            marks.append(_mark())
        torch.cuda.current_stream().synchronize()
        ms = sorted(float(a.elapsed_time(b)) for a, b in itertools.pairwise(marks))
    return 2 * nbytes / (ms[len(ms) // 2] * 1e-3)


_Reader = Callable[[], float]
"""The time of one repetition in us, once the device has got there."""

_Sampler = Callable[[int], _Reader]
"""Enqueues the i-th repetition of a run."""


def _mark() -> torch.cuda.Event:
    """An event recorded on the current stream."""
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _keep_busy(work: Callable[[], object], for_ms: float) -> None:
    """Run `work` on the device for so long, by the clock on the wall."""
    import torch

    end = time.monotonic() + for_ms * 1e-3
    while time.monotonic() < end:
        for _ in range(16):
            work()
        torch.cuda.current_stream().synchronize()


def _cuda_device(device: torch.device | str | int) -> torch.device:
    """The device with its index; ValueError for one that is no CUDA device."""
    import torch

    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type != "cuda":
        raise ValueError(f"device {found}: only CUDA devices can be timed; use cuda or cuda:N")
    return found if found.index is not None else torch.device("cuda", torch.cuda.current_device())


def _l2_bytes(device: torch.device) -> int:
    """The size of the L2, 0 where torch cannot tell."""
    import torch

    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
