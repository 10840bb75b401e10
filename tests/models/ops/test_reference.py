"""The references of the two ops: eager's bits, the strides that all ways share, refusals."""

import jitd
import pytest
import torch
from jitd.jit.tensors import spec_of
from jitd.models.ops.group_norm import group_norm_add_silu, group_norm_silu
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import (
    ADD,
    DTYPES,
    FUNCTIONS,
    LAYOUTS,
    SHAPES,
    SILU,
    arguments,
    call_of,
    eager,
    fits,
    laid_out,
    name_of,
    on_meta,
    randn,
)

OPS = pytest.mark.parametrize("op", [SILU, ADD], ids=lambda op: op.name)
X = torch.ones(2, 8, 4)
W = torch.ones(8)


@OPS
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_bits_are_eagers(op, shape, groups, dtype):
    """On the CPU the ops are eager's modules bit for bit, from two dimensions to five."""
    args = arguments(op, shape, groups, dtype=dtype)
    assert torch.equal(FUNCTIONS[op.name](*args), eager(op, args))
    assert jitd.stats() == {"reference:cpu": 1}


@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("residual", [*LAYOUTS, "expanded"])
def test_bits_are_eagers_for_any_residual(residual, dtype, x):
    """A residual may lie in memory in any way: contiguous, by frames, by channels, a slice, one
    value for all positions."""
    args = arguments(ADD, (2, 12, 3, 2, 5), 3, x=x, residual=residual, dtype=dtype)
    assert torch.equal(group_norm_add_silu(*args), eager(ADD, args))


@OPS
@pytest.mark.parametrize("x", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_the_result_is_channels_last_or_contiguous(op, shape, groups, x):
    """channels_last stays, and anything else becomes contiguous, whatever the residual's layout."""
    if not fits(x, shape):
        return
    args = arguments(op, shape, groups, x=x, residual="reversed")
    out = FUNCTIONS[op.name](*args)
    stays = x == "channels_last" and not args[0].is_contiguous()
    assert laid_out(out) == laid_out(LAYOUTS[x if stays else "contiguous"](args[0]))
    # Not bit by bit: aten's silu on the CPU depends in the last bit on where a vector begins.
    torch.testing.assert_close(out, eager(op, args), rtol=1e-6, atol=1e-6)


# Every layout of x, with other layouts of the residual beside it.
WAYS = [
    *((x, "contiguous") for x in LAYOUTS),
    ("contiguous", "frame_major"),
    ("channels_last", "channels_last"),
    ("channels_last", "frame_major"),
    ("contiguous", "expanded"),
]


@OPS
@pytest.mark.parametrize(("x", "residual"), WAYS)
@pytest.mark.parametrize(
    "shape", [(2, 6, 7), (2, 6, 3, 5), (2, 6, 3, 2, 5), (1, 6, 1, 1, 1)], ids=str
)
def test_all_ways_give_the_same_strides(op, shape, x, residual):
    """Reference, meta, fake and torch's operator agree on shape, dtype and strides."""
    if not (fits(x, shape) and fits(residual, shape)):
        return
    function = FUNCTIONS[op.name]
    *tensors, groups = arguments(op, shape, 3, x=x, residual=residual, dtype=torch.bfloat16)
    want = laid_out(function(*tensors, groups))
    assert laid_out(function(*map(on_meta, tensors), groups)) == want
    assert laid_out(getattr(torch.ops.jitd, op.name)(*tensors, groups)) == want
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in tensors]
        assert laid_out(function(*fakes, groups)) == want


@OPS
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("x", "residual"), WAYS)
def test_compiled_code_gives_the_same_strides(op, x, residual, dynamic):
    """torch.compile, also with symbolic sizes, gives the reference's bits and strides."""
    torch.compiler.reset()
    function = FUNCTIONS[op.name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 6, 3, 2, 5), (2, 6, 4, 3, 7))[: 1 + dynamic]:
        args = arguments(op, shape, 3, x=x, residual=residual)
        with torch.no_grad():
            want, out = function(*args), compiled(*args)
        assert torch.equal(out, want)
        assert laid_out(out) == laid_out(want)


