"""Z-Image's transformer by itself: layouts, waiting, compiling, gradients. Needs no diffusers."""

import jitd
import pytest
import torch
from torch._dynamo.utils import counters

from ..waits import Waits
from .small import BATCHES, ONE, build, inputs, recorded, run

LENGTHS = tuple(range(32, 513, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES)
def test_meta_signatures_are_the_cpu_s(dtype, batch):
    """A run on meta asks for exactly the signatures of a real run, strides class included."""
    _compare_signatures("cpu", dtype, batch)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES)
def test_meta_signatures_are_the_gpu_s(dtype, batch):
    """A run on meta asks for exactly the signatures of a run on the GPU."""
    jitd.configure(mode="off")  # what is asked for does not depend on who answers
    _compare_signatures("cuda", dtype, batch)


def _compare_signatures(device, dtype, batch):
    found = [
        recorded(
            build(dtype=dtype, device=where), inputs(BATCHES[batch], dtype=dtype, device=where)
        )
        for where in ("meta", device)
    ]
    assert found[0] == found[1]
    assert sum(found[0].values()) == 6 * 4 + 2


def test_samples_do_not_touch_each_other():
    """What a sample gets does not depend on longer ones beside it, however far it is filled up."""
    model, batch = build(dtype=torch.float64), BATCHES["three"]
    given = inputs(batch, dtype=torch.float64)
    together = run(model, given)
    for b in range(len(batch)):
        (alone,) = run(model, {name: value[b : b + 1] for name, value in given.items()})
        assert (together[b] - alone).abs().max() <= 1e-6  # timesteps' waves are fp32
        assert together[b].shape == given["x"][b].shape


@pytest.mark.parametrize("batch", BATCHES)
def test_nothing_waits(batch):
    """No value of a tensor is asked for: on a GPU a forward is queued without waiting for it."""
    model, given = build(), inputs(BATCHES[batch])
    with Waits() as waits:
        run(model, given)
    assert waits.seen == []


@pytest.mark.gpu
@pytest.mark.parametrize("batch", ["one", "three"])
def test_nothing_waits_on_the_gpu(batch):
    """CUDA sees no synchronisation in a forward."""
    jitd.configure(mode="off")
    model = build(dtype=torch.bfloat16, device="cuda")
    given = inputs(BATCHES[batch], dtype=torch.bfloat16, device="cuda")
    run(model, given)  # libraries that start may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(model, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("batch", BATCHES)
def test_compiles_without_graph_breaks(batch):
    """torch.compile takes the forward as one graph, with eager's result and strides."""
    torch.compiler.reset()
    model, given = build(), inputs(BATCHES[batch])
    expected = run(model, given)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for out, wanted in zip(run(compiled, given), expected, strict=True):
        assert torch.equal(out, wanted)
        assert out.stride() == wanted.stride()


@pytest.mark.parametrize(("dynamic", "graphs"), [(None, 2), (True, 1)])
def test_sixteen_lengths_compile_once(dynamic, graphs):
    """Captions of all lengths, filled up or not, need one graph: two where Dynamo first tries a
    graph of a fixed length.
    """
    torch.compiler.reset()
    counters.clear()
    model = build(axes_lens=(1024, 32, 32), n_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (*LENGTHS[:4], 33, 45, 100, *LENGTHS[4:]):
        given = inputs((((8, 12), length),))
        (out,), (wanted,) = run(compiled, given), run(model, given)
        assert torch.equal(out, wanted)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_gradients():
    """With gradients wanted a forward gives the same, and they reach every parameter."""
    model, given = build(), inputs(BATCHES["three"])
    outs = model(**given)
    for out, wanted in zip(outs, run(model, given), strict=True):
        assert torch.equal(out, wanted)
    sum(out.square().sum() for out in outs).backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()


WRONG = {
    "an odd width": ({"x": [torch.ones(4, 1, 8, 11)]}, "H and W of 2"),
    "no frames": ({"x": [torch.ones(4, 8, 12)]}, r"allowed are \(4, F, H, W\)"),
    "two images": ({"x": [torch.ones(4, 1, 8, 12)] * 2}, "x has 2 images, cap_feats 1"),
    "no image": ({"x": [], "cap_feats": []}, "x has 0 images"),
    "two timesteps": ({"t": torch.ones(2)}, r"t is \(2,\); allowed is \(1,\)"),
    "an empty caption": ({"cap_feats": [torch.ones(0, 24)]}, "L > 0"),
    "a caption of other channels": ({"cap_feats": [torch.ones(8, 25)]}, r"allowed is \(L, 24\)"),
    "a caption too long": ({"cap_feats": [torch.ones(250, 24)]}, r"up to \(256, 32, 32\)"),
    "an image too large": ({"x": [torch.ones(4, 1, 8, 66)]}, r"1 x 4 x 33 .* up to"),
    "other patches": ({"patch_size": 4}, r"are \(4, 1\); allowed are \(2, 1\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs(wrong):
    """An input that does not fit is refused by its name, with what would fit."""
    change, allowed = WRONG[wrong]
    with pytest.raises(ValueError, match=allowed):
        run(build(), inputs(ONE) | change)


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"siglip_feat_dim": 8}, "None"),
        ({"qk_norm": False}, "True"),
        ({"n_kv_heads": 2}, "allowed is 4"),
        ({"all_patch_size": (2, 4)}, "as many of the one"),
        ({"axes_dims": (8, 8, 4)}, "64 / 4 channels"),
    ],
)
def test_impossible_configs(wrong, allowed):
    """A config that neither model has is refused with what is allowed."""
    with torch.device("meta"), pytest.raises(ValueError, match=allowed):
        build(**wrong)
