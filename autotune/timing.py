"""Timing runnables on a CUDA device with a cold L2, and the bandwidth its floor is made of."""

# ruff: noqa: PLC0415 - torch is imported where it is used, so that importing this stays cheap
from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .canary import Canary
from .candidate import How, Runnable, Samples
from .policy import Policy

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

KEPT_RUNS = 64
"""Runs that are remembered. A graph takes some memory, and keeps what its run allocated."""

IDLE_S = 0.5
"""After so long without a measurement the clocks may have fallen, and are raised again."""

UNKNOWN_L2_FLUSH = 256 << 20
"""Bytes to flush on a device that does not report the size of its L2."""

CANARY_REPS = 3
"""Replays of the flushes alone ahead of a measurement by events."""

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

    A run that is measured again is neither warmed nor captured again: the last KEPT_RUNS are
    remembered, each as long as it lives (it has to be hashable and weakly referable, as functions
    and most objects are). `forget` ends that earlier: do so before what a run launches is
    unloaded, and between searches.

    The canary of `drift` is the graph of flushes alone: with graphs it is in every repetition,
    else it is replayed CANARY_REPS times ahead of each measurement. Being a graph it shows nothing
    of a CPU that is slow to enqueue; and the flush of an event repetition would be no measure: it
    writes back what the run before it left in the L2.
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
        self._remembered: weakref.WeakKeyDictionary[Runnable, _Remembered]
        self._canary: Canary
        self.forget()

    def __repr__(self) -> str:
        flush = f"{self._buffer.numel() * 4 / 2**20:.0f} MiB flushed before each repetition"
        return f"CudaTimer({self._device}, {flush})"

    @property
    def drift(self) -> float:
        """The share by which the flush varied since the last `forget`; see `canary.Canary`.

        0.0 without `policy.flush_l2`: there is then nothing to go by.
        """
        return self._canary.drift

    def warm_up(self) -> None:
        """Raise the clocks, if the device has been idle for IDLE_S.

        Each measurement does so if need be; done before, it can take place during a compile.
        """
        import torch

        if self._last_busy is None or time.monotonic() - self._last_busy > IDLE_S:
            with torch.cuda.device(self._device):
                _keep_busy(self._flush, self._policy.clock_warmup_ms)
            self._last_busy = time.monotonic()

    def forget(self, run: Runnable | None = None) -> None:
        """Let go of a run and its graph; without one, of all, and of what the canary showed."""
        if run is not None:
            self._remembered.pop(run, None)
        else:
            self._remembered = weakref.WeakKeyDictionary()
            self._canary = Canary()

    def measure(self, run: Runnable, reps: int) -> Samples:
        """`reps` repetitions of one run."""
        return self.interleaved([run], reps)[0]

    def interleaved(self, runs: Sequence[Runnable], rounds: int) -> list[Samples]:
        """`rounds` repetitions of each run, taken in turns."""
        import torch

        self.warm_up()
        with torch.cuda.device(self._device):
            known = [self._recall(run) for run in runs]
            how = self._method(known)
            flushes_us: list[float] = []
            samplers = [
                self._by_graph(run, its, flushes_us) if how == "graph" else self._by_events(run)
                for run, its in zip(runs, known, strict=True)
            ]
            if how == "events" and self._policy.flush_l2:
                flushes_us += self._sample([self._flush_sampler()], CANARY_REPS)[0]
            samples = self._sample(samplers, rounds)
            if self._policy.flush_l2:
                self._canary.note(flushes_us)
            self._last_busy = time.monotonic()
        return [Samples(us, how) for us in samples]

    def _recall(self, run: Runnable) -> _Remembered:
        """What is known about a run; at first sight it is warmed, and tried by events."""
        its = self._remembered.pop(run, None)
        if its is None:
            for i in range(WARM_CALLS):
                run(i % self._policy.input_sets)
            its = _Remembered(math.inf)
            if getattr(run, "capturable", True):
                its.eager_us = min(self._sample([self._by_events(run)], PROBE_REPS)[0])
        while len(self._remembered) >= KEPT_RUNS:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[run] = its  # as the latest; the one that was not used for longest is first
        return its

    def _method(self, known: Sequence[_Remembered]) -> How:
        """How this company is to be timed."""
        eager_us = [its.eager_us for its in known]
        if math.inf in eager_us:
            return "events"
        return "graph" if min(eager_us) < self._policy.graph_below_us else "events"

    def _sample(self, samplers: Sequence[_Sampler], rounds: int) -> list[list[float]]:
        """Enqueue all repetitions, then wait once: a wait between them would drain the queue."""
        import torch

        for _ in range(LEAD_FLUSHES):
            self._flush()
        readers = [[sampler(i) for sampler in samplers] for i in range(rounds)]
        torch.cuda.current_stream().synchronize()
        return [[read() for read in column] for column in zip(*readers, strict=True)]

    def _flush_sampler(self) -> _Sampler:
        """Samples of one flush, by replaying the graph of flushes alone."""
        alone = self._flushes()

        def sample(_: int) -> _Reader:
            start = _mark()
            alone.replay()
            end = _mark()
            return lambda: 1e3 * float(start.elapsed_time(end)) / GRAPH_COPIES

        return sample

    def _flushes(self) -> torch.cuda.CUDAGraph:
        """The graph of flushes alone."""
        if self._flushes_alone is None:
            self._flushes_alone = self._capture(None)
            self._flushes_alone.replay()  # the first replay of a graph uploads it
        return self._flushes_alone

    def _by_events(self, run: Runnable) -> _Sampler:
        def sample(i: int) -> _Reader:
            self._flush()
            start = _mark()
            run(i % self._policy.input_sets)
            end = _mark()
            return lambda: 1e3 * float(start.elapsed_time(end))

        return sample

    def _by_graph(self, run: Runnable, its: _Remembered, flushes_us: list[float]) -> _Sampler:
        """Adds the time of a flush to `flushes_us` as each repetition is read."""
        if its.graph is None:
            its.graph = self._capture(run)
            its.graph.replay()
        alone, together = self._flushes(), its.graph

        def sample(_: int) -> _Reader:
            self._flush()
            start = _mark()
            alone.replay()
            middle = _mark()
            together.replay()
            end = _mark()

            def read() -> float:
                alone_ms = float(start.elapsed_time(middle))
                more_ms = float(middle.elapsed_time(end)) - alone_ms
                flushes_us.append(1e3 * alone_ms / GRAPH_COPIES)
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
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._side):
            if run is not None:
                run(0)  # libraries set up their workspace per stream; not during the capture
            # Not `with torch.cuda.graph`: it empties torch's cache of memory, and the check of the
            # next candidate would have to allocate everything anew.
            # thread_local: an allocation in another thread of a process must not break this.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for i in range(GRAPH_COPIES):
                    self._flush()
                    if run is not None:
                        run(i % self._policy.input_sets)
            except BaseException:
                # Ends the capture, and fails; what went wrong in it is what the caller has to see.
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        caller.wait_stream(self._side)
        return graph

    def _flush(self) -> None:
        self._buffer.fill_(1)


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


@dataclass(slots=True)
class _Remembered:
    """A run that was measured before.

    eager_us  as events read it, too long by their own time; infinite if it cannot be captured
    graph     the runs between flushes, once they were captured
    """

    eager_us: float
    graph: torch.cuda.CUDAGraph | None = None


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
