"""What a forward of the released transformer calls: counts, sites, sizes, on the meta device."""

import pytest
import torch
from jitd.jit.op import OPS
from jitd.jit.record import record
from jitd.models.helios.presets import PRESETS, Size
from jitd.models.helios.transformer import HeliosTransformer
from jitd.models.helios.workload import record_run, run_chunk

SIZE = PRESETS["384x640"]
ALL, CHUNK, TEXT = (1, 11040, 5120), (1, 8640, 5120), (1, 512, 5120)
LAYERS = 40


@pytest.fixture(scope="module")
def counts():
    """Signature -> calls of one forward at full depth, a chunk of full size."""
    with record() as workload:
        out = run_chunk(SIZE, dtype=torch.bfloat16)
    assert out.shape == (1, 16, 9, 48, 80)
    return workload.counts


def counted(counts, name, fits=lambda call: True, **shapes):
    """Calls of an op whose arguments have these shapes and fit."""
    total = 0
    for text, calls in counts.items():
        if text.startswith(f"{name}["):
            call = OPS[name].parse(text).call
            if all(call[k].shape == shape for k, shape in shapes.items()) and fits(call):
                total += calls
    return total


def test_norms_and_gates(counts):
    """The fused calls add up to the sites of a forward of diffusers' model: 80 modulated norms are
    norm1 and norm3 by themselves, 40 norms with weight and bias stand behind attn1's gate, and with
    the feed-forward's these gates are 80. norm_out sees the chunk alone.
    """
    modulated = counted(counts, "layer_norm_modulate", lambda call: call.index is not None, x=ALL)
    with_gate = counted(
        counts,
        "gate_residual_layer_norm_modulate",
        lambda call: call.scale is None and call.weight.dtype == call.bias.dtype == "fp32",
        x=ALL,
    )
    assert (modulated, with_gate) == (2 * LAYERS, LAYERS)
    assert with_gate + counted(counts, "gate_residual", x=ALL) == 2 * LAYERS
    assert counted(counts, "layer_norm_modulate", lambda call: call.index is None, x=CHUNK) == 1


def test_queries_and_keys(counts):
    """q and k are normalised in one call: 40 calls are the 80 turned ones of attn1, 40 more the 40
    and 40 of attn2, whose queries are the chunk's.
    """
    for q, k, table in ((ALL, ALL, (1, 11040, 256)), (CHUNK, TEXT, None)):
        fits = lambda call, table=table: (call.q_cos and call.q_cos.shape) == table  # noqa: E731
        assert counted(counts, "qk_norm_rotary", fits, q=q, k=k) == LAYERS


def test_nothing_else(counts):
    """There are no other calls, and no operand has a row for each token."""
    assert sum(counts.values()) == 6 * LAYERS + 1
    for text in counts:
        call = OPS[text.partition("[")[0]].parse(text).call
        for name in ("scale", "shift", "gate"):
            spec = call.get(name)
            if spec is not None:
                assert (spec.dtype, spec.shape) == ("fp32", (1 + (call.index is not None), 5120))


def test_stages_of_the_pyramid():
    """Distilled calls the same at each stage, of 2940, 4560 and 11040 tokens; Base at the last."""
    distilled = record_run(SIZE, dtype=torch.bfloat16, variant="distilled").counts
    base = record_run(SIZE, dtype=torch.bfloat16, variant="base").counts
    for tokens in (2940, 4560, 11040):
        assert counted(distilled, "layer_norm_modulate", x=(1, tokens, 5120)) == 2 * LAYERS
    assert sum(distilled.values()) == 3 * sum(base.values())
    assert base.items() <= distilled.items()


def test_published_size():
    """The released config has the published number of parameters."""
    with torch.device("meta"):
        model = HeliosTransformer()
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 14.31


def test_real_run_of_a_small_chunk():
    """A chunk can be run small on a real device."""
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 16}
    small |= {"rope_dim": (4, 2, 2), "text_dim": 8}
    for history in (False, True):
        out = run_chunk(
            Size(64, 128), 2, dtype=torch.float32, device="cpu", history=history, **small
        )
        assert out.shape == (1, 16, 9, 4, 8)
        assert out.isfinite().all()
