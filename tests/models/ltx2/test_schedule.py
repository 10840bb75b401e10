"""Schedules and coefficients: known values, what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from jitd.models.ltx2.denoising.coefficients import midpoint_sigma, res2s_coefficients
from jitd.models.ltx2.denoising.recipes import RECIPES
from jitd.models.ltx2.denoising.schedule import (
    DISTILLED,
    REFINE,
    REFINE_RES2S,
    checked_sigmas,
    shifted,
)


def test_hq_has_the_known_sigmas():
    """15 steps of 8160 tokens."""
    known = {0: 1, 1: 0.9935, 2: 0.986, 11: 0.768, 12: 0.6739, 13: 0.5034, 14: 0.1, 15: 0}
    sigmas = shifted(15, 8160)
    assert len(sigmas) == 16
    for place, value in known.items():
        assert sigmas[place] == pytest.approx(value, abs=6e-5)


@pytest.mark.parametrize("tokens", [1024, 1536, 4096, 6144, 32640])
@pytest.mark.parametrize("steps", [2, 8, 30, 40])
def test_schedules_descend_from_one_to_a_tenth_and_to_zero(steps, tokens):
    """Whatever steps and tokens: the ends are fixed, and more tokens keep more noise longer."""
    sigmas = shifted(steps, tokens)
    assert checked_sigmas(sigmas) == sigmas
    assert sigmas[0] == 1 and sigmas[-2] == pytest.approx(0.1) and sigmas[-1] == 0
    assert all(a < b + 1e-12 for a, b in zip(sigmas, shifted(steps, 2 * tokens), strict=True))


def test_one_step_is_possible():
    """A single step goes from noise to nothing."""
    assert shifted(1) == (1.0, 0.0)


@pytest.mark.diffusers
@pytest.mark.parametrize("tokens", [1536, 6144])
def test_schedules_are_the_schedulers_of_diffusers(tokens):
    """LTX-2's own scheduler config gives the same sigmas, to the fp32 that it keeps them in."""
    from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: PLC0415
    from diffusers.pipelines.ltx2 import utils  # noqa: PLC0415
    from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift  # noqa: PLC0415

    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
        max_image_seq_len=4096, shift_terminal=0.1,
    )  # fmt: skip
    steps = torch.linspace(1, 1 / 40, 40).tolist()
    scheduler.set_timesteps(sigmas=steps, mu=calculate_shift(tokens, 1024, 4096, 0.95, 2.05))
    torch.testing.assert_close(
        scheduler.sigmas.double(), torch.tensor(shifted(40, tokens), dtype=torch.float64),
        rtol=1e-6, atol=1e-7,
    )  # fmt: skip
    assert list(DISTILLED[:-1]) == utils.DISTILLED_SIGMA_VALUES
    assert list(REFINE[:-1]) == utils.STAGE_2_DISTILLED_SIGMA_VALUES


def test_thirteen_of_hqs_steps_are_refined():
    """And one of the three that follow: where h < 0.5, and sigma > 0.03."""

    def refined(sigmas):
        rows = [res2s_coefficients(*pair) for pair in pairwise(sigmas)]
        return [row is not None and row.bong > 0 for row in rows]

    assert refined(shifted(15, 8160)) == [True] * 13 + [False] * 2
    assert refined(REFINE_RES2S) == [True, False, False]
    assert not res2s_coefficients(0.029, 0.028).bong
    assert res2s_coefficients(0.031, 0.030).bong


@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.04])
def test_short_steps_lose_no_digits(sigma):
    """However short a step, its coefficients add up to the exponential that they stand for: first
    and second to pull * (1 - e^-h), bong to e^(h/2) - 1."""
    for h in (1e-9, 1e-6, 9.9e-5, 1.1e-4, 1e-2, 0.3, 2.0):
        after = sigma * math.exp(-h)
        row = res2s_coefficients(sigma, after)
        down = (1 - row.up**2 / after**2) ** 0.5 * after / row.alpha
        pull = (sigma - down) / (sigma - after)
        assert row.first + row.second == pytest.approx(-math.expm1(-h) * pull, rel=1e-6)
        assert row.bong in (0.0, pytest.approx(math.expm1(h / 2), rel=1e-6))
    assert midpoint_sigma(0.9, 0.4) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "sigmas", [(), (1.0,), (0.5, 0.5), (0.5, 0.7), (1.0, 0.4, 0.6), (1.2, 0.5), (0.5, -0.1),
               (1.0, float("nan"))],
)  # fmt: skip
def test_sigmas_that_do_not_descend_are_refused(sigmas):
    """ValueError names them."""
    with pytest.raises(ValueError, match=r"sigmas: .* Allowed are two or more that descend"):
        checked_sigmas(sigmas)


@pytest.mark.parametrize(("steps", "tokens"), [(0, 4096), (10, 0)])
def test_no_steps_are_refused(steps, tokens):
    """As are no tokens."""
    with pytest.raises(ValueError, match=f"{steps} steps of {tokens} tokens"):
        shifted(steps, tokens)


def test_recipes_are_whole():
    """Each has one stage or two, each stage a schedule of as many steps as it says."""
    for recipe in RECIPES.values():
        assert len(recipe.stages) in (1, 2)
        for stage in recipe.stages:
            assert len(checked_sigmas(stage.sigmas(8160))) == stage.steps + 1
