"""The benchmark of patched models without a GPU: what is built, patched, held to stock, printed."""

import json
from collections import Counter
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from jitd.jit.device import stand_in
from jitd.models.helios.presets import Size as HeliosSize
from jitd.models.ltx2.presets import Size
from jitd.models.patch import upsampler
from jitd.models.zimage.presets import Size as ImageSize
from jitd.tools.bench import cli, environment, figures, patch, patched
from jitd.tools.bench.calls import Refused
from jitd.tools.bench.environment import NoDiffusers
from jitd.tools.bench.traffic import Launched
from typer.testing import CliRunner

from ..models.helios.small import BASE as HELIOS
from ..models.ltx2.small import BASE as LTX2
from ..models.ltx2.small import VARIANTS
from ..models.ltx2.tiny import BASE as UPSAMPLER
from ..models.patch.tiny_vae import TINY
from ..models.zimage.small import BASE as ZIMAGE
from .test_bench import FakeStopwatch

pytestmark = pytest.mark.diffusers

RUNNER = CliRunner()
MODELS = ("ltx2", "upsampler", "helios", "zimage", "vae")
NAMES = ("ltx2", "upsampler", "helios", "zimage", "Z-Image", "LTX-2.3", "Wan")
US = {"stock": 4000.0, "patched": 2000.0, "compiled": 3000.0, "both": 1000.0}


