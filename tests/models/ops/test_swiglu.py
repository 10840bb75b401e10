"""swiglu: against eager's two ops, and the kernel by itself."""

import pytest
import torch
import torch.nn.functional as F
from jitd.jit.declare import Config
from jitd.jit.interpret import Interpreted
from jitd.models.ops.gates import swiglu

from .cases import DTYPES, laid_out, name_of, on_meta, randn
from .signed import reference, signed, tensors_of, verdict_of

CASES = [
    "swiglu[fp16](2x5x24)",
    "swiglu[fp16](2x3x40:strided(240,80,1))",
    "swiglu[fp32](3x131)",
    "swiglu[bf16](7)",
    "swiglu[fp16](2x5x8:perm102, b=:perm021)",
    "swiglu[fp16](1x1, numerics=fast)",
]
TILES = {"ROWS": 4, "BLOCK": 128, "num_warps": 4}


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_reference_is_eagers(dtype):
    """It is F.silu(a) * b with eager's two roundings, of halves of one tensor, too."""
    both = randn(2, 5, 48, dtype=dtype)
    a, b = both.chunk(2, -1)
    out = swiglu(a, b)
    assert torch.equal(out, F.silu(a) * b)
    assert out.is_contiguous()
    assert laid_out(swiglu(on_meta(a), on_meta(b))) == laid_out(out)


@pytest.mark.diffusers
def test_the_reference_is_z_images():
    """It is what Z-Image's feed-forward has between its layers."""
    from diffusers.models.transformers.transformer_z_image import FeedForward  # noqa: PLC0415

    block = FeedForward(16, 24).to(torch.bfloat16)
    x = randn(1, 5, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(block.w2(swiglu(block.w1(x), block.w3(x))), block(x))


@pytest.mark.parametrize(
    ("message", "args"),
    {
        r"a is fp32 \(4, 8\), b fp32 \(4, 7\)": (torch.zeros(4, 8), torch.zeros(4, 7)),
        "b bf16": (torch.zeros(4), torch.zeros(4).bfloat16()),
        "a is i64": (torch.zeros(4).long(), torch.zeros(4).long()),
    }.items(),
)
def test_what_does_not_fit_is_refused(message, args):
    """Other shapes and dtypes raise a ValueError that says what is allowed."""
    with pytest.raises(ValueError, match=message):
        swiglu(*args)


@pytest.mark.parametrize("text", CASES)
def test_a_printed_signature_is_read_back(text):
    """Signatures survive printing, and so do those of their buckets."""
    op, call = signed(text)
    assert op.parse(str(op.sign(call))).call == call
    bucket = op.bucket(call)
    assert op.bucket(bucket) == bucket
    assert op.parse(op.sign(bucket).text).call == bucket
    assert all(op.bucket(one) == bucket for one in (*op.reach(bucket), *op.probes(bucket)))


def interpreted(text):
    op, call = signed(text)
    return Interpreted(op, call, Config(op.variants[0], TILES))


@pytest.mark.interpreter
@pytest.mark.parametrize("text", CASES)
def test_the_kernel_has_eagers_bits(text):
    """Every layout, and rows that fill no tile; in fp32 up to the last place of exp, in bf16 up to
    one place, which the interpreter cuts off."""
    tensors = tensors_of(text)
    want = reference(text, *tensors)
    got = torch.empty_like(want)
    interpreted(text).into(tensors, [got])
    if want.dtype is torch.float16:
        assert torch.equal(got, want)
    rtol = {torch.bfloat16: 2**-6, torch.float32: 1e-6, torch.float16: 0}[want.dtype]
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", ["huge", "special"])
def test_hard_inputs_are_survived(kind):
    """Values whose exp overflows, NaN and Inf give what eager gives."""
    text = "swiglu[fp32](3x131)"
    verdict = verdict_of(text, interpreted(text), kind=kind)
    assert verdict.ok, verdict.reason
