"""Patched VAEs against themselves as diffusers has them: the same bits, on the CPU."""

import jitd
import pytest
import torch
from jitd.models.patch.layouts import AsOnADevice, suggests_channels_last
from torch._dynamo.utils import counters
from torch.nn import functional as F

from .tiny_vae import RELEASED, TINY, build, released, same, sample, there_and_back

pytestmark = pytest.mark.diffusers

# Calls of ops: of an encoder, of a decoder. Wan's encoder runs twice here,
# its decoder once for each of three latent frames, or two.
SITES = {
    "video 2.0": (11, 9),
    "video 2.3": (11, 11),
    "audio": (11, 17),
    "wan 2.1": (2 * 11, 3 * 17),
    "wan 2.2": (2 * 13, 2 * 21),
    "kl": (9, 13),
}


def tile(model):
    """Tiles and slices, where the model has them, smaller than `sample` is."""
    model.use_slicing = True
    match type(model).__name__:
        case "AutoencoderKL":
            model.enable_tiling()
            model.tile_sample_min_size, model.tile_latent_min_size = 12, 6
        case "AutoencoderKLWan":
            side = 16 * (model.config.patch_size or 1)
            model.enable_tiling(side, side, side // 2, side // 2)
        case "AutoencoderKLLTX2Video":
            # The last of tiles that overlap is too small to be padded by reflection.
            stride = 64 if model.config.decoder_spatial_padding_mode == "reflect" else 32
            model.enable_tiling(64, 64, 16, stride, stride, 8)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_bits(name, dtype):
    """Encoded and decoded, a sample has diffusers' bits and strides; each norm with a SiLU behind
    it is one op, and no site is left.
    """
    model, x = build(name, dtype=dtype), sample(name, dtype=dtype)
    wanted = there_and_back(model, x)
    assert all(want.isfinite().all() for want in wanted)
    report = jitd.patch(model)
    assert same(there_and_back(model, x), wanted)
    assert {site.recipe.name for site in report.left} <= {"Attention"}  # GroupNorm without SiLU
    assert not report.declined
    assert all(share == 0 for site in report.sites for share in site.verified.values())

    with jitd.record() as asked:
        there_and_back(model, x)
    assert sum(asked.counts.values()) == sum(SITES[name])


@pytest.mark.parametrize("name", TINY)
def test_tiles_and_slices(name):
    """Two samples, each by itself and in tiles, have diffusers' bits: tiles of several sizes are
    decoded by the same sites.
    """
    model, x = build(name), sample(name, 2)
    if x.ndim == 5:
        x = torch.cat([x, x.flip(-1)], dim=-1)  # larger than a tile
    tile(model)
    wanted = there_and_back(model, x)
    report = jitd.patch(model)
    assert same(there_and_back(model, x), wanted)
    assert not report.declined
    with jitd.record() as asked:
        there_and_back(model, x)
    assert sum(asked.counts.values()) > (1 if name == "audio" else 2) * sum(SITES[name])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("batch", "channels_last"), [(2, False), (1, True), (2, True)])
def test_layouts(name, batch, channels_last):
    """Two samples, and models in channels-last, have diffusers' bits and strides. Attention turns
    what is behind it into channels-last for two samples, but not for one.
    """
    how = {"channels_last": channels_last}
    model, x = build(name, **how), sample(name, batch, **how)
    wanted = there_and_back(model, x)
    report = jitd.patch(model)
    assert same(there_and_back(model, x), wanted)
    assert not report.declined


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("batch", "channels_last"), [(1, False), (2, False), (1, True)])
def test_meta_records_what_a_real_run_asks_for(name, batch, channels_last):
    """Signatures recorded on meta, layouts and counts included, are those of a run on the CPU."""
    counts = []
    for device in ("cpu", "meta"):
        how = {"dtype": torch.bfloat16, "device": device, "channels_last": channels_last}
        model = build(name, **how)
        jitd.patch(model)
        with AsOnADevice(), jitd.record() as asked:
            there_and_back(model, sample(name, batch, **how))
        counts.append(asked.counts)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("name", "sites", "some"),
    [
        ("video 2.0", 41, {"channel_rms_norm_silu[bf16](1x1024x16x16x24)": 10}),
        ("video 2.3", 37, {"channel_rms_norm_silu[bf16](1x1024x16x16x24)": 4}),
        ("audio", 23, {}),
        ("wan 2.1", 9 * 29, {}),
        ("kl", 29, {"group_norm_silu[bf16](1x512x128x128, groups=32)": 10}),
    ],
)
def test_released_decoders(name, sites, some):
    """At its released size a decode asks for as many ops as it has norms with a SiLU behind them:
    29 in Z-Image's VAE.
    """
    assert set(RELEASED) == {"video 2.0", "video 2.3", "audio", "wan 2.1", "kl"}
    model, latents = released(name)
    jitd.patch(model)
    with torch.no_grad(), AsOnADevice(), jitd.record() as asked:
        model.decode(latents)
    assert sum(asked.counts.values()) == sites
    assert {key: asked.counts.get(key) for key in some} == some


@pytest.mark.parametrize("name", ["video 2.3", "audio", "wan 2.1", "kl"])
def test_fast_reaches_the_ops(name):
    """What `patch` is told about numerics is what each op is called with."""
    model = build(name)
    jitd.patch(model, numerics="fast")
    with jitd.record() as asked:
        there_and_back(model, sample(name))
    assert asked.counts
    assert all("numerics=fast" in str(key) for key in asked.counts)


def test_strides_are_taken_as_aten_does():
    """Which strides suggest channels-last is what aten's padding, which follows them, says; on meta
    and on the CPU.
    """
    shapes = [(1, 4, 3, 5), (2, 4, 3, 5), (2, 4, 1, 5), (2, 1, 3, 5), (1, 4, 1, 1), (1, 4, 1, 3, 5)]
    found = set()
    for shape in shapes:
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        x = torch.empty(shape)
        rows = torch.empty(shape[0], x[0, 0].numel(), shape[1])
        for y in (
            x,
            x.contiguous(memory_format=last),
            x.new_empty(4, *shape[1:]).contiguous(memory_format=last)[::4].expand(shape),
            rows.transpose(1, 2).view(shape),
        ):
            want = F.pad(y, (1, 1)).is_contiguous(memory_format=last)
            want &= not F.pad(y, (1, 1)).is_contiguous()
            for t in (y, y.to("meta").as_strided(y.shape, y.stride())):
                if y.shape[1] > 1 and y[0, 0].numel() > 1:  # else both are the same
                    assert suggests_channels_last(t) == want, (y.shape, y.stride())
                    found.add(want)
    assert found == {True, False}


@pytest.mark.parametrize("name", ["wan 2.1", "kl"])
def test_a_compiled_decoder_has_the_same_bits(name):
    """A patched decoder is compiled without a break, its ops each a node, and keeps its bits."""
    torch.compiler.reset()
    counters.clear()
    model = build(name)
    shape = {"wan 2.1": (1, 4, 1, 4, 4), "kl": (1, 4, 8, 8)}[name]
    z = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model.decoder(z)
        jitd.patch(model)
        out = torch.compile(model.decoder, backend="aot_eager", fullgraph=True)(z)
    assert counters["stats"]["unique_graphs"] == 1
    assert same([out], [wanted])
