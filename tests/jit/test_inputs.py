"""Inputs of a check: what each kind is like, and the guard zones that all of them lie in."""

import jitd
import pytest
import torch
from jitd.autotune.verify import check, expect
from jitd.jit.inputs import make_inputs, sample_kinds
from jitd.jit.sign import Call, TensorSpec
from jitd.jit.tensors import DTYPES, GUARD_ELEMENTS, guarded, random, random_below, spec_of
from outside.ops import ELEMENTWISE
from torch import Tensor
from wrong.ops import NORM, norm_call

KINDS = ("normal", "shifted", "huge", "tiny", "special")
FLOATS = ("fp32", "bf16", "fp16")

SPECS = {
    "contiguous": TensorSpec("fp32", (4, 5, 6)),
    "permuted": TensorSpec.with_layout("bf16", (2, 3, 4, 5), "channels_last"),
    "holes": TensorSpec("fp16", (4, 5), (8, 1)),
    "holes everywhere": TensorSpec("bf16", (3, 4), (16, 3)),
    "unaligned": TensorSpec("bf16", (7, 9), aligned=False),
    "expanded": TensorSpec("fp32", (3, 4, 5), (0, 1, 0)),
    "expanded holes": TensorSpec("fp32", (3, 4, 5), (0, 8, 1)),
    "overlapping": TensorSpec("fp32", (6, 3), (1, 1)),
    "one element": TensorSpec("fp64", ()),
    "nothing": TensorSpec("fp32", (3, 0)),
}
BY_LAYOUT = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def memory_of(tensor):
    """All of the memory that a tensor lies in, in its dtype, and which elements are its own."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    own = torch.zeros(whole.shape, dtype=torch.bool)
    own.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return whole, own


def inputs(kind, rows=40, n=256, dtype="fp32", seed=0):
    return make_inputs(NORM, norm_call(rows, n, dtype), "cpu", seeded(seed), kind)


# Guard zones ---------------------------------------------------------------------------------


@BY_LAYOUT
def test_tensors_have_the_facts_of_their_spec(spec):
    """Shape, strides, dtype and alignment are those that a binary was compiled for."""
    assert spec_of(random(spec, "cpu", seeded())) == spec


@BY_LAYOUT
def test_what_lies_beside_a_tensor_is_nan(spec):
    """Nothing but the tensor's own elements is a number, over some thousand on either side."""
    tensor = random(spec, "cpu", seeded())
    whole, own = memory_of(tensor)
    assert not whole[own].isnan().any()
    beside = whole[:GUARD_ELEMENTS].isnan().all(), whole[-GUARD_ELEMENTS:].isnan().all()
    assert all(beside)
    assert not own[:GUARD_ELEMENTS].any() and not own[-GUARD_ELEMENTS:].any()


@pytest.mark.parametrize("name", ["holes", "holes everywhere", "expanded holes"])
def test_holes_are_nan(name):
    """Between the elements of a strided tensor there is no number either."""
    whole, own = memory_of(random(SPECS[name], "cpu", seeded()))
    assert whole[~own].isnan().all()


def test_the_guards_cost_little():
    """However small or large a tensor is, they take the same few hundred kilobytes."""
    for rows in (1, 1000):
        tensor = random(TensorSpec("fp32", (rows, 1024)), "cpu", seeded())
        added = tensor.untyped_storage().nbytes() - 4 * tensor.numel()
        assert added == 2 * GUARD_ELEMENTS * 4 <= 1 << 18


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_has_guards(dtype):
    """NaN where there is one, else the largest number; of the dtype and aligned as a tensor is."""
    tensor = guarded(TensorSpec(dtype, (3,)), "cpu")
    whole, _ = memory_of(tensor)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        assert whole.to(torch.complex128).isnan().all()
    else:
        most = 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
        assert whole.eq(most).all()
    assert (GUARD_ELEMENTS * tensor.element_size()) % 512 == 0


