"""`bench errors` without a GPU: every op has a call, and what is counted of it."""

from pathlib import Path

import pytest
from jitd.jit.op import OPS
from jitd.models import catalog
from jitd.tools.bench import errors


def test_every_op_has_a_call():
    """No op of jitd is left out, and each call reads as it prints."""
    catalog.declare_ops()
    ours = {op.name for op in OPS.values() if op.reference.__module__.startswith("jitd.models")}
    assert {text.partition("[")[0] for text in errors.CALLS} == ours
    for text in errors.CALLS:
        op = OPS[text.partition("[")[0]]
        assert op.parse(text).call == op.parse(str(op.sign(op.parse(text).call))).call


@pytest.mark.parametrize(
    "text",
    [
        "swiglu[bf16](1x8x64)",
        "gate_residual_layer_norm_modulate[bf16](1x8x64, gate=fp32 2x64, index=i64 1x8, "
        "rounding=once)",
    ],
)
def test_what_is_measured(text, monkeypatch):
    """On the CPU the reference answers: exact and fast are off as eager is, and no bit differs;
    another answer is off by what it is off, and its bits are counted."""
    found = errors.errors_of(text, "cpu")
    assert found.eager == found.exact == found.fast > 0
    assert found.differing == 0
    own = errors.function_of(text.partition("[")[0])

    def moved(*args, **named):
        results = own(*args, **named)
        return tuple(r + 1 for r in results) if isinstance(results, tuple) else results + 1

    monkeypatch.setattr(errors, "function_of", lambda name: moved)
    off = errors.errors_of(text, "cpu")
    assert off.exact == pytest.approx(1, abs=0.1)
    assert off.differing > 0.9 * off.elements


def test_every_op_is_in_the_table_of_the_documents():
    """models/ops/README.md has a row for each op, and for nothing else."""
    text = (Path(__file__).parents[2] / "models" / "ops" / "README.md").read_text()
    table = text.partition("| op | rows of |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in row.split("|")[1:2] if "`" in name]
    found = [word.strip("` ") for cell in named for word in cell.split(",")]
    assert sorted(found) == sorted({call.partition("[")[0] for call in errors.CALLS})
