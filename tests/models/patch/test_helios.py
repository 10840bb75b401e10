"""diffusers' Helios, patched, against itself: the same bits, on the CPU.

Every op answers by its reference here, which takes eager's steps one by one; so do the recipes.
"""

import jitd
import pytest
import torch
from jitd.models.patch import patch, unpatch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from ..helios.small import BASE, HISTORIES, VARIANTS, build, inputs, recorded
from . import tiny_helios

pytestmark = pytest.mark.diffusers
pytest.importorskip("diffusers")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PLAIN = [name for name in VARIANTS if "amplified" not in name]


def run(model, given):
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def assert_same(model, given, **how):
    """Hold a model to its bits and strides before it was patched, all of it by recipes."""
    wanted, before = run(model, given), {n: v.clone() for n, v in model.state_dict().items()}
    report = patch(model, **how)
    out = run(model, given)
    assert torch.equal(out, wanted)
    assert out.stride() == wanted.stride()
    assert report.left == ()  # nor was any left because it differed
    assert not report.declined
    assert all(site.calls for site in report.sites)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", HISTORIES)
def test_same_bits(dtype, history):
    """With and without history, in bf16 and fp16 with the parameters in fp32 that diffusers keeps
    so, results are stock's bit for bit; parameters stay as they are.
    """
    assert_same(tiny_helios.transformer(dtype=dtype), inputs(history, dtype=dtype))


