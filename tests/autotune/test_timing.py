"""The CUDA timer, on a simulated device: what it enqueues, in which order, and what it subtracts.

The device is a queue with a clock. It knows streams, events and graphs as far as the timer uses
them; a graph costs a launch of LAUNCH_US, an event EVENT_US before the next kernel starts.
"""

from __future__ import annotations

import gc
import sys
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from jitd.autotune import timing
from jitd.autotune.policy import Policy
from jitd.autotune.timing import (
    CANARY_REPS,
    GRAPH_COPIES,
    IDLE_S,
    KEPT_RUNS,
    LEAD_FLUSHES,
    CudaTimer,
    copy_bandwidth,
)

L2 = 50 << 20
FLUSH_US = 30.0
LAUNCH_US = 7.0
EVENT_US = 2.0
CALL_US = 3.0
CPU_SYNC_US = 10.0


class Device:
    """`torch.device`, as far as it is used."""

    def __init__(self, kind, index=None):
        self.type, _, number = str(kind).partition(":")
        self.index = index if index is not None else (int(number) if number else None)

    def __str__(self):
        return f"{self.type}:{self.index}"


class Gpu:
    """The clocks of CPU and GPU, and a log of what the GPU was given.

    pace      how many times longer than usual a kernel takes, as it is run
    captures  graphs captured so far; `graphs` has those that still exist
    """

    def __init__(self, l2=L2):
        self.l2 = l2
        self.cpu = self.gpu = 0.0
        self.log: list[str] = []
        self.stream = "caller"
        self.captured: list[tuple[str, float]] | None = None
        self.edges: list[tuple[str, str]] = []
        self.pace = lambda name: 1.0
        self.captures = 0
        self.graphs: weakref.WeakSet[object] = weakref.WeakSet()

    def enqueue(self, name, us):
        self.cpu += CALL_US
        if self.captured is not None:
            self.captured.append((name, us))
            return
        self.gpu = max(self.gpu, self.cpu)
        self.execute(name, us)

    def execute(self, name, us):
        self.log.append(name)
        self.gpu += us * self.pace(name)

    def synchronize(self):
        self.cpu = max(self.cpu, self.gpu) + CPU_SYNC_US

    def module(self):
        """What `import torch` gives."""
        gpu = self

        class Tensor:
            def __init__(self, count, dtype, device):
                self.nbytes = count * dtype

            def numel(self):
                return self.nbytes // 4

            def fill_(self, value):
                gpu.enqueue(f"flush {self.nbytes}", FLUSH_US if self.nbytes > 4 else 1.0)

            def copy_(self, source):
                gpu.enqueue("copy", 2 * self.nbytes / 4e6)  # 4 TB/s
                return self

        class Stream:
            def __init__(self, device=None, name="side"):
                self.name = name

            def wait_stream(self, other):
                gpu.edges.append((other.name, self.name))

            def synchronize(self):
                gpu.synchronize()

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                assert gpu.captured is None

            def record(self):
                gpu.enqueue("event", EVENT_US)
                self.at = gpu.gpu - EVENT_US

            def elapsed_time(self, end):
                assert gpu.cpu >= end.at, "read before it was reached"
                return (end.at - self.at) * 1e-3

        class Graph:
            def __init__(self):
                gpu.graphs.add(self)

            def capture_begin(self, capture_error_mode):
                assert capture_error_mode == "thread_local"
                assert gpu.stream == "side"
                gpu.captured = []

            def capture_end(self):
                assert gpu.stream == "side"
                self.nodes, gpu.captured = gpu.captured, None
                gpu.captures += 1
                if ("broken", 0.0) in self.nodes:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def replay(self):
                gpu.enqueue("replay", LAUNCH_US)
                for name, us in self.nodes:
                    gpu.execute(name, us)

        @contextmanager
        def stream(which):
            before, gpu.stream = gpu.stream, which.name
            try:
                yield
            finally:
                gpu.stream = before

        @contextmanager
        def device(which):
            yield

        return SimpleNamespace(
            int32=4,
            uint8=1,
            device=Device,
            empty=Tensor,
            zeros=Tensor,
            empty_like=lambda tensor: Tensor(tensor.nbytes, 1, None),
            cuda=SimpleNamespace(
                CUDAGraph=Graph,
                Event=Event,
                Stream=Stream,
                current_device=lambda: 0,
                current_stream=lambda: Stream(name=gpu.stream),
                device=device,
                get_device_properties=lambda device: SimpleNamespace(L2_cache_size=gpu.l2),
                stream=stream,
            ),
        )


