"""The ops of Helios, Z-Image and the VAEs on the card: bits against eager, errors against float64,
binaries over lengths, compiled models, indices out of range.
"""

import jitd
import pytest
import torch
from jitd.models.ops import channel_norm, gates, rotary, row_norm
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_map

from ..models.ops.signed import (
    Called,
    answer,
    made_exact,
    reference,
    several,
    signed,
    tensors_of,
    verdict_of,
)
from ..models.ops.test_compiled import helios, helios_arguments, z_image, z_image_arguments
from .cases import answered_by_kernels

pytestmark = pytest.mark.gpu

FUNCTIONS = {
    function.op.name: function
    for module in (row_norm, gates, rotary, channel_norm)
    for function in vars(module).values()
    if hasattr(function, "op")
}

ROWS = [
    "rms_norm[bf16](300x128, weight=bf16 128, rounding=native)",
    "rms_norm[fp16](77x3840, weight=fp16 3840, rounding=native)",
    "rms_norm[fp32](33x64, weight=fp32 64, rounding=native)",
    "rms_norm[bf16](2x77x30x128:strided(887040,11520,128,1), weight=bf16 128)",
    "rms_norm[bf16](9x16384, weight=fp32 16384, rounding=once)",
    "rms_norm_scale[bf16](1x260x3840, weight=bf16 3840)",
    "rms_norm_scale[fp16](2x77x2560, scale=2x2560, weight=fp16 2560, rounding=native)",
    "rms_norm_scale[bf16](1x126x999, scale=fp32 2x999, index=i64 1x126, rounding=once)",
    "rms_norm_scale[fp32](1x65x3840, weight=fp32 3840)",
    "tanh_gate_residual_rms_norm[bf16](1x260x3840, weight=bf16 3840)",
    "tanh_gate_residual_rms_norm[bf16](2x77x3840, weight=bf16 3840, rounding=native)",
    "tanh_gate_residual_rms_norm[fp16](2x76x2048, gate=2x4x2048, weight=fp16 2048)",
    "tanh_gate_residual_rms_norm[bf16](1x33x3840, gate=none, weight=bf16 3840)",
    "tanh_gate_residual_rms_norm[fp32](1x33x3840, gate=2x3840, weight=fp32 3840, index=i32 1x33)",
    "tanh_gate_residual_rms_norm[bf16](1x33x1000, gate=fp32, weight=fp32 1000, rounding=once)",
]
PAIRS = [
    "qk_norm_rotary[bf16](1x260x5120, wq=bf16 5120, q_cos=fp32 1x260x256, layout=interleaved)",
    "qk_norm_rotary[fp16](2x77x768, k=2x33x768, wq=fp16 768, q_cos=fp32 1x77x192, "
    "k_cos=fp32 1x33x192, layout=interleaved)",
    "qk_norm_rotary[fp32](1x65x256, wq=fp32 256, q_cos=fp32 1x65x128, layout=interleaved)",
    "qk_norm_rotary[bf16](1x260x3840, wq=bf16 128, q_cos=fp32 1x260x64x2, layout=complex, "
    "rounding=each)",
    "qk_norm_rotary[bf16](2x77x3840, wq=bf16 128, q_cos=fp32 2x77x64x2, layout=complex, "
    "rounding=native)",
    "qk_norm_rotary[fp32](1x65x384, wq=fp32 96, q_cos=fp32 1x65x48x2, layout=complex, "
    "rounding=each)",
    "qk_norm_rotary[fp16](2x77x768, wq=fp16 64, q_cos=fp32 2x12x77x32:perm0213, rounding=each)",
    "qk_norm_rotary[bf16](1x77x768:strided(177408,2304,1), wq=bf16 64, "
    "q_cos=fp32 1x77x32x2:strided(9856,128,2,1), layout=complex, rounding=each)",
]
CHANNELS = [
    "channel_rms_norm_silu[bf16](1x1024x3x16x24)",
    "channel_rms_norm_silu[bf16](2x512x3x5x7)",
    "channel_rms_norm_silu[fp16](1x128x5x33x31)",
    "channel_rms_norm_silu[fp32](1x256x3x16x24)",
    "channel_rms_norm_silu[bf16](1x128x3x33x32:channels_last_3d)",
    "channel_rms_norm_silu[bf16](1x1024x3x6x8:channels_last_3d)",
    "channel_rms_norm_silu[bf16](1x512x4x16x24:strided(983040,1920,384,24,1))",
    "channel_rms_norm_silu[bf16](1x128x77x64)",
    "channel_rms_norm_silu[bf16](1x100x77x64, weight=bf16 100)",
]
L2 = [
    "channel_rms_norm_silu[fp32](1x384x1x48x80, weight=fp32 384, form=l2)",
    "channel_rms_norm_silu[fp32](1x96x2x33x40:channels_last_3d, weight=fp32 96, form=l2)",
    "channel_rms_norm_silu[bf16](1x192x2x33x40, weight=bf16 192, form=l2)",
]
SWIGLU = [
    "swiglu[bf16](1x260x10240)",
    "swiglu[bf16](1x260x10240:strided(5324800,20480,1))",
    "swiglu[fp16](3x77x999)",
    "swiglu[fp32](2x77x512)",
]
LAYER = [
    "layer_norm_scale[bf16](1x260x3840)",
    "gate_residual_layer_norm_modulate[bf16](1x260x5120, gate=fp32 2x5120, index=i64 1x260, "
    "rounding=once)",
    "gate_residual_layer_norm_modulate[bf16](1x126x5120, gate=fp32 2x5120, scale=none, "
    "index=i64 1x126, weight=fp32 5120, bias=fp32 5120, rounding=once)",
    "gate_residual_layer_norm_modulate[fp16](2x77x768)",
    "gate_residual_layer_norm_modulate[fp32](2x33x3072, gate=none)",
]
ALL = [*ROWS, *PAIRS, *CHANNELS, *L2, *SWIGLU, *LAYER]


