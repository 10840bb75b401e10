"""Workloads: recorded, saved, loaded."""

import errno
import json
import os
import threading
from pathlib import Path

import jitd
import pytest
import torch
from jitd.jit.dispatch import _dispatchers
from jitd.jit.errors import JitdError
from jitd.jit.record import HEADER, as_line
from outside.ops import scale
from probes.ops import probe_norm
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext


def run(device):
    x = torch.zeros(2, 64, 4, 4, dtype=torch.bfloat16, device=device)
    last = x.to(memory_format=torch.channels_last)
    weight = torch.zeros(64, dtype=torch.bfloat16, device=device)
    scale(x)
    scale(x, 3.0)
    scale(last)
    scale(x.transpose(0, 1))
    scale(x[:, :, ::2])
    scale(x.float())
    probe_norm(last, weight, None, 8)
    probe_norm(x, weight, weight, 32, numerics="fast")


def test_meta_records_what_a_run_does():
    """A run on the meta device computes nothing and records the signatures of a real one."""
    with jitd.record() as real:
        run("cpu")
    with jitd.record() as meta:
        run("meta")
    assert real.counts == meta.counts
    assert real.counts["outside_scale[bf16](2x64x4x4)"] == 2
    assert "outside_scale[bf16](2x64x4x4:channels_last)" in real.counts
    assert "probe_norm[bf16](2x64x4x4:channels_last, groups=8)" in real.counts


def test_repeated_calls_are_counted():
    """A call that the in-process table would answer is recorded all the same."""
    x = torch.zeros(8)
    scale(x)
    with jitd.record() as workload:
        scale(x)
        scale(x)
    scale(x)
    assert dict(workload.counts) == {"outside_scale[fp32](8)": 2}
    assert repr(workload) == "<Workload: 1 signatures, 2 calls>"


def test_recordings_nest():
    """Two recordings under way both hear of a call, each from its own beginning."""
    x = torch.zeros(8)
    with jitd.record() as outer:
        scale(x)
        with jitd.record() as inner:
            scale(x)
    assert (outer.counts.total(), inner.counts.total()) == (2, 1)


def test_the_outer_of_two_equal_recordings_goes_on():
    """The end of a recording ends that one, though another has heard the same so far."""
    x = torch.zeros(8)
    with jitd.record() as outer:
        with jitd.record():
            pass
        scale(x)
    assert outer.counts.total() == 1


def test_recordings_of_two_threads_overlap():
    """A recording that another thread's outlasts hears of every call until its end: the tables come
    back with the last, and then no call is noted."""
    x = torch.zeros(8)
    scale(x)
    began, ended, heard = threading.Event(), threading.Event(), []

    def other():
        with jitd.record() as workload:
            began.set()
            assert ended.wait(60)
            scale(x)
        heard.append(workload.counts.total())

    thread = threading.Thread(target=other)
    with jitd.record() as mine:
        thread.start()
        assert began.wait(60)
        scale(x)
    ended.set()
    thread.join(60)
    assert (mine.counts.total(), heard) == (1, [2])
    assert len(_dispatchers[scale.op.name].table) == 1


def test_no_call_of_many_threads_is_lost():
    """Counts of threads that call at once add up."""
    x = torch.zeros(8)

    def calls():
        for _ in range(200):
            scale(x)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    with jitd.record() as workload:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert dict(workload.counts) == {"outside_scale[fp32](8)": 800}


def test_what_is_forgotten_meanwhile_does_not_come_back():
    """Settings that change during a recording void what the tables held before it."""
    x, dispatcher = torch.zeros(8), _dispatchers[scale.op.name]
    scale(x)
    assert dispatcher.table
    with jitd.record():
        jitd.configure(mode="replay")
    assert not dispatcher.table


def test_fake_tensors_record_what_a_run_does():
    """A run under FakeTensorMode records the signatures of a real one; symbolic sizes none."""
    with jitd.record() as real:
        run("cpu")
    with FakeTensorMode(), jitd.record() as fake:
        run("cpu")
    assert fake.counts == real.counts
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = mode.from_tensor(torch.zeros(6, 8), symbolic_context=_dynamic(0))
    with mode, jitd.record() as symbolic:
        scale(x)
    assert not symbolic


def _dynamic(dim):
    sizes = [DimDynamic.STATIC] * 2
    sizes[dim] = DimDynamic.DYNAMIC
    return StatelessSymbolicContext(dynamic_sizes=sizes)


def test_compiled_code_is_recorded_as_it_runs():
    """What a compiler traces is not counted; what its code calls is, each time."""
    torch.compiler.reset()
    compiled = torch.compile(lambda x: scale(x) + 1, backend="aot_eager", fullgraph=True)
    with jitd.record() as workload:
        compiled(torch.zeros(8))
        compiled(torch.zeros(8))
    assert dict(workload.counts) == {"outside_scale[fp32](8)": 2}