@pytest.mark.parametrize("variant", PLAIN)
@pytest.mark.parametrize("history", ["none", "all"])
def test_same_bits_of_other_configs(variant, history):
    """One timestep for all, and a prompt for all: the same bits."""
    model = tiny_helios.transformer(variant, torch.bfloat16)
    assert_same(model, inputs(history, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("history", ["none", "all"])
def test_two_samples(dtype, history):
    """Two samples of different timesteps."""
    given = inputs(history, dtype=dtype, batch=2)
    for name in [name for name in given if name.startswith("indices")]:
        given[name] = given[name].expand(2, -1)  # stock makes a table for each sample
    assert_same(tiny_helios.transformer(dtype=dtype), given)


def test_without_indices_and_in_a_pyramid():
    """The chunk's frames are counted from 0 where nobody says when they are; and it may be smaller
    than the frames before it.
    """
    given = inputs("none")
    del given["indices_hidden_states"]
    assert_same(tiny_helios.transformer(), given)
    assert_same(tiny_helios.transformer(), inputs(pixels=(4, 6)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_in_16_bits(dtype):
    """Where the modulation tables are 16-bit, too, stock rounds 1 + scale of its last norm to
    them, and so does the recipe.
    """
    model = tiny_helios.transformer()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    assert_same(model, inputs(dtype=dtype))


@pytest.mark.parametrize("variant", ["amplified", "amplified alike"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_amplified_history(variant, dtype):
    """Keys of history scaled by head or all alike, with scales of the model's dtype."""
    model = tiny_helios.transformer(variant, dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("history_key_scale"):
            parameter.data = parameter.data.to(dtype)
    assert_same(model, inputs(dtype=dtype))


def test_amplified_history_in_fp32_beside_bf16():
    """Stock cannot attend with keys wider than queries; what a recipe is held to first raises."""
    model = tiny_helios.transformer("amplified", torch.bfloat16)
    given = inputs(dtype=torch.bfloat16)
    patch(model)
    with pytest.raises(RuntimeError, match="same dtype"):
        run(model, given)
    patch(model, verify="never")
    assert torch.isfinite(run(model, given)).all()


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_pipeline(pyramid, dtype):
    """Guided video, and a distilled model's in a pyramid: the same pixels, all by recipes."""
    pytest.importorskip("transformers")
    made, given = tiny_helios.pipeline(pyramid=pyramid, dtype=dtype)
    wanted = tiny_helios.generate(made, given)
    report = patch(made.transformer)
    video = tiny_helios.generate(made, given)
    assert torch.isfinite(wanted).all()
    assert torch.equal(video, wanted)
    assert report.left == ()
    assert not report.declined
    assert all(site.calls for site in report.sites)


# -- what is asked of the ops -----------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("history", ["none", "all"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_asks_for_what_our_own_transformer_does(variant, history, device):
    """The same signatures and counts, six of a block and one of the last norm, for real and on
    meta: what was warmed up for the one serves the other.
    """
    dtype = torch.bfloat16
    model, given = tiny_helios.transformer(variant, dtype, device), inputs(history, dtype=dtype)
    given = {name: value.to(device) for name, value in given.items()}
    patch(model, verify="never")
    found = recorded(model, given)
    assert found == recorded(build(variant, dtype=dtype, device=device), given)
    assert sum(found.values()) == 6 * BASE["num_layers"] + 1


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that anything makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_no_parameters_by_token():
    """A patched forward makes no tensor as large as six parameters of every token; stock does."""
    model, given = tiny_helios.transformer("base"), inputs()
    patch(model, verify="never")
    tokens, width = 134, BASE["num_attention_heads"] * BASE["attention_head_dim"]
    with Largest() as ours:
        run(model, given)
    unpatch(model)
    with Largest() as theirs:
        run(model, given)
    assert ours.elements < tokens * 6 * width <= theirs.elements


@pytest.mark.parametrize("way", ["group offloading", "accelerate"])
def test_no_parameters_by_token_under_offloading(way, monkeypatch):
    """Hooks that only bring the weights of blocks, and look at nothing, change nothing of that."""
    model, given, made = tiny_helios.transformer("base"), inputs(), []
    wanted = run(model, given)
    report, cpu = patch(model), torch.device("cpu")
    if way == "group offloading":
        model.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    else:
        hooks = pytest.importorskip("accelerate").hooks
        for block in model.blocks:
            hooks.add_hook_to_module(block, hooks.CpuOffload(cpu))
    monkeypatch.setattr("jitd.models.patch.helios._by_token", lambda *told: made.append(told))
    assert torch.equal(run(model, given), wanted)
    assert made == []
    assert all(site.calls for site in report.sites if "Block" in site.recipe.name)


# -- parts of it ------------------------------------------------------------------------------


def test_blocks_that_are_left_get_what_they_know():
    """Where blocks are not patched, or one leaves its calls to the stock forward, the transformer's
    rows become diffusers' parameters again.
    """
    model, given = tiny_helios.transformer(dtype=torch.bfloat16), inputs(dtype=torch.bfloat16)
    wanted = run(model, given)
    report = patch(model, ops=["qk_norm_rotary"])
    assert {site.recipe.name for site in report.patched} == {
        "HeliosTransformer3DModel",
        "HeliosAttention",
    }
    assert torch.equal(run(model, given), wanted)
    report = patch(model)
    model.blocks[0].norm2.register_forward_hook(lambda *_: None)
    assert torch.equal(run(model, given), wanted)
    assert report.declined == {"hook": 1}


@pytest.mark.parametrize("history", ["none", "all"])
@pytest.mark.parametrize("way", ["forward hook", "forward pre-hook", "forward", "accelerate"])
def test_who_looks_at_a_block_sees_tensors(way, history):
    """A hook on a patched block, and a forward around its own, are given what they get of the
    stock model: parameters by token, or by sample. The block's recipe answers, with its bits.
    """
    seen = {True: [], False: []}

    def note(patched, args):
        seen[patched].append(args)

    def look(block, patched):
        if way == "forward hook":
            block.register_forward_hook(lambda module, args, out: note(patched, args))
        elif way == "forward pre-hook":
            block.register_forward_pre_hook(lambda module, args: note(patched, args))
        elif way == "forward":
            inner = block.forward
            block.forward = lambda *args: note(patched, args) or inner(*args)
        else:
            accelerate = pytest.importorskip("accelerate")

            class Look(accelerate.hooks.ModelHook):
                def pre_forward(self, module, *args, **kwargs):
                    note(patched, args)
                    return args, kwargs

            accelerate.hooks.add_hook_to_module(block, Look())

    given, outs = inputs(history, dtype=torch.bfloat16), []
    for patched in (False, True):
        model = tiny_helios.transformer(dtype=torch.bfloat16)
        if patched:
            report = patch(model)
        for block in model.blocks:
            look(block, patched)
        outs.append(run(model, given))
    assert torch.equal(*outs)
    assert not report.declined and all(site.calls for site in report.sites)
    assert len(seen[True]) == len(seen[False]) == BASE["num_layers"]
    for mine, stock in zip(seen[True], seen[False], strict=True):
        assert mine[4] == stock[4]
        for one, other in zip(mine[:4], stock[:4], strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("table", [torch.float32, torch.bfloat16])
def test_a_block_by_itself(dims, table):
    """Called as diffusers calls it, with parameters by token or by sample, a block gives its bits,
    and so it does with those of one token spread over all.
    """
    block = tiny_helios.transformer(dtype=torch.bfloat16).blocks[0]
    block.scale_shift_table.data = block.scale_shift_table.data.to(table)
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(shape, generator=generator).bfloat16()

    temb = random(2, 6, 32) if dims == 3 else random(2, 20, 6, 32)
    angles = torch.randn(2, 20, 32, generator=generator)
    for told in (temb, temb if dims == 3 else temb[:, :1].expand(-1, 20, -1, -1)):
        given = random(2, 20, 32), random(2, 6, 32), told, angles, 12
        with torch.no_grad():
            wanted = block(*given)
            report = patch(block)
            assert torch.equal(block(*given), wanted)
        assert report.declined == {}
        assert unpatch(block) == 3


def test_the_last_norm_by_itself():
    """With embedded timesteps by token, as the stock transformer gives them."""
    norm = tiny_helios.transformer(dtype=torch.bfloat16).norm_out
    x, temb = torch.randn(2, 2, 20, 32).bfloat16()
    with torch.no_grad():
        wanted = norm(x, temb, 12)
        patch(norm)
        assert torch.equal(norm(x, temb, 12), wanted)


@pytest.mark.parametrize("cause", ["attention_kwargs", "history"])
def test_calls_that_are_left_to_the_stock_transformer(cause):
    """A scale of LoRA, and history whose size nobody tells: stock's results, and stock's errors."""
    model, given = tiny_helios.transformer(), inputs()
    if cause == "history":
        given["latents_history_short"] = None
    else:
        given["attention_kwargs"] = {"scale": 1.0}
    report = patch(model)
    if cause == "history":
        with pytest.raises(UnboundLocalError):
            run(model, given)
    else:
        wanted = run(model, given)
        unpatch(model)
        assert torch.equal(run(model, given), wanted)
    assert report.declined[cause] == 1


def test_fused_projections():
    """Queries, keys and values of one product, which are parts of a tensor: the same bits."""
    model = tiny_helios.transformer(dtype=torch.bfloat16)
    for block in model.blocks:
        block.attn1.fuse_projections()
        block.attn2.fuse_projections()
    assert_same(model, inputs(dtype=torch.bfloat16))


def test_another_processor_is_left():
    """An attention whose processor is not diffusers' keeps it, and is asked."""
    model = tiny_helios.transformer()
    attention = model.blocks[0].attn1

    class Silent(type(attention.processor)):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs) * 0

    attention.set_processor(Silent())
    wanted = run(model, inputs())
    report = patch(model)
    assert [site.left for site in report.left] == ["its processor, Silent"]
    assert torch.equal(run(model, inputs()), wanted)


@pytest.mark.parametrize("history", ["none", "all"])
def test_compiles_without_graph_breaks(history):
    """torch.compile makes one graph of a patched transformer, with its result and strides."""
    torch.compiler.reset()
    counters.clear()
    model = tiny_helios.transformer(dtype=torch.bfloat16)
    given = inputs(history, dtype=torch.bfloat16)
    patch(model)
    wanted = run(model, given)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = run(compiled, given)
    assert torch.equal(out, wanted)
    assert out.stride() == wanted.stride()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert "patch:mismatch" not in jitd.stats()
