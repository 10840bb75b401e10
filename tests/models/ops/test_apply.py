"""`apply_group_norm_silu`: fused exactly where that is what the modules would compute."""

import jitd
import pytest
import torch
from jitd.models.ops.group_norm import apply_group_norm_silu
from torch import nn

from .cases import DTYPES, name_of, randn

SHAPE = (2, 8, 3, 5)


def norm(**changes):
    """A GroupNorm whose weight and bias do something."""
    made = nn.GroupNorm(**{"num_groups": 4, "num_channels": 8, **changes})
    for seed, parameter in enumerate(made.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return made


def fused(x, *modules):
    """How many calls of an op `apply_group_norm_silu` makes; its result is the modules' own."""
    want = modules[1](modules[0](x.clone()))
    with jitd.record() as workload:
        out = apply_group_norm_silu(x.clone(), *modules)
    assert torch.equal(out, want)
    return workload.counts.total()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("grad", [False, True])
def test_plain_modules_are_fused(dtype, grad):
    """GroupNorm with weight and bias, then SiLU, are one op, with gradients and without."""
    x = randn(*SHAPE, dtype=dtype)
    with torch.set_grad_enabled(grad):
        assert fused(x, norm().to(dtype), nn.SiLU()) == 1
        assert fused(x, norm(eps=1e-2).to(dtype).eval(), nn.SiLU()) == 1


class Doubled(nn.GroupNorm):
    """A subclass with another forward."""

    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(nn.SiLU):
    """An activation of another meaning."""

    def forward(self, x):
        return super().forward(x) + 1


def patched(module):
    """A module whose forward was replaced on the instance, as offloading does."""
    forward = module.forward
    module.forward = lambda x: forward(x) + 1
    return module


def hooked(module, kind="forward_hook", *args):
    """A module with a hook that changes what it computes."""
    getattr(module, f"register_{kind}")(*args or (lambda *values: values[-1] + 1,))
    return module


UNFUSED = {
    "no affine": lambda: (norm(affine=False), nn.SiLU()),
    "another norm": lambda: (nn.BatchNorm2d(8), nn.SiLU()),
    "identity": lambda: (nn.Identity(), nn.SiLU()),
    "subclass of the norm": lambda: (Doubled(4, 8), nn.SiLU()),
    "subclass of the activation": lambda: (norm(), Shifted()),
    "ReLU": lambda: (norm(), nn.ReLU()),
    "a plain function": lambda: (norm(), torch.sigmoid),
    "in place": lambda: (norm(), nn.SiLU(inplace=True)),
    "hook on the norm": lambda: (hooked(norm()), nn.SiLU()),
    "hook on the activation": lambda: (norm(), hooked(nn.SiLU())),
    "hook in front of the norm": lambda: (
        hooked(norm(), "forward_pre_hook", lambda module, args: (args[0] + 1,)),
        nn.SiLU(),
    ),
    "forward replaced": lambda: (patched(norm()), nn.SiLU()),
    "parametrised": lambda: (
        nn.utils.parametrizations.weight_norm(norm(), "weight", dim=0),
        nn.SiLU(),
    ),
    "no bias": lambda: (without_bias(norm()), nn.SiLU()),
}


def without_bias(module):
    """As `nn.GroupNorm(..., bias=False)`, which not every torch knows, makes it."""
    module.register_parameter("bias", None)
    return module


@pytest.mark.parametrize("case", UNFUSED)
def test_other_modules_are_called(case):
    """Whatever does something else when it is called, is called: hooks run, meaning stays."""
    assert fused(randn(*SHAPE), *UNFUSED[case]()) == 0


def test_backward_hooks_run():
    """A module with a backward hook is called, so that the hook hears of the gradient."""
    heard = []
    module = norm()
    module.register_full_backward_hook(lambda *gradients: heard.append(gradients))
    x = randn(*SHAPE).requires_grad_()
    apply_group_norm_silu(x, module, nn.SiLU()).sum().backward()
    assert len(heard) == 1


def test_a_removed_hook_is_none():
    """A module whose hook was removed is fused again."""
    module = norm()
    module.register_forward_hook(lambda *values: None).remove()
    assert fused(randn(*SHAPE), module, nn.SiLU()) == 1


def test_autocast_is_the_modules():
    """Under autocast, with bf16 activations and fp32 parameters, the result is the modules'."""
    modules = norm(), nn.SiLU()
    x = randn(*SHAPE, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = modules[1](modules[0](x))
        out = apply_group_norm_silu(x, *modules)
    assert out.dtype == want.dtype
    assert torch.equal(out, want)


def test_gradients_are_the_modules():
    """Gradients of input, weight and bias are those of the modules, bit for bit."""
    results = []
    for run in (apply_group_norm_silu, lambda x, one, two: two(one(x))):
        module, x = norm(), randn(*SHAPE).requires_grad_()
        run(x, module, nn.SiLU()).square().sum().backward()
        results.append([x.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
