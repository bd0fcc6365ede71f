# SPDX-License-Identifier: Apache-2.0
"""Heun for the diffusion ODE and for flow matching: parity with diffusers, order, churn, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit import oracles
from tests.kit.configs import SIGMA_SPACE, ids
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture, check_order
from tests.kit.peers import check_parity

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VP = schedules.exponential(base=schedules.linear())  # uniform in lambda
CHURN = {"s_churn": 6.0, "s_tmin": 0.05, "s_tmax": 0.95, "s_noise": 1.003}
EVERYWHERE = {"s_churn": 10.0}

DISCRETE = [
    *SIGMA_SPACE,
    (10, {"prediction_type": "sample"}),
    (5, {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}),
    (5, {"prediction_type": "sample", "clip_sample": True, "clip_sample_range": 0.7}),
    (10, {"clip_sample": True}),
    (25, {"clip_sample": True, "clip_sample_range": 1.5, "prediction_type": "v_prediction"}),
    (12, {"clip_sample": True, "use_karras_sigmas": True}),
    (6, {"beta_schedule": "exp"}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "config"), DISCRETE, ids=ids(DISCRETE))
def test_heun_discrete(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    plan = check_parity(HeunDiscreteScheduler, config, steps, dtype=dtype)
    assert plan.steps == 2 * steps - 1, "one evaluation in the step to sigma = 0"
    assert not plan.stochastic


def test_heun_discrete_on_given_timesteps() -> None:
    check_parity(HeunDiscreteScheduler, {}, None, set_timesteps={"timesteps": [999, 600.5, 250, 30]})


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_init_noise_is_that_of_diffusers(spacing: str) -> None:
    scheduler = HeunDiscreteScheduler(timestep_spacing=spacing)
    plan = plan_from(scheduler, 7)
    scheduler.set_timesteps(7)
    assert plan.init_noise_sigma == pytest.approx(
        float(scheduler.init_noise_sigma * plan.alphas[0]), rel=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("steps", "config", "churn"),
    [
        (1, {}, {}),
        (2, {"shift": 3.0}, {}),
        (3, {}, CHURN),
        (8, {"num_train_timesteps": 500}, EVERYWHERE),
        (20, {"shift": 3.0}, CHURN),
        (50, {"shift": 0.5}, {}),
        (5, {}, {"s_churn": 100.0}),  # gamma at its maximum
    ],
    ids=str,
)
def test_flow_match_heun(
    steps: int, config: dict[str, Any], churn: dict[str, float], dtype: torch.dtype
) -> None:
    plan = check_parity(FlowMatchHeunDiscreteScheduler, config, steps, dtype=dtype, step=churn)
    assert plan.steps == 2 * steps - 1
    assert plan.stochastic == bool(churn)


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize(
    "schedule",
    [VP, schedules.karras(0.02, 20), schedules.edm(0.02, 20), schedules.flow()],
    ids=["vp", "ve", "edm", "flow"],
)
def test_order(schedule: schedules.Schedule, data: Mixture) -> None:
    check_order(lambda n: planners.heun(schedule, n, final_sigmas_type="sigma_min"), 2, data, (30, 60, 120))


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize(("clip", "data"), [(None, BIMODAL), (5.0, Mixture((1.0,), (0.1,), (0.2,)))])
def test_predictions_agree(kind: str, clip: float | None, data: Mixture) -> None:
    """They say the same, with or without a clamp that takes nothing; alpha > 0 on the flow for the sake of epsilon."""
    flow = schedules.from_levels([900.0, 600.0, 200.0], [0.1, 0.4, 0.8, 1.0], [0.9, 0.6, 0.2, 0.0])
    for schedule, steps in ((VP, 8), (flow, 3), (schedules.karras(0.02, 20), 8)):
        base = planners.heun(schedule, steps, prediction="v")
        plan = planners.heun(schedule, steps, prediction=kind, clip_sample=clip)
        ends = [_end(p, data) for p in (plan, base)]
        torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def _end(plan: planners.Plan, data: Mixture) -> torch.Tensor:
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64) * plan.init_noise_sigma

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        return oracles.predict(plan.prediction, x, data.denoise(x, *levels[i]), *levels[i])

    return oracles.execute(plan, model, x)


# ---- churn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [schedules.linear(), VP, schedules.karras(0.02, 80), schedules.edm(), schedules.flow()],
    ids=["discrete", "vp", "ve", "edm", "flow"],
)
def test_churn_keeps_the_moments_of_gaussian_data(schedule: schedules.Schedule) -> None:
    plan = planners.heun(schedule, 60, s_churn=6.0, exact_churn=True)
    mean, variance = oracles.moments(plan)
    assert mean == pytest.approx(0.3, rel=1e-3)
    assert variance == pytest.approx(0.25, rel=0.02)


def test_samples_have_the_moments_of_the_table() -> None:
    plan = planners.heun(schedules.karras(0.02, 20), 8, s_churn=4.0)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    mean, variance = oracles.moments(plan)
    model = oracles.AnalyticModel(GAUSSIAN, "epsilon", lambda t: (1.0, t))
    x = 0.3 + math.hypot(0.5, levels[0][1]) * torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    sample = plan.run(model, x, seed=1).double()
    assert float(sample.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert float(sample.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))


def test_the_churn_of_diffusers_does_not_keep_them() -> None:
    """Nor do more steps help: this is why there is exact_churn."""
    for steps in (50, 100):
        mean, variance = oracles.moments(planners.heun(schedules.flow(), steps, s_churn=10.0))
        assert mean / 0.3 == pytest.approx(1.93, abs=0.02)
        assert variance / 0.25 > 1.9


def test_churn_is_karras_algorithm_2() -> None:
    """Lines 4 to 11, step by step, with the noise of the plan's own steps; the first one is in the start."""
    schedule, steps, s_noise = schedules.karras(0.02, 20), 5, 1.01
    plan = planners.heun(schedule, steps, s_churn=1.5, s_tmin=0.1, s_tmax=15.0, s_noise=s_noise)
    t = schedule.grid(steps).sigmas
    draws = [
        torch.randn(9, generator=torch.Generator().manual_seed(i)).double() for i in range(sum(plan.noisy))
    ]
    start = x = 20 * torch.linspace(-1, 1, 9, dtype=torch.float64)
    z, told = iter(draws), []

    def slope(x: torch.Tensor, t: float) -> torch.Tensor:
        told.append(t)
        return (x - BIMODAL.denoise(x, 1.0, t)) / t

    for i in range(steps):
        gamma = 0.3 if 0.1 <= t[i] <= 15.0 else 0.0
        hat = t[i] * (1 + gamma)
        if gamma:
            x = x + s_noise * math.sqrt(hat**2 - t[i] ** 2) * next(z)
        d = slope(x, hat)
        x, before = x + (t[i + 1] - hat) * d, x
        if t[i + 1] > 0:
            x = before + (t[i + 1] - hat) / 2 * (d + slope(x, t[i + 1]))
    ours = oracles.execute(
        plan, lambda x, i: (x - BIMODAL.denoise(x, 1.0, float(plan.sigmas[i]))) / plan.sigmas[i], start, draws
    )
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)
    assert plan.timesteps.tolist() == pytest.approx(told, rel=1e-12)
    assert next(z, None) is None


