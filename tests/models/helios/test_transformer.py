"""Helios' transformer by itself: layouts, waiting, compiling, gradients. Needs no diffusers."""

import jitd
import pytest
import torch
from jitd.models.helios.transformer import KEPT_IN_FP32
from torch._dynamo.utils import counters

from ..waits import Waits
from .small import BASE, CHUNK_TOKENS, HISTORIES, VARIANTS, build, inputs, recorded, run


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_meta_signatures_are_the_cpu_s(variant, dtype, batch):
    """A run on meta asks for exactly the signatures of a real run, strides class included."""
    _compare_signatures("cpu", variant, dtype, batch)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_meta_signatures_are_the_gpu_s(variant, dtype, batch):
    """A run on meta asks for exactly the signatures of a run on the GPU."""
    jitd.configure(mode="off")  # what is asked for does not depend on who answers
    _compare_signatures("cuda", variant, dtype, batch)


def _compare_signatures(device, variant, dtype, batch):
    for history in HISTORIES:
        found = [
            recorded(
                build(variant, dtype=dtype, device=where),
                inputs(history, dtype=dtype, device=where, batch=batch),
            )
            for where in ("meta", device)
        ]
        assert found[0] == found[1], history
        assert sum(found[0].values()) == 6 * 2 + 1


def test_rows_without_an_index():
    """Without history, or with one timestep for all, a sample has one row and nobody an index."""
    for variant, history in (("base", "none"), ("same timestep", "all")):
        counts = recorded(build(variant), inputs(history))
        assert not any("index" in text for text in counts), (variant, history)
    assert sum("index=i32" in text for text in recorded(build(), inputs())) == 3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("history", HISTORIES)
def test_nothing_waits(variant, history):
    """No value of a tensor is asked for: on a GPU a forward is queued without waiting for it."""
    model, given = build(variant), inputs(history)
    with Waits() as waits:
        run(model, given)
    assert waits.seen == []


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["base", "amplified"])
def test_nothing_waits_on_the_gpu(variant):
    """With indices on the GPU, CUDA sees no synchronisation in a forward."""
    jitd.configure(mode="off")
    model = build(variant, dtype=torch.bfloat16, device="cuda")
    given = inputs(dtype=torch.bfloat16, device="cuda")
    run(model, given)  # libraries that start may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(model, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("history", ["none", "all"])
def test_compiles_without_graph_breaks(variant, history):
    """torch.compile takes the forward as one graph, with eager's result and strides."""
    torch.compiler.reset()
    model, given = build(variant), inputs(history)
    expected = run(model, given)
    out = run(torch.compile(model, fullgraph=True, backend="aot_eager"), given)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant):
    """With gradients wanted a forward gives the same, and they reach every parameter it uses."""
    model, given = build(variant), inputs()
    expected = run(model, given)
    out = model(**given)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set()


def test_cast():
    """`cast` keeps parameters in fp32 by the parts of their names, and may be taken back."""
    model = build().cast(torch.bfloat16)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {part for name in kept for part in name.split(".")} >= KEPT_IN_FP32 & {
        "time_embedder", "scale_shift_table", "norm2",
    }  # fmt: skip
    assert "blocks.0.norm2.bias" in kept and "blocks.0.attn1.norm_q.weight" not in kept
    assert {p.dtype for p in model.cast(torch.float32).parameters()} == {torch.float32}


WRONG = {
    "an odd width": ({"hidden_states": torch.ones(1, 4, 3, 8, 11)}, "H and W even"),
    "other channels": ({"hidden_states": torch.ones(1, 5, 3, 8, 12)}, r"\(B, 4, F, H, W\)"),
    "two timesteps": ({"timestep": torch.ones(2)}, r"timestep is \(2,\); allowed is \(1,\)"),
    "timesteps by token": ({"timestep": torch.ones(1, CHUNK_TOKENS)}, "timestep is"),
    "prompt of other channels": (
        {"encoder_hidden_states": torch.ones(1, 6, 24)},
        r"encoder_hidden_states is \(1, 6, 24\); allowed is \(1, T, 16\)",
    ),
    "latents without indices": (
        {"indices_latents_history_mid": None},
        "indices_latents_history_mid is missing",
    ),
    "indices without latents": ({"latents_history_long": None}, "latents_history_long is missing"),
    "no short-term history": (
        {"latents_history_short": None, "indices_latents_history_short": None},
        "latents_history_mid needs latents_history_short",
    ),
    "history of two samples": (
        {"latents_history_short": torch.ones(2, 4, 2, 8, 12)},
        r"latents_history_short is \(2, 4, 2, 8, 12\); allowed is \(1, 4, n, H, W\)",
    ),
    "indices of other frames": (
        {"indices_latents_history_long": torch.arange(20)[None]},
        "20 frames",
    ),
    "history of another height": (
        {"latents_history_mid": torch.ones(1, 4, 2, 16, 12)},
        "latents_history_mid of .* are 12 tokens",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs(wrong):
    """An input that does not fit is refused by its name, with what would fit."""
    change, allowed = WRONG[wrong]
    with pytest.raises(ValueError, match=allowed):
        run(build(), inputs() | change)


def test_no_patches_for_history():
    """A model without patches for history refuses any, and runs without."""
    model = build(has_multi_term_memory_patch=False)
    assert run(model, inputs("none")).isfinite().all()
    with pytest.raises(ValueError, match="no patches"):
        run(model, inputs("short"))


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"patch_size": (1, 4, 4)}, r"\(1, 2, 2\)"),
        ({"cross_attn_norm": False}, "True"),
        ({"qk_norm": None}, "'rms_norm_across_heads'"),
        ({"added_kv_proj_dim": 8}, "None"),
        ({"history_scale_mode": "both"}, "'scalar', 'per_head'"),
        ({"rope_dim": (4, 4, 4)}, "a head of 16 channels"),
        ({"rope_dim": (6, 5, 5)}, "even"),
    ],
)
def test_impossible_configs(wrong, allowed):
    """A config that no released model has is refused with what is allowed."""
    with torch.device("meta"), pytest.raises(ValueError, match=allowed):
        build(**wrong)


def test_lists_are_as_good_as_tuples():
    """A config that was read from JSON, which has lists, builds the same."""
    model = build(patch_size=[1, 2, 2], rope_dim=list(BASE["rope_dim"]))
    assert len(model.blocks) == 2


@pytest.mark.parametrize(("dynamic", "graphs"), [(None, 2), (True, 1)])
def test_stages_of_a_pyramid_compile_once(dynamic, graphs):
    """Chunks of any height and width need one graph: two where Dynamo first tries a fixed size."""
    torch.compiler.reset()
    counters.clear()
    model = build(num_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for pixels in ((10, 14), (18, 20), (22, 26)):  # equal to no other size: Dynamo would see it
        given = inputs(pixels=pixels)
        assert torch.equal(run(compiled, given), run(model, given))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
