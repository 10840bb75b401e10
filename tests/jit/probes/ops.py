"""`probe_norm`: an op with every kind of argument; its kernel is never launched."""

from math import ceil

import jitd
import torch
from jitd.jit.sign import TensorSpec
from torch import Tensor

KERNEL = jitd.Kernel("probes.kernels", "classes_kernel")


def plan(call, params, device):
    launch = jitd.Launch(
        kernel=KERNEL,
        grid=(ceil(call.x.numel / params["BLOCK"]), 1, 1),
        args={
            "p": jitd.Pointer("y"),
            "q": jitd.Pointer("x"),
            "free": call.groups,
            "count": call.x.numel,
            "step": call.x.strides[-1],
            "wide": 0,
            "flag": call.bias is not None,
            "factor": call.eps,
            "double": 0.5,
            "BLOCK": params["BLOCK"],
        },
    )
    return jitd.Plan(outputs={"y": call.x}, launches=[launch])


PLAIN = jitd.Variant(
    name="plain",
    plan=plan,
    space=jitd.Space({"BLOCK": [256, 512]}, default=lambda problem: {"BLOCK": 256}),
)


def check(call):
    if call.x.shape[1] % call.groups:
        raise ValueError(
            f"probe_norm: {call.x.shape[1]} channels; allowed are multiples of {call.groups}."
        )


def per_channel(call):
    return TensorSpec(call.x.dtype, (call.x.shape[1],))


@jitd.op(
    variants=[PLAIN],
    outputs=lambda call: {"y": TensorSpec(call.x.dtype, call.x.shape)},
    cost=lambda call: jitd.Cost(bytes=2 * call.x.nbytes),
    check=check,
    selects=["groups", "numerics"],
    implied={"weight": per_channel},
)
def probe_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    *,
    numerics: str = "exact",
) -> Tensor:
    """Group norm; x: (N, C, *spatial), contiguous result."""
    return torch.nn.functional.group_norm(x.contiguous(), groups, weight, bias, eps)
