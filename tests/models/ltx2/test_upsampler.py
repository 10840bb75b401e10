"""The upsampler by itself: names, shapes, fused sites and layouts; diffusers is not needed."""

import jitd
import pytest
import torch
import torch.nn.functional as F
from jitd.models.ltx2.presets import PRESETS, UPSAMPLERS, Size, latent_shape
from jitd.models.ltx2.upsampler import BlurDownsample, LatentUpsampler, PixelShuffle
from jitd.models.ltx2.workload import run_upsampler

from .tiny import SHAPE, VARIANTS, build, latents, spy

BLOCK = [
    f"{part}.{kind}" for part in ("conv1", "norm1", "conv2", "norm2") for kind in ("weight", "bias")
]
EDGES = [
    f"{part}.{kind}"
    for part in ("initial_conv", "initial_norm", "final_conv")
    for kind in ("weight", "bias")
]
# As listed from diffusers 0.42.1, at two blocks a stage.
NAMES = {
    *EDGES,
    *(
        f"{stage}.{i}.{name}"
        for stage in ("res_blocks", "post_upsample_res_blocks")
        for i in (0, 1)
        for name in BLOCK
    ),
}
RATIONAL = {"upsampler.conv.weight", "upsampler.conv.bias", "upsampler.blur_down.kernel"}
SHUFFLE = {"upsampler.0.weight", "upsampler.0.bias"}
ENLARGED = {
    "x2_20": (3, 8, 12),
    "x2_23": (3, 8, 12),
    "x1.5": (3, 6, 9),
    "temporal": (5, 4, 6),
    "2d": (3, 8, 12),
    "x0.75": (3, 3, 5),
    "x4": (3, 16, 24),
    "spatiotemporal": (5, 8, 12),
    "2d_x1.5": (3, 6, 9),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_names(variant):
    """State dicts have exactly the names of diffusers' checkpoints."""
    rational = VARIANTS[variant].get("use_rational_resampler", False)
    expected = NAMES | (RATIONAL if rational else SHUFFLE)
    assert set(build(variant, device="meta").state_dict()) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_shape(variant):
    """Each layout enlarges space, time or both by its factor, the first frame kept single."""
    with torch.no_grad():
        out = build(variant)(latents((2, *SHAPE[1:])))
    assert out.shape == (2, 8, *ENLARGED[variant])


@pytest.mark.parametrize("version", UPSAMPLERS)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_shapes(name, version, monkeypatch):
    """The released model on meta doubles each preset's latents through 9 + 8 fused sites."""
    sites = spy(monkeypatch)
    out = run_upsampler(PRESETS[name], dtype=torch.bfloat16, version=version)
    frames, height, width = latent_shape(PRESETS[name])
    assert out.is_meta
    assert out.dtype == torch.bfloat16
    assert out.shape == (1, 128, frames, 2 * height, 2 * width)
    assert sites.counts == {"apply_group_norm_silu": 9, "group_norm_add_silu": 8}
    before, after = (1, 1024, frames, height, width), (1, 1024, frames, 2 * height, 2 * width)
    assert [x.shape for _, x, *_ in sites.calls] == [before] * 9 + [after] * 8


def test_unknown_version():
    """An unknown model version is refused with the known ones."""
    with pytest.raises(ValueError, match=r"'1\.0'.*2\.0, 2\.3"):
        run_upsampler(PRESETS["512x768"], dtype=torch.bfloat16, version="1.0")


def test_workload_overrides():
    """A workload can be run small on a real device."""
    size = {"mid_channels": 32, "num_blocks_per_stage": 1}
    out = run_upsampler(Size(64, 128, 9), dtype=torch.float32, device="cpu", **size)
    assert out.shape == (1, 128, 2, 2, 4)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("variant", "strides"),
    [
        ("x2_23", (3 * 64 * 96, 96, 64 * 96, 12, 1)),  # frames outside channels
        ("x2_20", (3 * 64 * 96, 96, 64 * 96, 12, 1)),
        ("temporal", (64 * 6 * 24, 6 * 24, 24, 6, 1)),  # a gap where the first frame was
    ],
)
def test_first_post_residual_is_a_view(variant, strides, monkeypatch):
    """The first block behind the upsampler gets its residual strided, not copied."""
    sites = spy(monkeypatch)
    with torch.no_grad():
        build(variant)(latents())
    adds = [call for call in sites.calls if call[0] == "group_norm_add_silu"]
    _, x, residual = adds[2]
    assert x.is_contiguous()
    assert not residual.is_contiguous()
    assert residual.stride() == strides
    assert all(r.is_contiguous() for i, (_, _, r) in enumerate(adds) if i != 2)


