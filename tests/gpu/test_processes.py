"""What one process builds serves the next: without Triton, a compiler, or anything left to do."""

import time

import jitd
import pytest
import torch
from jitd.jit import runtime
from jitd.jit.launch import forget_loaded
from jitd.jit.record import Workload
from jitd.jit.runtime import Runtime
from jitd.jit.warm import Progress, warm
from jitd.models.ltx2.presets import Size
from jitd.models.ltx2.workload import run_upsampler
from outside.ops import scale

from .child import UPSAMPLER
from .conftest import WAIT_S, answer

pytestmark = pytest.mark.gpu

WARMED = [
    "outside_scale[bf16](4096)",
    "group_norm_silu[bf16](1x32x1536, groups=32)",
    "group_norm_silu[bf16](1x32x16x8x8:channels_last_3d, groups=32)",
]
# Other lengths of the same buckets and of the upsampler's: prime, odd, in other numbers of frames.
OTHERS = [
    "outside_scale[bf16](3001)",
    *(f"group_norm_silu[bf16](1x32x{n}, groups=32)" for n in (1535, 1531, 1284, 1281, 1400)),
    "group_norm_silu[bf16](1x32x15x10x10, groups=32)",
    "group_norm_silu[bf16](1x32x15x7x9:channels_last_3d, groups=32)",
    "group_norm_add_silu[bf16](1x32x15x1x401, residual=:perm02134, groups=32)",
    "group_norm_add_silu[bf16](1x32x14x1x402, residual=:perm02134, groups=32)",
    "group_norm_add_silu[bf16](1x32x16x17x21, residual=:perm02134, groups=32)",
]
NOTHING = ("compiles", "tunes", "checks")


@pytest.fixture(scope="module")
def warmed(tmp_path_factory, shared_runtime):
    """A cache that was warmed for a video of 121 frames and for some signatures beside it."""
    folder = tmp_path_factory.mktemp("warm") / "cache"
    settings = shared_runtime.settings.replace(cache_dir=folder)
    with jitd.record() as workload:
        run_upsampler(Size(512, 768), dtype=torch.bfloat16, **UPSAMPLER)
    for text in WARMED:
        workload.add(text)
    rows = warm(Runtime(settings).builder_at(0), workload, Progress())
    assert [(row.signature, row.detail) for row in rows if row.status != "tuned"] == []
    return folder


def test_a_second_process_is_warm_at_once(warmed, start):
    """With a warm cache a process in mode strict runs ops of ours, an op from outside, and every
    other length of their buckets, video lengths too, without Triton and without a PATH; nothing is
    compiled, tuned, checked or answered by a reference, and all of it is right."""
    task = {"signatures": [*WARMED, *OTHERS], "lengths": [121, 113, 105]}
    said = answer(start(warmed, mode="strict", path="", **task))
    assert not said["triton"]
    assert not {n: v for n, v in said["stats"].items() if n in NOTHING or ":" in n}
    assert said["stats"]["loads"] > 0
    assert None not in said["winners"].values()


def test_processes_that_start_together_tune_once(tmp_path, start):
    """Eight processes that miss at once on a cold cache tune once between them, and all of them
    launch the same winner."""
    gate, text = tmp_path / "gate", "outside_scale[bf16](70000)"
    ready = [tmp_path / f"ready{n}" for n in range(8)]
    children = [
        start(tmp_path / "cache", jobs=2, signatures=[text], ready=str(path), gate=str(gate))
        for path in ready
    ]
    deadline = time.monotonic() + WAIT_S
    while not all(path.exists() for path in ready):
        assert time.monotonic() < deadline, "a child did not start in time"
        assert all(child.poll() is None for child in children), "a child ended early"
        time.sleep(0.02)
    gate.touch()
    said = [answer(child) for child in children]
    assert sum(one["stats"].get("tunes", 0) for one in said) == 1
    assert len({one["winners"][text] for one in said}) == 1
    assert None not in said[0]["winners"].values()
    assert not [n for one in said for n in one["stats"] if n.startswith("reference:")]


def test_an_op_from_outside_is_tuned_and_launched(cold):
    """An op that another package declares is tuned at its first call, launched by its winner, and
    found by the next process."""
    x = torch.randn(5000, device="cuda").bfloat16()
    want = (x.float() * 3.0).bfloat16()
    assert torch.equal(scale(x, 3.0), want)
    first = jitd.stats()
    assert first["tunes"] == 1
    assert torch.equal(scale(x, 3.0), want)
    assert torch.equal(scale(x[:4999], 3.0), want[:4999])
    assert jitd.stats()["tunes"] == 1
    jitd.configure(mode="strict")
    forget_loaded()
    before = jitd.stats()
    assert torch.equal(scale(x, 3.0), want)
    after = jitd.stats()
    assert {n: after.get(n) for n in NOTHING} == {n: before.get(n) for n in NOTHING}
    assert after["loads"] == before["loads"] + 1


def test_a_flipped_bit_is_repaired(cold, caplog):
    """A stored binary with one bit flipped is a miss that is logged once: it is compiled anew,
    nothing is tuned, results stay right, and the repaired cache serves strictly."""
    x = torch.randn(5000, device="cuda").bfloat16()
    want = scale(x, 3.0)
    files = [path for path in (cold / "artifact").rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    before = jitd.stats()
    jitd.configure()  # as a new process: nothing is remembered
    forget_loaded()
    caplog.clear()
    with caplog.at_level("WARNING", logger="jitd"):
        assert torch.equal(scale(x, 3.0), want)
    after = jitd.stats()
    assert after["compiles"] == before["compiles"] + 1
    assert after["tunes"] == before["tunes"]
    warnings = [record for record in caplog.records if record.name.startswith("jitd.cache")]
    assert len(warnings) == 1
    jitd.configure(mode="strict")
    forget_loaded()
    assert torch.equal(scale(x, 3.0), want)


def test_warming_twice_does_nothing_twice(warmed):
    """Warming what is warm tunes, compiles and checks nothing."""
    jitd.configure(cache_dir=warmed)
    workload = Workload()
    for text in WARMED:
        workload.add(text)
    rows = warm(runtime.current().builder_at(0), workload, Progress())
    assert {row.status for row in rows} == {"known"}
    assert not {n: v for n, v in jitd.stats().items() if n in NOTHING}
