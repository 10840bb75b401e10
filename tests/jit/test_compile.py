"""Compile workers: what they answer, and what one bad kernel costs."""

import os
import shutil
import sys
import tempfile
import threading
from concurrent.futures import CancelledError, wait
from pathlib import Path

import jitd
import pytest
from jitd.jit.binary import Binary, binary_of
from jitd.jit.errors import CompileError
from jitd.jit.sign import Passed, TensorSpec

from .conftest import HERE

pytestmark = pytest.mark.compiler

X = TensorSpec("bf16", (4096,))


def scale(block=1024, target="sm_90", x=X, n=4096, **launch):
    """The binary of the outside package's kernel."""
    args = {"out_ptr": jitd.Pointer("x"), "x_ptr": jitd.Pointer("x"), "factor": 2.0, "n": n}
    kernel = jitd.Kernel("outside.kernels", "scale_kernel")
    return binary_of(
        jitd.Launch(kernel, (4, 1, 1), {**args, "BLOCK": block}, **launch), {"x": x}, target, ""
    )


def probe(module, name):
    """The binary of a kernel that only takes an output; nothing of it is read here."""
    classes = (("out_ptr", ("pointer", "i32", True)), ("BLOCK", ("constexpr", 64)))
    options = (("enable_fp_fusion", False), ("num_stages", 3), ("num_warps", 4))
    return Binary(f"probes.{module}", name, "", classes, options, "sm_90", "")


GOOD = probe("kernels", "plain_kernel")


def children() -> dict[int, str]:
    """Process id -> state of this process's children."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it is gone
            if int(parent) == os.getpid():
                found[int(entry.name)] = state
    return found


def test_an_annotated_float_is_taken_as_that(pools):
    """A tl.float64 parameter is a double in the binary, a plain float a float."""
    args = {"out_ptr": jitd.Pointer("x"), "x_ptr": jitd.Pointer("x"), "n": 4096, "BLOCK": 1024}
    args |= {"early": Passed("early", 0.5), "late": Passed("late", 0.5)}
    kernel = jitd.Kernel("outside.kernels", "fade_kernel")
    binary = binary_of(jitd.Launch(kernel, (4, 1, 1), args), {"x": X}, "sm_90", "")
    taken = dict(pools().submit(binary).result(120)["params"])
    assert (taken["early"], taken["late"]) == ("f64", "f32")


def test_the_cubin_is_the_one_asked_for(pools):
    """A worker answers ELF code for the target, the symbol, and what the binary takes."""
    answer = pools().submit(scale()).result(120)
    assert answer["cubin"][:4] == b"\x7fELF"
    assert answer["symbol"] == "scale_kernel" and answer["symbol"].encode() in answer["cubin"]
    assert answer["num_warps"] == 4 and answer["shared"] == 0
    kinds = [("out_ptr", "u64"), ("x_ptr", "u64"), ("factor", "f32"), ("n", "u32")]
    assert [tuple(p) for p in answer["params"]] == kinds
    assert 0 <= answer["scratch_pointers"] <= 2


def test_what_is_specialised_away_is_not_taken(pools):
    """Constexprs, None and integers that are 1 and have no fixed type are no parameters."""
    pool = pools()
    args = {"out_ptr": jitd.Pointer("x"), "bias_ptr": None, "BLOCK": 64}
    launch = jitd.Launch(jitd.Kernel("probes.kernels", "optional_kernel"), (1, 1, 1), args)
    without = pool.submit(binary_of(launch, {"x": X}, "sm_90", "")).result(120)
    assert [name for name, _ in without["params"]] == ["out_ptr"]
    args = {
        "p": jitd.Pointer("x"), "q": jitd.Pointer("x"), "free": 1, "count": 1, "step": 1,
        "wide": 1, "flag": True, "factor": 0.5, "double": 1, "BLOCK": 64,
    }  # fmt: skip
    launch = jitd.Launch(jitd.Kernel("probes.kernels", "classes_kernel"), (1, 1, 1), args)
    ones = pool.submit(binary_of(launch, {"x": X}, "sm_90", "")).result(120)
    taken = ["p", "q", "count", "wide", "flag", "factor", "double"]
    assert [name for name, _ in ones["params"]] == taken


def test_options_reach_the_compiler(pools):
    """Warps, target and argument classes change the code; what is the same is the same code."""
    pool = pools(2)
    variants = [
        scale(), scale(num_warps=8), scale(block=512), scale(target="sm_80"),
        scale(target="sm_100"), scale(n=1 << 33), scale(x=TensorSpec("fp16", (4096,))),
        scale(x=TensorSpec("bf16", (4096,), aligned=False)),
    ]  # fmt: skip
    answers = [future.result(240) for future in [pool.submit(v) for v in variants]]
    assert len({answer["cubin"] for answer in answers}) == len(variants)
    assert [a["num_warps"] for a in answers[:2]] == [4, 8]


def test_two_workers_and_two_folders_give_the_same_bytes(pools, tmp_path, monkeypatch):
    """A cubin names no path and no process: machines may share it, wherever jitd is installed."""
    cubins = []
    for place in ("one", "a/much/longer/path/for/two"):
        folder = tmp_path / place
        shutil.copytree(HERE / "outside", folder / "outside")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [str(folder), *sys.path])
            pool = pools(2)
            futures = [pool.submit(scale()) for _ in range(4)]
            cubins += [future.result(120)["cubin"] for future in futures]
    assert len(set(cubins)) == 1
    assert str(tmp_path).encode() not in cubins[0] and b"kernels.py" not in cubins[0]


def test_the_words_of_the_compiler_reach_the_caller(pools):
    """A kernel that does not compile raises CompileError with Triton's reason; the worker lives."""
    pool = pools()
    with pytest.raises(CompileError, match="a_name_that_nobody_defined"):
        pool.submit(probe("kernels", "broken_kernel")).result(120)
    before = children()
    assert pool.submit(GOOD).result(120)["cubin"]
    assert children().keys() == before.keys()


