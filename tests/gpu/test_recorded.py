"""From config files to a strict run on the card: recorded on meta, warmed, nothing built after."""

import json
from functools import partial

import jitd
import pytest
import torch
from jitd.jit import runtime
from jitd.jit.op import Op
from jitd.jit.stats import STATS
from jitd.jit.warm import Progress, warm
from jitd.models.pipelines.recording import pipeline_in
from jitd.models.pipelines.sizes import Size
from jitd.tools.bench.patched import DECODERS as RELEASED
from jitd.tools.examples import tiny

from ..models.pipelines import live as pipelines
from .forwards import near

pytestmark = [pytest.mark.gpu, pytest.mark.diffusers]

PIPELINES = ["ltx2", "ltx2 2.0", "ltx2 of an image", "helios", "helios base", "zimage"]
BUILT = ("compiles", "tunes", "checks")

# Released decoders, at a size that people run: latents, and what they decode to.
DECODERS = {
    "Z-Image": ((1, 16, 64, 64), Size(512, 512)),
    "LTX-2.3": ((1, 128, 4, 8, 12), Size(256, 384, 25)),
    "Wan": ((1, 16, 9, 48, 80), Size(384, 640)),
}


@pytest.fixture
def live():
    """Tiny pipelines that are patched, by name, in bf16 on the card."""
    return partial(pipelines.live, device="cuda", dtype=torch.bfloat16)


@pytest.fixture
def of_configs(tmp_path):
    """What a pipeline's config files ask for."""

    def recorded(real):
        folder = tiny.save_configs(real.pipe, tmp_path / "configs", *real.others)
        model = pipeline_in(folder, prompt_tokens=real.prompt_tokens).model
        return model.workload([real.size], "bf16", real.variant, i2v=real.i2v)

    return recorded


@pytest.fixture
def few(monkeypatch):
    """Tunes of one candidate, the default: what is found is not what these tests are about."""
    every = Op.configs

    def configs(self, call, device):
        kept, dropped = every(self, call, device)
        default = self.default(call, device)
        return [c for c in kept if default and c.name == default.name] or kept[:1], dropped

    monkeypatch.setattr(Op, "configs", configs)
    jitd.configure(isolate=False)


def asked_by(run):
    """What a run on the card asks for, answered by references."""
    jitd.configure(mode="off")
    with torch.no_grad(), jitd.record() as workload:
        outs = run()
    return workload, outs


@pytest.mark.parametrize("name", PIPELINES)
def test_configs_tell_what_a_run_on_the_card_asks_for(name, live, of_configs):
    """Every signature of a real run in bf16 on the card, layouts included, and no other."""
    real = live(name)
    assert set(of_configs(real)) == set(asked_by(real.run)[0])


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_of_real_size_ask_for_what_was_recorded(decoder, tmp_path):
    """The layouts of released VAEs at a real size are those that their configs tell, whichever
    library the card's convolutions come from."""
    diffusers = pytest.importorskip("diffusers")
    (name, config), (shape, size) = RELEASED[decoder], DECODERS[decoder]
    dtype, written = (torch.float32, "fp32") if decoder == "Wan" else (torch.bfloat16, "bf16")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name, **config}))
    pipeline = pipeline_in(tmp_path, frames=size.frames)
    model = pipeline.model
    on_meta = model.workload([size], written, model.variants[-1])
    torch.manual_seed(0)
    vae = getattr(diffusers, name)(**config).to("cuda", dtype).eval()
    jitd.patch(vae, verify="never")
    latents = torch.randn(shape, device="cuda", dtype=dtype)
    given = () if name != "AutoencoderKLLTX2Video" else (None,)
    real, _ = asked_by(lambda: vae.decode(latents, *given, return_dict=False))
    assert len(real) > 3
    assert set(on_meta) == set(real)


@pytest.mark.parametrize("name", ["ltx2", "helios", "zimage"])
def test_warm_from_configs_and_strict(name, live, of_configs, few, cold):
    """Tuned as recorded on the meta device, a pipeline runs in strict mode: nothing is raised,
    compiled, tuned or checked, every call that a kernel can answer has one, and the results are
    near the references'."""
    real = live(name)
    _, wanted = asked_by(real.run)
    jitd.configure(mode="tune", cache_dir=cold, isolate=False)
    rows = warm(runtime.current().builder_at(0), of_configs(real), Progress())
    assert not [(row.signature, row.detail) for row in rows if row.status == "failed"]
    jitd.configure(mode="strict")
    STATS.clear()
    with torch.no_grad():
        outs = real.run()
    done = jitd.stats()
    assert [done.get(what, 0) for what in BUILT] == [0, 0, 0]
    assert not {cause for cause in done if cause.startswith("reference:")}, done
    near([outs[0]], [wanted[0]], 1e-1)