@OPS
@pytest.mark.parametrize("shape", [(0, 6), (2, 6, 0), (0, 6, 3, 2), (2, 6, 0, 3), (1, 6, 2, 0, 3)])
def test_nothing_in_nothing_out(op, shape):
    """A tensor without elements gives one of its shape, on the CPU, on meta and compiled."""
    torch.compiler.reset()
    *tensors, groups = arguments(op, shape, 3)
    function = FUNCTIONS[op.name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for out in (function(*tensors, groups), compiled(*tensors, groups)):
            assert out.shape == shape
            assert out.is_contiguous()
    assert function(*map(on_meta, tensors), groups).shape == shape
    jitd.configure(interpret=True)  # a stand-in for a GPU: kernels answer, where there is work
    function(*tensors, groups)
    assert jitd.stats()["reference:empty"] == 1


@OPS
def test_double_precision_is_the_references(op):
    """float64 is computed by the reference even where kernels answer, and counted."""
    jitd.configure(interpret=True)
    args = arguments(op, (2, 12, 3, 5), 4, dtype=torch.float64)
    assert torch.equal(FUNCTIONS[op.name](*args), eager(op, args))
    assert jitd.stats() == {"reference:unsupported": 1}


@OPS
def test_mode_off_is_the_references(op):
    """Mode off answers by the reference, and counts it."""
    jitd.configure(mode="off", interpret=True)
    args = arguments(op, (2, 12, 3, 5), 4)
    assert torch.equal(FUNCTIONS[op.name](*args), eager(op, args))
    assert jitd.stats() == {"reference:off": 1}


@OPS
def test_eps_is_added_to_the_variance(op):
    """eps is what eager makes of it, by position and by name."""
    args = arguments(op, (2, 12, 5), 4)
    args[0] *= 1e-3
    function = FUNCTIONS[op.name]
    assert torch.equal(function(*args, 1e-2), eager(op, args, 1e-2))
    assert torch.equal(function(*args, eps=1e-6), eager(op, args, 1e-6))
    assert not torch.equal(function(*args, 1e-2), function(*args, 1e-6))


REFUSED = {
    "one dimension": ((randn(8), W, W, 2), r"1 dimensions \(8,\); allowed are 2 to 5"),
    "six dimensions": ((randn(1, 8, 1, 1, 1, 1), W, W, 2), "6 dimensions .*; allowed are 2 to 5"),
    "groups": ((X, W, W, 3), r"8 channels \(x is \(2, 8, 4\)\) do not divide into groups=3"),
    "no groups": ((X, W, W, 0), "groups=0"),
    "negative groups": ((X, W, W, -2), "groups=-2"),
    "short weight": ((X, W[1:], W, 2), r"weight is \(7,\); allowed is \(8,\)"),
    "square bias": ((X, W, W[:, None], 2), r"bias is \(8, 1\); allowed is \(8,\)"),
    "dtype of weight": ((X, W.half(), W, 2), "weight is fp16, x fp32; make them equal"),
    "dtype of bias": ((X.bfloat16(), W.bfloat16(), W, 2), "bias is fp32, x bf16; make them equal"),
    "integers": ((X.int(), W.int(), W.int(), 2), "x is i32; allowed are bf16, fp16, fp32, fp64"),
    "devices": ((X, W.to("meta"), W, 2), "tensors are on cpu, meta; allowed is one device"),
    "no weight": ((X, None, W, 2), "weight is a NoneType; allowed is a Tensor"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(case, device):
    """What makes no sense raises ValueError that says what was given and what is allowed, when it
    is recorded as when it is run."""
    args, says = REFUSED[case]
    if device == "meta" and case != "devices":
        args = [on_meta(a) if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(ValueError, match=says):
        group_norm_silu(*args)
    x, *rest = args
    with pytest.raises(ValueError, match=says):
        group_norm_add_silu(x, x, *rest)
    assert jitd.stats() == {}


@pytest.mark.parametrize(
    ("residual", "says"),
    [
        (X[:, :, 1:], r"residual is fp32 \(2, 8, 3\); allowed is x's fp32 \(2, 8, 4\)"),
        (X[0], r"residual is fp32 \(8, 4\); allowed is x's fp32 \(2, 8, 4\)"),
        (X.half(), r"residual is fp16 \(2, 8, 4\); allowed is x's fp32 \(2, 8, 4\)"),
        (X.to("meta"), "tensors are on cpu, meta"),
        (1.0, "residual is a float; allowed is a Tensor"),
    ],
)
def test_wrong_residuals_are_refused(residual, says):
    """A residual of another shape (none is broadcast), dtype or device raises ValueError."""
    with pytest.raises(ValueError, match=says):
        group_norm_add_silu(X, residual, W, W, 2)


@OPS
def test_numerics_is_one_of_two_words(op):
    """Another word for the numerics is refused with those there are."""
    args = arguments(op, (2, 12, 5), 4)
    function = FUNCTIONS[op.name]
    with pytest.raises(ValueError, match=r"numerics='precise'; allowed are \('exact', 'fast'\)"):
        function(*args, numerics="precise")
    assert torch.equal(function(*args, numerics="fast"), function(*args, numerics="exact"))


@OPS
@pytest.mark.parametrize("x", LAYOUTS)
def test_outputs_are_what_the_reference_returns(op, x):
    """The spec of the result, by which plans and meta tensors are made, is that of the tensor."""
    args = arguments(op, (2, 12, 3, 2, 5), 4, x=x)
    [spec] = op.outputs(call_of(op, args)).values()
    assert spec == spec_of(FUNCTIONS[op.name](*args))