def test_an_unknown_kernel_is_an_answer(pools):
    """A module or function that is not there is an error of one request."""
    pool = pools()
    with pytest.raises(CompileError, match="no_such_kernel"):
        pool.submit(probe("kernels", "no_such_kernel")).result(120)
    with pytest.raises(CompileError, match=r"probes\.nowhere"):
        pool.submit(probe("nowhere", "kernel")).result(120)
    assert pool.submit(GOOD).result(120)["cubin"]


@pytest.mark.parametrize(
    ("module", "name"), [("leaves_at_import", "kernel"), ("kernels", "leaving_kernel")]
)
def test_a_crash_costs_one_request(pools, module, name):
    """A kernel that ends its worker, at import or while it is traced, fails alone."""
    pool = pools()
    futures = [pool.submit(b) for b in (GOOD, probe(module, name), scale(), GOOD)]
    wait(futures, timeout=240)
    assert isinstance(futures[1].exception(), CompileError)
    assert "the worker failed" in str(futures[1].exception())
    assert [bool(futures[i].result()["cubin"]) for i in (0, 2, 3)] == [True] * 3


def test_a_time_out_costs_one_request(pools):
    """A compile that does not end is given up, its worker killed, and the next request served."""
    pool = pools(timeout_s=12)
    with pytest.raises(CompileError, match="no answer in time"):
        pool.submit(probe("sleeps_at_import", "kernel")).result(120)
    assert pool.submit(GOOD).result(120)["cubin"]


def test_workers_do_without_torch(pools):
    """A worker has not imported torch and cannot: starting one costs what Triton does."""
    with pytest.raises(CompileError, match="torch loaded: False, importable: False"):
        pools().submit(probe("asks_for_torch", "kernel")).result(120)


def test_nothing_is_left_behind(pools, tmp_path, monkeypatch):
    """A closed pool leaves no process, no zombie, no thread and no file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads, processes = threading.active_count(), children()
    pool = pools(2)
    futures = [pool.submit(b) for b in (GOOD, probe("leaves_at_import", "kernel"), scale())]
    wait(futures, timeout=240)
    assert len(children()) > len(processes)
    pool.close()
    assert children().keys() == processes.keys()
    assert threading.active_count() == threads
    assert [p for p in tmp_path.iterdir() if p.name.startswith("jitd-compile-")] == []


def test_a_closed_pool_takes_nothing(pools):
    """After closing, a request raises; requests that waited are cancelled, not lost for ever."""
    pool = pools(timeout_s=5)
    running = pool.submit(probe("sleeps_at_import", "kernel"))
    waiting = pool.submit(GOOD)
    pool.close()
    with pytest.raises((CompileError, CancelledError)):
        running.result(60)
    with pytest.raises(CancelledError):
        waiting.result(60)
    with pytest.raises(CompileError, match="closed"):
        pool.submit(GOOD)


def test_workers_start_when_there_is_work(pools):
    """A pool that nobody asks starts no process, and two requests do not start eight workers."""
    before = children()
    pool = pools(8)
    assert children().keys() == before.keys()
    assert repr(pool) == "<CompilePool: 0 of 8 workers, 0 done>"
    pool.submit(GOOD).result(120)
    pool.submit(scale()).result(120)
    assert repr(pool) == "<CompilePool: 1 of 8 workers, 2 done>"


def test_a_kernel_that_prints_harms_nothing(pools, tmp_path, monkeypatch):
    """What a kernel's module writes to stdout does not land among the answers."""
    package = tmp_path / "loud"
    package.mkdir()
    (package / "__init__.py").write_text("import os; print('hello'); os.write(1, b'x' * 100000)")
    text = (HERE / "outside" / "kernels.py").read_text()
    (package / "kernels.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    args = {"out_ptr": jitd.Pointer("x"), "x_ptr": jitd.Pointer("x"), "factor": 2.0, "n": 4}
    kernel = jitd.Kernel("loud.kernels", "scale_kernel")
    launch = jitd.Launch(kernel, (1, 1, 1), {**args, "BLOCK": 64})
    assert pools().submit(binary_of(launch, {"x": X}, "sm_90", "")).result(120)["cubin"]