def test_random_integers_are_not_made_up():
    """What an index may be is the op's to say; a number that is none would crash its reference."""
    with pytest.raises(ValueError, match="random values of i32 are not defined"):
        random(TensorSpec("i32", (4,)), "cpu", seeded())


class ReadsOn:
    """x + 0 * the element behind x, which nobody would notice elsewhere."""

    def into(self, inputs, outputs):
        (x, _), (out,) = inputs, outputs
        behind = x.as_strided((1,), (1,), x.storage_offset() + x.numel())
        out.copy_(x + 0 * behind)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_past_the_end_is_refused(kind):
    """With any kind of inputs a runnable that uses what lies behind them yields NaN."""

    def make(generator):
        return make_inputs(NORM, norm_call(4, 8), "cpu", generator, kind)

    expected = expect(lambda x, w: x.clone(), lambda x, w: x.double(), make, generator=seeded())
    assert "NaN or Inf differ" in check(ReadsOn(), expected).reason


@pytest.mark.parametrize("layout", ["holes", "permuted", "expanded", "unaligned"])
def test_writing_to_a_guarded_input_is_seen(layout):
    """The sum of their bits is taken of inputs in any layout, and undoing gives the same bits."""
    call = norm_call(1, 1).replace(x=SPECS[layout])

    class Writes:
        def into(self, inputs, outputs):
            outputs[0].copy_(inputs[0])
            first = inputs[0].as_strided((1,), (1,))
            first.copy_(first + 1.0)

    expected = expect(
        lambda x, w: x.contiguous().clone(),
        lambda x, w: x.contiguous().double(),
        lambda generator: make_inputs(NORM, call, "cpu", generator, "normal"),
        generator=seeded(),
    )
    before = expected.inputs[0].clone()
    assert "an input was written to" in check(Writes(), expected).reason
    assert torch.equal(expected.inputs[0], before)


# Integers ------------------------------------------------------------------------------------

INTEGERS = ("u8", "i8", "i16", "i32", "i64")


@BY_LAYOUT
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_drawn_in_range_between_guards(spec, dtype):
    """All of 0 to limit - 1 and nothing else, in any layout; beside them and in their holes the
    largest number, which no table has a row for."""
    spec = spec.like(dtype=dtype, strides=spec.strides)
    tensor = random_below(5, spec, "cpu", seeded())
    assert spec_of(tensor) == spec
    whole, own = memory_of(tensor)
    assert whole[~own].eq(torch.iinfo(tensor.dtype).max).all()
    assert ((whole[own] >= 0) & (whole[own] < 5)).all()
    if own.sum() > 40:
        assert whole[own].unique().tolist() == [0, 1, 2, 3, 4]


