"""Helios' transformer against the class that it replaces: the same bits, on the CPU.

Every op answers by its reference here, which takes eager's steps one by one; so do the modules.
"""

import pytest
import torch
from jitd.models.helios.config import TransformerConfig
from jitd.models.helios.rope import rotary_table

from .small import BASE, HISTORIES, VARIANTS, build, cast, inputs, run

pytestmark = pytest.mark.diffusers

DTYPES = [torch.float32, torch.bfloat16]


def _theirs(variant, dtype=torch.float32):
    diffusers = pytest.importorskip("diffusers")  # here: it takes seconds to import
    torch.manual_seed(7)
    model = diffusers.HeliosTransformer3DModel(**BASE, **VARIANTS[variant])
    for parameter in model.parameters():  # scales of keys and affine norms begin as ones and zeros
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim == 1 else None
    return cast(model, dtype).eval()


def _both(variant, dtype):
    theirs, ours = _theirs(variant, dtype), build(variant, dtype=dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _assert_same(theirs, ours, given):
    with torch.no_grad():
        (expected,) = theirs(**given, return_dict=False)
    out = run(ours, given)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "amplified" not in name])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", HISTORIES)
def test_same_bits(variant, dtype, history):
    """With diffusers' weights, loaded strictly, the result is diffusers' bit for bit: with and
    without history, in bf16 with the parameters in fp32 that diffusers keeps so.
    """
    _assert_same(*_both(variant, dtype), inputs(history, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", ["none", "all"])
def test_two_samples(dtype, history):
    """Two samples of different timesteps: the same bits from three rows and an index."""
    theirs, ours = _both("base", dtype)
    given = inputs(history, dtype=dtype, batch=2)
    for name in [name for name in given if name.startswith("indices")]:
        given[name] = given[name].expand(2, -1)  # theirs makes a table for each sample
    _assert_same(theirs, ours, given)


@pytest.mark.parametrize("variant", ["amplified", "amplified alike"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_amplified_history(variant, dtype):
    """Keys of history scaled by head or all alike give the same bits. In bf16 the scales are bf16,
    too: with those that diffusers keeps in fp32 its attention raises.
    """
    theirs, ours = _both(variant, dtype)
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            if name.endswith("history_key_scale"):
                parameter.data = parameter.data.to(dtype)
    _assert_same(theirs, ours, inputs(dtype=dtype))


def test_fp32_scales_of_amplified_history():
    """In bf16 with the scales in fp32 history is amplified, where diffusers raises."""
    theirs, ours = _both("amplified", torch.bfloat16)
    given = inputs(dtype=torch.bfloat16)
    with torch.no_grad(), pytest.raises(RuntimeError, match="same dtype"):
        theirs(**given)
    wide = build("amplified").double()
    wide.load_state_dict(ours.state_dict())
    truth = run(wide, {k: v.double() if v.is_floating_point() else v for k, v in given.items()})
    assert (run(ours, given) - truth).norm() <= 2e-2 * truth.norm()


def test_a_smaller_chunk_than_its_history():
    """In the first stages of a pyramid the chunk is smaller than the frames before it."""
    _assert_same(*_both("base", torch.float32), inputs(pixels=(4, 6)))


def test_everything_in_bf16():
    """`to(bf16)` rounds the modulation tables, too, in which diffusers then adds and multiplies
    where ours widens first: closer to float64 than theirs, and near it.
    """
    theirs, ours = _theirs("base"), build()
    ours.load_state_dict(theirs.state_dict())
    given = inputs()
    truth = run(
        ours.double(), {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    )
    ours = build().to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    for parameter in theirs.parameters():
        parameter.data = parameter.data.bfloat16()
    low = inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        (expected,) = theirs(**low, return_dict=False)
    out = run(ours, low)
    assert (out - truth).norm() <= 1.5 * (expected - truth).norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_goes_back(variant):
    """A state dict of ours loads into diffusers' class, with the same names, shapes and dtypes."""
    theirs, ours = _theirs(variant), build(variant)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_kept_in_fp32(tmp_path):
    """`cast` leaves in fp32 exactly what diffusers does when it loads a model in bf16."""
    theirs = _theirs("amplified")
    theirs.save_pretrained(tmp_path)
    loaded = type(theirs).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    ours = build("amplified").cast(torch.bfloat16)
    wanted = {name: p.dtype for name, p in loaded.named_parameters()}
    assert {name: p.dtype for name, p in ours.named_parameters()} == wanted
    assert set(wanted.values()) == {torch.float32, torch.bfloat16}


def test_config_of_theirs_builds_ours():
    """Every entry of a diffusers config is an argument of ours, with the same default."""
    theirs = pytest.importorskip("diffusers").HeliosTransformer3DModel
    with torch.device("meta"):
        config = {k: v for k, v in theirs(num_layers=1).config.items() if k[0] != "_"}
    assert vars(TransformerConfig(**config)) == vars(TransformerConfig(num_layers=1))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_rotary_tables_are_theirs(window):
    """Tables, and those averaged for older frames, are diffusers' bit for bit."""
    module = pytest.importorskip("diffusers.models.transformers.transformer_helios")
    theirs = module.HeliosRotaryPosEmbed((44, 42, 42), 10000.0)
    frames = torch.arange(3, 9)[None]
    expected = theirs(frames, 6, 10, torch.device("cpu"))
    if window > 1:
        cube = (window,) * 3
        expected = module.center_down_sample_3d(module.pad_for_3d_conv(expected, cube), cube)
    table = rotary_table(frames, 6, 10, dims=(44, 42, 42), theta=10000.0, window=window)
    assert torch.equal(table, expected.flatten(2).transpose(1, 2))
