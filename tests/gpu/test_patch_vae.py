"""Patched VAEs on the card: kernels answer, as near to float64 as diffusers' modules are."""

import jitd
import pytest
import torch
from jitd.jit import runtime
from jitd.jit.warm import Progress, warm
from jitd.models.patch.layouts import AsOnADevice

from ..models.patch.tiny_vae import RELEASED, TINY, build, released, sample, there_and_back
from .cases import answered_by_kernels
from .forwards import hold, near

pytestmark = [pytest.mark.gpu, pytest.mark.diffusers]

NOTHING = ("compiles", "tunes", "checks")


@pytest.fixture(autouse=True)
def _defaults(monkeypatch):
    """Default configs, compiled and checked, and convolutions that give the same bits each time."""
    jitd.configure(mode="replay")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def latents_of(model, x):
    """Random latents of the shape that x has when it is encoded."""
    with torch.no_grad():
        shape = model.encode(x).latent_dist.mean.shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(x)


def both(model, x, z):
    """(moments of x, what is decoded from z)."""
    with torch.no_grad():
        return model.encode(x).latent_dist.parameters, model.decode(z).sample


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", TINY)
def test_as_exact_as_diffusers(name, dtype):
    """In every dtype kernels answer each site, and what is encoded and decoded is as near to
    float64 as diffusers' is, with its strides; first calls agree with their stock forwards.
    """
    how = {"dtype": dtype, "device": "cuda"}
    model, x = build(name, **how), sample(name, **how)
    z = latents_of(model, x)
    eager = both(model, x, z)
    exact = build(name, dtype=torch.float64, device="cuda")
    exact.load_state_dict(model.state_dict())
    truth = both(exact, x.double(), z.double())
    report = jitd.patch(model)
    outs = both(model, x, z)
    print(report)
    assert answered_by_kernels()
    assert not report.declined
    assert {site.recipe.name for site in report.left} <= {"Attention"}
    hold(outs, eager, truth)


@pytest.mark.parametrize(("batch", "channels_last"), [(2, False), (1, True), (2, True)])
@pytest.mark.parametrize("name", TINY)
def test_layouts(name, batch, channels_last):
    """Two samples, and models in channels-last, are what they are without patches, and ask for what
    was recorded on meta.
    """
    asked = []
    for device in ("meta", "cuda"):
        how = {"dtype": torch.bfloat16, "device": device, "channels_last": channels_last}
        model, x = build(name, **how), sample(name, batch, **how)
        wanted = there_and_back(model, x)
        report = jitd.patch(model, verify="never")
        with AsOnADevice(), jitd.record() as workload:
            outs = there_and_back(model, x)
        asked.append(workload.counts)
    assert asked[0] == asked[1]
    assert answered_by_kernels()
    assert not report.declined
    near(outs, wanted, 2e-2)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_decoder_at_its_size(name, much_memory):
    """A whole decoder of released sizes asks for what was recorded on meta, has all of it answered
    by kernels, and gives what diffusers' own does, with its strides.
    """
    # Helios decodes in fp32.
    how = {"dtype": torch.float32 if name == "wan 2.1" else torch.bfloat16}
    model, z = released(name, device="cuda", **how)
    with torch.no_grad():
        wanted = model.decode(z).sample
        report = jitd.patch(model, verify="never")
        with jitd.record() as asked:
            out = model.decode(z).sample
    assert answered_by_kernels()
    assert not report.declined
    assert out.stride() == wanted.stride()
    near([out], [wanted], 2e-2)

    on_meta, nowhere = released(name, **how)
    jitd.patch(on_meta)
    with torch.no_grad(), AsOnADevice(), jitd.record() as recorded:
        on_meta.decode(nowhere)
    assert asked.counts == recorded.counts


@pytest.mark.parametrize("name", ["kl", "wan 2.1", "audio"])
def test_strict_behind_a_warmup_from_meta(name):
    """What was recorded on meta is tuned; then a patched run in mode strict raises nothing, and
    compiles, tunes and checks nothing, its verified first calls included.
    """
    how = {"dtype": torch.bfloat16}
    recorded = build(name, device="meta", **how)
    jitd.patch(recorded)
    with AsOnADevice(), jitd.record() as workload:
        there_and_back(recorded, sample(name, device="meta", **how))
    jitd.configure(mode="tune")
    rows = warm(runtime.current().builder_at(0), workload, Progress())
    assert {row.status for row in rows} <= {"tuned", "known"}, rows

    model, x = build(name, device="cuda", **how), sample(name, device="cuda", **how)
    wanted = there_and_back(model, x)
    before = jitd.stats()
    jitd.configure(mode="strict")
    report = jitd.patch(model)
    near(there_and_back(model, x), wanted, 2e-2)
    after = jitd.stats()
    assert {n: after.get(n) for n in NOTHING} == {n: before.get(n) for n in NOTHING}
    assert answered_by_kernels()
    assert not report.declined
