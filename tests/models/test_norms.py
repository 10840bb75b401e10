"""The modules that SGLang's users know: what they compute, of which operands."""

import pytest
import torch
import torch.nn.functional as F
from jitd.models.norms import LayerNormScaleShift, RMSNormScaleShift

from .ops.cases import randn

B, S, NUM_FRAMES, D = 2, 6, 3, 24
SHAPES = [
    (1,),
    (D,),
    (1, D),
    (B, D),
    (1, 1, D),
    (B, 1, D),
    (1, S, D),
    (B, S, D),
    (B, NUM_FRAMES, 1, D),
]


def full(operand):
    """An operand for every token and channel."""
    if operand.ndim == 4:
        operand = operand.expand(-1, -1, S // NUM_FRAMES, -1).flatten(1, 2)
    if operand.ndim == 2:
        operand = operand[:, None]
    return operand.float().expand(B, S, D)


def norm(module, x):
    weight = None if module.weight is None else module.weight.float()
    if isinstance(module, RMSNormScaleShift):
        wide = x.float()
        n = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.eps)
        return (n if weight is None else n * weight).to(x.dtype)
    bias = None if module.bias is None else module.bias.float()
    return F.layer_norm(x.float(), (D,), weight, bias, module.eps).to(x.dtype)


@pytest.mark.parametrize("kind", [LayerNormScaleShift, RMSNormScaleShift])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_operands_of_every_shape(kind, affine, dtype, shape):
    """The norm, rounded, then the modulation in fp32: shift comes first, and scale and shift may be
    of every shape and of dtypes of their own."""
    module = kind(D, 1e-5, affine, torch.float32)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = randn(D, seed=seed)
    x = randn(B, S, D, dtype=dtype, seed=3)
    shift, scale = randn(*shape, dtype=torch.bfloat16, seed=4), randn(*shape, seed=5)
    with torch.no_grad():
        want = (norm(module, x).float() * (1 + full(scale)) + full(shift)).to(dtype)
        assert torch.equal(module(x, shift, scale), want)


def test_shapes_of_scale_and_shift_may_differ():
    """A shift for each sample beside a scale for all, and a shift for each token beside one row."""
    module, x = LayerNormScaleShift(D), randn(B, S, D)
    for shapes in (((B, D), (D,)), ((B, S, D), (1, D)), ((1,), (B, 1, D))):
        shift, scale = (randn(*shape, seed=seed) for seed, shape in enumerate(shapes))
        want = norm(module, x) * (1 + full(scale)) + full(shift)
        assert torch.equal(module(x, shift, scale), want)


def test_parameters_have_sglangs_names():
    """weight and bias where there are any, of the dtype given: SGLang's state dicts load."""
    layer = LayerNormScaleShift(D, elementwise_affine=True, dtype=torch.bfloat16)
    assert {n: p.dtype for n, p in layer.named_parameters()} == dict.fromkeys(
        ("weight", "bias"), torch.bfloat16
    )
    assert [n for n, _ in RMSNormScaleShift(D, elementwise_affine=True).named_parameters()] == [
        "weight"
    ]
    assert not list(LayerNormScaleShift(D).parameters())