@pytest.fixture
def gpu(monkeypatch):
    simulated = Gpu()
    monkeypatch.setitem(sys.modules, "torch", simulated.module())
    monkeypatch.setattr(timing.time, "monotonic", lambda: simulated.cpu * 1e-6)
    timing._copy_bandwidth.cache_clear()
    yield simulated
    timing._copy_bandwidth.cache_clear()


def op(gpu, us, name="op"):
    return lambda i: gpu.enqueue(f"{name} {i}", us)


def counted(gpu):
    """What the GPU did, in short: flushes as f, events as |, runs by their input set."""
    short = [entry.split()[-1] if entry.startswith("op") else entry[0] for entry in gpu.log]
    return "".join(short).replace("e", "|")


def test_long_runs_are_timed_by_events(gpu):
    """A sample is the run and the constant cost of an event; the flush before it is not in it."""
    samples = CudaTimer("cuda", Policy()).measure(op(gpu, 200.0), 4)
    assert samples.how == "events"
    assert samples.us == pytest.approx([200.0 + EVENT_US] * 4)
    assert counted(gpu).endswith("f|0|f|1|f|0|f|1|")


def test_short_runs_are_timed_by_graphs(gpu):
    """Launching the graph, flushes and events cancel in the difference: what is left is the run."""
    samples = CudaTimer("cuda", Policy()).measure(op(gpu, 4.0), 5)
    assert samples.how == "graph"
    assert samples.us == pytest.approx([4.0] * 5)


def test_a_graph_repetition_is_flushes_then_flushes_with_runs(gpu):
    """Both graphs hold equally many flushes, and the runs rotate over the input sets."""
    CudaTimer("cuda", Policy(input_sets=3)).measure(op(gpu, 4.0), 1)
    runs = "".join(f"f{i % 3}" for i in range(GRAPH_COPIES))
    assert counted(gpu).endswith("f|r" + "f" * GRAPH_COPIES + "|r" + runs + "|")


def test_the_flush_is_twice_the_l2(gpu):
    """The buffer follows the device, and has a size where the device does not tell."""
    CudaTimer("cuda", Policy()).measure(op(gpu, 200.0), 1)
    assert f"flush {2 * L2}" in gpu.log
    gpu.l2 = 0
    CudaTimer("cuda", Policy()).measure(op(gpu, 200.0), 1)
    assert f"flush {256 << 20}" in gpu.log


def test_without_a_flush_a_spacer_remains(gpu):
    """A warm L2 can be asked for; the difference of the graphs still is the run."""
    samples = CudaTimer("cuda", Policy(flush_l2=False)).measure(op(gpu, 4.0), 3)
    assert samples.us == pytest.approx([4.0] * 3)
    assert {entry for entry in gpu.log if entry.startswith("flush")} == {"flush 4"}


def test_what_cannot_be_captured_is_timed_by_events(gpu):
    """A runnable that says so is never captured, however short."""
    run = op(gpu, 4.0)
    run.capturable = False
    samples = CudaTimer("cuda", Policy(flush_l2=False)).measure(run, 3)
    assert samples.how == "events"
    assert gpu.edges == []
    CudaTimer("cuda", Policy()).measure(run, 3)
    assert gpu.captures == 1  # the canary's, of flushes alone


def test_a_capture_has_edges_to_and_from_the_callers_stream(gpu):
    """Inputs written on the caller's stream are ready for the capture, and replays come after."""
    CudaTimer("cuda", Policy()).measure(op(gpu, 4.0), 1)
    assert gpu.edges == [("caller", "side"), ("side", "caller")] * 2


def test_a_failed_capture_leaves_the_callers_stream_current(gpu):
    """The error arrives as it was raised, the capture is ended, the caller's stream is back."""

    def run(i):
        if gpu.captured is not None:
            gpu.enqueue("broken", 0.0)
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.enqueue("op 0", 4.0)

    timer = CudaTimer("cuda", Policy())
    with pytest.raises(RuntimeError, match="not permitted"):
        timer.measure(run, 1)
    assert (gpu.stream, gpu.captured) == ("caller", None)
    assert timer.measure(op(gpu, 4.0), 1).how == "graph"


def test_runs_are_warm_before_they_count(gpu):
    """Each is called eagerly before anything is timed or captured."""
    CudaTimer("cuda", Policy(clock_warmup_ms=0)).measure(op(gpu, 200.0), 1)
    assert counted(gpu).startswith("010")


