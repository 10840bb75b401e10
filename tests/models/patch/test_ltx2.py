"""LTX-2's transformer of diffusers, patched, against itself: the same bits, on the CPU."""

from collections import Counter

import jitd
import pytest
import torch

from ..ltx2.small import AUDIO, TEXT, TOKENS, VARIANTS, inputs, recorded, run
from . import tiny_ltx2

pytestmark = pytest.mark.diffusers

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SITES = 2 * 7  # of each block, itself and six attentions
ALL, MIXED, NONE = ([0.0, 0.0], [0.0, 1.0], [1.0, 1.0])
MORE = {
    "isolated": {"isolate_modalities": True},
    "every sample": {"spatio_temporal_guidance_blocks": [1]},
    "every sample by mask": {"spatio_temporal_guidance_blocks": [0, 1], "perturbation_mask": ALL},
    "one sample": {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": MIXED},
    "no sample": {"spatio_temporal_guidance_blocks": [0], "perturbation_mask": NONE},
}


def patched_gives_the_same(model, given, **more):
    """Hold a patched forward to the stock one, every call of every site answered; its report."""
    wanted = run(model, given, return_dict=False, **more)
    report = jitd.patch(model, verify="never")
    outs = run(model, given, return_dict=False, **more)
    assert len(report.patched) == SITES
    assert (report.left, report.declined.total()) == ((), 0)
    for out, want in zip(outs, wanted, strict=True):
        assert torch.equal(out, want)
        assert out.stride() == want.stride()
    return report


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("timesteps", ["sample", "token"])
def test_same_bits(variant, dtype, timesteps):
    """Video and audio are stock's bit for bit, with padded prompts and with a timestep for each
    sample or for each token; all sites take part, and the state dict is what it was.
    """
    model = tiny_ltx2.transformer(variant, dtype=dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = patched_gives_the_same(model, inputs(variant, dtype=dtype, timesteps=timesteps))
    assert report.calls == SITES
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("more", MORE)
def test_same_bits_guided(variant, dtype, more):
    """Isolated streams and perturbed attention, in no, one or every sample, have stock's bits."""
    options = dict(MORE[more])
    if "perturbation_mask" in options:
        options["perturbation_mask"] = torch.tensor(options["perturbation_mask"], dtype=dtype)
    given = inputs(variant, dtype=dtype)
    patched_gives_the_same(tiny_ltx2.transformer(variant, dtype=dtype), given, **options)


def test_same_bits_of_a_table_for_prompts():
    """Without timestep-dependent modulation of prompts (2.5) the table alone has stock's bits."""
    model = tiny_ltx2.transformer("2.5", use_prompt_adaln_single=False)
    patched_gives_the_same(model, inputs("2.5"))


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("changes", [{"attention_bias": False}, {"norm_eps": 1e-5}])
def test_same_bits_of_other_configs(variant, changes):
    """What a config says of biases and of the norms' eps is heeded."""
    patched_gives_the_same(tiny_ltx2.transformer(variant, **changes), inputs(variant))


def block_inputs(model):
    """What the model gives its first block, by name."""
    seen = {}

    def note(module, args, named):
        assert not args
        seen.update(named)

    with model.transformer_blocks[0].register_forward_pre_hook(note, with_kwargs=True):
        run(model, inputs("2.3"))
    return seen


@pytest.mark.parametrize("name", ["self", "audio_self", "a2v_cross", "v2a_cross"])
def test_same_bits_masked(name):
    """Every attention's mask reaches it."""
    model = tiny_ltx2.transformer("2.3")
    block, given = model.transformer_blocks[0], block_inputs(model)
    q, k = {
        "self": (TOKENS, TOKENS),
        "audio_self": (AUDIO, AUDIO),
        "a2v_cross": (TOKENS, AUDIO),
        "v2a_cross": (AUDIO, TOKENS),
    }[name]
    mask = (torch.arange(q)[:, None] + torch.arange(k) + 1) % 3 == 0
    given[f"{name}_attention_mask"] = (mask * -10000.0).expand(2, -1, -1)
    unmasked = run(block, {**given, f"{name}_attention_mask": None})
    wanted = run(block, given)
    jitd.patch(model, verify="never")
    outs = run(block, given)
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))
    assert not all(torch.equal(out, want) for out, want in zip(outs, unmasked, strict=True))


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
@pytest.mark.parametrize("isolated", [False, True])
def test_ops_of_a_forward(variant, isolated):
    """A block asks for as many ops as ours, which leaves nothing unfused between its products."""
    model = tiny_ltx2.transformer(variant)
    jitd.patch(model, verify="never")
    asked = recorded(model, inputs(variant), isolate_modalities=isolated)
    counts = Counter()
    for signature, calls in asked.items():
        counts[signature.partition("[")[0]] += calls
    newer, meet = variant == "2.3", not isolated
    attentions = 6 if meet else 4
    each = {
        "rms_norm_modulate": 2,
        "gate_residual_rms_norm_modulate": 4,
        "gate_residual_rms_norm_dual_modulate": 2 * meet,
        "gate_residual": 2,
        "modulate": 2 * newer,
        "qk_norm_rotary": attentions,
        "head_gate": attentions * newer,
    }
    assert counts == Counter({op: 2 * calls for op, calls in each.items() if calls})


def test_operands_are_not_copied():
    """Operands of tokens are views of what the model made for all nine, those of samples likewise,
    and tables of positions are read as diffusers made them: token by token in memory.
    """
    model = tiny_ltx2.transformer("2.3")
    jitd.patch(model, verify="never")
    asked = recorded(model, inputs("2.3", timesteps="token"))
    of_tokens, of_samples, of_text = (f"strided({n},{d},1)" for n, d in (
        (TOKENS * 9 * 64, 9 * 64), (9 * 32, 32), (2 * 64, 64)
    ))  # fmt: skip
    for signature in (
        f"rms_norm_modulate[fp32](2x{TOKENS}x64, scale=2x{TOKENS}x64:{of_tokens})",
        f"gate_residual[fp32](2x{TOKENS}x64, gate=2x{TOKENS}x64:{of_tokens})",
        f"rms_norm_modulate[fp32](2x{AUDIO}x32, scale=:{of_samples})",
        f"modulate[fp32](2x{TEXT}x64, scale=:{of_text})",
        f"qk_norm_rotary[fp32](2x{TOKENS}x64, q_cos=fp32 2x4x{TOKENS}x8:perm0213)",
    ):
        assert asked[signature] == 2
