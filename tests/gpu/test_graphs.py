"""CUDA graphs, streams and threads: what runs at once, and what is captured."""

import gc
import threading

import jitd
import pytest
import torch
from jitd.jit.errors import ColdKernelError
from outside.ops import scale

from .cases import ADD, FUNCTIONS, SILU, arguments, call_of, executable

pytestmark = pytest.mark.gpu

SHAPE, GROUPS = (1, 64, 4, 8, 12), 32
CAPTURED = 40  # in one graph: more than an executable has spare barriers for
WAIT_S = 120.0


def inputs(op, count, **how):
    """`count` sets of tensors, all of one signature."""
    how = {"dtype": torch.bfloat16, "device": "cuda", **how}
    made = [arguments(op, SHAPE, GROUPS, **how)[:-1] for _ in range(count)]
    for number, tensors in enumerate(made):
        tensors[0].mul_(1 + number / 8).add_(number / 16)
    return made


@pytest.fixture
def with_barrier(workers, builder):
    """Makes an executable whose programs wait for one another."""
    call = call_of(SILU, [*inputs(SILU, 1)[0], GROUPS])

    def made():
        for config in SILU.configs(call, builder.device)[0]:
            launches = config.plan(call, builder.device).launches
            if any(launch.cooperative for launch in launches):
                return executable(workers, builder, SILU, config, call)
        return pytest.skip("no variant has a barrier between programs")

    return made


@pytest.fixture(params=["tuned", "barrier"])
def run(request, with_barrier):
    """The op as it is tuned, and a config of it whose programs wait for one another."""
    if request.param == "tuned":
        function = FUNCTIONS[SILU.name]
        return lambda *tensors: function(*tensors, GROUPS)
    return with_barrier()


def test_a_graph_captured_cold_has_the_reference(cold):
    """On a cold cache a capture neither breaks nor builds: the reference is captured, counted, and
    replays to eager's bits; the first call after it tunes."""
    [tensors] = inputs(SILU, 1)
    function = FUNCTIONS[SILU.name]
    SILU.reference(*tensors, GROUPS)  # eager's own kernels are loaded before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(*tensors, GROUPS)
    assert jitd.stats() == {"reference:capturing": 1}
    for seed in range(2):
        tensors[0].normal_(generator=torch.Generator("cuda").manual_seed(seed))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, SILU.reference(*tensors, GROUPS))
    x = torch.randn(5000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = scale(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, 2 * x)
    scale(x)
    assert jitd.stats()["tunes"] == 1


@pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
def test_a_strict_process_raises_before_it_would_build(cold, op):
    """Mode strict on a cold cache raises ColdKernelError with the signature and the command that
    warms it, and builds nothing."""
    jitd.configure(mode="strict")
    tensors = arguments(op, SHAPE, GROUPS, dtype=torch.bfloat16, device="cuda")
    signature = str(op.sign(call_of(op, tensors)))
    with pytest.raises(ColdKernelError) as caught:
        FUNCTIONS[op.name](*tensors)
    assert caught.value.signature == signature
    assert caught.value.command == f"jitctl warmup --signature '{signature}'"
    assert signature in str(caught.value) and caught.value.command in str(caught.value)
    assert jitd.stats() == {}
    assert not [p for p in cold.rglob("*") if p.is_file() and {"artifact", "winner"} & {*p.parts}]


def test_strict_names_the_package_of_an_op_from_outside(cold):
    """For an op of another package the command says what to import."""
    jitd.configure(mode="strict")
    with pytest.raises(ColdKernelError, match=r"jitctl warmup --import outside\.ops --signature"):
        scale(torch.ones(7, device="cuda"))


def test_a_graph_outlives_what_it_captured(with_barrier):
    """When an executable is gone, as after `configure`, the memory of the barriers that a graph has
    of it is given to nobody else: the graph replays, and changes nothing but its result."""
    [tensors] = inputs(SILU, 1)
    run = with_barrier()
    run(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*tensors)
    del run
    gc.collect()
    others = [torch.full((128,), 7, dtype=torch.int32, device="cuda") for _ in range(4096)]
    for seed in range(2):
        tensors[0].normal_(generator=torch.Generator("cuda").manual_seed(seed))
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(out, SILU.reference(*tensors, GROUPS), rtol=2e-2, atol=2e-2)
    assert all(bool((other == 7).all()) for other in others)


def test_many_calls_in_one_graph(run):
    """Forty calls captured in one graph, replayed with new inputs, on one stream and another, give
    what the same calls give outside."""
    sets = inputs(SILU, CAPTURED)
    run(*sets[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [run(*tensors) for tensors in sets]
    side = torch.cuda.Stream()
    for seed, stream in enumerate((torch.cuda.current_stream(), side, side)):
        for number, tensors in enumerate(sets):
            tensors[0].normal_(generator=torch.Generator("cuda").manual_seed(99 * seed + number))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
        torch.cuda.synchronize()
        for out, tensors in zip(outs, sets, strict=True):
            assert torch.equal(out, run(*tensors))
            torch.testing.assert_close(out, SILU.reference(*tensors, GROUPS), rtol=2e-2, atol=2e-2)
    assert not [name for name in jitd.stats() if name.startswith("reference:")]


def test_a_graph_beside_eager_calls(run):
    """A graph replayed on one stream while the same op runs on another disturbs neither."""
    sets = inputs(SILU, 8)
    want = [run(*tensors).clone() for tensors in sets]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [run(*tensors) for tensors in sets]
    side, outs = torch.cuda.Stream(), []
    torch.cuda.synchronize()
    for _ in range(10):
        with torch.cuda.stream(side):
            graph.replay()
        outs += [run(*tensors) for tensors in sets]
    torch.cuda.synchronize()
    assert all(torch.equal(*pair) for pair in zip(captured, want, strict=True))
    assert all(torch.equal(out, want[i % len(sets)]) for i, out in enumerate(outs))


def test_two_streams_at_once(run):
    """The same op on two streams, with nothing between them, gives each its own result."""
    sets = inputs(SILU, 2)
    want = [run(*tensors).clone() for tensors in sets]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    outs = [[], []]
    for _ in range(50):
        for stream, tensors, kept in zip(streams, sets, outs, strict=True):
            with torch.cuda.stream(stream):
                kept.append(run(*tensors))
    torch.cuda.synchronize()
    for kept, expected in zip(outs, want, strict=True):
        assert all(torch.equal(out, expected) for out in kept)


def test_threads_at_once(run):
    """Eight threads, half of them on streams of their own, that miss and then hit together, each
    get the result of their own inputs."""
    sets = inputs(SILU, 8)
    want = [run(*tensors).clone() for tensors in sets]
    torch.cuda.synchronize()
    jitd.configure()  # the tables are empty again: all threads miss at once
    begin, wrong = threading.Barrier(len(sets)), []

    def work(number):
        stream = torch.cuda.Stream() if number % 2 else torch.cuda.default_stream()
        try:
            begin.wait(WAIT_S)
            with torch.cuda.stream(stream):
                outs = [run(*sets[number]) for _ in range(50)]
            stream.synchronize()
            if not all(torch.equal(out, want[number]) for out in outs):
                wrong.append(number)
        except Exception as error:  # noqa: BLE001  (it must reach the test)
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert not [name for name in jitd.stats() if name.startswith("reference:")]