@pytest.fixture(autouse=True)
def _one_thread():
    """For models this small more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _small(monkeypatch):
    """Narrow models of few tokens."""
    monkeypatch.setattr(patched, "VIDEO", Size(128, 192, 17))
    monkeypatch.setattr(patched, "CHUNK", HeliosSize(64, 64))
    monkeypatch.setattr(patched, "IMAGE", ImageSize(64, 64))
    for presets in (patched.ltx2, patched.helios):
        monkeypatch.setattr(presets, "TEXT_TOKENS", 16)
    narrow = {
        "ltx2": {**LTX2, **VARIANTS["2.3"]},
        "helios": HELIOS | {"num_layers": 1},
        "zimage": ZIMAGE | {"n_layers": 1, "n_refiner_layers": 0},
    }
    full = patched.TRANSFORMERS
    monkeypatch.setattr(patched, "TRANSFORMERS", {n: (full[n][0], narrow[n]) for n in full})
    cls, config = patched.UPSAMPLER
    monkeypatch.setattr(patched, "UPSAMPLER", (cls, {**config, **UPSAMPLER}))
    tiny = {"Z-Image": "kl", "LTX-2.3": "video 2.3", "Wan": "wan 2.1"}
    monkeypatch.setattr(patched, "DECODERS", {n: TINY[other][:2] for n, other in tiny.items()})
    latents = {"Z-Image": (1, 4, 8, 8), "LTX-2.3": (1, 8, 2, 2, 2), "Wan": (1, 4, 2, 4, 4)}
    monkeypatch.setattr(patched, "LATENTS", latents)
    torch.compiler.reset()


def case_of(name):
    found = patched.cases(MODELS, [1])
    (only,) = (one for one in found if name in (one.facts["model"], one.facts.get("of")))
    return only


def kernels(run):
    """As a profiler might say: one product and two others."""
    run()
    us = {"nvjet_hsh_128x128": 500.0, "elementwise_kernel": 70.0}
    return Launched(Counter({"nvjet_hsh_128x128": 1, "elementwise_kernel": 2}), us)


def contenders(name, *, with_compile=False):
    """(contenders, facts) on the CPU, where references answer."""
    model, given = patched.lively(case_of(name), "cpu")
    facts = {}
    how = {"with_compile": with_compile, "answered": nullcontext}
    return patch.contenders(model, given, facts, **how), facts


def measured(them):
    with torch.no_grad():
        return figures.measure(
            them,
            off=patch.HOW.off,
            host_batches=2,
            stopwatch=FakeStopwatch(**US),
            count_launches=kernels,
            peak_memory=lambda run: 5_000_000,
            synchronize=lambda: None,
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("_small")
def test_a_model_is_measured_and_held_to_stock(name):
    """Every model: stock and patched give the same bits, all first calls agree, and what is patched
    moves less.
    """
    them, facts = contenders(name)
    found, problems = measured(them)
    assert problems == {}
    assert (found["stock"].us, found["patched"].us) == (4000.0, 2000.0)
    assert found["patched"].off == 0.0
    assert found["patched"].moved.total() < 0.95 * found["stock"].moved.total()
    assert facts["sites"] > 0
    assert facts["worst_share_of_bound"] == 0.0
    assert bool(facts["left"]) == (name == "Z-Image")  # attentions of a VAE, without norms of q, k
    row = figures.cells("x", "stock", found, patch.OURS)
    assert row[2:4] == ["4.00", "2.00"]


@pytest.mark.usefixtures("_small")
def test_stock_and_patched_share_their_weights():
    """The copy has the tensors of the original, which stays as it was."""
    model, given = patched.lively(case_of("ltx2"), "cpu")
    copied = patch.twin(model)
    report = patch.patch(copied)
    assert len(report.patched) == 14
    for tensors in ("parameters", "buffers"):
        pairs = zip(getattr(model, tensors)(), getattr(copied, tensors)(), strict=True)
        assert all(one is other for one, other in pairs)
    with torch.no_grad():
        model(**given)
        assert not report.calls
        copied(**given)
    assert report.calls == 14


@pytest.mark.parametrize("name", ["helios", "upsampler", "LTX-2.3"])
@pytest.mark.usefixtures("_small")
def test_both_are_compiled(monkeypatch, name):
    """torch.compile takes stock and patched with their arguments, each in one graph, which answers
    for nobody else; what they move is not known.
    """
    asked, made, answered = [], [], []
    real = torch.compile

    def backend(graph, inputs):
        number = len(made)
        made.append(graph)

        def call(*args):
            answered.append(number)
            return graph(*args)

        return call

    def ours(model, **how):
        asked.append(how)
        return real(model, backend=backend, **how)

    monkeypatch.setattr(torch, "compile", ours)
    them, facts = contenders(name, with_compile=True)
    found, problems = measured(them)
    assert problems == {}
    assert list(found) == ["stock", "patched", "compiled", "both"]
    assert asked == [{"dynamic": False}] * 2
    assert facts["graphs"] == {"compiled": 1, "both": 1}
    assert found["both"].off < 1e-2 and found["compiled"].off < 1e-2
    assert found["compiled"].moved is None and found["both"].moved is None
    assert figures.cells("x", "both", found, patch.OURS)[2:4] == ["1.00", "0.50"]
    for number, one in enumerate(["compiled", "both"] * 2):
        answered.clear()
        with torch.no_grad():
            them[one].run()
        assert answered == [number % 2]


@pytest.mark.usefixtures("_small")
def test_what_does_not_compile_leaves_the_others(monkeypatch):
    """Its reason is told; stock and patched are measured."""

    def broken(model, **how):
        def call(**given):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    found, problems = measured(contenders("upsampler", with_compile=True)[0])
    assert list(found) == ["stock", "patched"]
    assert problems == dict.fromkeys(["compiled", "both"], "RuntimeError: no C++ compiler")


@pytest.mark.usefixtures("_small")
def test_a_site_that_goes_back_to_stock_is_refused(monkeypatch):
    """A wrong answer of an op: its first call is not alike, and stock would be measured as ours."""
    right = upsampler.group_norm_silu
    monkeypatch.setattr(upsampler, "group_norm_silu", lambda *a, **k: 2 * right(*a, **k))
    with pytest.raises(Refused, match="was left: mismatch"):
        measured(contenders("upsampler")[0])


@pytest.mark.usefixtures("_small")
def test_calls_that_stock_answers_are_refused():
    """In training mode every call goes to the stock forward."""
    them, _ = contenders("upsampler")
    them["patched"].run.func.train()
    with pytest.raises(Refused, match=r"stock forwards answered: {'training': 5}"):
        measured(them)


@pytest.mark.usefixtures("_small")
def test_an_answer_by_references_is_refused():
    """On the CPU no kernel answers."""
    model, given = patched.lively(case_of("upsampler"), "cpu")
    them = patch.contenders(model, given, {}, with_compile=False)
    with pytest.raises(Refused, match=r"not every op was answered by a kernel \(reference:cpu\)"):
        measured(them)


@pytest.mark.parametrize("name", NAMES)
def test_real_sizes_on_meta(name):
    """What is recorded to be tuned has the widths and lengths of real runs."""
    shape = {
        "ltx2": "2x6144x4096", "upsampler": "1x1024x16x32x48", "helios": "1x11040x5120",
        "zimage": "1x4128x3840", "Z-Image": "1x128x1024x1024", "LTX-2.3": "1x128x33x128x192",
        "Wan": "1x96x4x384x640",
    }[name]  # fmt: skip
    workload = patch.recorded(case_of(name))
    assert any(shape in text for text in workload), list(workload)


@pytest.mark.usefixtures("_small")
def test_a_run_prints_and_stores_every_model(monkeypatch, tmp_path, capsys):
    """One row per contender; a model that fails has its reason and costs the others nothing."""
    monkeypatch.setattr(figures, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(figures, "launches", kernels)
    monkeypatch.setattr(figures, "CudaStopwatch", lambda **how: FakeStopwatch(**US))
    monkeypatch.setattr(figures, "peak_memory", lambda run: 5_000_000)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    real = patched.lively
    monkeypatch.setattr(
        patch, "lively", lambda case, device: real(case, "cpu" if device == "cuda" else device)
    )
    made = patch.contenders
    monkeypatch.setattr(
        patch, "contenders", lambda *args, **how: made(*args, **how, answered=nullcontext)
    )
    monkeypatch.setattr(patch, "prefetch", list)
    path = tmp_path / "patch.json"
    options = {"with_compile": False, "quick": True, "json": path}
    cases = patched.cases(["upsampler", "zimage"], [])
    assert patch.run(cases=cases, **options)
    first, second = json.loads(path.read_text())["rows"]
    assert (first["stock"]["us"], second["patched"]["us"]) == (4000.0, 2000.0)
    assert (first["sites"], first["left"], first["shape"]) == (5, {}, [1, 8, 3, 2, 3])
    printed = capsys.readouterr().out
    assert "LTX-2.3 upsampler, 1x8x3x2x3" in printed and "patched" in printed

    monkeypatch.setattr(upsampler, "group_norm_silu", lambda x, *rest, **how: -x)
    assert not patch.run(cases=cases, **options)
    failed, good = json.loads(path.read_text())["rows"]
    assert "was left: mismatch" in failed["failed"]
    assert good["patched"]["us"] == 2000.0


def test_options_reach_the_benchmark(monkeypatch):
    """What is typed is what `run` is called with; everything if nothing is named."""
    seen = {}
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(cli, "need_torch_with_cuda", lambda: None)
    monkeypatch.setattr(patch, "run", lambda **options: seen.update(options) or True)
    typed = ["patch", "--model", "ltx2", "--stage", "2", "--model", "vae", "--no-compile"]
    assert RUNNER.invoke(cli.app, typed).exit_code == 0
    assert [dict(case.facts) for case in seen["cases"]] == [
        {"model": "ltx2", "stage": 2},
        *({"model": "vae", "of": name} for name in ("Z-Image", "LTX-2.3", "Wan")),
    ]
    assert (seen["with_compile"], seen["quick"], seen["json"]) == (False, False, None)
    assert RUNNER.invoke(cli.app, ["patch", "--quick"]).exit_code == 0
    assert seen["quick"] and seen["with_compile"]
    assert len(seen["cases"]) == 8
    assert RUNNER.invoke(cli.app, ["patch", "--model", "gpt2"]).exit_code == 2


def test_without_diffusers_one_line_says_so(monkeypatch):
    """Exit code 1, nothing on stdout, no traceback."""

    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(environment, "version", missing)
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(cli, "need_torch_with_cuda", lambda: None)
    with pytest.raises(NoDiffusers, match=r"pip install 'jitd\[diffusers\]'"):
        environment.need_diffusers()
    result = RUNNER.invoke(cli.app, ["patch"])
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "diffusers, which is not installed" in line
