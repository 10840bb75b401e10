"""`scale(x, factor)`: the smallest op there is, declared as a user of jitd would.

And `fade(x, late, early)`, whose floats differ from call to call.
"""

from math import ceil

import jitd
import torch
from torch import Tensor

KERNEL = jitd.Kernel("outside.kernels", "scale_kernel")


def plan(call, params, device):
    n = call.x.numel
    launch = jitd.Launch(
        kernel=KERNEL,
        grid=(ceil(n / params["BLOCK"]), 1, 1),
        args={
            "out_ptr": jitd.Pointer("out"),
            "x_ptr": jitd.Pointer("x"),
            "factor": call.factor,
            "n": n,
            "BLOCK": params["BLOCK"],
        },
        num_warps=params["num_warps"],
    )
    return jitd.Plan(outputs={"out": call.x}, launches=[launch])


ELEMENTWISE = jitd.Variant(
    name="elementwise",
    plan=plan,
    space=jitd.Space(
        {"BLOCK": [512, 1024, 2048], "num_warps": [4, 8]},
        default=lambda problem: {"BLOCK": 1024, "num_warps": 4},
    ),
    applies=lambda call: (
        None if call.x.layout == "contiguous" and call.x.dtype != "fp64" else "not contiguous"
    ),
)


def next_power_of_two(call):
    shape = (1 << (call.x.numel - 1).bit_length(),)
    return call.replace(x=call.x.like(shape=shape, aligned=True))


@jitd.op(
    name="outside_scale",
    variants=[ELEMENTWISE],
    outputs=lambda call: {"out": call.x.like(aligned=True)},
    cost=lambda call: jitd.Cost(bytes=2 * call.x.nbytes),
    bucket=next_power_of_two,
)
def scale(x: Tensor, factor: float = 2.0) -> Tensor:
    """x * factor, rounded once. x: any shape, bf16|fp16|fp32, contiguous."""
    return (x.float() * factor).to(x.dtype)


FADE_KERNEL = jitd.Kernel("outside.kernels", "fade_kernel")


def plan_fade(call, params, device):
    n = call.x.numel
    launch = jitd.Launch(
        kernel=FADE_KERNEL,
        grid=(ceil(n / params["BLOCK"]), 1, 1),
        args={
            "out_ptr": jitd.Pointer("out"),
            "x_ptr": jitd.Pointer("x"),
            "early": call.early,
            "late": call.late,
            "n": n,
            "BLOCK": params["BLOCK"],
        },
    )
    return jitd.Plan(outputs={"out": call.x}, launches=[launch])


@jitd.op(
    name="outside_fade",
    variants=[
        jitd.Variant(
            name="elementwise",
            plan=plan_fade,
            space=jitd.Space({"BLOCK": [512, 1024]}, default=lambda problem: {"BLOCK": 1024}),
        )
    ],
    outputs=lambda call: {"out": call.x.like(aligned=True)},
    cost=lambda call: jitd.Cost(bytes=2 * call.x.nbytes),
    varies={"late": 0.75, "early": -0.3},
)
def fade(x: Tensor, late: float, early: float = 0.0) -> Tensor:
    """x * late + early, in fp64, rounded once; `late` is rounded to fp32 before. x: contiguous."""
    return (x.double() * torch.tensor(late).double() + early).to(x.dtype)
