"""Calls of an op on a machine without a GPU: who answers, with what strides, counted how."""

import threading

import jitd
import pytest
import torch
from jitd.jit.dispatch import MAX_ENTRIES, _dispatchers
from outside.ops import scale
from probes.ops import probe_norm
from torch._subclasses.fake_tensor import FakeTensorMode

WEIGHT = torch.ones(8)


def test_the_cpu_is_answered_by_the_reference():
    """On the CPU an op is its reference, bit for bit, and each answer is counted."""
    x = torch.randn(3, 5, dtype=torch.bfloat16)
    for _ in range(3):
        assert torch.equal(scale(x, 3.0), (x.float() * 3.0).bfloat16())
    assert jitd.stats() == {"reference:cpu": 3}


def test_each_cause_is_counted_by_its_name():
    """Gradients, autocast, mode off, and calls that no variant can compute have their own count."""
    x = torch.randn(4)
    scale(x.clone().requires_grad_())
    assert jitd.stats() == {"reference:grad": 1}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scale(x)
    assert jitd.stats()["reference:autocast"] == 1
    jitd.configure(mode="off")
    scale(x)
    assert jitd.stats()["reference:off"] == 1
    jitd.configure(mode="tune", interpret=True)
    scale(x.double())
    scale(torch.empty(0))
    assert jitd.stats() == {
        "reference:autocast": 1, "reference:empty": 1, "reference:grad": 1, "reference:off": 1,
        "reference:unsupported": 1,
    }  # fmt: skip


def test_no_grad_is_no_cause():
    """A parameter under no_grad is a tensor like any other."""
    x = torch.randn(4, requires_grad=True)
    with torch.no_grad():
        scale(x)
    assert jitd.stats() == {"reference:cpu": 1}


def test_gradients_are_the_references():
    """With grad enabled the reference runs, and autograd goes through it."""
    x = torch.randn(4, requires_grad=True)
    scale(x, 3.0).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 3.0))


def test_a_new_mode_is_obeyed_at_once():
    """`configure` empties the tables: a call seen before is decided anew."""
    x = torch.randn(4)
    scale(x)
    jitd.configure(mode="off")
    scale(x)
    assert jitd.stats() == {"reference:cpu": 1, "reference:off": 1}


def test_scalars_are_part_of_what_is_remembered():
    """A remembered answer is never given to a call with another scalar, dtype, shape or layout."""
    x = torch.randn(4, 6)
    for factor in (2.0, 3.0, 2.0):
        for tensor in (x, x.t(), x.bfloat16(), x[:, 1:], x[1:]):
            expected = (tensor.float() * factor).to(tensor.dtype)
            assert torch.equal(scale(tensor, factor), expected)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("text",), "x is a str; allowed is a Tensor"),
        ((None,), "x is a NoneType; allowed is a Tensor"),
        (([1.0],), "x is a list"),
    ],
)
def test_what_is_no_tensor_is_refused(args, says):
    """Anything but a tensor raises ValueError with what was given and what is allowed."""
    with pytest.raises(ValueError, match=says):
        scale(*args)


def test_wrong_calls_are_refused():
    """Shapes that the op cannot have and tensors of two devices raise ValueError; None only where
    it is allowed."""
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="8 channels; allowed are multiples of 3"):
        probe_norm(x, WEIGHT, None, 3)
    with pytest.raises(ValueError, match="tensors are on cpu, meta; allowed is one device"):
        probe_norm(x, WEIGHT.to("meta"), None, 2)
    with pytest.raises(ValueError, match="bias is a int; allowed is a Tensor or None"):
        probe_norm(x, WEIGHT, 1, 2)
    with pytest.raises(ValueError, match="weight is a NoneType"):
        probe_norm(x, None, None, 2)
    with pytest.raises(TypeError):
        probe_norm(x, WEIGHT, None, 2, 1e-5, "exact")  # numerics is keyword-only
    assert jitd.stats() == {}


def test_arguments_may_be_named():
    """An op is called like its reference: positions, names and defaults."""
    x = torch.randn(2, 8)
    expected = torch.nn.functional.group_norm(x, 2, WEIGHT, WEIGHT)
    for out in (
        probe_norm(x, WEIGHT, WEIGHT, 2),
        probe_norm(x, bias=WEIGHT, weight=WEIGHT, groups=2, numerics="fast"),
        probe_norm(groups=2, eps=1e-5, x=x, weight=WEIGHT, bias=WEIGHT),
    ):
        assert torch.equal(out, expected)
    assert probe_norm.__name__ == "probe_norm" and "Group norm" in probe_norm.__doc__