def called(text, tensors):
    """The op's own answers, by its kernels."""
    found = several(answer(FUNCTIONS[text.partition("[")[0]], text, *tensors))
    assert answered_by_kernels()
    return found


@pytest.mark.parametrize("text", [*ROWS, *PAIRS, *CHANNELS, *SWIGLU])
def test_with_eagers_statistics_every_bit_is_eagers(text):
    """Rows whose sum of squares is exact in any order have eager's bits in `exact`; what has no
    statistics has them always."""
    jitd.configure(mode="replay")
    tensors = tensors_of(text, device="cuda")
    if not text.startswith("swiglu"):
        made_exact(tensors)
    for got, want in zip(called(text, tensors), several(reference(text, *tensors)), strict=True):
        assert (got.shape, got.stride()) == (want.shape, want.stride())
        off = (got.double() - want.double()).abs()
        assert float(off.max()) == 0.0, f"{int((off > 0).sum())} of {off.numel()} differ"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_silu_has_eagers_bits_for_every_number(dtype):
    """Channels of ones, normalised to ones, times every number there is of 16 bits; and swiglu."""
    jitd.configure(mode="replay")
    numbers = torch.arange(1 << 16, dtype=torch.int32, device="cuda").to(torch.int16).view(dtype)
    x = torch.ones(1, 1024, 64, dtype=dtype, device="cuda")
    for weight in numbers.split(1024):
        out = channel_norm.channel_rms_norm_silu(x, weight.contiguous(), eps=0.0)[0, :, 0]
        want = torch.nn.functional.silu(weight)
        same = (out == want) | (out.isnan() & want.isnan())
        assert same.all(), (weight[~same], out[~same], want[~same])
    a = numbers.view(64, 1024)
    out, want = gates.swiglu(a, torch.ones_like(a)), torch.nn.functional.silu(a)
    assert ((out == want) | (out.isnan() & want.isnan())).all()
    assert answered_by_kernels()


