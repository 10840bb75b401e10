"""What a step of res_2s multiplies with: `res2s_step`'s coefficients of two sigmas.

Imports no torch. res_2s is an exponential Runge-Kutta method of two stages with an SDE after each.
With h = ln(sigma/sigma'), phi1(z) = (e^z - 1)/z, phi2(z) = (e^z - 1 - z)/z^2, c2 = 1/2:

    a21 = c2 phi1(-h c2)    b2 = phi2(-h)/c2    b1 = phi1(-h) - b2

An SDE step from s to its deterministic successor d, sigma to sigma', with eta = 1/2:

    up = min(eta sigma', 0.9999 sigma')    res = sqrt(sigma'^2 - up^2)    alpha = 1 - sigma' + res
    e = (s - d)/(sigma - sigma')           out = alpha (s - sigma e + res/alpha e) + up noise
                                               = alpha (s + pull (d - s)) + up noise
    pull = (sigma - res/alpha)/(sigma - sigma')

The refinement of the anchor ("bong", where h < 0.5 and sigma > 0.03) repeats x <- mid - k (x0 - x)
a hundred times with k = h a21 = 1 - e^(-h/2) < 0.2213, so that it ends at its fixed point to the
last bit of fp64: mid + k/(1-k) (mid - x0), and k/(1-k) = e^(h/2) - 1.

Source: res2s_audio_video_denoising_loop and Res2sDiffusionStep of Lightricks' LTX-2; the method is
that of RES4LYF (rk_coefficients_beta.py, bong_iter).
"""

import math
import struct
from typing import NamedTuple

__all__ = ["Coefficients", "midpoint_sigma", "res2s_coefficients"]

ETA = 0.5
_LONGEST_REFINED, _LOWEST_REFINED = 0.5, 0.03  # h below, sigma above


class Coefficients(NamedTuple):
    """Of one step, in the order of `res2s_step`; the first three are those of `res2s_midpoint`."""

    alpha_mid: float
    move_mid: float
    up_mid: float
    bong: float
    alpha: float
    first: float
    second: float
    up: float


def midpoint_sigma(sigma: float, sigma_next: float) -> float:
    """Where the model is asked a second time."""
    return math.sqrt(sigma * sigma_next)


def res2s_coefficients(
    sigma: float, sigma_next: float, *, single: bool = False
) -> Coefficients | None:
    """Those of a step, or None for a terminal one, which ends at x0 itself.

    `single`: the last SDE computes its own coefficients in fp32, as HQ's first stage does.
    """
    if sigma == 0 or sigma_next == 0:
        return None
    h = math.log(sigma / sigma_next)
    k = h * 0.5 * _phi1(-h / 2)
    b2 = 2 * _phi2(-h)
    b1 = _phi1(-h) - b2
    alpha_mid, pull_mid, up_mid = _sde(sigma, midpoint_sigma(sigma, sigma_next))
    alpha, pull, up = (_sde_single if single else _sde)(sigma, sigma_next)
    refined = h < _LONGEST_REFINED and sigma > _LOWEST_REFINED
    return Coefficients(
        alpha_mid=alpha_mid,
        move_mid=pull_mid * k,
        up_mid=up_mid,
        bong=math.expm1(h / 2) if refined else 0.0,
        alpha=alpha,
        first=pull * h * b1,
        second=pull * h * b2,
        up=up,
    )


def _sde(sigma: float, sigma_next: float) -> tuple[float, float, float]:
    """(alpha, pull, up) of an SDE step."""
    up = min(ETA * sigma_next, 0.9999 * sigma_next)
    res = math.sqrt(max(sigma_next**2 - up**2, 0.0))
    alpha = (1 - sigma_next) + res
    return alpha, (sigma - res / alpha) / (sigma - sigma_next), up


def _sde_single(sigma: float, sigma_next: float) -> tuple[float, float, float]:
    """The same, each operation rounded to fp32, but for what is then done with tensors in fp64."""
    sigma, sigma_next = _rounded(sigma), _rounded(sigma_next)
    up = min(_rounded(ETA * sigma_next), _rounded(_rounded(0.9999) * sigma_next))
    squares = _rounded(_rounded(sigma_next**2) - _rounded(up**2))
    res = _rounded(math.sqrt(max(squares, 0.0)))
    alpha = _rounded(_rounded(1 - sigma_next) + res)
    return alpha, (sigma - _rounded(res / alpha)) / _rounded(sigma - sigma_next), up


def _rounded(value: float) -> float:
    """To fp32."""
    (single,) = struct.unpack("f", struct.pack("f", value))
    return float(single)


def _phi1(z: float) -> float:
    return math.expm1(z) / z if abs(z) > _SMALL else 1 + z / 2 + z * z / 6


def _phi2(z: float) -> float:
    return (math.expm1(z) - z) / (z * z) if abs(z) > _SMALL else 0.5 + z / 6 + z * z / 24


_SMALL = 1e-4  # below it the quotients lose digits, and three terms of the series have them all
