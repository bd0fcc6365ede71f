# SPDX-License-Identifier: Apache-2.0
"""DPM2 and DPM2 ancestral: parity with diffusers, order, noise, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit import oracles
from tests.kit.configs import SIGMA_SPACE, ids
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture, check_order
from tests.kit.peers import check_parity

VP = schedules.exponential(base=schedules.linear())  # uniform in lambda
ALL = [
    pytest.param(schedules.linear(), id="discrete"),
    pytest.param(VP, id="vp"),
    pytest.param(schedules.karras(0.02, 20), id="ve"),
    pytest.param(schedules.edm(0.02, 20), id="edm"),
    pytest.param(schedules.flow(), id="flow"),
]


# Their constructors place num_train_timesteps steps one by one: most cases have fewer of them, and larger betas.
SHORT = {"num_train_timesteps": 200, "beta_start": 0.004, "beta_end": 0.06}
CASES = [(steps, config if steps == 20 else SHORT | config) for steps, config in SIGMA_SPACE]
HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "half"])
@pytest.mark.parametrize("case", range(len(CASES)), ids=ids(SIGMA_SPACE))
@pytest.mark.parametrize("cls", [KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_kdpm2_discrete(cls: type, case: int, half: bool) -> None:
    steps, config = CASES[case]
    dtype = HALF[case % 2] if half else torch.float32
    plan = check_parity(cls, config, steps, dtype=dtype)
    assert plan.steps == 2 * steps - 1, "one evaluation in the step to sigma = 0"
    ancestral = cls is KDPM2AncestralDiscreteScheduler and steps > 1
    assert plan.noisy == tuple(ancestral and i % 2 == 1 for i in range(plan.steps))


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_init_noise_is_that_of_diffusers(spacing: str) -> None:
    scheduler = KDPM2DiscreteScheduler(timestep_spacing=spacing, num_train_timesteps=100)
    plan = plan_from(scheduler, 7)
    scheduler.set_timesteps(7)
    assert plan.init_noise_sigma == pytest.approx(
        float(scheduler.init_noise_sigma * plan.alphas[0]), rel=1e-6
    )


def test_karras_timesteps_are_rounded_but_not_at_the_midpoints() -> None:
    told = plan_from(KDPM2DiscreteScheduler(use_karras_sigmas=True), 6).timesteps.tolist()
    assert all(t.is_integer() for t in told[::2])
    assert not any(t.is_integer() for t in told[1::2])


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize("schedule", ALL[1:])
def test_order(schedule: schedules.Schedule, data: Mixture) -> None:
    check_order(lambda n: planners.kdpm2(schedule, n, final_sigmas_type="sigma_min"), 2, data, (30, 60, 120))


@pytest.mark.parametrize("noise", [{"eta": 1.0}, {"eta": 0.5, "s_churn": 4.0}], ids=str)
@pytest.mark.parametrize("schedule", ALL)
def test_noise_keeps_the_moments_of_gaussian_data(
    schedule: schedules.Schedule, noise: dict[str, float]
) -> None:
    mean, variance = oracles.moments(planners.kdpm2(schedule, 60, **noise))
    assert mean == pytest.approx(0.3, rel=1e-3)
    assert variance == pytest.approx(0.25, rel=0.05)


def test_samples_have_the_moments_of_the_table() -> None:
    plan = planners.kdpm2(schedules.karras(0.02, 20), 8, eta=1.0)
    mean, variance = oracles.moments(plan)
    model = oracles.AnalyticModel(GAUSSIAN, "epsilon", lambda t: (1.0, t))
    x = 0.3 + math.hypot(0.5, 20.0) * torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    sample = plan.run(model, x, seed=1).double()
    assert float(sample.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert float(sample.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_steps_as_in_k_diffusion(eta: float) -> None:
    """Down to sigma_down through the midpoint in ln sigma, and up again by noise."""
    schedule, steps, s_noise = schedules.karras(0.02, 20), 5, 1.01
    plan = planners.kdpm2(schedule, steps, eta=eta, s_noise=s_noise)
    t = schedule.grid(steps).sigmas
    draws = [
        torch.randn(9, generator=torch.Generator().manual_seed(i)).double() for i in range(sum(plan.noisy))
    ]
    start = x = 20 * torch.linspace(-1, 1, 9, dtype=torch.float64)
    z = iter(draws)

    def slope(x: torch.Tensor, t: float) -> torch.Tensor:
        return (x - BIMODAL.denoise(x, 1.0, t)) / t

    for i in range(steps):
        up = eta * math.sqrt(t[i + 1] ** 2 * (t[i] ** 2 - t[i + 1] ** 2) / t[i] ** 2)
        down = math.sqrt(t[i + 1] ** 2 - up**2)
        if down == 0:
            x = x + (down - t[i]) * slope(x, t[i])
            continue
        middle = math.exp((math.log(t[i]) + math.log(down)) / 2)
        x = x + (down - t[i]) * slope(x + (middle - t[i]) * slope(x, t[i]), middle)
        if up:
            x = x + s_noise * up * next(z)
    ours = oracles.execute(
        plan, lambda x, i: (x - BIMODAL.denoise(x, 1.0, float(plan.sigmas[i]))) / plan.sigmas[i], start, draws
    )
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-12)
    if eta == 1:
        assert plan.sigmas.tolist()[1::2] == pytest.approx(t[1:], rel=1e-12), "the midpoint is the next level"


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, "prediction: expected one of"),
        ({"eta": 1.5}, "eta: expected 0 to 1, got 1.5"),
        ({"s_churn": -1.0}, "s_churn, s_noise: expected 0 or more"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.kdpm2(schedules.linear(), 4, **options)


def test_schedules_without_a_midpoint_are_refused() -> None:
    zero = schedules.zero_terminal_snr(schedules.linear())
    with pytest.raises(ValueError, match="kdpm2: expected alpha > 0, got 0 at the first level"):
        planners.kdpm2(zero, 4, prediction="v")
    with pytest.raises(ValueError, match="schedule of given levels: it has none between them; pass base="):
        planners.kdpm2(schedules.from_levels([2.0, 1.0], [1, 1, 1], [2.0, 1.0, 0.0]), 2)


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_the_prediction_that_diffusers_has_not_implemented_is_refused(name: str) -> None:
    import diffusers

    with pytest.raises(ValueError, match=f"plan_from: {name}: cannot reproduce prediction_type='sample'"):
        plan_from(getattr(diffusers, name)(prediction_type="sample"), 4)
