"""Where a kernel is told that a token's row of a gate lies."""

import pytest
import torch
from jitd.jit.sign import TensorSpec
from jitd.models.ops.operands import (
    Operand,
    copied_first,
    index_args,
    operand_args,
    operand_of,
    token_args,
    vector_width,
)

from .gate_cases import GATES, RESIDUAL, TOKENS, call_of, full_gate, residual_arguments

SHAPE = (2, 6, 8)


def call(gate="sample 3d", shape=SHAPE, **how):
    return call_of(RESIDUAL, residual_arguments(shape, gate, **how))


def row_start(operand, index, sample, token):
    """What `kernels/operands.py` computes."""
    row = {"batch": 0, "row": token // operand.period, "index": index and index[sample][token]}
    return sample * operand.sample_stride + row[operand.mode] * operand.row_stride


@pytest.mark.parametrize("chunk", [False, True])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", [SHAPE, (1, 6, 8), (3, 4, 5), (2, 1, 8), (2, 2, 1)])
def test_each_token_finds_its_row(shape, gate, chunk):
    """From mode, strides and period follows, for every token, the row that eager gives it."""
    if gate.startswith("frame") and shape[1] < 2:
        return
    x, y, values, index = residual_arguments(shape, gate, chunk=chunk)
    operand = operand_of(call_of(RESIDUAL, [x, y, values, index]), "gate")
    storage = torch.as_strided(values, (values.untyped_storage().nbytes() // 4,), (1,), 0)
    want = full_gate(x, values, index)
    for sample in range(shape[0]):
        for token in range(shape[1]):
            first = values.storage_offset() + row_start(
                operand, None if index is None else index.tolist(), sample, token
            )
            assert torch.equal(storage[first : first + shape[2]], want[sample, token])


def test_modes_follow_from_shapes():
    """A row per sample, per frame, or by index: whatever the strides, so that a bucket has one."""
    modes = {gate: operand_of(call(gate), "gate").mode for gate in GATES}
    assert modes == {
        **dict.fromkeys(("channel", "one row", "sample", "sample 3d"), "batch"),
        **dict.fromkeys(("frame", "frame of all", "token"), "row"),
        **dict.fromkeys(("index", "index i64"), "index"),
    }
    x, y, gate, _ = residual_arguments(SHAPE)
    expanded = call_of(RESIDUAL, [x, y, gate.expand(SHAPE), None])
    assert operand_of(expanded, "gate").mode == "row"
    assert operand_of(RESIDUAL.bucket(expanded), "gate").mode == "row"
    assert operand_of(call().replace(gate=None), "gate") == Operand("none")


def test_an_index_beside_no_table_is_not_read():
    """An index given with a gate per sample is no argument of the kernel."""
    x, y, gate, _ = residual_arguments(SHAPE, "sample 3d")
    index = torch.zeros(2, 6, dtype=torch.int32)
    given = call_of(RESIDUAL, [x, y, gate, index])
    assert index_args(given, ["gate"]) == {
        "index": None, "index_b": 0, "index_s": 0, "INDEXED": False
    }  # fmt: skip
    assert index_args(call("index"), ["gate"])["INDEXED"]
    assert operand_args(given.replace(gate=None), "gate")["gate"] is None


def test_tensors_whose_channels_are_not_innermost_are_copied():
    """Only those; their strides are then those of the copy."""
    assert copied_first(call(layout="channels first"), ["x", "y"], ["gate"]) == ("x", "y")
    for layout in TOKENS.keys() - {"channels first"}:
        assert copied_first(call(layout=layout), ["x", "y"], ["gate"]) == ()
    assert token_args(call(layout="channels first"), "x") == token_args(call(), "x")
    turned = TensorSpec("fp32", (2, 3, 8), (24, 1, 3))
    given = call("frame").replace(gate=turned)
    assert copied_first(given, ["x", "y"], ["gate"]) == ("gate",)
    assert operand_of(given, "gate").row_stride == 8


@pytest.mark.parametrize(
    ("dtype", "width", "vec"),
    [
        (torch.bfloat16, 4096, 8), (torch.float32, 4096, 4), (torch.float16, 12, 4),
        (torch.bfloat16, 7, 1),
    ],
)  # fmt: skip
def test_loads_are_as_wide_as_the_row_allows(dtype, width, vec):
    """16 bytes of x, less where the width of a row does not divide; slices of samples and tokens
    change nothing, and a gap between the rows of any tensor ends it."""
    for layout in ("contiguous", "sliced", "tokens first", "unaligned"):
        given = call(shape=(2, 6, width), dtype=dtype, layout=layout, chunk=True)
        assert vector_width(given, ["x", "y"], ["gate"]) == vec
    given = call(shape=(2, 6, width), dtype=dtype)
    gapped = TensorSpec(given.y.dtype, given.y.shape, (6 * (width + 1), width + 1, 1))
    assert vector_width(given.replace(y=gapped), ["x", "y"], ["gate"]) == 1
    rows = TensorSpec(given.gate.dtype, (2, 1, width), (width + 1, width + 1, 1))
    assert vector_width(given.replace(gate=rows), ["x", "y"], ["gate"]) == 1
