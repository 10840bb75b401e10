"""Tensors and calls of guidance and steps. Also used by tests/gpu."""

from itertools import pairwise

import torch
from jitd.models.ltx2.denoising.coefficients import res2s_coefficients
from jitd.models.ltx2.denoising.schedule import DISTILLED, REFINE, REFINE_RES2S, shifted
from jitd.models.ops.guidance import guidance_combine, velocity_to_x0
from jitd.models.ops.steps import euler_step, res2s_midpoint, res2s_step

from .cases import randn

SHAPE = (2, 37, 24)
FUNCTIONS = {
    function.op.name: function
    for function in (guidance_combine, velocity_to_x0, euler_step, res2s_midpoint, res2s_step)
}
BRANCHES = ("cond", "neg", "perturbed", "modality")
SCALES = {"cfg": 3.0, "stg": 1.25, "mod": 2.5}
SUBSETS = [(True, *(bool(n & bit) for bit in (1, 2, 4))) for n in range(8)]

# Every pair of neighbours of every schedule, but for those that end at 0.
SCHEDULES = (shifted(15, 8160), shifted(30), shifted(40, 6144), DISTILLED, REFINE, REFINE_RES2S)
PAIRS = sorted({pair for one in SCHEDULES for pair in pairwise(one) if pair[1]})
ROWS = [res2s_coefficients(*pair) for pair in PAIRS]


def tensors(count, shape=SHAPE, *, dtype=torch.float32, device="cpu"):
    return [randn(*shape, seed=seed, dtype=dtype, device=device) for seed in range(count)]


def branches(present=(True,) * 4, **how):
    """cond, neg, perturbed, modality; None where not present."""
    return [t if here else None for t, here in zip(tensors(4, **how), present, strict=True)]