def test_empty_results_are_not_recorded():
    """A call that no kernel is ever launched for would only fail to be warmed."""
    with jitd.record() as workload:
        scale(torch.zeros(0, 8))
        scale(torch.zeros(0, 8, device="meta"))
    assert not workload


def test_several_processes_are_one_workload(tmp_path):
    """Counts of several files add up; with marks among them they are marks."""
    for number in (1, 2):
        workload = jitd.Workload()
        workload.add("outside_scale[bf16](8)", number)
        workload.save(tmp_path / f"{number}.json")
    paths = sorted(tmp_path.glob("*.json"))
    together = jitd.Workload.load_all(paths)
    assert dict(together.counts) == {"outside_scale[bf16](8)": 3}
    assert not together.marks
    (tmp_path / "seen").write_text(HEADER + as_line("outside_scale[bf16](8)"))
    marked = jitd.Workload.load_all([*paths, tmp_path / "seen"])
    assert (marked.counts.total(), marked.marks) == (4, True)
    marked.save(tmp_path / "marked.json")
    assert jitd.Workload.load(tmp_path / "marked.json") == marked


def test_saving_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    """A file is written aside: what cannot be written to its end leaves the one before."""
    path = tmp_path / "w.json"
    jitd.Workload().save(path)
    before = path.read_text()
    workload = jitd.Workload()
    workload.add("scale[bf16](8)")
    monkeypatch.setattr(Path, "replace", _no_room)
    with pytest.raises(OSError, match="No space"):
        workload.save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "kind", "remedy"),
    [
        ("none/w.json", FileNotFoundError, "make its folder .*none first"),
        ("file/w.json", NotADirectoryError, "file is no folder; name another place"),
        ("folder", IsADirectoryError, "this is a folder; name a file in it"),
        ("folder/..", IsADirectoryError, "name a file in it"),
        ("x" * 300, OSError, "File name too long; .* name another place"),
    ],
)
def test_what_cannot_be_saved_names_the_path(tmp_path, name, kind, remedy):
    """The error is of the system's kind, names the path that was given, no other, and a remedy."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=remedy) as caught:
        jitd.Workload().save(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert str(os.getpid()) not in caught.value.strerror
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_workload_is_not_saved_onto_here(tmp_path, monkeypatch):
    """The folder that one is in is a folder like any other."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        jitd.Workload().save("")


def _no_room(*_):
    raise OSError(errno.ENOSPC, "No space left")


def test_another_version_is_named(tmp_path):
    """A file of another version says which, and what to do."""
    (tmp_path / "w.json").write_text('{"format": "jitd-workload-9", "counts": {}}')
    with pytest.raises(JitdError, match=r"'jitd-workload-9'.*Record it anew"):
        jitd.Workload.load(tmp_path / "w.json")


def test_what_cannot_be_read_says_why(tmp_path):
    """A missing file, a folder and a binary one are errors of one line."""
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for name, reason in (("none", "No such file"), ("", "directory"), ("binary", "no text")):
        with pytest.raises(JitdError, match=reason):
            jitd.Workload.load(tmp_path / name)


def test_round_trip_through_a_file(tmp_path):
    """What is saved is loaded, counts and order."""
    with jitd.record() as workload:
        run("meta")
    workload.save(tmp_path / "w.json")
    again = jitd.Workload.load(tmp_path / "w.json")
    assert again == workload
    assert list(again) == list(workload)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"format": "jitd-workload-1"}', '{"format": "other", "counts": {}}',
        '{"format": "jitd-workload-1", "counts": {"a": 0}}',
        '{"format": "jitd-workload-1", "counts": {"a": "1"}}',
        '{"format": "jitd-workload-1", "counts": [1]}',
        '{"format": "jitd-workload-1", "counts": {"a": true}}',
        HEADER + "1\\n", HEADER + "nonsense\\n", HEADER + '["a"]', "[" * 100_000,
    ],
)  # fmt: skip
def test_another_file_is_refused(tmp_path, text):
    """A file that is no workload raises one error that names it."""
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(JitdError, match=r"w\.json is no workload"):
        jitd.Workload.load(path)


def test_the_file_is_plain(tmp_path):
    """The file is JSON that a person can write."""
    workload = jitd.Workload()
    workload.add("outside_scale[bf16](8)", 3)
    workload.save(tmp_path / "w.json")
    data = json.loads((tmp_path / "w.json").read_text())
    assert data == {"format": "jitd-workload-1", "counts": {"outside_scale[bf16](8)": 3}}
