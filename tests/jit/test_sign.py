"""Specs, layouts, and signatures in their printed form."""

import pytest
import torch
from jitd.jit.op import OPS
from jitd.jit.sign import Call, TensorSpec, contiguous_strides
from jitd.jit.tensors import spec_of
from outside import ops as outside_ops
from probes import ops as probe_ops

assert outside_ops and probe_ops  # importing declares

LAYOUTS = {
    (4,): ["contiguous", "strided(2)"],
    (3, 5): ["contiguous", "perm10", "strided(7,1)"],
    (2, 3, 4, 5): ["contiguous", "channels_last", "perm0213", "strided(120,40,5,1)"],
    (2, 3, 4, 5, 6): ["contiguous", "channels_last_3d", "perm02134", "strided(0,120,30,6,1)"],
}
CASES = [(shape, layout) for shape, layouts in LAYOUTS.items() for layout in layouts]


@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_a_layout_is_what_it_was_made_with(shape, layout):
    """The strides class of a spec that was made with a layout is that layout."""
    assert TensorSpec.with_layout("bf16", shape, layout).layout == layout


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("aligned", [True, False])
def test_signature_round_trip(shape, layout, dtype, aligned):
    """A printed signature reads back as a call with the same specs, and prints the same."""
    op = OPS["outside_scale"]
    spec = TensorSpec.with_layout(dtype, shape, layout, aligned=aligned)
    text = op.sign(Call({"x": spec, "factor": 2.0})).text
    again = op.parse(text)
    assert again.call["x"] == spec
    assert again.text == text


X = TensorSpec("bf16", (2, 64, 4, 4))
VECTOR = TensorSpec("bf16", (64,))
PROBE = Call(
    {"x": X, "weight": VECTOR, "bias": None, "groups": 32, "eps": 1e-5, "numerics": "exact"}
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "groups=32"),
        ({"weight": VECTOR.like(dtype="fp32")}, "weight=fp32, groups=32"),
        ({"weight": VECTOR.like(aligned=False)}, "weight=:unaligned, groups=32"),
        ({"bias": VECTOR}, "bias=bf16 64, groups=32"),
        ({"weight": TensorSpec("bf16", (64,), (3,))}, "weight=:strided(3), groups=32"),
        ({"weight": TensorSpec("fp32", (1, 64))}, "weight=fp32 1x64, groups=32"),
        ({"numerics": "fast", "groups": 8}, "groups=8, numerics=fast"),
    ],
)
def test_what_differs_from_the_implied_is_printed(changes, words):
    """Only what the first tensor does not imply is printed, and it reads back."""
    op = OPS["probe_norm"]
    call = PROBE.replace(**changes)
    text = op.sign(call).text
    assert text == f"probe_norm[bf16](2x64x4x4, {words})"
    assert op.parse(text).call == call


def test_scalars_that_select_no_code_are_not_printed():
    """Calls that differ in eps alone have one signature: eps is an argument of the kernel."""
    op = OPS["probe_norm"]
    assert op.sign(PROBE) == op.sign(PROBE.replace(eps=1e-6))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("probe_norm(2x64)", "no signature"),
        ("other[bf16](2x64)", "no signature"),
        ("probe_norm[bf16](2x64)", "groups is missing"),
        ("probe_norm[bf17](2x64, groups=32)", "unknown dtype"),
        ("probe_norm[bf16](2x64, groups=32, nonsense=1)", "nonsense"),
        ("probe_norm[bf16](2x64:perm01234, groups=32)", "does not fit"),
        ("probe_norm[bf16](2x60, groups=32)", "60 channels"),
    ],
)
def test_nonsense_is_refused(text, says):
    """A text that is no signature raises ValueError that says what is wrong with it."""
    with pytest.raises(ValueError, match=says):
        OPS["probe_norm"].parse(text)


SHAPES_OF_ONES = [
    (1, 64, 1, 8), (1, 1, 4, 5), (3, 1, 4, 5), (2, 8, 1, 1), (1, 1, 1, 1), (1, 4, 1, 5, 6),
    (2, 1, 3, 1, 5), (1, 64), (64, 1), (1,), (1, 7, 1), (0, 3, 4, 5),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES_OF_ONES)
def test_strides_of_ones_are_torchs(shape):
    """Where torch calls a tensor contiguous, its spec has the strides of a fresh one."""
    plain = torch.empty(shape)
    odd = [13 if size == 1 else stride for size, stride in zip(shape, plain.stride(), strict=True)]
    view = torch.empty(5000).as_strided(shape, odd)
    assert view.is_contiguous()
    assert spec_of(view).strides == plain.stride() == contiguous_strides(shape)
    assert spec_of(view).layout == "contiguous"


@pytest.mark.parametrize("shape", [s for s in SHAPES_OF_ONES if len(s) in (4, 5) and 0 not in s])
def test_channels_last_of_ones_are_torchs(shape):
    """Contiguous wins where a tensor is both; else channels_last strides are torch's own."""
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    tensor = torch.empty(shape).to(memory_format=memory_format)
    spec = spec_of(tensor)
    if tensor.is_contiguous():
        assert spec.layout == "contiguous"
    else:
        assert spec.strides == torch.empty(shape, memory_format=memory_format).stride()
        assert spec.layout.startswith("channels_last")


def test_equal_layouts_compare_equal():
    """Two tensors that differ in the stride of a dimension of size 1 alone have equal specs."""
    one = torch.empty(3, 1, 5)
    other = torch.empty(50).as_strided((3, 1, 5), (5, 17, 1))
    assert spec_of(one) == spec_of(other)


def test_alignment_is_that_of_the_pointer():
    """A slice that begins between two 16-byte borders is unaligned; a meta tensor counts as not."""
    assert spec_of(torch.empty(64, dtype=torch.bfloat16)).aligned
    assert not spec_of(torch.empty(64, dtype=torch.bfloat16)[1:]).aligned
    assert spec_of(torch.empty(64, device="meta")[1:]).aligned


def test_a_call_reads_like_its_arguments():
    """A call gives arguments by name, is hashable, and names what there is if one is missing."""
    assert PROBE.x is X and PROBE["groups"] == 32 and len(PROBE) == 6
    assert {PROBE: 1}[PROBE.replace()] == 1
    assert list(PROBE.tensors) == ["x", "weight"]
    with pytest.raises(AttributeError, match="no argument 'y'"):
        _ = PROBE.y