TENSORS = {
    "plain": lambda: torch.randn(2, 8, 3, 5),
    "channels_last": lambda: torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(5, 3, 8, 2).permute(3, 2, 1, 0),
    "ones": lambda: torch.randn(1, 8, 1, 1),
    "3d": lambda: torch.randn(1, 8, 2, 3, 4).to(memory_format=torch.channels_last_3d),
    "half": lambda: torch.randn(2, 8, 3, 5).half(),
    "empty": lambda: torch.randn(2, 8, 0, 5),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_all_ways_give_the_same_strides(kind):
    """Reference, meta and fake tensors agree on shape, dtype and strides: compiled code asserts."""
    x = TENSORS[kind]()
    want = scale(x)
    for out in (scale(x.to("meta")), torch.ops.jitd.outside_scale(x)):
        assert (out.shape, out.dtype, out.stride()) == (want.shape, want.dtype, want.stride())
    with FakeTensorMode() as mode:
        fake = scale(mode.from_tensor(x))
    assert (fake.shape, fake.dtype, fake.stride()) == (want.shape, want.dtype, want.stride())
    weight = torch.ones(8, dtype=x.dtype)
    want = probe_norm(x, weight, None, 2)
    out = probe_norm(x.to("meta"), weight.to("meta"), None, 2)
    assert (out.shape, out.dtype, out.stride()) == (want.shape, want.dtype, want.stride())


def test_meta_takes_no_memory_and_counts_nothing():
    """A call on the meta device computes nothing and is no answer by the reference."""
    out = scale(torch.empty(1 << 40, device="meta"))
    assert out.is_meta and jitd.stats() == {}


@pytest.mark.parametrize("function", [scale, torch.ops.jitd.outside_scale], ids=["op", "torch"])
def test_meta_is_not_taken_for_the_cpu(function):
    """What was remembered of a tensor of the CPU answers none of that shape on meta."""
    x = torch.randn(8)
    function(x, 3.0)
    assert function(x.to("meta"), 3.0).is_meta
    assert jitd.stats() == {"reference:cpu": 1}


class Tagged(torch.Tensor):
    """A subclass with its own idea of every operator."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_and_modes_go_through_torch():
    """A tensor subclass meets the op as an operator of torch, never by its data pointer."""
    Tagged.seen.clear()
    out = scale(torch.randn(4).as_subclass(Tagged))
    assert type(out) is Tagged
    assert any("outside_scale" in name for name in Tagged.seen)


def test_the_operator_ends_where_it_is_called(monkeypatch):
    """While torch compiles (and folds constants with real tensors) the operator still answers."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    assert torch.equal(torch.ops.jitd.outside_scale(torch.ones(4), 3.0), torch.full((4,), 3.0))
    assert torch.equal(scale(torch.ones(4), 3.0), torch.full((4,), 3.0))


def test_a_parameter_is_plain():
    """nn.Parameter counts as a tensor, with facts of its own."""
    x = torch.nn.Parameter(torch.randn(4))
    with torch.no_grad():
        assert type(scale(x)) is torch.Tensor


def test_vmap_and_func_transforms_are_right():
    """Under vmap and grad transforms the answers are the reference's."""
    x = torch.randn(3, 4)
    slope = torch.func.grad(lambda one: scale(one, 3.0).sum())(x[0])
    assert torch.equal(slope, torch.full((4,), 3.0))


def test_many_shapes_do_not_fill_the_memory():
    """The table of an op starts anew before it has more than its bound."""
    dispatcher = _dispatchers["outside_scale"]
    dispatcher.table.update({i: scale for i in range(MAX_ENTRIES)})
    scale(torch.randn(4))
    assert len(dispatcher.table) == 1


def test_threads_get_right_answers():
    """Calls from several threads, of several shapes, while tables are emptied, stay right."""
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for i in range(200):
            x = torch.randn(1 + i % 7, generator=generator)
            if not torch.equal(scale(x, float(seed)), x * float(seed)):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        jitd.configure(mode="tune")
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_fork_answers_too():
    """A forked child forgets its parent's tables and answers by itself."""
    import os  # noqa: PLC0415

    x = torch.ones(4)
    scale(x)
    child = os.fork()
    if child == 0:
        right = not _dispatchers["outside_scale"].table and scale(x).tolist() == [2.0] * 4
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
