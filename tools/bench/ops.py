"""Two ops: the smallest with a launch of its own, and one with a space that is worth tuning."""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from ...autotune.space import Space
from ...jit.declare import Cost, Device, Kernel, Launch, Params, Plan, Pointer, Variant
from ...jit.op import op
from ...jit.sign import Call, TensorSpec

_MODULE = "jitd.tools.bench.kernels"
KERNEL = Kernel(_MODULE, "affine_silu_kernel")
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


def plan_rows(call: Call, params: Params, device: Device) -> Plan:
    n = call.x.shape[-1]
    launch = Launch(
        kernel=Kernel(_MODULE, "rms_norm_kernel"),
        grid=(call.x.numel // n, 1, 1),
        args={
            "y_ptr": Pointer("y"),
            "x_ptr": Pointer("x"),
            "w_ptr": Pointer("weight"),
            "n": n,
            "eps": call.eps,
            "BLOCK": params["BLOCK"],
            "STAGES": params["STAGES"],
        },
        num_warps=params["num_warps"],
        fp_fusion=True,  # as Triton compiles by itself: both tuners must see the same code
    )
    return Plan(outputs={"y": call.x.like(aligned=True)}, launches=[launch])


ROWS = Variant(
    name="rows",
    plan=plan_rows,
    space=Space(
        {"BLOCK": [512, 1024, 2048, 4096], "STAGES": [1, 2, 3, 4], "num_warps": [2, 4, 8]},
        default=lambda problem: {"BLOCK": 1024, "STAGES": 1, "num_warps": 4},
    ),
    applies=lambda call: (
        None
        if all(t.layout == "contiguous" for t in call.tensors.values())
        and call.x.dtype in ("bf16", "fp16", "fp32")
        else "not contiguous, or not bf16, fp16 or fp32"
    ),
)


@op(
    name="bench_rms_norm",
    variants=[ROWS],
    outputs=lambda call: {"y": call.x.like(aligned=True)},
    cost=lambda call: Cost(bytes=2 * call.x.nbytes + call.weight.nbytes),
    implied={"weight": lambda call: TensorSpec(call.x.dtype, call.x.shape[-1:])},
)
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x * rsqrt(mean(x²) + eps) * weight over the last dimension, rounded once.

    x: contiguous, bf16|fp16|fp32; weight: as long as its last dimension.
    """
    wide = x.double() if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.to(wide.dtype)).to(x.dtype)