def test_runs_in_turns_share_one_method(gpu):
    """One short run takes all of them to graphs, so that no constant favours either."""
    runs = [op(gpu, 27.0, "op a"), op(gpu, 33.0, "op b")]
    a, b = CudaTimer("cuda", Policy()).interleaved(runs, 3)
    assert (a.how, b.how) == ("graph", "graph")
    assert a.us == pytest.approx([27.0] * 3)
    assert b.us == pytest.approx([33.0] * 3)


def test_turns_alternate(gpu):
    """Round by round each run has one repetition."""
    runs = [op(gpu, 200.0, "opA"), op(gpu, 300.0, "opB")]
    CudaTimer("cuda", Policy()).interleaved(runs, 2)
    order = [entry for entry in gpu.log if entry.startswith("op")]
    assert order[-4:] == ["opA 0", "opB 0", "opA 1", "opB 1"]


def test_clocks_are_raised_once_and_again_after_a_pause(gpu):
    """Measurements in a row share one warm-up; a long compile between them asks for another."""

    def busy_us(pause_s=0.0):
        gpu.cpu += pause_s * 1e6
        before = gpu.cpu
        timer.measure(op(gpu, 200.0), 1)
        return gpu.cpu - before

    timer = CudaTimer("cuda", Policy(clock_warmup_ms=200))
    assert busy_us() > 200_000
    assert busy_us() < 20_000
    assert busy_us(pause_s=IDLE_S + 0.1) > 200_000


def test_the_clocks_can_be_raised_ahead(gpu):
    """What was done while others compiled is not done again, nor twice in a row."""
    timer = CudaTimer("cuda", Policy(clock_warmup_ms=200))
    timer.warm_up()
    assert gpu.cpu > 200_000
    before = gpu.cpu
    timer.warm_up()
    assert gpu.cpu == before
    timer.measure(op(gpu, 200.0), 1)
    assert gpu.cpu < before + 20_000


# What is remembered -------------------------------------------------------------------------


@pytest.mark.parametrize("us", [4.0, 200.0])
def test_a_run_is_prepared_once(gpu, us):
    """Measured again, alone or in company, it is neither warmed, nor probed, nor captured."""
    timer = CudaTimer("cuda", Policy())
    a, b = op(gpu, us), op(gpu, us + 1)
    first = timer.measure(a, 5)
    timer.measure(b, 5)
    captures = gpu.captures
    del gpu.log[:]
    again = timer.measure(a, 5)
    lead, alone = "f" * LEAD_FLUSHES, "|r" + "f" * 10 + "|"
    canary = "" if us == 4.0 else lead + alone * CANARY_REPS
    repetition = "f" + alone + "r" + "f0f1" * 5 + "|" if us == 4.0 else "f|{}|"
    expected = canary + lead + "".join(repetition.format(i % 2) for i in range(5))
    assert counted(gpu) == expected
    assert again.us == pytest.approx(first.us)
    assert [s.us for s in timer.interleaved([a, b], 2)] == [
        pytest.approx(first.us[:2]),
        pytest.approx([us + 1 for us in first.us[:2]]),
    ]
    assert gpu.captures == captures == (3 if us == 4.0 else 1)  # one of flushes alone


def test_a_long_run_is_captured_when_it_meets_a_short_one(gpu):
    """What was timed by events before can still share the method of its company."""
    timer = CudaTimer("cuda", Policy())
    short, long = op(gpu, 4.0), op(gpu, 200.0)
    assert timer.measure(long, 2).how == "events"
    assert [s.how for s in timer.interleaved([long, short], 2)] == ["graph", "graph"]
    assert timer.measure(long, 2).how == "events"


def test_a_run_that_cannot_be_captured_takes_its_company_along(gpu):
    """All are timed by events, however short, known or new."""
    timer = CudaTimer("cuda", Policy())
    short, other = op(gpu, 4.0), op(gpu, 4.0)
    other.capturable = False
    assert timer.measure(short, 2).how == "graph"
    assert [s.how for s in timer.interleaved([short, other], 2)] == ["events", "events"]


def test_a_graph_lives_no_longer_than_its_run(gpu):
    """A candidate that left the race takes its graph, and what that holds, with it."""
    timer = CudaTimer("cuda", Policy())
    run, other = op(gpu, 4.0), op(gpu, 4.0)
    timer.interleaved([run, other], 1)
    gc.collect()
    assert len(gpu.graphs) == 3  # one of flushes alone
    del run
    gc.collect()
    assert len(gpu.graphs) == 2