def test_a_churned_plan_starts_at_the_first_noisier_level() -> None:
    plan = planners.heun(schedules.karras(0.02, 20), 4, s_churn=1.0, s_noise=1.1)
    assert float(plan.sigmas[0]) == pytest.approx(25)
    assert plan.init_noise_sigma == pytest.approx(math.sqrt(1 + 20**2 + 1.1**2 * (25**2 - 20**2)))
    flow = planners.heun(schedules.flow(), 4, s_churn=1.0, exact_churn=True)
    assert (float(flow.sigmas[0]), flow.init_noise_sigma) == (1.0, 1.0), "there is no noisier level"
    assert float(flow.sigmas[2]) == pytest.approx(1.25 * float(flow.sigmas[1]))


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, "prediction: expected one of"),
        ({"s_churn": -1.0}, "s_churn, s_noise: expected 0 or more, got -1.0 and 1.0"),
        ({"s_noise": math.nan}, "s_churn, s_noise: expected 0 or more, got 0.0 and nan"),
        ({"clip_sample": -1.0}, "clip_sample: expected a positive range"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type: expected zero or sigma_min"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.heun(schedules.linear(), 4, **options)


def test_an_infinite_ratio_is_refused() -> None:
    zero = schedules.zero_terminal_snr(schedules.linear())
    with pytest.raises(ValueError, match="heun: expected alpha > 0, got 0 at the first level"):
        planners.heun(zero, 4, prediction="v")
    with pytest.raises(ValueError, match="x0 is undetermined where alpha = 0"):
        planners.heun(schedules.flow(), 4, prediction="epsilon")


def test_timesteps_of_spaced_sigmas_are_refused() -> None:
    with pytest.raises(ValueError, match="HeunDiscreteScheduler: cannot reproduce timesteps"):
        plan_from(HeunDiscreteScheduler(use_karras_sigmas=True), timesteps=[900, 100])
