"""The smallest op with a launch of its own, for what jitd adds to one."""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from ...autotune.space import Space
from ...jit.declare import Cost, Device, Kernel, Launch, Params, Plan, Pointer, Variant
from ...jit.op import op
from ...jit.sign import Call

KERNEL = Kernel("jitd.tools.bench.kernels", "affine_silu_kernel")
LIMIT = 1e4


def plan(call: Call, params: Params, device: Device) -> Plan:
    n = call.x.numel
    launch = Launch(
        kernel=KERNEL,
        grid=(ceil(n / params["BLOCK"]), 1, 1),
        args={
            "y_ptr": Pointer("y"),
            "x_ptr": Pointer("x"),
            "scale": call.scale,
            "shift": call.shift,
            "gain": 1.0,
            "offset": 0.0,
            "limit": LIMIT,
            "n": n,
            "BLOCK": params["BLOCK"],
        },
        num_warps=4,
    )
    return Plan(outputs={"y": call.x.like(aligned=True)}, launches=[launch])


ONE_LAUNCH = Variant(
    name="one_launch",
    plan=plan,
    space=Space({"BLOCK": [512, 1024]}, default=lambda problem: {"BLOCK": 1024}),
    applies=lambda call: (
        None
        if call.x.layout == "contiguous" and call.x.dtype in ("bf16", "fp16", "fp32")
        else "not contiguous, or not bf16, fp16 or fp32"
    ),
)


@op(
    name="bench_affine_silu",
    variants=[ONE_LAUNCH],
    outputs=lambda call: {"y": call.x.like(aligned=True)},
    cost=lambda call: Cost(bytes=2 * call.x.nbytes),
)
def affine_silu(x: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """min(silu(scale * x + shift), 1e4), rounded once. x: contiguous, bf16|fp16|fp32."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    return F.silu(wide * scale + shift).clamp(max=LIMIT).to(x.dtype)
