"""The references of the rotary ops: formulas, rounding points, neighbours' functions, refusals."""

import jitd
import pytest
import torch
from jitd.jit.tensors import spec_of
from jitd.models.ops.rotary import (
    apply_ltx2_split_rotary_emb,
    apply_split_rotary_emb,
    qk_norm_rotary,
    split_rotary,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import DTYPES, laid_out, name_of, on_meta, randn
from .rotary_cases import (
    KINDS,
    QK,
    ROWS,
    SPLIT,
    TABLES,
    call_of,
    double,
    qk_arguments,
    tables,
    turned_arguments,
)

FUNCTIONS = {SPLIT.name: split_rotary, QK.name: qk_norm_rotary}
OPS = pytest.mark.parametrize("op", [SPLIT, QK], ids=lambda op: op.name)
BY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


def arguments(op, shape=(2, 5, 16), half=4, **how):
    return (turned_arguments if op is SPLIT else qk_arguments)(shape, half, **how)


def several(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def by_head(x, cos, sin, first):
    """The formula, head by head, its fused step in float64; `first` rounds the first product."""
    out = torch.empty_like(x)
    heads, half = x.shape[2] // (2 * cos.shape[3]), cos.shape[3]
    cos, sin = (table.expand(x.shape[0], heads, -1, -1) for table in (cos, sin))
    for head in range(heads):
        at = slice(2 * half * head, 2 * half * (head + 1))
        a, b = x[:, :, at].double().split(half, -1)
        c, s = cos[:, head].double(), sin[:, head].double()
        turned = first(a * c) - s * b, first(b * c) + s * a
        # Rounded through fp32, as eager's arithmetic is; twice as fine as R needs, then R.
        out[:, :, at] = torch.cat(turned, -1).float().to(x.dtype)
    return out


@pytest.mark.parametrize("layout", TABLES)
@BY_DTYPE
def test_fp32_tables_round_once(dtype, layout):
    """With fp32 tables the result is R(fma(-sin, b, a * cos)) in fp32, whatever their strides."""
    x, cos, sin = turned_arguments((2, 5, 24), 4, dtype=dtype, layout=layout)
    want = by_head(x, cos, sin, lambda product: product.float().double())
    assert torch.equal(split_rotary(x, cos, sin), want)


@pytest.mark.parametrize("layout", TABLES)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name_of)
def test_tables_of_its_dtype_round_the_first_product(dtype, layout):
    """With tables of x's dtype the first product is rounded to it, and the sum once more."""
    x, cos, sin = turned_arguments((2, 5, 24), 4, dtype=dtype, table=dtype, layout=layout)
    want = by_head(x, cos, sin, lambda product: product.to(dtype).double())
    assert torch.equal(split_rotary(x, cos, sin), want)
    assert not torch.equal(split_rotary(x, cos.float(), sin.float()), want)


@BY_DTYPE
@pytest.mark.parametrize("width", [24, 4096])
def test_the_norm_is_torchs(dtype, width):
    """Without tables the op is torch.nn.RMSNorm bit for bit, which is R(x * rstd * w)."""
    norms = [nn.RMSNorm(width, eps=1e-6, dtype=dtype) for _ in range(2)]
    for seed, norm in enumerate(norms):
        norm.weight.data = randn(width, seed=seed, dtype=dtype)
    q, k = (randn(2, count, width, seed=count, dtype=dtype) for count in (5, 3))
    outputs = qk_norm_rotary(q, k, norms[0].weight, norms[1].weight)
    for norm, x, out in zip(norms, (q, k), outputs, strict=True):
        assert torch.equal(out, norm(x))
        wide = x.float()
        rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        assert torch.equal(out, (wide * rstd * norm.weight.float()).to(dtype))


@BY_DTYPE
@pytest.mark.parametrize("kind", KINDS)
def test_normalised_then_turned(dtype, kind):
    """The op is torch.nn.RMSNorm, rounded, and then split_rotary, for whichever has tables."""
    q, k, wq, wk, *angles = qk_arguments((2, 5, 24), 4, kind=kind, dtype=dtype, weights=dtype)
    outputs = qk_norm_rotary(q, k, wq, wk, *angles, 1e-5)
    for x, w, own, out in zip((q, k), (wq, wk), (angles[:2], angles[2:]), outputs, strict=True):
        want = nn.functional.rms_norm(x, x.shape[-1:], w, 1e-5)
        assert torch.equal(out, want if own[0] is None else split_rotary(want, *own))


def test_weights_of_another_dtype_are_rounded_once():
    """A weight of fp32 beside bf16 queries enters before the one rounding of the norm."""
    q, k, wq, wk, *_ = qk_arguments((2, 5, 24), 4, kind="none", dtype=torch.bfloat16)
    out, _ = qk_norm_rotary(q, k, wq, wk)
    wide = q.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(out, (wide * rstd * wq).bfloat16())


@OPS
@BY_DTYPE
def test_float64_gives_the_truth(op, dtype):
    """Fed with float64 the reference computes in it, and eager is a few roundings away."""
    args = arguments(op, dtype=dtype)
    for out, truth in zip(
        several(op.reference(*args)), several(op.reference(*double(args))), strict=True
    ):
        assert truth.dtype == torch.float64
        torch.testing.assert_close(out.double(), truth, rtol=0, atol=8 * torch.finfo(dtype).eps)


# -- neighbours' functions --------------------------------------------------------------------


@pytest.mark.diffusers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("layout", ["by token", "by head", "one angle"])
def test_diffusers_rotary_bit_for_bit(dtype, layout):
    """`apply_split_rotary_emb` is diffusers' function: rows of heads, heads apart (contiguous or as
    a view of rows), and one head without a dimension of its own."""
    module = pytest.importorskip("diffusers.models.transformers.transformer_ltx2")
    theirs = module.apply_split_rotary_emb
    x, cos, sin = turned_arguments((2, 7, 24), 4, dtype=dtype, layout=layout)
    spread = cos.expand(2, 3, 7, 4), sin.expand(2, 3, 7, 4)  # theirs takes the heads off the tables
    assert torch.equal(apply_split_rotary_emb(x, (cos, sin)), theirs(x, spread))
    apart = x.unflatten(2, (3, 8)).transpose(1, 2)
    for heads in (apart, apart.contiguous()):
        assert torch.equal(apply_split_rotary_emb(heads, (cos, sin)), theirs(heads, (cos, sin)))
    one, single = x[..., :8], (cos[:, 0], sin[:, 0])
    assert torch.equal(apply_split_rotary_emb(one, single), theirs(one, single))


@BY_DTYPE
def test_the_name_that_sglang_uses(dtype):
    """`apply_ltx2_split_rotary_emb` is split_rotary with tables of x's dtype."""
    args = turned_arguments((2, 5, 24), 4, dtype=dtype, table=dtype)
    assert torch.equal(apply_ltx2_split_rotary_emb(*args), split_rotary(*args))


def test_other_dimensions_are_refused():
    """What `apply_split_rotary_emb` cannot route raises ValueError that says what it can."""
    cos, sin = tables(2, 3, 5, 4)
    with pytest.raises(ValueError, match=r"\(24,\), the tables \(2, 3, 5, 4\); allowed"):
        apply_split_rotary_emb(torch.ones(24), (cos, sin))
    for x in (torch.ones(2, 3, 5, 7), torch.ones(2, 5, 21)):
        with pytest.raises(ValueError, match=f"x has {x.shape[-1]} channels: an odd head dim"):
            apply_split_rotary_emb(x, (cos, sin))


# -- all ways of calling ----------------------------------------------------------------------


@OPS
@pytest.mark.parametrize("x", ROWS)
@pytest.mark.parametrize("layout", ["by token", "one angle", "every other"])
def test_all_ways_give_contiguous_memory(op, x, layout):
    """Reference, meta, fake, torch's operator and the specs of the results agree on shape, dtype
    and strides, which are contiguous, in whatever strides the arguments come."""
    function = FUNCTIONS[op.name]
    args = arguments(op, x=x, layout=layout, dtype=torch.bfloat16)
    outputs = several(function(*args))
    assert all(out.is_contiguous() and out.dtype == torch.bfloat16 for out in outputs)
    want = [laid_out(out) for out in outputs]
    metas = [a if a is None else on_meta(a) for a in args]
    with FakeTensorMode() as mode:
        fakes = [a if a is None else mode.from_tensor(a) for a in args]
        assert [laid_out(out) for out in several(function(*fakes))] == want
    for made in (function(*metas), getattr(torch.ops.jitd, op.name)(*args)):
        assert [laid_out(out) for out in several(made)] == want
    assert list(op.outputs(call_of(op, args)).values()) == [spec_of(out) for out in outputs]


@OPS
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_gives_the_same_bits(op, dynamic):
    """torch.compile, also with symbolic sizes, gives the reference's bits and strides."""
    torch.compiler.reset()
    function = FUNCTIONS[op.name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 5, 16), (2, 7, 16))[: 1 + dynamic]:
        args = arguments(op, shape)
        with torch.no_grad():
            for out, want in zip(several(compiled(*args)), several(function(*args)), strict=True):
                assert torch.equal(out, want)
                assert laid_out(out) == laid_out(want)


