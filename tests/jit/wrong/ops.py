"""`suspect_norm`, whose configs are right and wrong kernels, and `hazard`, of which one hangs.

from wrong.ops import HAZARD, HAZARD_CALL, NORM, norm_call
"""

from math import ceil

import jitd
import torch
from jitd.jit.sign import ITEM_BYTES, Call, TensorSpec
from torch import Tensor

KERNELS = "wrong.kernels"
RIGHT = ("right", "store_squares")

# Kernel -> what the verifier says of it, as a regular expression. Some are always the same ...
BEYOND = "beyond the bound|rms error"
REFUSED = {
    "misses_the_tail": "elements left unwritten",
    "sums_no_tail": BEYOND,
    "miscounts_the_tail": BEYOND,
    "leaves_one_out": "1 of .* elements left unwritten",
    "reads_past_the_end": "NaN or Inf differ from the reference's",
    "writes_past_the_end": "elements written beside it",
    "ignores_eps": BEYOND,
    "takes_another_eps": BEYOND,
    "cancels": BEYOND,
    "sums_in_bf16": BEYOND,
    "squares_in_fp16": BEYOND,
    "drops_nan": "NaN or Inf differ from the reference's",
    "writes_to_its_input": "an input was written to",
    "adds_to_its_output": "NaN or Inf differ from the reference's|differ between two runs",
}
# ... and some depend on who comes first. Run one after the other, only the last one is wrong.
RACING = {
    "add_squares": f"differ between two runs|{BEYOND}",
    "add_squares_atomically": "differ between two runs",
    "apply_without_waiting": f"differ between two runs|{BEYOND}",
}


def next_power_of_two(number):
    return 1 << (number - 1).bit_length()


def sizes(call, params):
    """The arguments that every kernel of `suspect_norm` takes."""
    n = call.x.shape[1]
    tiles = ceil(next_power_of_two(n) / params["BLOCK"])
    return {"x": jitd.Pointer("x"), "n": n, "BLOCK": params["BLOCK"], "TILES": tiles}


def results(call):
    return {"y": jitd.Pointer("y"), "w": jitd.Pointer("w"), "eps": call.eps}


def plan_rows(call, params, device):
    """One program a row."""
    args = {**sizes(call, params), **results(call)}
    kernel = jitd.Kernel(KERNELS, params["KERNEL"])
    launch = jitd.Launch(kernel, (call.x.shape[0], 1, 1), args, num_warps=1)
    return jitd.Plan(outputs={"y": call.x.like(aligned=True)}, launches=[launch])


def plan_parts(call, params, device):
    """One program a tile: means, then squares, then results; or the last two at once."""
    rows, own = call.x.shape[0], {**sizes(call, params), "ws": jitd.Pointer("parts")}
    tiles = own["TILES"]
    merged = params["KERNEL"] == "apply_without_waiting"
    steps = [("store_means", rows, own)]
    if not merged:
        steps.append((params["KERNEL"], rows * tiles, own))
    last = "apply_without_waiting" if merged else "apply_parts"
    steps.append((last, rows * tiles, {**own, **results(call)}))
    return jitd.Plan(
        outputs={"y": call.x.like(aligned=True)},
        launches=[
            jitd.Launch(jitd.Kernel(KERNELS, name), (programs, 1, 1), args, num_warps=1)
            for name, programs, args in steps
        ],
        workspaces={"parts": jitd.Workspace("fp32", rows * (1 + tiles))},
    )


def variant_of(name, plan, kernels):
    return jitd.Variant(
        name=name,
        plan=plan,
        space=jitd.Space(
            {"KERNEL": kernels, "BLOCK": [64]},
            default=lambda problem: {"KERNEL": kernels[0], "BLOCK": 64},
        ),
        applies=lambda call: None if call.x.layout == "contiguous" else "not contiguous",
    )


def resized(call, n):
    """The same call with rows of n elements."""
    return call.replace(
        x=TensorSpec(call.x.dtype, (call.x.shape[0], n)), w=TensorSpec(call.x.dtype, (n,))
    )


