"""What a patched model leaves to the stock forward: gradients, training, autocast, other dtypes."""

import jitd
import pytest
import torch

from .live import MODELS, TRANSFORMERS, build, run, same, tensors

pytestmark = pytest.mark.diffusers


def _gradients(model, call):
    sum(t.float().square().sum() for t in tensors(model(**call))).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training(name, checkpointing):
    """In training, with and without gradient checkpointing, gradients are the stock model's, bit
    for bit; no site answers a call, and each is counted."""
    (model, call), (stock, _) = build(name), build(name)
    report = jitd.patch(model)
    for m in (model, stock):
        m.train()
        if checkpointing:
            if not m._supports_gradient_checkpointing:
                pytest.skip(f"{type(m).__name__} has no gradient checkpointing")
            m.enable_gradient_checkpointing()
    ours, theirs = _gradients(model, call), _gradients(stock, call)
    assert len(ours) == len(theirs) > 0
    assert all(map(torch.equal, ours, theirs))
    assert report.calls == 0 and report.declined.keys() == {"training"}


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    """In eval mode with gradients the stock forward answers, each call counted as `grad`."""
    (model, call), (stock, _) = build(name), build(name)
    report = jitd.patch(model)
    ours, theirs = _gradients(model, call), _gradients(stock, call)
    assert all(map(torch.equal, ours, theirs)) and ours
    assert report.calls == 0 and report.declined.keys() == {"grad"}
    assert jitd.stats()["patch:grad"] == report.declined["grad"]


def test_no_gradients_wanted():
    """With gradients enabled and nobody who wants one, sites answer."""
    model, call = build("upsampler")
    model.requires_grad_(False)
    report = jitd.patch(model)
    model(**call)
    assert report.calls == 3 and not report.declined
    call["hidden_states"].requires_grad_()
    model(**call).sum().backward()
    assert report.calls == 3 and report.declined == {"grad": 3}
    assert call["hidden_states"].grad is not None


def test_autocast():
    """Under autocast the stock forward answers, with its casts."""
    (model, call), (stock, _) = build("upsampler"), build("upsampler")
    report = jitd.patch(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(run(model, call), run(stock, call))
    assert report.calls == 0 and report.declined == {"autocast": 3}


def test_norms_of_another_dtype():
    """Where a norm's weights are not of the activations' dtype, the stock forward answers."""
    model, call = build("upsampler")
    model.bfloat16()
    call["hidden_states"] = call["hidden_states"].bfloat16()
    block = model.res_blocks[0]
    block.norm1.float(), block.norm2.float()
    expected = run(model, call)
    report = jitd.patch(model)
    assert same(run(model, call), expected)
    assert report.declined == {"dtype": 1}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_double_precision(name):
    """In fp64, where eager is more exact than ops that compute in fp32, results have its bits."""
    (model, call), (stock, _) = build(name), build(name)
    model.double(), stock.double()
    times = ("t", "timestep", "audio_timestep", "sigma")
    call = {key: value if key in times else _double(value) for key, value in call.items()}
    report = jitd.patch(model, verify="never")
    assert same(run(model, call), run(stock, call))
    assert report.declined["dtype"] == jitd.stats()["patch:dtype"] > 0


def _double(value):
    if isinstance(value, list):
        return [_double(item) for item in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value
