"""The examples, run as a reader would, on a machine without a GPU."""

from importlib import import_module

import jitd
import pytest
import torch

pytestmark = [pytest.mark.diffusers, pytest.mark.compiler]


@pytest.fixture(autouse=True)
def _one_thread():
    """For models this small more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["ltx2_two_stage", "helios", "zimage"])
def test_an_example_ends_with_the_stock_pipelines_result(name, tmp_path, capsys, monkeypatch):
    """It patches, records, compiles one signature for another machine, and gives in strict mode,
    where nothing is built, the bits of the stock pipeline; its workload can be warmed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    example = import_module(f"jitd.tools.examples.{name}")
    monkeypatch.setattr("jitd.tools.examples.steps.devices", list)
    saved = tmp_path / "workload.json"
    assert example.main(["--signatures", "1", "--save", str(saved)]) == 0
    said = capsys.readouterr().out
    assert "1 compiled for sm_90" in said
    assert "strict: 0 compiles, 0 tunes, 0 checks" in said
    assert "against the stock pipeline: the same bits" in said
    assert len(jitd.Workload.load(saved)) > 10