def taking_rows(**rules):
    """An op that takes rows of a table by an index."""

    def probe_rows(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return x + table[index.long()]

    return jitd.op(
        variants=[ELEMENTWISE],
        outputs=lambda call: {"out": call.x},
        cost=lambda call: jitd.Cost(bytes=1),
        **rules,
    )(probe_rows).op


ROWS_CALL = Call(
    {
        "x": TensorSpec("fp32", (64, 8)),
        "table": TensorSpec("fp32", (3, 8)),
        "index": TensorSpec("i32", (64,)),
    }
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_names_rows_that_there_are(kind):
    """Below what the op says of the call; every row is named, and the generator decides."""
    op = taking_rows(below={"index": lambda call: call.table.shape[0]})
    first, again = (make_inputs(op, ROWS_CALL, "cpu", seeded(), kind) for _ in range(2))
    assert first[2].unique().tolist() == [0, 1, 2]
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[2], make_inputs(op, ROWS_CALL, "cpu", seeded(1), kind)[2])
    assert op.reference(*first).shape == (64, 8)


def test_an_integer_without_a_rule_is_refused():
    """Nobody knows what an index may be unless the op says so."""
    with pytest.raises(ValueError, match="random values of i32 are not defined"):
        make_inputs(taking_rows(), ROWS_CALL, "cpu", seeded(), "normal")


# Kinds ---------------------------------------------------------------------------------------


def test_normal_comes_first():
    """Timing and probes use the first kind: the plain one."""
    assert sample_kinds(NORM, norm_call(4, 8)) == KINDS


@pytest.mark.parametrize(
    ("log2", "kinds"),
    [
        (27, KINDS),
        (28, ("normal", "shifted", "special")),
        (30, ("normal", "shifted", "special")),
        (31, ("normal",)),
    ],
)
def test_large_calls_have_fewer_kinds(log2, kinds):
    """Memory and time: those go first that do not depend on the number of elements."""
    assert sample_kinds(NORM, norm_call(1 << (log2 - 10), 1 << 10)) == kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_generator_decides(kind, dtype):
    """The same state gives the same bits, so that processes agree and inputs can be made again;
    as it goes on, others."""

    def bits(seed):
        return [t.nan_to_num(7.0).tolist() for t in inputs(kind, dtype=dtype, seed=seed)]

    assert bits(0) == bits(0)
    assert bits(0) != bits(1)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_only_the_first_tensor_is_unusual(kind):
    """A weight is what a weight usually is."""
    _, weight = inputs(kind, n=4096)
    assert abs(float(weight.mean())) < 0.1 and abs(float(weight.std()) - 1) < 0.1


@pytest.mark.parametrize("dtype", FLOATS)
def test_shifted_inputs_have_a_large_mean(dtype):
    """64 standard deviations, and still a deviation to be found."""
    x = inputs("shifted", dtype=dtype)[0].double()
    assert abs(float(x.mean()) - 64) < 0.1 and abs(float(x.std()) - 1) < 0.1


@pytest.mark.parametrize("dtype", FLOATS)
def test_huge_inputs_overflow_in_what_is_too_narrow_only(dtype):
    """They are finite; their squares are infinite in fp16, and finite in fp32 however many are
    summed."""
    x = inputs("huge", dtype=dtype)[0]
    assert x.isfinite().all()
    assert x.half().square().isinf().float().mean() > 0.7
    squares = x.float().square()
    assert squares.isfinite().all()
    assert float(squares.max()) * 2**40 < torch.finfo(torch.float32).max


@pytest.mark.parametrize("dtype", FLOATS)
def test_eps_decides_for_tiny_inputs(dtype):
    """Their variance is far below the usual eps, and no digit of it is lost."""
    x = inputs("tiny", dtype=dtype)[0].double()
    assert 5e-8 < float(x.var()) < 7e-8
    subnormal = (x.abs() < torch.finfo(DTYPES[dtype]).smallest_normal).double().mean()
    assert 0.1 < subnormal < 0.3 if dtype == "fp16" else subnormal == 0


@pytest.mark.parametrize("rows", [3, 4, 32])
def test_special_values_lie_in_different_rows(rows):
    """One NaN, one Inf and one -Inf, wherever the generator puts them: an Inf does not hide what
    becomes of the NaN, and all other rows are finite."""
    places = set()
    for seed in range(20):
        x = inputs("special", rows=rows, n=64, seed=seed)[0]
        assert [int(x.isnan().sum()), int(x.isposinf().sum()), int(x.isneginf().sum())] == [1, 1, 1]
        assert int((~x.isfinite()).any(-1).sum()) == 3
        places.add(int(x.isnan().flatten().long().argmax()))
    assert len(places) > 10


@pytest.mark.parametrize("layout", SPECS)
def test_special_values_fit_into_any_layout(layout):
    """Strides, holes, one element and none are no obstacle."""
    call = Call({"x": SPECS[layout], "w": TensorSpec("fp32", (2,)), "eps": 1e-5})
    x = make_inputs(NORM, call, "cpu", seeded(), "special")[0]
    assert spec_of(x) == SPECS[layout]
    assert not x.numel() or not x.isfinite().all()


def test_an_unknown_kind_is_refused():
    """By its name."""
    with pytest.raises(ValueError, match="'enormous'"):
        inputs("enormous")