def partly_full(call):
    """The longest row whose last tile is not full, and the shortest one of the bucket."""
    longest = next_power_of_two(call.x.shape[1])
    return [resized(call, longest - 1), resized(call, longest // 2 + 1)]


@jitd.op(
    name="suspect_norm",
    variants=[
        variant_of("rows", plan_rows, ["right", *REFUSED]),
        variant_of("parts", plan_parts, ["store_squares", *RACING]),
    ],
    outputs=lambda call: {"y": call.x.like(aligned=True)},
    cost=lambda call: jitd.Cost(bytes=2 * call.x.nbytes),
    implied={"w": lambda call: TensorSpec(call.x.dtype, call.x.shape[1:])},
    bucket=lambda call: resized(call, next_power_of_two(call.x.shape[1])),
    probes=partly_full,
)
def suspect_norm(x: Tensor, w: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm without a bias. x: (rows, n), w: (n,), bf16|fp16|fp32, contiguous."""
    return torch.nn.functional.layer_norm(x, x.shape[1:], w, None, eps)


NORM = suspect_norm.op


def norm_call(rows, n, dtype="fp32"):
    """A call of `suspect_norm` without tensors."""
    return Call({"x": TensorSpec(dtype, (rows, n)), "w": TensorSpec(dtype, (n,)), "eps": 1e-5})


def norm_config(kernel):
    """The config of `suspect_norm` that runs a kernel, by the kernel's name."""
    variant = next(v for v in NORM.variants if kernel in v.space.axes["KERNEL"])
    return NORM.config(variant.name, {"KERNEL": kernel, "BLOCK": 64})


# -- hazard: good(BLOCK=1024), hangs(BLOCK=1024), crashes(BLOCK=1024) ------------------------------


def doubling(call, params):
    n = call.x.numel
    args = {"y": jitd.Pointer("y"), "x": jitd.Pointer("x"), "n": n, "BLOCK": params["BLOCK"]}
    return (ceil(n / params["BLOCK"]), 1, 1), args


def plan_good(call, params, device):
    grid, args = doubling(call, params)
    launch = jitd.Launch(jitd.Kernel(KERNELS, "doubles"), grid, args)
    return jitd.Plan(outputs={"y": call.x}, launches=[launch])


def plan_hangs(call, params, device):
    """Never ends: its process, and no more, has to be killed."""
    grid, args = doubling(call, params)
    launch = jitd.Launch(
        jitd.Kernel(KERNELS, "hangs"), grid, {**args, "flag": jitd.Pointer("flag")}
    )
    flag = jitd.Workspace("i32", 1, zeroed=True)
    return jitd.Plan(outputs={"y": call.x}, launches=[launch], workspaces={"flag": flag})


def plan_crashes(call, params, device):
    """Stores to an illegal address: no CUDA call of its process works any more."""
    grid, args = doubling(call, params)
    far = (1 << 44) // ITEM_BYTES[call.x.dtype]
    launch = jitd.Launch(jitd.Kernel(KERNELS, "crashes"), grid, {**args, "FAR": far})
    return jitd.Plan(outputs={"y": call.x}, launches=[launch])


def hazard_variant(name, plan):
    space = jitd.Space({"BLOCK": [1024]}, default=lambda problem: {"BLOCK": 1024})
    return jitd.Variant(name=name, plan=plan, space=space, gpu_only=name != "good")


@jitd.op(
    variants=[
        hazard_variant("good", plan_good),
        hazard_variant("hangs", plan_hangs),
        hazard_variant("crashes", plan_crashes),
    ],
    outputs=lambda call: {"y": call.x},
    cost=lambda call: jitd.Cost(bytes=2 * call.x.nbytes),
)
def hazard(x: Tensor) -> Tensor:
    """2 * x, if all goes well. x: contiguous, a float. Tune it only in a process of its own."""
    return x * 2


HAZARD = hazard.op
HAZARD_CALL = Call({"x": TensorSpec("fp32", (1 << 20,))})
