"""The catalogue of models: sizes without torch, workloads from the real modules."""

import subprocess
import sys
from dataclasses import replace

import pytest
from jitd.models import catalog


def test_catalog_needs_no_torch():
    """Models, their presets and their rules can be asked without importing torch."""
    code = (
        "import sys; from jitd.models.catalog import MODELS; "
        "[m.parse_size(n) for m in MODELS.values() for n in m.sizes]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


_STEPS = ("euler_step", "res2s_midpoint", "res2s_step")


@pytest.mark.parametrize("i2v", [False, True])
@pytest.mark.parametrize("variant", catalog.MODELS["ltx2"].variants)
def test_workload_of_ltx2(variant, i2v):
    """A run calls the ops that the model names and no other: the upsampler's 9 and 8 times at each
    size, those of the transformer of two stages at its depth of 48, and those of a step of each
    stage. HQ's first stage has forwards of isolated streams besides, without the 48 blocks' two
    attentions between them.
    """
    model = catalog.model("ltx2")
    sizes = list(model.sizes.values())[:2]
    workload = model.workload(sizes, "bf16", variant, i2v=i2v)
    calls = dict.fromkeys(model.ops, 0)
    for text, number in workload.counts.items():
        calls[text.partition("[")[0]] += number
    alone = len(sizes) * (variant == "2.3-hq")  # forwards of isolated streams
    stages = 2 * len(sizes) + alone
    with_prompts = variant.startswith("2.3")
    guided = not variant.endswith("-distilled")
    steps = {name: 0 for name in ("velocity_to_x0", "guidance_combine", *_STEPS)}
    for stage in (1, 2):
        asks = "guidance_combine" if guided and stage == 1 else "velocity_to_x0"
        steps[asks] += 2 * len(sizes) * (2 if alone else 1)
    for name in _STEPS[1:] if alone else _STEPS[:1]:
        steps[name] = 2 * 2 * len(sizes)
    assert calls == {
        **steps,
        "group_norm_silu": 9 * len(sizes),
        "group_norm_add_silu": 8 * len(sizes),
        "rms_norm_modulate": 2 * 48 * stages,
        "gate_residual_rms_norm_modulate": 4 * 48 * stages,
        "gate_residual_rms_norm_dual_modulate": 2 * 48 * (stages - alone),
        "layer_norm_modulate": 2 * stages,
        "modulate": 2 * 48 * stages * with_prompts,
        "qk_norm_rotary": 48 * (6 * stages - 2 * alone),
        "gate_residual": 2 * 48 * stages,
        "head_gate": 48 * (6 * stages - 2 * alone) * with_prompts,
    }
    assert i2v == any("index=i32" in text for text in workload)


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("helios", {"distilled": 3, "mid": 3, "base": 1}), ("zimage", {"turbo": 16})],
)
def test_workload_of_transformers(name, forwards):
    """A run calls the ops that the model names and no other, in each of its forwards."""
    model = catalog.model(name)
    sizes = list(model.sizes.values())[:1]
    for variant, times in forwards.items():
        counts = model.workload(sizes, "bf16", variant).counts
        assert {text.partition("[")[0] for text in counts} == set(model.ops)
        assert sum(counts.values()) == times * {"helios": 6 * 40 + 1, "zimage": 6 * 34 + 2}[name]


def test_a_size_that_a_variant_has_not():
    """Helios-Base runs at sizes that no pyramid divides; the others refuse them."""
    model = catalog.model("helios")
    size = model.parse_size("400x656")
    assert model.workload([size], "bf16", "base").counts
    with pytest.raises(ValueError, match="multiples of 64"):
        model.workload([size], "bf16", "distilled")


@pytest.mark.parametrize(("dtype", "variant"), [("int4", "2.3"), ("bf16", "1.0")])
def test_unknown_options(dtype, variant):
    """An unknown dtype or variant is a ValueError that names what there is."""
    with pytest.raises(ValueError, match="there are"):
        catalog.model("ltx2").workload([], dtype, variant)


def test_no_image_for_every_model():
    """Where a model makes no video of an image, asking for it is a ValueError."""
    model = replace(catalog.model("ltx2"), i2v=False)
    with pytest.raises(ValueError, match="--i2v"):
        model.workload([], "bf16", "2.3", i2v=True)
