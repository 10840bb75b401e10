"""JITD_DEBUG=1: values that no kernel checks are looked at before each call."""

import jitd
import pytest
import torch
from jitd.models.ops.gates import gate_residual
from jitd.models.ops.row_norm import layer_norm_modulate, rms_norm_modulate


@pytest.fixture
def given():
    """x of 2 samples of 3 tokens, a table of 4 rows, an index within it."""
    x, table = torch.randn(2, 3, 8), torch.randn(4, 8)
    return x, table, torch.tensor([[0, 3, 1], [2, 0, 0]])


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_an_index_outside_of_its_table_is_refused(given, wrong):
    """It raises a ValueError that says where, what, and what is allowed: at the first call of a
    signature and at later ones, which come from the table of calls."""
    jitd.configure(debug=True)
    x, table, index = given
    for _ in range(2):
        rms_norm_modulate(x, table, table, index=index)
        layer_norm_modulate(x, table, table, index=index)
        gate_residual(x, x, table, index)
    index[1, 2] = wrong
    message = rf"index has 1 values outside of its table, {wrong} at \(1, 2\); allowed are 0 to 3"
    for call in (
        lambda: rms_norm_modulate(x, table, table, index=index),
        lambda: layer_norm_modulate(x, table, table, index=index),
        lambda: gate_residual(x, x, table, index),
        lambda: torch.compile(gate_residual, backend="aot_eager")(x, x, table, index),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_it_is_off_by_default(given):
    """Without it nothing is looked at: the reference's own indexing answers, which counts -1 from
    the end."""
    x, table, index = given
    index[0, 0] = -1
    last = index.clone()
    last[0, 0] = 3
    want = gate_residual(x, x, table, last)
    assert torch.equal(gate_residual(x, x, table, index), want)
    jitd.configure(debug=True)
    with pytest.raises(ValueError, match="-1 at"):
        gate_residual(x, x, table, index)
    jitd.configure(debug=False)
    assert torch.equal(gate_residual(x, x, table, index), want)


def test_nothing_is_looked_at_where_there_is_nothing(given, monkeypatch):
    """Meta and empty tensors have no values; without a table there is nothing to hold them to."""
    monkeypatch.setenv("JITD_DEBUG", "1")
    x, table, index = given
    assert gate_residual(x.to("meta"), x.to("meta"), table.to("meta"), index.to("meta")).is_meta
    assert gate_residual(x[:0], x[:0], table, index[:0]).shape == (0, 3, 8)
    assert gate_residual(x, x, table[0]).shape == x.shape
    assert gate_residual(x, x, table[:2, None], index).shape == x.shape  # rows of samples: no table