def test_only_so_many_graphs_are_kept(gpu):
    """The ones used last: who is measured again and again is not captured anew."""
    timer = CudaTimer("cuda", Policy())
    runs = [op(gpu, 4.0) for _ in range(KEPT_RUNS + 10)]
    for run in runs:
        timer.measure(run, 1)
        timer.measure(runs[0], 1)
    gc.collect()
    assert len(gpu.graphs) == KEPT_RUNS + 1
    assert gpu.captures == len(runs) + 1
    timer.measure(runs[1], 1)
    assert gpu.captures == len(runs) + 2


def test_a_company_larger_than_what_is_kept_is_timed_all_the_same(gpu):
    """Nobody's graph goes while it is in use."""
    runs = [op(gpu, 4.0 + i % 3) for i in range(KEPT_RUNS + 3)]
    timed = CudaTimer("cuda", Policy()).interleaved(runs, 1)
    assert [s.us[0] for s in timed] == pytest.approx([4.0 + i % 3 for i in range(len(runs))])


def test_forgetting_lets_go_of_graphs(gpu):
    """Of one run's or of all, before what they launch is unloaded; unknown ones do not matter."""
    timer = CudaTimer("cuda", Policy())
    a, b = op(gpu, 4.0), op(gpu, 4.0)
    timer.interleaved([a, b], 1)
    timer.forget(a)
    timer.forget(a)
    gc.collect()
    assert len(gpu.graphs) == 2
    timer.forget()
    gc.collect()
    assert len(gpu.graphs) == 1
    before = gpu.captures
    assert timer.measure(a, 1).how == "graph"
    assert gpu.captures == before + 1


def test_an_opening_takes_less_than_ten_milliseconds(gpu):
    """Of the device and of the calls: warming, probing, capturing and five repetitions of 20 us."""
    timer = CudaTimer("cuda", Policy())
    timer.measure(op(gpu, 20.0), 1)
    before = max(gpu.cpu, gpu.gpu)
    assert timer.measure(op(gpu, 20.0), 5).how == "graph"
    assert max(gpu.cpu, gpu.gpu) - before < 10_000


# The canary ---------------------------------------------------------------------------------


@pytest.mark.parametrize("us", [4.0, 200.0])
def test_a_steady_device_does_not_drift(gpu, us):
    """By either method, whatever the runs take."""
    timer = CudaTimer("cuda", Policy())
    assert timer.drift == 0.0
    for more in (0.0, 5.0, 9.0):
        timer.measure(op(gpu, us + more), 5)
    assert timer.drift == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("us", [4.0, 200.0])
def test_a_device_that_slows_down_between_measurements_drifts(gpu, us):
    """By as much as a flush takes longer, less the constant share of events and launches."""
    timer = CudaTimer("cuda", Policy())
    run = op(gpu, us)
    timer.measure(run, 5)
    timer.measure(run, 5)
    gpu.pace = lambda name: 1.2
    timer.measure(run, 5)
    assert timer.drift == pytest.approx(0.2, abs=0.02)
    gpu.pace = lambda name: 1.0
    timer.measure(run, 5)
    assert timer.drift == pytest.approx(0.2, abs=0.02)
    timer.forget()
    assert timer.drift == 0.0


def test_a_slow_run_is_not_the_devices_fault(gpu):
    """Only the flush is watched: what is measured may vary as it likes."""
    timer = CudaTimer("cuda", Policy())
    run = op(gpu, 4.0)
    for pace in (1.0, 1.0, 3.0):
        gpu.pace = lambda name, pace=pace: pace if name.startswith("op") else 1.0
        timer.measure(run, 5)
    assert timer.drift == pytest.approx(0.0, abs=1e-9)


def test_a_device_that_stumbles_while_graphs_are_replayed_drifts(gpu):
    """Every third replay of flushes is slow, though no median between measurements moves."""
    timer = CudaTimer("cuda", Policy())
    run = op(gpu, 4.0)
    timer.measure(run, 30)
    timer.measure(run, 30)
    assert timer.drift == pytest.approx(0.0, abs=1e-9)

    def pace(name):
        replays = gpu.log.count("replay")
        return 2.0 if name.startswith("flush") and replays % 6 == 1 else 1.0

    del gpu.log[:]
    gpu.pace = pace
    timer.measure(run, 30)
    assert timer.drift > Policy().drift