LAYOUTS = [  # (variant, batch, dtype, channels_last)
    *((variant, 1, torch.float32, False) for variant in VARIANTS),
    *(
        (variant, batch, torch.bfloat16, cl)
        for variant in VARIANTS
        for batch in (1, 2)
        for cl in (False, True)
    ),
    # At batch 1, fp32 and three dimensions the CPU takes a kernel that knows no channels-last.
    *((variant, 2, torch.float32, True) for variant in VARIANTS),
]


@pytest.mark.parametrize(("variant", "batch", "dtype", "channels_last"), LAYOUTS)
def test_meta_layouts_are_the_cpu_s(monkeypatch, variant, batch, dtype, channels_last):
    """Every fused site sees the same shapes, strides and dtypes on meta as in a real run."""
    _compare_layouts(monkeypatch, "cpu", variant, batch, dtype=dtype, channels_last=channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_layouts_are_the_gpu_s(monkeypatch, variant, batch, dtype, channels_last):
    """Every fused site sees the same shapes, strides and dtypes on meta as on the GPU."""
    jitd.configure(mode="off")  # what a site sees does not depend on who answers
    _compare_layouts(monkeypatch, "cuda", variant, batch, dtype=dtype, channels_last=channels_last)


def _compare_layouts(monkeypatch, device, variant, batch, **how):
    sites = spy(monkeypatch)
    outs = []
    for where in ("meta", device):
        x = latents((batch, *SHAPE[1:]), device=where, **how)
        with torch.no_grad():
            outs.append(build(variant, device=where, **how)(x))
    meta, real = sites.layouts[: len(sites.calls) // 2], sites.layouts[len(sites.calls) // 2 :]
    assert meta == real
    assert outs[0].stride() == outs[1].stride()


@pytest.mark.parametrize("variant", ["x2_20", "x2_23", "x1.5", "temporal", "spatiotemporal"])
def test_channels_last_stays(variant, monkeypatch):
    """In a channels-last model no activation or residual leaves that layout."""
    sites = spy(monkeypatch)
    how = {"dtype": torch.bfloat16, "channels_last": True}
    with torch.no_grad():
        build(variant, **how)(latents(**how))
    for _, *activations in sites.calls:
        assert all(x.is_contiguous(memory_format=torch.channels_last_3d) for x in activations)


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_last_same_result(variant):
    """The memory layout changes rounding at most, never which pixel goes where."""
    shape = (2, *SHAPE[1:])
    with torch.no_grad():
        plain = build(variant)(latents(shape))
        relaid = build(variant, channels_last=True)(latents(shape, channels_last=True))
    torch.testing.assert_close(relaid, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_without_graph_breaks(variant):
    """torch.compile takes the forward as one graph, with eager's result and strides."""
    torch.compiler.reset()  # variants share the code of forward, and its limit on recompiling
    model, x = build(variant), latents()
    with torch.no_grad():
        expected = model(x)
        out = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


def test_pixel_shuffle_is_torch_s():
    """In two dimensions the shuffle is torch's, in either layout."""
    x = torch.arange(2 * 12 * 3 * 5.0).reshape(2, 12, 3, 5)
    relaid = PixelShuffle((2, 2))(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(PixelShuffle((2, 2))(x), F.pixel_shuffle(x, 2))
    assert torch.equal(relaid, F.pixel_shuffle(x, 2))
    assert relaid.is_contiguous(memory_format=torch.channels_last)


def test_pixel_shuffle_order_in_space_and_time():
    """Of the channels that become pixels, width changes fastest, then height, then time."""
    out = PixelShuffle((2, 2, 2))(torch.arange(16.0).reshape(1, 16, 1, 1, 1))
    assert torch.equal(out, torch.arange(16.0).reshape(1, 2, 2, 2, 2))


def test_blur_keeps_a_flat_image():
    """The blur's weights sum to one exactly, so that flat interiors stay as they are."""
    blur = BlurDownsample(2)
    assert blur.kernel.sum() == 1
    assert blur(torch.ones(1, 3, 9, 9))[..., 1:-1, 1:-1].eq(1).all()


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"dims": 1}, "2 .* or 3"),
        ({"mid_channels": 48}, "multiple of 32"),
        ({"spatial_upsample": False}, "spatial_upsample, temporal_upsample or both"),
        ({"dims": 2, "temporal_upsample": True}, "dims=3"),
        ({"rational_spatial_scale": 3.0}, r"0\.75, 1\.5, 2\.0, 4\.0"),
    ],
)
def test_impossible_configs(wrong, allowed):
    """A config that cannot be built is refused with what can."""
    with torch.device("meta"), pytest.raises(ValueError, match=allowed):
        LatentUpsampler(**{"mid_channels": 64, **wrong})
