"""The benchmark of a block without a GPU: what is called, counted, held to eager and printed."""

import json
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from jitd.jit.device import stand_in
from jitd.jit.dispatch import fast_paths_closed
from jitd.models.helios import block as helios
from jitd.models.helios.presets import Size as HeliosSize
from jitd.models.helios.workload import run_chunk
from jitd.models.ltx2 import fused as ltx2
from jitd.models.ltx2.block import Block
from jitd.models.ltx2.presets import Size
from jitd.models.ltx2.workload import run_stage
from jitd.models.ops import rotary
from jitd.models.ops.gates import gate_residual
from jitd.models.ops.row_norm import rms_norm
from jitd.models.zimage import block as zimage
from jitd.models.zimage.presets import Size as ImageSize
from jitd.models.zimage.workload import run_image
from jitd.tools.bench import block, blocks, cli, figures
from jitd.tools.bench.calls import Refused
from jitd.tools.bench.eager import EAGER, Eager, qk_norm_rotary, reference
from jitd.tools.bench.traffic import Launched, traffic
from typer.testing import CliRunner

from .test_bench import FakeStopwatch

RUNNER = CliRunner()
SMALL = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 16,
    "cross_attention_dim": 64, "audio_in_channels": 8, "audio_out_channels": 8,
    "audio_num_attention_heads": 4, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 32, "caption_channels": 24, "num_layers": 1,
}  # fmt: skip
SMALL_HELIOS = {
    "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "rope_dim": (4, 6, 6),
    "text_dim": 8,
}  # fmt: skip
SMALL_ZIMAGE = {
    "dim": 64, "n_heads": 4, "n_kv_heads": 4, "axes_dims": (8, 4, 4), "cap_feat_dim": 8,
}  # fmt: skip
OTHERS = {"helios": blocks.helios_cases, "zimage": blocks.zimage_cases, "vae": blocks.vae_cases}
VARIANTS = pytest.mark.parametrize("variant", ["2.0", "2.3"])


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A narrow block of few tokens."""
    monkeypatch.setattr(blocks, "VIDEO", Size(128, 192, 17))
    monkeypatch.setattr(blocks, "CHUNK", HeliosSize(64, 64))
    monkeypatch.setattr(blocks, "IMAGE", ImageSize(64, 64))
    monkeypatch.setattr(blocks, "DECODED", (1, 8, 3, 4, 6))
    for name, run, small_config in (
        ("run_stage", run_stage, SMALL), ("run_chunk", run_chunk, SMALL_HELIOS),
        ("run_image", run_image, SMALL_ZIMAGE),
    ):  # fmt: skip

        def narrow(*args, run=run, small_config=small_config, **how):
            return run(*args, **{**how, "dtype": torch.float32, **small_config})

        monkeypatch.setattr(blocks, name, narrow)
    torch.compiler.reset()


def stage_1(variant="2.3"):
    """A block of LTX-2, stage 1."""
    (only,) = blocks.ltx2_cases([variant], [1], i2v=False)
    return only


def small(variant):
    return blocks.caught(Block, lambda: stage_1(variant).forward("cpu"))


def kernels(run):
    """As a profiler might say: one product and two others."""
    run()
    us = {"nvjet_hsh_128x128": 500.0, "elementwise_kernel": 70.0}
    return Launched(Counter({"nvjet_hsh_128x128": 1, "elementwise_kernel": 2}), us)


def measured(one, us=None, case=None):
    with torch.no_grad():
        return figures.measure(
            block.contenders(case or stage_1(), one, with_compile=False),
            off=block.HOW.off,
            host_batches=3,
            stopwatch=FakeStopwatch(**us or {"eager": 3000.0, "jitd": 1000.0}),
            count_launches=kernels,
            peak_memory=lambda run: 5_000_000,
            synchronize=lambda: None,
        )


@VARIANTS
def test_a_block_is_caught_with_its_arguments(variant):
    """What a real forward gives its first block, which then can be called by itself."""
    one = small(variant)
    assert isinstance(one.module, Block)
    assert one.shape[0] == 2 and one.shape[2] == 64
    with torch.no_grad():
        video, audio = one()
        again, _ = one()
    assert video.shape == one.shape and audio.shape[2] == 32
    assert torch.equal(video, again)


def test_a_module_that_is_not_called_is_an_error():
    """A model without such a block."""
    with pytest.raises(LookupError, match="no Block was called"):
        blocks.caught(Block, lambda: torch.nn.Linear(2, 2)(torch.zeros(2)))


@VARIANTS
def test_eager_sees_nothing_of_jitd(variant):
    """With eager in the place of the ops none is called, results are the same, and afterwards the
    ops are back."""
    one = small(variant)
    eager = Eager("jitd.models.ltx2")
    with torch.no_grad():
        want = one()
        with eager():
            assert ltx2.gate_residual is reference(gate_residual)
            found = traffic(lambda: torch.testing.assert_close(one(), want, rtol=1e-4, atol=1e-4))
        assert not {"gate_residual", "rms_norm_modulate", "qk_norm_rotary"} & set(found)
        assert ltx2.gate_residual is gate_residual
        assert {"gate_residual", "rms_norm_modulate", "qk_norm_rotary"} <= set(traffic(one))


def test_eager_uses_torchs_own_norm():
    """nn.RMSNorm is one kernel in eager: the reference's chain would flatter us."""
    assert {"rms_norm", "qk_norm_rotary"} <= set(EAGER)
    q, k = torch.randn(2, 6, 32), torch.randn(2, 4, 32)
    weight, cos, sin = torch.randn(32), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    args = (q, k, weight, weight, cos, sin)
    want = reference(rotary.qk_norm_rotary)(*args)
    for one, other in zip(qk_norm_rotary(*args), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_traffic_counts_what_is_read_and_written():
    """Operators by name; views, allocations and matrix products are left out; a row that is
    broadcast counts once."""
    x, row, weight = torch.zeros(4, 8), torch.zeros(8), torch.zeros(8, 8)

    def run():
        y = (x @ weight).view(2, 16).T
        torch.empty_like(x)
        return y, x + row.expand(4, 8)

    assert traffic(run) == {"add": 4 * (32 + 8 + 32)}


def test_traffic_leaves_attention_out():
    """Whatever it is made of: on the CPU softmax and products, on a GPU one kernel."""
    q = torch.zeros(1, 2, 6, 8)
    mask = torch.zeros(1, 1, 6, 6)

    def run():
        y = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        return y + 1

    assert traffic(run) == {"add": 4 * 2 * q.numel()}


def test_traffic_of_an_op_is_its_cost():
    """An op of jitd's counts as one operator, tensors in and out."""
    x, y, gate = torch.zeros(2, 6, 8), torch.zeros(2, 6, 8), torch.zeros(2, 1, 8)
    with fast_paths_closed():
        found = traffic(lambda: gate_residual(x, y, gate))
    assert found["gate_residual"] == 4 * (3 * 96 + 16)


def test_products_are_told_by_their_kernels():
    """cuBLAS, cutlass and flash attention, whatever they are called this year; Inductor's copy in
    front of one is none."""
    names = ["nvjet_hsh_64x8", "sm90_xmma_gemm_bf16", "cutlass::Kernel2", "flash_fwd_kernel",
             "cudnn_generated_fort_native_sdpa", "fmha_cutlassF", "rms_norm_rows", "gate_residual",
             "vectorized_elementwise_kernel", "Memcpy DtoD",
             "triton_poi_fused__scaled_dot_product_flash_attention_0"]  # fmt: skip
    launched = Launched(Counter(names), dict.fromkeys(names, 2.0))
    assert (launched.products, launched.other_us) == (6, 2.0 * (len(names) - 6))


@VARIANTS
def test_a_block_is_measured_and_held_to_eager(variant):
    """Figures of each contender; what jitd moves is less than what eager moves."""
    found, problems = measured(small(variant))
    assert problems == {}
    eager, ours = found["eager"], found["jitd"]
    assert (eager.us, ours.us, eager.off) == (3000.0, 1000.0, 0.0)
    assert ours.off < 1e-5
    assert ours.moved.total() < 0.7 * eager.moved.total()
    assert eager.host_us > 0 and ours.host_us > 0
    row = figures.cells("2.3, stage 1", "eager", found, block.OURS)
    assert len(row) == len(figures.COLUMNS)
    assert row[2:7] == ["3.00", "3.00", "3", "2", "0.07"]
    stored = json.loads(json.dumps(ours.json()))
    assert (stored["launches"], stored["products"]) == (3, 1)
    assert stored["moved_bytes"] == sum(stored["moved_by_operator"].values())


def test_a_wrong_block_is_not_timed(monkeypatch):
    """jitd's answer is held to eager's before anything is timed."""
    forward = ltx2._fed

    def wrong(x, *rest):
        return forward(x, *rest) * (1.1 if ltx2.gate_residual is gate_residual else 1.0)

    monkeypatch.setattr(ltx2, "_fed", wrong)
    with pytest.raises(Refused, match="jitd is off by"):
        measured(small("2.3"))


def test_a_contender_that_cannot_be_timed_leaves_the_others():
    """Its cells are empty and its reason is printed."""
    found, problems = measured(small("2.0"), us={"eager": -1.0, "jitd": 1000.0})
    assert problems == {"eager": "no clock"}
    assert figures.cells("x", "eager", found, block.OURS)[2:4] == ["-", "-"]


def test_without_a_profiler_times_stand(monkeypatch):
    """Launches are not known then, and the reason is."""

    def broken(run):
        raise RuntimeError("no CUPTI")

    monkeypatch.setattr(f"{__name__}.kernels", broken)
    found, problems = measured(small("2.0"))
    assert problems["jitd (launches)"] == "RuntimeError: no CUPTI"
    assert figures.cells("x", "jitd", found, block.OURS)[2:7] == ["1.00", "1.00", "-", "-", "-"]
    assert found["jitd"].json()["launches"] is None


def test_a_block_compiles_in_one_graph():
    """What torch.compile is given is eager, without a break."""
    one = small("2.3")
    eager = Eager("jitd.models.ltx2")
    compiled = torch.compile(one.module, dynamic=False, fullgraph=True, backend="eager")
    with torch.no_grad(), eager():
        torch.testing.assert_close(one(compiled), one(), rtol=1e-5, atol=1e-5)


def test_a_run_prints_and_stores_every_block(monkeypatch, tmp_path, capsys):
    """One row per contender; a block that fails has its reason and costs the others nothing."""
    monkeypatch.setattr(figures, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(figures, "launches", kernels)
    monkeypatch.setattr(
        figures, "CudaStopwatch", lambda **how: FakeStopwatch(eager=3000.0, jitd=1000.0)
    )
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def ready(case):
        if case.facts["variant"] == "2.0":
            raise Refused("no kernel answered")
        return small(case.facts["variant"]), 0.5

    monkeypatch.setattr(block, "_ready", ready)
    path = tmp_path / "block.json"
    monkeypatch.setattr(figures, "peak_memory", lambda run: 5_000_000)
    options = {"with_compile": False, "json": path}
    cases = [*blocks.ltx2_cases(["2.0", "2.3"], [1], i2v=False)]
    assert not block.run(cases=cases, **options)
    report = json.loads(path.read_text())
    failed, good = report["rows"]
    facts = {"model": "ltx2", "variant": "2.0", "stage": 1, "i2v": False}
    assert failed == {**facts, "failed": "Refused: no kernel answered"}
    assert (good["eager"]["us"], good["jitd"]["us"], good["get_s"]) == (3000.0, 1000.0, 0.5)
    printed = capsys.readouterr().out
    assert "2.0, stage 1" in printed and "failed: Refused: no kernel answered" in printed
    assert "2.3, stage 1, 2x18x64" in printed
    assert good["jitd"]["held_bytes"] == 5_000_000
    assert block.run(cases=blocks.ltx2_cases(["2.3"], [1, 2], i2v=False), **options)


def test_options_reach_the_benchmark(monkeypatch, tmp_path):
    """What is typed is what `run` is called with; everything if nothing is named."""
    seen = {}
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(cli, "need_torch_with_cuda", lambda: None)
    monkeypatch.setattr(block, "run", lambda **options: seen.update(options) or True)
    typed = [
        "block",
        "--model",
        "ltx2",
        "--variant",
        "2.3",
        "--stage",
        "2",
        "--i2v",
        "--no-compile",
    ]
    assert RUNNER.invoke(cli.app, typed).exit_code == 0
    (only,) = seen["cases"]
    assert dict(only.facts) == {"model": "ltx2", "variant": "2.3", "stage": 2, "i2v": True}
    assert (seen["with_compile"], seen["json"]) == (False, None)
    assert RUNNER.invoke(cli.app, ["block"]).exit_code == 0
    models = [case.facts["model"] for case in seen["cases"]]
    assert models == [*["ltx2"] * 4, "helios", "zimage", "vae"]
    assert RUNNER.invoke(cli.app, ["block", "--stage", "3"]).exit_code == 2
    assert RUNNER.invoke(cli.app, ["block", "--model", "gpt2"]).exit_code == 2


@pytest.mark.parametrize("model", OTHERS)
def test_blocks_of_other_models(model):
    """Blocks of Helios and Z-Image and of a decoder: caught, measured, held to eager code of their
    own, which moves and holds more.
    """
    (one,) = OTHERS[model]()
    block_of = blocks.caught(one.kind, lambda: one.forward("cpu"))
    found, problems = measured(block_of, case=one)
    assert problems == {}
    eager, ours = found["eager"], found["jitd"]
    assert ours.off < 1e-5
    assert ours.moved.total() < 0.8 * eager.moved.total()
    expansion = 0
    if model == "helios":
        x, told = block_of.args
        assert told.rows.shape[0] == 2
        expansion = 6 * x.nbytes
    assert eager.held_bytes - ours.held_bytes == expansion


def test_the_layers_of_zimage_are_caught():
    """Its first block is one over image and caption, not one that refines either."""
    (one,) = blocks.zimage_cases()
    assert blocks.caught(one.kind, lambda: one.forward("cpu")).shape == (1, 16 + 16 + 32, 64)


@pytest.mark.parametrize("model", ["helios", "zimage"])
def test_eager_of_other_models_sees_nothing_of_jitd(model):
    """Eager's functions answer in every module of the package; torch.compile takes the block."""
    (one,) = OTHERS[model]()
    found = blocks.caught(one.kind, lambda: one.forward("cpu"))
    plain, eager = one.as_eager(found), Eager(one.package)
    with torch.no_grad(), eager():
        names = set(traffic(plain))
        assert not names & {"layer_norm_modulate", "qk_norm_rotary", "rms_norm_scale", "swiglu"}
        compiled = torch.compile(plain.module, dynamic=False, fullgraph=True, backend="eager")
        torch.testing.assert_close(plain(compiled), plain(), rtol=1e-5, atol=1e-5)
    assert helios.gate_residual is gate_residual
    assert zimage.rms_norm is rms_norm
