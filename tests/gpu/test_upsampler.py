"""The upsampler of LTX-2 on the card: with jitd's kernels, against itself without them."""

import jitd
import pytest
import torch
from torch._dynamo.utils import counters

from ..models.ltx2.tiny import build, latents
from .cases import answered_by_kernels

pytestmark = pytest.mark.gpu

TINY = (2, 8, 3, 4, 6)
REAL = (1, 128, 16, 8, 12)  # 512x768, 121 frames
RELEASED = {"in_channels": 128, "mid_channels": 1024, "num_blocks_per_stage": 4}


@pytest.fixture(autouse=True)
def _same_convolutions(monkeypatch):
    """Convolutions give the same bits each time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def on_the_card(shape, *, dtype=torch.bfloat16, channels_last=False, **changes):
    how = {"dtype": dtype, "device": "cuda", "channels_last": channels_last}
    return build("x2_23", **how, **changes), latents(shape, **how)


def both_ways(model, x):
    """The forward by kernels and, in mode off, by the references."""
    mode = jitd.configure().settings.mode
    with torch.no_grad():
        out = model(x)
        assert answered_by_kernels()
        jitd.configure(mode="off")
        want = model(x)
        jitd.configure(mode=mode)
    assert out.stride() == want.stride()
    return out, want


def test_the_released_model_is_its_eager_self():
    """At its real size in bf16 the upsampler equals itself without jitd within the bound of
    modules, and nearly everywhere far below it."""
    out, want = both_ways(*on_the_card(REAL, **RELEASED))
    torch.testing.assert_close(out, want, rtol=2e-2, atol=7e-2)
    assert (out.float() - want.float()).norm() <= 2e-2 * want.float().norm()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_small_model_is_its_eager_self(dtype, channels_last):
    """In every dtype, contiguous or channels-last, batch 2, kernels and references agree."""
    jitd.configure(mode="replay")
    out, want = both_ways(*on_the_card(TINY, dtype=dtype, channels_last=channels_last))
    # Convolutions in fp32 may round their inputs to TF32, on either side of a boundary.
    close = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 7e-2}
    torch.testing.assert_close(out, want, **close)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "changes"), [(TINY, {}), (REAL, RELEASED)], ids=["tiny", "real"])
def test_meta_records_what_the_card_is_asked_for(shape, changes, channels_last):
    """Signatures recorded on meta are those of a real run, strides class included."""
    jitd.configure(mode="off")  # what is asked for does not depend on who answers
    found = []
    for device in ("meta", "cuda"):
        how = {"dtype": torch.bfloat16, "device": device, "channels_last": channels_last}
        with torch.no_grad(), jitd.record() as workload:
            build("x2_23", **how, **changes)(latents(shape, **how))
        found.append(dict(workload.counts))
    assert found[0] == found[1]
    blocks = changes.get("num_blocks_per_stage", 2)
    assert sum(found[0].values()) == 1 + 4 * blocks


def test_inductor_takes_it_whole(c_compiler):
    """torch.compile makes one graph of a channels-last upsampler, without a break; its kernels
    answer, with eager's strides and, closely, eager's values."""
    jitd.configure(mode="replay")
    torch.compiler.reset()
    counters.clear()
    model, x = on_the_card(TINY, channels_last=True, num_blocks_per_stage=1)
    with torch.no_grad():
        want = model(x)
        out = torch.compile(model, fullgraph=True)(x)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert answered_by_kernels()
    assert out.stride() == want.stride()
    torch.testing.assert_close(out, want, rtol=2e-2, atol=7e-2)


def test_a_compiled_forward_has_the_same_bits():
    """Compiled without Inductor's own kernels, the forward has the bits of the one that is not."""
    jitd.configure(mode="replay")
    torch.compiler.reset()
    model, x = on_the_card(TINY, num_blocks_per_stage=1)
    with torch.no_grad():
        want = model(x)
        out = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert answered_by_kernels()
    assert torch.equal(out, want)
    assert out.stride() == want.stride()


def test_a_training_step_has_eagers_gradients():
    """A training step, as called and compiled, has the gradients of mode off."""
    torch.compiler.reset()
    model, x = on_the_card(TINY, dtype=torch.float32, num_blocks_per_stage=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def step(forward):
        model.zero_grad()
        forward(x).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    found = [step(model)]
    assert jitd.stats()["reference:grad"] == 5  # one op, then two in each of two blocks
    found.append(step(compiled))
    jitd.configure(mode="off")
    want = step(model)
    for gradients in found:
        for name, gradient in gradients.items():
            assert (gradient - want[name]).norm() <= 1e-3 * want[name].norm() + 1e-8, name
