"""JITD_RECORD: the file that a serving process leaves, and what can go wrong with it."""

import logging
import os
import random
import signal
import subprocess
import sys
import time

import jitd
import pytest
import torch
from jitd.jit import recorder
from jitd.jit.record import HEADER
from jitd.jit.stats import STATS, Stats
from outside.ops import scale

WAIT_S = 60.0

# Notes signatures without end; the parent is told when the first is written.
WRITER = """
import itertools, sys
from jitd.jit.recorder import Recorder
from jitd.jit.stats import Stats
recorder = Recorder(sys.argv[1], Stats())
for number in itertools.count():
    recorder.note(f"scale[bf16]({sys.argv[2]}x{number})")
    if number == 0: print("begun", flush=True)
    if number == int(sys.argv[3]): break
"""


def start(path, name, count=10**9):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(name), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(path):
    return path.read_text().splitlines()


@pytest.fixture
def path(tmp_path):
    """A file in use by JITD_RECORD from here on."""
    found = tmp_path / "seen.jsonl"
    jitd.configure(record=found)
    return found


def test_a_process_writes_each_signature_once(path):
    """Signatures come in the order of their first calls; a hit writes nothing, nor does a second
    process's look at what is there already."""
    for _ in range(3):
        scale(torch.zeros(8))
        scale(torch.zeros(4, 2))
    workload = jitd.Workload.load(path)
    assert list(workload) == ["outside_scale[fp32](8)", "outside_scale[fp32](4x2)"]
    assert workload.marks
    assert repr(workload) == "<Workload: 2 signatures, calls unknown>"
    jitd.configure(mode="off")
    scale(torch.zeros(8))
    scale(torch.zeros(2))
    assert len(lines(path)) == 4
    assert STATS["record:written"] == 3


def test_a_hit_costs_nothing(path, monkeypatch):
    """What the table answers never reaches the recorder."""
    x = torch.zeros(8)
    scale(x)
    monkeypatch.setattr(recorder.Recorder, "note", None)
    scale(x)


def test_meta_tensors_are_not_served(path):
    """A model that is built or recorded on the meta device in a serving process is no traffic."""
    scale(torch.zeros(8, device="meta"))
    assert not path.exists()


def test_the_environment_names_it(monkeypatch, tmp_path):
    """JITD_RECORD is made absolute where the process begins; `{pid}` is the process's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JITD_RECORD", "seen-{pid}.jsonl")
    assert jitd.configure().settings.record == str(tmp_path / "seen-{pid}.jsonl")
    monkeypatch.chdir("/")
    scale(torch.zeros(8))
    assert (tmp_path / f"seen-{os.getpid()}.jsonl").exists()


@pytest.mark.parametrize("text", ["seen-{host}", "seen-{", "folder/"])
def test_other_paths_are_refused(text):
    """What is no path of a file is an error of the settings."""
    with pytest.raises(jitd.JitdError, match=r"record=.*allowed"):
        jitd.configure(record=text)


def test_a_fork_has_a_file_of_its_own(tmp_path):
    """With `{pid}` a child writes to its own file what it asks for, its parent's signatures too."""
    jitd.configure(record=tmp_path / "{pid}")
    scale(torch.zeros(8))
    child = os.fork()
    if child == 0:
        scale(torch.zeros(8))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    found = [lines(tmp_path / str(pid)) for pid in (os.getpid(), child)]
    assert found == [[HEADER.strip(), '"outside_scale[fp32](8)"']] * 2


def test_processes_share_a_file(tmp_path):
    """What several processes append at once is all there, each line whole."""
    path, each = tmp_path / "seen", 300
    children = [start(path, name, each - 1) for name in range(3)]
    for child in children:
        assert child.wait(WAIT_S) == 0
    # An empty line may follow what another process had half written when it was looked at.
    assert len([line for line in lines(path) if line]) == 1 + 3 * each
    assert len(jitd.Workload.load(path)) == 3 * each
    assert list(tmp_path.iterdir()) == [path]