def test_one_slow_replay_is_no_drift(gpu):
    """A single outlier among the repetitions of a measurement is passed over."""
    timer = CudaTimer("cuda", Policy())
    run = op(gpu, 4.0)
    timer.measure(run, 5)
    timer.measure(run, 5)
    del gpu.log[:]
    gpu.pace = lambda name: 9.0 if gpu.log.count("replay") == 5 else 1.0
    slow = timer.measure(run, 5)
    assert max(slow.us) - min(slow.us) > 50
    assert timer.drift == pytest.approx(0.0, abs=1e-9)


def test_without_a_flush_nothing_is_watched(gpu):
    """The spacer that is left is mostly launches, and tells nothing about the device."""
    timer = CudaTimer("cuda", Policy(flush_l2=False))
    run = op(gpu, 4.0)
    for pace in (1.0, 1.0, 5.0):
        gpu.pace = lambda name, pace=pace: pace
        timer.measure(run, 5)
    assert timer.drift == 0.0


# Bandwidth, and the rest --------------------------------------------------------------------


def test_the_copy_bandwidth_counts_reads_and_writes(gpu):
    """A copy at 4 TB/s is reported as that, less the cost of an event; it is measured once."""
    assert copy_bandwidth("cuda") == pytest.approx(4e12, rel=0.02)
    done = len(gpu.log)
    assert copy_bandwidth(0) == copy_bandwidth("cuda:0")
    assert len(gpu.log) == done


def test_a_timer_says_what_it_does(gpu):
    """The repr names the device and the flush."""
    timer = CudaTimer("cuda", Policy())
    assert repr(timer) == "CudaTimer(cuda:0, 100 MiB flushed before each repetition)"


def test_only_cuda_devices_are_timed(gpu):
    """A CPU has no events to time by, and the error says what to give."""
    with pytest.raises(ValueError, match="only CUDA devices"):
        CudaTimer("cpu", Policy())


@pytest.mark.gpu
def test_on_a_gpu_short_and_long_runs_are_timed_each_in_their_way():
    """The real torch accepts the captures, waits and events, and gives positive times."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")

    def copies(numel):
        sets = [(torch.randn(numel, device="cuda"), torch.empty(numel, device="cuda"))] * 2
        return lambda i: sets[i][1].copy_(sets[i][0])

    timer = CudaTimer("cuda", Policy())
    short, again = timer.interleaved([copies(1 << 18), copies(1 << 19)], 10)
    long = timer.measure(copies(1 << 28), 5)
    assert (short.how, again.how, long.how) == ("graph", "graph", "events")
    assert min(sorted(short.us)[5], *long.us, copy_bandwidth("cuda")) > 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
def test_on_a_gpu_a_failed_capture_leaves_torch_usable():
    """A run that waits for the device cannot be captured; the next measurement works."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    values = torch.ones(1 << 10, device="cuda")
    timer = CudaTimer("cuda", Policy(graph_below_us=1e9))
    with pytest.raises(RuntimeError):
        timer.measure(lambda i: values.sum().item(), 3)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert timer.measure(lambda i: values.mul_(1.0), 3).how == "graph"


@pytest.mark.gpu
def test_on_a_gpu_a_remembered_graph_gives_what_a_new_one_does():
    """Measured again by the graph it has, and by another after `forget`, a copy takes as long."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    source, target = torch.randn(1 << 20, device="cuda"), torch.empty(1 << 20, device="cuda")

    def run(i):
        target.copy_(source)

    timer = CudaTimer("cuda", Policy())
    timer.warm_up()
    medians = []
    for forget in (False, False, True):
        if forget:
            timer.forget(run)
        samples = timer.measure(run, 40)
        assert samples.how == "graph"
        medians.append(sorted(samples.us)[20])
    assert max(medians) < 1.2 * min(medians)
    assert 0.0 <= timer.drift < 0.5
    timer.forget()
    assert timer.drift == 0.0


@pytest.mark.gpu
def test_on_a_gpu_a_capture_leaves_torchs_cache_of_memory_alone():
    """What was reserved before is there afterwards: the next check allocates nothing anew."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    values = torch.ones(1 << 10, device="cuda")
    timer = CudaTimer("cuda", Policy())
    spare = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    del spare
    before = torch.cuda.memory_reserved()
    assert timer.measure(lambda i: values.mul_(1.0), 3).how == "graph"
    assert torch.cuda.memory_reserved() >= before
