"""Sigmas of a run, from pure noise (1) to none (0). Imports no torch.

Source: LTX2Scheduler of Lightricks' LTX-2 (2.3), FlowMatchEulerDiscreteScheduler of diffusers under
LTX-2's config (2.0): dynamic exponential shift, stretched so that the last sigma before 0 is 0.1.
Both are the same function, of another number of tokens.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["DISTILLED", "REFERENCE_TOKENS", "REFINE", "REFINE_RES2S", "checked_sigmas", "shifted"]

REFERENCE_TOKENS = 4096  # what 2.3 takes whatever the size, but for HQ
_TERMINAL = 0.1  # the last sigma before 0
_SHIFTS = ((1024, 0.95), (4096, 2.05))  # tokens -> mu: a line through both

DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
"""Of a distilled model, in its first stage."""

REFINE = (0.909375, 0.725, 0.421875, 0.0)
"""Of stage 2, which begins with latents that are noised to the first."""

REFINE_RES2S = (0.909375, 0.725, 0.421875, 0.0011)
"""The same for res_2s, whose SDE cannot step to 0: three steps, the last of which ends just above
it.
"""


def shifted(steps: int, tokens: int = REFERENCE_TOKENS) -> tuple[float, ...]:
    """`steps` + 1 sigmas from 1 to 0, the higher the more `tokens` there are.

    2.0: the video's tokens. 2.3: REFERENCE_TOKENS. HQ: those of stage 1. Raises ValueError for no
    steps or no tokens.
    """
    if steps < 1 or tokens < 1:
        raise ValueError(f"{steps} steps of {tokens} tokens; allowed are 1 or more of each.")
    (low, at_low), (high, at_high) = _SHIFTS
    slope = (at_high - at_low) / (high - low)
    shift = math.exp(slope * tokens + at_low - slope * low)
    # e^mu / (e^mu + 1/s - 1) at s = 1 - n/steps, written so that it is 1 at s = 1.
    sigmas = [1 / (1 + n / (steps - n) / shift) for n in range(steps)]
    if steps > 1:
        stretch = (1 - sigmas[-1]) / (1 - _TERMINAL)
        sigmas = [1 - (1 - sigma) / stretch for sigma in sigmas]
    return (*sigmas, 0.0)


def checked_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """The sigmas of one step or more. Raises ValueError unless they descend from at most 1."""
    values = tuple(map(float, sigmas))
    wrong = [pair for pair in pairwise(values) if not pair[0] > pair[1]]
    if len(values) < 2 or wrong or not 1 >= values[0] > values[-1] >= 0:
        where = f"{wrong[0][0]:g} is followed by {wrong[0][1]:g}" if wrong else f"given {values}"
        raise ValueError(f"sigmas: {where}. Allowed are two or more that descend from 1 to 0.")
    return values
