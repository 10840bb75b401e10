"""Workloads: recorded, saved, loaded."""

import json

import jitd
import pytest
import torch
from jitd.jit.errors import JitdError
from outside.ops import scale
from probes.ops import probe_norm


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
