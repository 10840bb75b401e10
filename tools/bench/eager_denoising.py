"""LTX-2's denoising step in eager PyTorch, written from its formulas: what the ops are held to.

It is what a pipeline without fused steps launches: a chain of elementwise ops for each prediction,
standard deviations by torch.std, and res_2s with its refinement in a loop of a hundred rounds in
fp64. Independent of jitd's ops and of what they make of the coefficients.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

ROUNDS = 100


def x0_of(x: Tensor, v: Tensor, sigma: Any) -> Tensor:
    """Of a velocity; sigma is a number or broadcasts."""
    return (x.float() - sigma * v.float()).to(x.dtype)


def combined(branches: Mapping[str, Tensor | None], scales: Mapping[str, float]) -> Tensor:
    """The guided prediction; branches: cond and, if they are, neg, perturbed, modality."""
    cond = branches["cond"]
    assert cond is not None  # for the type checker
    pred = cond
    for name, scale in (
        ("neg", scales["cfg"] - 1),
        ("perturbed", scales["stg"]),
        ("modality", scales["mod"] - 1),
    ):
        other = branches.get(name)
        if other is not None:
            pred = pred + scale * (cond - other)
    if scales["rescale"]:
        factor = scales["rescale"] * (cond.std() / pred.std()) + (1 - scales["rescale"])
        pred = pred * factor
    return pred


def euler(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The latents after a step of Euler's."""
    v = ((x.float() - x0.float()) / sigma).to(x.dtype)
    return (x.float() + v.float() * (sigma_next - sigma)).to(x.dtype)


def sde(
    sample: Tensor, denoised: Tensor, sigma: float, sigma_next: float, noise: Tensor | None
) -> Tensor:
    """From a sample to its successor, in fp64; without noise the successor itself."""
    if noise is None:
        return denoised
    up = min(0.5 * sigma_next, 0.9999 * sigma_next)
    res = math.sqrt(max(sigma_next**2 - up**2, 0))
    alpha = (1 - sigma_next) + res
    down = res / alpha
    e = (sample - denoised) / (sigma - sigma_next)
    next_denoised = sample - sigma * e
    return alpha * (next_denoised + down * e) + up * noise.double()


def res2s(
    x: Tensor,
    ask: Callable[[Tensor, float], Tensor],
    sigma: float,
    sigma_next: float,
    noise_mid: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """The latents after a step of res_2s; `ask(x, sigma)` gives x0."""
    x0 = ask(x, sigma)
    if sigma == 0 or sigma_next == 0:
        return x0
    h = math.log(sigma / sigma_next)
    a21 = 0.5 * _phi1(-h * 0.5)
    b2 = _phi2(-h) / 0.5
    b1 = _phi1(-h) - b2
    sub = math.sqrt(sigma * sigma_next)
    anchor = x.double()
    first = x0.double() - anchor
    mid = sde(anchor, anchor + h * a21 * first, sigma, sub, noise_mid)
    if h < 0.5 and sigma > 0.03:
        for _ in range(ROUNDS):
            anchor = mid - h * a21 * first
            first = x0.double() - anchor
    second = ask(mid.to(x.dtype), sub).double() - anchor
    end = anchor + h * (b1 * first + b2 * second)
    return sde(anchor, end, sigma, sigma_next, noise).to(x.dtype)


def _phi1(z: float) -> float:
    return (math.exp(z) - 1) / z if abs(z) > 1e-10 else 1.0


def _phi2(z: float) -> float:
    return (math.exp(z) - 1 - z) / (z * z) if abs(z) > 1e-10 else 0.5
