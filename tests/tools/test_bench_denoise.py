"""The benchmark of denoising without a GPU: its rows, the step both ways, and its report."""

from collections import Counter

import pytest
import torch
from jitd.jit.op import OPS
from jitd.tools.bench import denoise
from jitd.tools.bench.goals import DENOISE
from jitd.tools.bench.stopwatch import Times
from jitd.tools.bench.tokens import arguments, call_of, cases_of
from jitd.tools.bench.traffic import Launched

SMALL = [
    denoise.Step(step.name, 24, step.sigma, step.sigma_next, step.sampler, step.video, step.audio)
    for step in denoise.STEPS
]


COUNTED = Launched(Counter({"one": 3}), {"one": 4.5})


class Clock:
    """A stopwatch that runs everything once and says that it took 2 us."""

    def cold(self, runs):
        for run in runs.values():
            run()
        return Times(dict.fromkeys(runs, 2.0), {})

    graph = cold


@pytest.mark.parametrize("target", DENOISE, ids=lambda target: target.what)
def test_every_row_is_a_call_of_an_op(target):
    """Signatures read back, fit their column; the largest guidance has the goal of 1.6x floor."""
    call = call_of(target)
    op = OPS[target.signature.partition("[")[0]]
    assert str(op.sign(call)) == target.signature
    assert len(target.what) <= denoise._NAME_WIDTH
    (case,) = cases_of([target], {}, device="cpu")
    assert case.call == call
    expected = target.what == "guidance_combine 1x32640x128, 3 passes, rescaled"
    assert [str(limit) for limit in target.limits] == (["<= 1.6x floor"] if expected else [])


def test_rows_have_scalars_that_matter():
    """Examples stand for what varies: a row's op is given them, and they change its answer."""
    target = next(t for t in DENOISE if t.what.startswith("res2s_step 1x126"))
    args = arguments(target, call_of(target), "cpu")
    op = OPS["res2s_step"]
    assert args[5:13] == list(op.varies.values())
    assert not torch.equal(op.reference(*args), op.reference(*args[:5]))


@pytest.mark.parametrize("step", SMALL, ids=lambda step: step.name)
def test_a_step_is_right_both_ways(step):
    """The drivers' step, whose transformer is a stand-in, is eager's; it is timed only if it is."""
    setup = denoise.Setup(step, "cpu")
    figures, problems = denoise.measure(
        setup, Clock(), count_launches=lambda run: COUNTED, synchronize=lambda: None
    )
    assert not problems
    assert set(figures) == {"eager", denoise.OURS}
    ours, plain = figures[denoise.OURS], figures["eager"]
    assert ours["off"] <= denoise._OFF
    assert ours["launches"] == 3 and ours["us"] == 2.0
    assert plain["moved_bytes"] > 2 * ours["moved_bytes"] > 0
    cells = denoise.cells(step.name, "eager", figures)
    assert len(cells) == len(denoise.COLUMNS) and cells[4] == "1.00"


def test_a_wrong_step_is_not_timed(monkeypatch):
    """If the drivers give anything else, nothing is measured."""
    setup = denoise.Setup(SMALL[0], "cpu")
    monkeypatch.setattr(denoise.eager, "ROUNDS", 0)
    with pytest.raises(ValueError, match="the step is off by"):
        denoise.measure(
            setup, Clock(), count_launches=lambda run: COUNTED, synchronize=lambda: None
        )
