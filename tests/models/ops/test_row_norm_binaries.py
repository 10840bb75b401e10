"""Which binaries a bucket of the token norms needs, and the calls that reach and check them."""

import jitd
import pytest
import torch
from jitd.jit import runtime
from jitd.jit.check import arguments
from jitd.jit.device import stand_in
from jitd.jit.inputs import make_inputs

from .signed import signed

DEVICE = stand_in("sm_90")

# Of {n} tokens, which 12 frames divide. Operands in every way, alone and side by side.
CALLS = [
    "rms_norm[bf16]({n}x128, weight=bf16 128, rounding=once)",
    "rms_norm[bf16]({n}x128)",
    "rms_norm[bf16](2x{n}x5x32, weight=bf16 32)",
    "rms_norm[fp32](3x{n}x96, weight=fp32 96)",
    "rms_norm_modulate[bf16](2x{n}x96, scale=:strided(576,96,1))",
    "rms_norm_modulate[bf16](2x{n}x96, scale=4x96:strided(576,1), index=i64 2x{n})",
    "rms_norm_modulate[bf16](1x{n}x96, scale=1x{n}x96)",
    "rms_norm_scale[bf16](2x{n}x97, scale=2x12x97, weight=bf16 97, rounding=native)",
    "rms_norm_dual_modulate[bf16](2x{n}x96, scale=1x12x96, scale2=2x4x96)",
    "gate_residual_rms_norm_modulate[bf16](2x{n}x96, gate=none, scale=none)",
    "gate_residual_rms_norm_dual_modulate[bf16](3x{n}x96, gate=96, scale=3x{n}x96, scale2=3x6x96)",
    "gate_residual_layer_norm_modulate[bf16](1x{n}x96, gate=fp32 2x96, weight=fp32 96, "
    "bias=fp32 96, index=i64 1x{n}, rounding=once)",
    "tanh_gate_residual_rms_norm[bf16](1x{n}x96, weight=bf16 96)",
    "layer_norm_scale[fp16](2x{n}x96, weight=fp16 96)",
    "modulate[bf16](2x{n}x96)",
]
BY_CALL = pytest.mark.parametrize("text", CALLS)


@pytest.fixture
def builder(tmp_path):
    jitd.configure(cache_dir=tmp_path / "cache", jobs=2)
    return runtime.current().builder(DEVICE)


def keys(builder, op, config, call):
    return {b.key.digest for b in builder.binaries(op, config.plan(call, DEVICE), call)}


def warmed(builder, op, config, bucket):
    """The binaries of a config that warming its bucket compiles."""
    return set().union(*(keys(builder, op, config, c) for c in (bucket, *op.reach(bucket))))


def anywhere(call, names):
    """The call with these tensors between 16-byte boundaries."""
    changes = {name: call[name].like(aligned=False, strides=call[name].strides) for name in names}
    return call.replace(**changes)


@BY_CALL
@pytest.mark.parametrize("n", [12, 60, 6144])
def test_reach_and_probes_stay_in_the_bucket(builder, text, n):
    """Calls that a warmup compiles for and a check runs at are of the bucket, the kernels take
    them, and the shortest of them leaves tiles partly empty."""
    op, call = signed(text.format(n=n))
    bucket = op.bucket(call)
    (variant,) = op.variants
    for asked in (call, bucket):
        probes = op.probes(asked)
        for found in (*op.reach(bucket), *probes):
            op.check(found)
            assert op.bucket(found) == bucket, str(op.sign(found))
            assert variant.applies(found) is None
        assert probes[0].x.numel // probes[0].x.shape[0] == bucket.x.numel // bucket.x.shape[0]
        tokens, most = (one.x.shape[-2] for one in (probes[-1], bucket))
        assert most / 2 < tokens < (0.8 * most if n > 12 else most)
        assert tokens % 2
    config = op.default(bucket, DEVICE)
    assert builder.probes(op, bucket, config) == op.probes(bucket)[1:]


@BY_CALL
def test_a_misaligned_x_compiles_nothing(builder, text):
    """A call, and one whose x begins anywhere, have their binaries warmed: two, and no more. What
    is rarer is of the same bucket, too."""
    op, call = signed(text.format(n=60))
    bucket, x = op.bucket(call), call.x
    config = op.default(bucket, DEVICE)
    known = warmed(builder, op, config, bucket)
    for asked in (call, anywhere(call, ["x"])):
        assert keys(builder, op, config, asked) <= known
    assert len(known) == 2
    gapped = call.replace(x=x.like(strides=(*(s + s // x.shape[-1] for s in x.strides[:-1]), 1)))
    for asked in (gapped, anywhere(call, [name for name in call.tensors if name != "index"])):
        assert op.bucket(asked) == bucket


@BY_CALL
def test_references_answer_what_is_checked(text):
    """The reference answers each reached and probed call with what the op promises."""
    op, call = signed(text.format(n=12))
    bucket, generator = op.bucket(call), torch.Generator().manual_seed(0)
    for asked in dict.fromkeys((*op.reach(bucket), *op.probes(bucket))):
        args, kwargs = arguments(op, asked, make_inputs(op, asked, "cpu", generator, "normal"))
        answer = op.reference(*args, **kwargs)
        answers = answer if isinstance(answer, tuple) else (answer,)
        promised = op.outputs(asked).values()
        assert [tuple(one.shape) for one in answers] == [spec.shape for spec in promised]


@BY_CALL
def test_a_bucket_is_tuned_at_half_its_tokens(text):
    """A large bucket is as a smaller one, of all the same but half the tokens; a small one is
    tuned as it is."""
    op, call = signed(text.format(n=12 << 20))
    bucket = op.bucket(call)
    smaller = op.smaller(bucket)
    assert op.bucket(smaller) == smaller
    assert smaller.x.shape[-2] * 2 == bucket.x.shape[-2]
    assert smaller.x.shape[-1] == bucket.x.shape[-1]
    assert op.smaller(op.bucket(signed(text.format(n=60))[1])) is None
