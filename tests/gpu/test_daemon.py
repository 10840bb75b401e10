"""Mode background on the card: nobody waits for a compiler, all end with the same winner, and a
captured graph keeps what it captured."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jitd
import pytest
import torch
from jitd.jit.daemon import protocol
from jitd.jit.daemon.client import Client, DaemonTrouble
from jitd.jit.daemon.identity import Identity
from jitd.jit.daemon.place import Place
from jitd.jit.dispatch import _dispatchers
from jitd.jit.runtime import current
from jitd.jit.stats import STATS
from outside.ops import scale

from .conftest import CORES, HERE, WAIT_S

pytestmark = pytest.mark.gpu

LONGEST_S = 2.0  # of a caller's wait: compiling and tuning take longer, a look-up and a load do not


@pytest.fixture
def place(tmp_path, tmp_path_factory, monkeypatch):
    """The place of a daemon that is started by whoever wants it, on a cold cache."""
    folder = tmp_path_factory.mktemp("d") / "p"
    monkeypatch.setenv("JITD_DAEMON_DIR", str(folder))
    monkeypatch.setenv("JITD_DAEMON_DUTY", "1.0")
    monkeypatch.setenv("JITD_JOBS", str(CORES))
    (tmp_path / "cold").mkdir()
    made = Place.of(tmp_path / "cold", folder)
    yield made
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int(made.lock.read_text()), signal.SIGKILL)


@pytest.fixture
def serving(place):
    """This process in mode background on the cold cache."""
    jitd.configure(
        cache_dir=place.cache_dir, mode="background", daemon_dir=place.folder, daemon="auto"
    )
    return place


def client(place):
    return Client(place, Identity.of(place.cache_dir))


def until(true, what):
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def renewed():
    """Whether the table waits for the next call to take what was built."""
    return _dispatchers["outside_scale"]._outgoing


def test_eight_workers_and_a_cold_cache(place, tmp_path):
    """Eight processes start together on a cold cache and no daemon: one daemon is started, no call
    waits long, every answer is right, one tune is made, and all end with its winner."""
    gate = tmp_path / "gate"
    environment = {
        **os.environ, "JITD_CACHE_DIR": str(place.cache_dir), "JITD_MODE": "background",
    }  # fmt: skip
    children = []
    try:
        for number in range(8):
            ready = tmp_path / f"ready{number}"
            task = {"size": 70_000, "ready": str(ready), "gate": str(gate)}
            children.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "serving_child.py"), json.dumps(task)],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                )
            )  # fmt: skip
        until(lambda: len(list(tmp_path.glob("ready*"))) == 8, "the children start")
        gate.touch()
        said = []
        for child in children:
            out, err = child.communicate(timeout=3 * WAIT_S)
            assert child.returncode == 0, err[-4000:]
            said.append(json.loads(out.splitlines()[-1]))
    finally:
        for child in children:
            child.kill()
            child.wait(WAIT_S)
    print([(one["calls"], round(one["longest"], 3)) for one in said])
    assert max(one["longest"] for one in said) < LONGEST_S
    assert len({one["winner"] for one in said}) == 1 and said[0]["winner"]
    assert not [one for one in said if one["stats"].get("tunes") or one["stats"].get("compiles")]
    with client(place) as link:
        counts = link.ask(protocol.Stats())
    assert counts["tunes"] == 1 and counts["workers_started"] == 1
    assert place.log.read_text().count('"started"') == 1


def test_the_swap(serving):
    """The reference answers until the daemon has tuned; the next call launches the winner, which a
    process in mode strict finds, too; another bucket is answered by it at once."""
    x = torch.randn(5000, device="cuda").bfloat16()
    want = (x.float() * 3.0).bfloat16()
    assert torch.equal(scale(x, 3.0), want)
    assert jitd.stats() == {"reference:pending": 1}
    until(renewed, "it is built")
    assert torch.equal(scale(x, 3.0), want)
    assert jitd.stats() == {"daemon:built": 1, "loads": 1, "reference:pending": 1}
    large = torch.randn(300_000, device="cuda").bfloat16()
    assert torch.equal(scale(large, 3.0), (large.float() * 3.0).bfloat16())
    assert STATS["reference:pending"] == 1  # the nearest winner's config has a checked binary
    until(renewed, "it is tuned for its own size")
    assert torch.equal(scale(large, 3.0), (large.float() * 3.0).bfloat16())
    builder = current().builder_at(0)
    assert builder.winner(scale.op, scale.op.parse("outside_scale[bf16](300000)").call)
    jitd.configure(mode="strict")
    assert torch.equal(scale(x, 3.0), want)


def test_a_capture_keeps_what_it_captured(serving):
    """What was captured cold is the reference, and stays it in every replay; nothing is swapped in
    the middle of a capture; what is captured after the swap is the winner."""
    x = torch.randn(5000, device="cuda").bfloat16()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        scale.op.reference(x, 3.0)
    torch.cuda.synchronize()
    cold = torch.cuda.CUDAGraph()
    with torch.cuda.graph(cold):
        first = scale(x, 3.0)
    assert jitd.stats() == {"reference:pending": 1}
    until(renewed, "it is built")
    midway = torch.cuda.CUDAGraph()
    with torch.cuda.graph(midway):
        second = scale(x, 3.0)
    assert STATS["reference:pending"] == 2
    warm = scale(x, 3.0)
    assert STATS["reference:pending"] == 2
    late = torch.cuda.CUDAGraph()
    with torch.cuda.graph(late):
        third = scale(x, 3.0)
    assert STATS["reference:pending"] == 2
    for seed in range(3):
        x.normal_(generator=torch.Generator("cuda").manual_seed(seed))
        for graph in (cold, midway, late):
            graph.replay()
        torch.cuda.synchronize()
        want = (x.float() * 3.0).bfloat16()
        assert all(torch.equal(out, want) for out in (first, second, third))
    assert warm.shape == x.shape


def test_a_provisional_kernel_in_a_graph_outlives_its_swap(serving, monkeypatch):
    """A graph that captured the nearest winner's kernel replays it after it was swapped out."""
    x = torch.randn(5000, device="cuda").bfloat16()
    scale(x, 3.0)
    until(renewed, "the first bucket is built")
    scale(x, 3.0)
    background, built = current().background, []
    ask = background.ask
    # The news of what is built is held back until the graph is captured.
    monkeypatch.setattr(
        background, "ask", lambda b, op, call, then: ask(b, op, call, lambda: built.append(then))
    )
    large = torch.randn(300_000, device="cuda").bfloat16()
    scale(large, 3.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = scale(large, 3.0)
    assert STATS["reference:pending"] == 1  # both were the nearest winner's
    until(lambda: built, "the second bucket is built")
    built.pop()()
    scale(large, 3.0)
    torch.cuda.empty_cache()
    for seed in range(3):
        large.normal_(generator=torch.Generator("cuda").manual_seed(seed))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, (large.float() * 3.0).bfloat16())


