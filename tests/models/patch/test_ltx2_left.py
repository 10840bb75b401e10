"""What of LTX-2's transformer is left to diffusers, and why; what it is called with."""

import jitd
import pytest
import torch
from torch import nn

from ..ltx2.small import inputs, run
from . import tiny_ltx2

pytestmark = pytest.mark.diffusers

HOME = "diffusers.models.transformers.transformer_ltx2"
ATTENTIONS = (
    "attn1", "audio_attn1", "attn2", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"
)  # fmt: skip


def outcome(model, given):
    """The report of a patched forward whose bits are those of the stock one."""
    wanted = run(model, given, return_dict=False)
    report = jitd.patch(model, verify="never")
    outs = run(model, given, return_dict=False)
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))
    return report


def left(report):
    """Why what is left, with how many sites."""
    causes = [site.left for site in report.left]
    return {cause: causes.count(cause) for cause in causes}


class Own(nn.Module):
    """A norm of somebody else's."""

    weight = None
    eps = 1e-6

    def forward(self, x):
        return x


def test_interleaved_positions_are_left():
    """Attentions of a model with interleaved rotary embedding are left, its blocks are not."""
    report = outcome(tiny_ltx2.transformer("2.3", rope_type="interleaved"), inputs("2.3"))
    assert left(report) == {"interleaved rotary embedding": 12}
    assert report.calls == 2


def test_norms_with_weights_are_left():
    """A block whose norms have weights, which no released one has, is left."""
    report = outcome(tiny_ltx2.transformer("2.0", norm_elementwise_affine=True), inputs("2.0"))
    assert left(report) == {"norms with weights": 2}
    assert report.calls == 12


@pytest.mark.parametrize("change", ["norm", "eps"])
def test_other_norms_are_left(change):
    """A norm that somebody put there, and one that differs from the others, is not overlooked."""
    model = tiny_ltx2.transformer("2.3")
    first, second = model.transformer_blocks
    if change == "norm":
        first.norm2 = Own()
        second.attn1.norm_q = Own()
    else:
        first.norm3.eps = 1e-3
        second.attn1.norm_q.eps = 1e-3
    report = outcome(model, inputs("2.3"))
    word = "norms of another class" if change == "norm" else "norms that differ"
    assert [site.path for site in report.left] == [
        "transformer_blocks.0", "transformer_blocks.1.attn1"
    ]  # fmt: skip
    assert all(site.left.startswith(word) for site in report.left)


@pytest.mark.parametrize("late", [False, True])
def test_another_processor_has_its_way(late):
    """An attention with another processor is left, also if it is set after patching; the block
    goes on.
    """
    theirs = pytest.importorskip(HOME)

    class Louder(theirs.LTX2PerturbedAttnProcessor):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    model, given = tiny_ltx2.transformer("2.3"), inputs("2.3")
    attention = model.transformer_blocks[1].attn1
    before = attention.processor
    attention.set_processor(Louder())
    wanted = run(model, given, return_dict=False)
    if not late:
        report = outcome(model, given)
        assert left(report) == {"its processor, Louder": 1}
        return
    attention.set_processor(before)
    report = jitd.patch(model, verify="never")
    attention.set_processor(Louder())
    outs = run(model, given, return_dict=False)
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))
    assert report.declined == {"processor": 1}
    assert report.calls == 13


def first_calls(model, given, modules):
    """Keywords that each module was first called with, and the number of positional arguments."""
    seen = {}

    def note(module, args, named):
        seen.setdefault(names[module], (len(args), sorted(named)))

    names = {module: name for name, module in modules.items()}
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in modules.values()]
    run(model, given)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_children_are_called_as_before(variant):
    """Hooks on attentions, on their layers and on the feed-forwards see the stock block's calls."""
    model, given = tiny_ltx2.transformer(variant), inputs(variant)
    block = model.transformer_blocks[0]
    children = {name: getattr(block, name) for name in (*ATTENTIONS, "ff", "audio_ff")}
    for name in ATTENTIONS:
        for layer in ("to_q", "to_k", "to_v", "to_out.0", "to_out.1", "to_gate_logits"):
            if (found := dict(children[name].named_modules()).get(layer)) is not None:
                children[f"{name}.{layer}"] = found
    wanted = first_calls(model, given, children)
    jitd.patch(model, verify="never")
    assert first_calls(model, given, children) == wanted
    assert wanted.keys() == children.keys()


