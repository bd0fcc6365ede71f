# SPDX-License-Identifier: Apache-2.0
"""Consistency models: parity with diffusers, the boundary condition, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit.peers import check_parity

diffusers = pytest.importorskip("diffusers")
CM = diffusers.CMStochasticIterativeScheduler

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
def test_parity(steps: int, clip: bool, dtype: torch.dtype) -> None:
    check_parity(CM, {"clip_denoised": clip}, steps, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("config", "steps", "keywords"),
    [
        ({"sigma_min": 0.01, "sigma_max": 20.0, "rho": 3.0, "clip_denoised": False}, 5, {}),
        ({"sigma_data": 1.0, "clip_denoised": False}, 4, {}),
        ({"s_noise": 1.01}, 4, {}),
        ({"num_train_timesteps": 201}, 18, {}),
        ({}, None, {"timesteps": [22, 0]}),
        ({}, None, {"timesteps": [39, 30, 12, 5]}),
    ],
    ids=str,
)
def test_parity_of_options(
    config: dict[str, Any], steps: int | None, keywords: dict[str, Any], dtype: torch.dtype
) -> None:
    check_parity(CM, config, steps, set_timesteps=keywords, dtype=dtype)


def test_the_boundary_condition_is_exact() -> None:
    """f(x^, sigma_min) = x^, whatever the model says."""
    plan = plan_from(CM(clip_denoised=False), 40)  # all levels, the last of which is sigma_min
    x0 = plan.table[-1, 0]
    assert float(x0[0]) == pytest.approx(1 / float(plan.alphas[-2]), rel=1e-15)
    assert float(x0[1]) == 0


def test_noise_reaches_the_next_level() -> None:
    """f carries sigma_min's own noise already: the variances add up to sigma'^2."""
    plan = planners.consistency(schedules.edm(), 4)
    z = plan.table[:-1, plan.rows.index("x'"), len(plan.inputs) + len(plan.rows)]
    torch.testing.assert_close((z / plan.alphas[1:4]) ** 2 + 0.002**2, (plan.sigmas / plan.alphas)[1:4] ** 2)
    assert plan.noisy == (True, True, True, False)
    assert float(plan.sigmas[3] / plan.alphas[3]) > 0.002, (
        "no evaluation is spent on sigma_min, where f is the identity"
    )


def test_the_consistency_function_of_gaussian_data_draws_from_the_data() -> None:
    """F that makes f the exact flow to sigma_min: every number of steps ends with the data's mean and variance."""
    mean, std, low = 0.3, 0.5, 0.002
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2, 4):
        plan = planners.consistency(schedules.edm(), steps, clip_sample=None)
        ratios = dict(zip(plan.timesteps.tolist(), (plan.sigmas / plan.alphas).tolist(), strict=False))

        def f(x: torch.Tensor, t: torch.Tensor, ratios: Any = ratios) -> torch.Tensor:
            r = float(min(ratios.items(), key=lambda item: abs(item[0] - float(t)))[1])
            seen = x * math.hypot(r, 0.5)
            exact = mean + math.hypot(std, low) / math.hypot(std, r) * (seen - mean)
            c_skip = 0.25 / ((r - low) ** 2 + 0.25)
            return (exact - c_skip * seen) / ((r - low) * 0.5 / math.hypot(r, 0.5) or 1.0)

        end = plan.run(f, plan.init_noise_sigma * x, seed=steps)
        assert float(end.mean()) == pytest.approx(mean, abs=0.01)
        assert float(end.std()) == pytest.approx(std, rel=0.01)


# ---- refusals ------------------------------------------------------------------------------------------------


def test_a_schedule_with_another_alpha_is_refused() -> None:
    for schedule in (schedules.karras(), schedules.edm(sigma_data=1.0)):
        with pytest.raises(ValueError, match="schedule: expected alpha = c_in"):
            planners.consistency(schedule, 4)


def test_refused_by_name() -> None:
    with pytest.raises(ValueError, match="steps: expected 1 to 40, got 41"):
        plan_from(CM(), 41)
    with pytest.raises(ValueError, match="cannot reproduce num_train_timesteps=1"):
        plan_from(CM(num_train_timesteps=1), 1)
    with pytest.raises(ValueError, match="levels must decrease"):
        plan_from(CM(), timesteps=[5, 5])


def test_diffusers_is_nan_where_the_square_of_sigma_min_rounds_down() -> None:
    """Its last noise is sqrt(sigma^2 - sigma_min^2), one squared in float32 and one in float64; ours is exactly 0."""
    scheduler = CM(sigma_min=0.009)
    plan = plan_from(scheduler, 2)
    scheduler.set_timesteps(2)
    x = torch.zeros(1, 1, 2, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(scheduler.scale_model_input(x, t)), t, x).prev_sample
    assert bool(x.isnan().all())
    assert not plan.noisy[-1]