def test_a_killed_daemon_is_followed_by_another(serving):
    """The daemon is killed while it tunes: this process asks the next one, and gets its winner."""
    x = torch.randn(5000, device="cuda").bfloat16()
    scale(x, 3.0)

    def running():
        try:
            with client(serving) as link:
                return link.ask(protocol.Status())["running"]
        except DaemonTrouble:
            return False

    until(running, "it builds")
    os.kill(int(serving.lock.read_text()), signal.SIGKILL)
    until(renewed, "the next one has built it")
    assert torch.equal(scale(x, 3.0), (x.float() * 3.0).bfloat16())
    assert STATS["tunes"] == 0


def test_the_card_is_shared(serving):
    """The daemon knows the card, sees that this process uses it, and keeps to its duty."""
    from jitd.jit.daemon import gpus  # noqa: PLC0415

    x = torch.randn(5000, device="cuda").bfloat16()
    usage = gpus.usage(current().builder_at(0).device.uuid)
    assert usage is not None and 0 < usage.free_bytes <= usage.total_bytes
    assert gpus.driver_version()
    scale(x, 3.0)
    until(renewed, "it is built")
    with client(serving) as link:
        facts = link.ask(protocol.Status())
    [worker] = facts["workers"]
    assert worker["gpu_free_bytes"] and Path(f"/proc/{worker['pid']}").exists()
    assert facts["counts"]["tunes"] == 1