def test_a_hook_on_a_norm_is_called():
    """A norm with a hook, which might bring its weight, is called: by the stock forward."""
    model, given = tiny_ltx2.transformer("2.3"), inputs("2.3")
    seen = []
    model.transformer_blocks[0].norm2.register_forward_hook(lambda *_: seen.append("norm2"))
    model.transformer_blocks[0].attn2.norm_k.register_forward_hook(lambda *_: seen.append("norm_k"))
    report = outcome(model, given)
    assert seen == ["norm2", "norm_k"] * 2
    assert report.declined == {"hook": 2}


def block_call(model, variant):
    """What the model gives its first block."""
    seen = {}
    block = model.transformer_blocks[0]
    with block.register_forward_pre_hook(lambda *call: seen.update(call[2]), with_kwargs=True):
        run(model, inputs(variant))
    return seen


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("direction", lambda given: {"use_v2a_cross_attention": False}),
        ("direction", lambda given: {"use_a2v_cross_attention": False}),
        ("dtype", lambda given: {"temb": given["temb"].double()}),
        ("dtype", lambda given: {"temb_ca_gate": given["temb_ca_gate"].double()}),
    ],
)
def test_calls_that_a_block_declines(cause, change):
    """A call that no transformer makes gets the stock forward's answer, or its error."""
    model = tiny_ltx2.transformer("2.0")
    block, given = model.transformer_blocks[0], block_call(model, "2.0")
    given |= change(given)

    def answer():
        try:
            return run(block, given)
        except RuntimeError as error:
            return str(error)

    wanted = answer()
    report = jitd.patch(model, verify="never")
    outs = answer()
    assert report.sites[0].declined == {cause: 1}
    if isinstance(wanted, str):
        assert outs == wanted
    else:
        assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))


def test_a_block_called_by_position():
    """All arguments by position, as gradient checkpointing gives them, are answered by stock."""
    model = tiny_ltx2.transformer("2.3")
    block, given = model.transformer_blocks[0], block_call(model, "2.3")
    with torch.no_grad():
        wanted = block(*given.values())
        report = jitd.patch(model, verify="never")
        outs = block(*given.values())
    assert report.declined == {"positional": 1}
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))


@pytest.mark.parametrize(
    ("cause", "variant", "change"),
    [
        ("arguments", "2.3", {"scale": 2.0}),
        ("arguments", "2.0", {"perturbation_mask": None}),
        ("rotary", "2.3", "bf16"),
        ("rotary", "2.3", "3-dimensional"),
        ("dtype", "2.3", "bf16 norm"),
    ],
)
def test_calls_that_an_attention_declines(cause, variant, change):
    """Keywords that its processor ignores, tables that are not fp32 or not by head, and norms of
    another dtype are the stock forward's.
    """
    model = tiny_ltx2.transformer(variant)
    attention, x = model.transformer_blocks[0].attn1, torch.randn(2, 6, 64)
    more = dict(change) if isinstance(change, dict) else {}
    tables = torch.rand(2, 4, 6, 8), torch.rand(2, 4, 6, 8)
    if change == "bf16":
        tables = tuple(table.bfloat16() for table in tables)
    if change == "3-dimensional":
        tables = torch.rand(2, 6, 32), torch.rand(2, 6, 32)
    if change == "bf16 norm":
        attention.norm_q.bfloat16()

    def answer():
        with torch.no_grad():
            return attention(x, query_rotary_emb=tables, **more)

    wanted = answer()
    report = jitd.patch(model, verify="never")
    assert torch.equal(answer(), wanted)
    assert report.declined == {cause: 1}


def test_all_perturbed_is_found_out():
    """Without being told whether all samples are perturbed, an attention looks at the mask."""
    model = tiny_ltx2.transformer("2.3")
    attention, x = model.transformer_blocks[0].attn1, torch.randn(2, 6, 64)
    masks = [None, *(torch.tensor(m).view(2, 1, 1) for m in ([0.0, 0.0], [0.0, 1.0], [1.0, 1.0]))]
    with torch.no_grad():
        wanted = [attention(x, perturbation_mask=mask) for mask in masks]
        report = jitd.patch(model, verify="never")
        outs = [attention(x, perturbation_mask=mask) for mask in masks]
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))
    assert report.calls == len(masks)