@pytest.mark.parametrize("text", ALL)
def test_whole_ops_are_as_right_as_eager(text, record_property):
    """Over random inputs errors are within the verifier's bound of float64; few bits are not
    eager's, and their number is reported."""
    jitd.configure(mode="replay")
    function = FUNCTIONS[text.partition("[")[0]]
    verdict = verdict_of(text, Called(function, text), device="cuda")
    assert verdict.ok, verdict.reason
    assert answered_by_kernels()
    record_property("differing", verdict.differing)
    op, call = signed(text)
    outputs = op.outputs(call).values()
    elements = sum(spec.numel for spec in outputs)
    print(
        f"differing: {verdict.differing} of {elements}; error {verdict.max_abs_error:.3g}, "
        f"eager's {verdict.eager_max_abs_error:.3g}: {text}"
    )
    if {spec.dtype for spec in outputs} != {"fp32"}:
        assert verdict.differing <= max(4, 2e-3 * elements)


@pytest.mark.parametrize("text", [ROWS[5], ROWS[9], PAIRS[0], PAIRS[3], CHANNELS[0], SWIGLU[0]])
def test_fast_is_within_the_bound(text):
    """`fast` rounds once, and is as near to float64 as eager is."""
    jitd.configure(mode="replay")
    text = text.removesuffix(")") + ", numerics=fast)"
    verdict = verdict_of(text, Called(FUNCTIONS[text.partition("[")[0]], text), device="cuda")
    assert verdict.ok, verdict.reason
    error, eagers = verdict.max_abs_error, verdict.eager_max_abs_error
    print(f"fast: error {error:.3g}, eager's {eagers:.3g}: {text}")


@pytest.mark.parametrize("text", [CHANNELS[0], CHANNELS[2], L2[0], PAIRS[3], ROWS[1], SWIGLU[0]])
@pytest.mark.parametrize("kind", ["huge", "tiny", "special"])
def test_hard_inputs_give_what_eager_gives(text, kind):
    """Squares that overflow, values near an eps, NaN and Inf."""
    jitd.configure(mode="replay")
    function = Called(FUNCTIONS[text.partition("[")[0]], text)
    verdict = verdict_of(text, function, device="cuda", kind=kind)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (PAIRS[0].replace("260", "{n}"), (257, 258, 300, 333, 511, 512)),
        (PAIRS[3].replace("260", "{n}"), (257, 258, 300, 333, 511, 512)),
        (ROWS[9].replace("260", "{n}"), (257, 258, 300, 333, 511, 512)),
        (SWIGLU[0].replace("260", "{n}"), (257, 258, 300, 333, 511, 512)),
        ("channel_rms_norm_silu[bf16](1x128x{n})", (4096, 2049, 3001, 4095, 2056)),
        ("channel_rms_norm_silu[bf16](1x128x1x{n}x2:channels_last_3d)", (2048, 1025, 1333)),
    ],
)
def test_a_new_length_compiles_nothing(text, counts, cold):
    """After one length of a bucket the others launch the same binaries: no compile, no check, but
    for the other class of an odd number of positions, which comes once."""
    jitd.configure(mode="replay", cache_dir=cold)
    made = []
    for count in counts:
        called(text.format(n=count), tensors_of(text.format(n=count), device="cuda"))
        made.append({k: jitd.stats().get(k, 0) for k in ("compiles", "checks")})
    odd = "channel" in text and "channels_last" not in text
    assert made[2 if odd else 1 :] == [made[1 if odd else 0]] * (len(made) - (2 if odd else 1))
    assert made[0]["compiles"] > 0


@pytest.mark.parametrize("text", [PAIRS[0], PAIRS[3], ROWS[9], CHANNELS[1], CHANNELS[4], SWIGLU[1]])
def test_a_winner_of_a_tune_serves_and_is_right(text):
    """A tuned op is answered by its winner, within the bound."""
    before = jitd.stats().get("tunes", 0)
    verdict = verdict_of(text, Called(FUNCTIONS[text.partition("[")[0]], text), device="cuda")
    assert verdict.ok, verdict.reason
    assert jitd.stats().get("tunes", 0) == before + 1
    assert answered_by_kernels()