@OPS
def test_gradients_are_those_of_the_formula(op):
    """The reference is differentiable: its gradients are those of finite differences."""
    args = [a.requires_grad_() for a in double(arguments(op, (1, 2, 8), 2)) if a is not None]
    assert torch.autograd.gradcheck(FUNCTIONS[op.name], args)


@OPS
@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16)])
def test_nothing_in_nothing_out(op, shape):
    """Without samples or tokens there is nothing to turn."""
    jitd.configure(interpret=True)  # a stand-in for a GPU: kernels answer, where there is work
    outputs = several(FUNCTIONS[op.name](*arguments(op, shape)))
    assert [out.shape for out in outputs] == [shape] * len(outputs)
    assert jitd.stats() == {"reference:empty": 1}


@OPS
def test_double_precision_is_the_references(op):
    """float64 is computed by the reference even where kernels answer, and counted."""
    jitd.configure(interpret=True)
    args = double(arguments(op))
    for out, want in zip(
        several(FUNCTIONS[op.name](*args)), several(op.reference(*args)), strict=True
    ):
        assert torch.equal(out, want)
    assert jitd.stats() == {"reference:unsupported": 1}


# -- refusals ---------------------------------------------------------------------------------

X = torch.ones(2, 5, 24)
COS = torch.ones(2, 3, 5, 4)
SPLIT_REFUSED = {
    "two dimensions": ((X[0], COS, COS), r"NAME is \(5, 24\); allowed is \(B, T, H\*2R\)"),
    "integers": ((X.int(), COS, COS), "NAME is i32; allowed are bf16, fp16, fp32, fp64"),
    "three-dimensional tables": (
        (X, COS[0], COS[0]),
        r"are \(3, 5, 4\); allowed is \(B, H, T, R\)",
    ),
    "cos and sin differ": ((X, COS, COS[:1]), r"\(2, 3, 5, 4\) and fp32 \(1, 3, 5, 4\); make them"),
    "cos and sin of two dtypes": ((X, COS, COS.half()), "are fp32 .* and fp16 .*; make them equal"),
    "tables of another dtype": ((X, COS.half(), COS.half()), "are fp16; allowed are fp32"),
    "wide tables": ((X.half(), COS.double(), COS.double()), "fp64; allowed are fp16 and fp32"),
    "tokens": ((X, COS[:, :, 1:], COS[:, :, 1:]), "of 4 tokens; NAME has 5"),
    "heads": ((X, COS[:, 1:], COS[:, 1:]), r"of 2 heads; NAME has 3 heads of 2 x 4 channels"),
    "half a head": (
        (X, COS[..., 1:], COS[..., 1:]),
        "of 3 heads; NAME has 4 heads of 2 x 3 channels",
    ),
    "a batch that does not divide": (
        (torch.ones(4, 5, 24), COS, COS),
        "a batch of 2 does not divide NAME's 4; allowed are 1 and 4",
    ),
    "odd channels": ((X[..., :23], COS, COS), r"23 channels.* of 2 x 4 .*: an odd head dim"),
    "an odd head dim": (
        (torch.ones(2, 5, 21), COS[..., :3], COS[..., :3]),
        "21 channels, the tables 3 heads: an odd head dim of 7; allowed are even ones",
    ),
    "an odd head dim of even channels": (
        (torch.ones(2, 5, 20), torch.ones(2, 4, 5, 2), torch.ones(2, 4, 5, 2)),
        "20 channels, the tables 4 heads: an odd head dim of 5",
    ),
    "empty heads": ((X, COS[..., :0], COS[..., :0]), "R half a head"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", SPLIT_REFUSED)
def test_tables_that_do_not_fit_are_refused(case, device):
    """What makes no sense raises ValueError that names it, for split_rotary and, of the tables of
    q as of k, for qk_norm_rotary; when it is recorded as when it is run."""
    args, says = SPLIT_REFUSED[case]
    x, cos, sin = [on_meta(a) for a in args] if device == "meta" else args
    with pytest.raises(ValueError, match=says.replace("NAME", "x")):
        split_rotary(x, cos, sin)
    for given in ((cos, sin, None, None), (None, None, cos, sin)):
        with pytest.raises(ValueError, match=says.replace("NAME", "[qk]")):
            qk_norm_rotary(x, x, None, None, *given)
    assert jitd.stats() == {}


QK_REFUSED = {
    "half given": ((X, X, None, None, COS), "the tables of q are half given"),
    "sin without cos": ((X, X, None, None, None, None, None, COS), "tables of k are half given"),
    "widths": ((X, X[..., 8:], None, None), r"q is fp32 \(2, 5, 24\), k fp32 \(2, 5, 16\); only"),
    "batches": ((X, X[1:], None, None), "only their numbers of tokens may differ"),
    "dtypes": ((X, X.half(), None, None), "q is fp32 .*, k fp16"),
    "short weight": ((X, X, X[0, 0, 1:], None), r"wq is \(23,\); allowed is \(24,\)"),
    "integer weight": ((X, X, None, X[0, 0].int()), "wk is i32; allowed are bf16"),
    "heads of two sizes": (
        (X, X, None, None, COS, COS, *tables(2, 6, 5, 2)),
        "heads of other sizes; make them equal",
    ),
    "tables of k for q": (
        (X, X[:, 1:], None, None, COS[:, :, 1:], COS[:, :, 1:]),
        "of 4 tokens; q has 5",
    ),
}


@pytest.mark.parametrize("case", QK_REFUSED)
def test_queries_and_keys_that_do_not_fit_are_refused(case):
    """The same of q, k and their weights."""
    args, says = QK_REFUSED[case]
    with pytest.raises(ValueError, match=says):
        qk_norm_rotary(*args)


@OPS
def test_numerics_is_one_of_two_words(op):
    """Another word for the numerics is refused with those there are."""
    with pytest.raises(ValueError, match="numerics='precise'; allowed are exact, fast"):
        FUNCTIONS[op.name](*arguments(op), numerics="precise")