def test_killed_at_any_moment(tmp_path):
    """kill -9 leaves a file that can be read and gone on with, whenever it comes."""
    path, moments = tmp_path / "seen", random.Random(0)
    before = 0
    for name in range(4):
        child = start(path, name)
        child.stdout.readline()
        time.sleep(moments.random() / 50)  # any moment: nothing is expected of this one
        child.send_signal(signal.SIGKILL)
        child.wait(WAIT_S)
        after = len(jitd.Workload.load(path))
        assert after > before
        before = after


def test_a_line_cut_short_is_left_out(tmp_path):
    """Half a line, which a full disk leaves, hides neither those before it nor those after."""
    path = tmp_path / "seen"
    path.write_text(HEADER + '"scale[bf16](1)"\n"scale[bf')
    assert list(jitd.Workload.load(path)) == ["scale[bf16](1)"]
    recorder.Recorder(str(path), Stats()).note("scale[bf16](2)")
    assert list(jitd.Workload.load(path)) == ["scale[bf16](1)", "scale[bf16](2)"]


def test_an_empty_file_is_begun(tmp_path):
    """A file that was made for it, by mktemp say, is used; two that begin it at once do no harm."""
    path = tmp_path / "seen"
    path.touch()
    recorder.Recorder(str(path), Stats()).note("scale[bf16](1)")
    assert list(jitd.Workload.load(path)) == ["scale[bf16](1)"]
    path.write_text(HEADER + HEADER + '"scale[bf16](1)"\n' + HEADER)
    recorder.Recorder(str(path), Stats()).note("scale[bf16](2)")
    assert list(jitd.Workload.load(path)) == ["scale[bf16](1)", "scale[bf16](2)"]


def _missing(tmp_path):
    return tmp_path / "none" / "seen"


def _folder(tmp_path):
    return tmp_path


def _pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def _counted(tmp_path):
    jitd.Workload().save(tmp_path / "w.json")
    return tmp_path / "w.json"


def _other(tmp_path):
    (tmp_path / "text").write_text("precious")
    return tmp_path / "text"


@pytest.mark.parametrize("place", [_missing, _folder, _pipe, _counted, _other])
def test_what_cannot_be_written_breaks_nothing(tmp_path, place, caplog):
    """No folder, a folder, a pipe, another file: calls are answered, each signature that is not
    written is counted, the reason is said once, and nothing that was there is touched."""
    path = place(tmp_path)
    before = path.read_bytes() if path.is_file() else None
    jitd.configure(record=path)
    with caplog.at_level(logging.WARNING, "jitd"):
        for size in (8, 16, 8):
            assert scale(torch.zeros(size)).shape == (size,)
    assert STATS["record:unwritten"] == 2
    assert len(caplog.messages) == 1
    assert f"cannot be written to {path}: " in caplog.text
    assert before == (path.read_bytes() if path.is_file() else None)


def test_what_could_not_be_written_is_made_up_for(tmp_path):
    """Once the folder is there, all that was asked for meanwhile is written with the next."""
    jitd.configure(record=tmp_path / "later" / "seen")
    scale(torch.zeros(8))
    (tmp_path / "later").mkdir()
    scale(torch.zeros(4))
    found = jitd.Workload.load(tmp_path / "later" / "seen")
    assert list(found) == ["outside_scale[fp32](8)", "outside_scale[fp32](4)"]


def test_a_file_that_is_taken_away_begins_anew(path):
    """After a deletion (a rotated log) the file comes back with all that was asked for."""
    scale(torch.zeros(8))
    path.unlink()
    scale(torch.zeros(4))
    scale(torch.zeros(2))
    assert {"outside_scale[fp32](8)", "outside_scale[fp32](2)"} <= set(jitd.Workload.load(path))


def test_a_file_has_an_end(path, monkeypatch):
    """A program whose every call has another signature fills no disk."""
    monkeypatch.setattr(recorder, "MOST", 3)
    for size in range(1, 6):
        scale(torch.zeros(size))
    assert len(lines(path)) == 1 + 3
    assert STATS["record:unwritten"] == 2