def test_the_channels_of_more_than_two_to_the_31_elements(much_memory):
    """The last positions of 2.2e9 elements are right: offsets are counted in 64 bits."""
    jitd.configure(mode="replay", tune_memory_share=0.95)
    x = torch.empty(1, 128, 17 << 20, dtype=torch.bfloat16, device="cuda").normal_()
    out = channel_norm.channel_rms_norm_silu(x)
    assert answered_by_kernels()
    for part in (slice(0, 64), slice((16 << 20) - 64, (16 << 20) + 64), slice(-64, None)):
        want = channel_norm.channel_rms_norm_silu.op.reference(x[..., part])
        torch.testing.assert_close(out[..., part], want, rtol=2e-2, atol=2e-2)


# -- compiled models --------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    """Counters at zero, nothing compiled."""
    torch.compiler.reset()
    counters.clear()


def on_card(args):
    return tree_map(lambda value: value.cuda(), args)


@pytest.mark.usefixtures("c_compiler", "fresh_dynamo")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize(("dynamic", "most"), [(True, 1), (None, 2)])
def test_sixteen_captions_compiled_by_inductor(mode, dynamic, most):
    """Sixteen lengths of captions under torch.compile, with CUDA graphs and without: one graph with
    dynamic=True, else Dynamo's second; no break; what plain calls give; and within a bucket no
    kernel of jitd's is compiled but for its first length."""
    jitd.configure(mode="replay")
    compiled = torch.compile(z_image, fullgraph=True, mode=mode, dynamic=dynamic)
    made = {}
    with torch.no_grad():
        for tokens in range(32, 544, 32):
            args = on_card(z_image_arguments(tokens))
            before = jitd.stats().get("compiles", 0)
            for _ in range(3):  # a graph is recorded at the second call, and replayed at the third
                found = compiled(*args).clone()
            bucket = (args[0].shape[1] + tokens - 1).bit_length()
            made.setdefault(bucket, []).append(jitd.stats().get("compiles", 0) - before)
            torch.testing.assert_close(found, z_image(*args), rtol=3e-2, atol=3e-2)
    assert answered_by_kernels()
    assert not any(sum(counts[1:]) for counts in made.values()), made
    assert counters["stats"]["unique_graphs"] == most
    assert not counters["graph_break"]


@pytest.mark.usefixtures("c_compiler", "fresh_dynamo")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_helios_compiled_by_inductor(mode):
    """The stages of a pyramid in one graph, with CUDA graphs and without."""
    jitd.configure(mode="replay")
    compiled = torch.compile(helios, fullgraph=True, mode=mode, dynamic=True)
    with torch.no_grad():
        for history, tokens in ((60, 120), (60, 270), (60, 900)):
            args = on_card(helios_arguments(history, tokens))
            for _ in range(3):
                found = compiled(*args).clone()
            torch.testing.assert_close(found, helios(*args), rtol=3e-2, atol=6e-2)
    assert answered_by_kernels()
    assert counters["stats"]["unique_graphs"] == 1


# -- bad input --------------------------------------------------------------------------------


def test_an_index_out_of_range_is_seen_with_debug():
    """JITD_DEBUG=1 raises before a kernel reads beyond a table, at every call, and leaves a capture
    alone."""
    jitd.configure(mode="replay", debug=True)
    x, table = torch.randn(1, 64, 256, device="cuda"), torch.randn(2, 256, device="cuda")
    index = torch.zeros(1, 64, dtype=torch.int64, device="cuda")
    want = row_norm.layer_norm_modulate(x, table, table, index=index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = row_norm.layer_norm_modulate(x, table, table, index=index)
    graph.replay()
    assert torch.equal(out, want)
    index[0, 63] = 2
    with pytest.raises(ValueError, match=r"2 at \(0, 63\); allowed are 0 to 1"):
        row_norm.layer_norm_modulate(x, table, table, index=index)
    assert answered_by_kernels()


def test_mixed_devices_are_refused():
    """A table on the CPU beside queries on the card raises a ValueError that names both."""
    q, table = torch.randn(1, 8, 64, device="cuda"), torch.randn(1, 8, 32)
    with pytest.raises(ValueError, match="tensors are on cpu, cuda:0; allowed is one device"):
        rotary.qk_norm_rotary(q, q, None, None, table, None, layout="interleaved")
