# SPDX-License-Identifier: Apache-2.0
"""PNDM: parity with diffusers, with and without Runge-Kutta; convergence orders; its repeated timestep."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture
from tests.kit.peers import check_parity

PNDM = diffusers.PNDMScheduler
DATA = pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])


# ---- parity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 30, 50])
def test_plms(steps: int, prediction: str) -> None:
    plan = check_parity(PNDM, {"skip_prk_steps": True, "prediction_type": prediction}, steps)
    assert plan.steps == steps + (steps > 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 5, 7, 10, 30, 50])
def test_prk(steps: int, prediction: str) -> None:
    """30 steps are T//S = 33 apart, whose halves are not equal."""
    plan = check_parity(PNDM, {"prediction_type": prediction}, steps)
    assert plan.steps == steps + 9


@pytest.mark.parametrize("skip", [True, False], ids=["plms", "prk"])
@pytest.mark.parametrize(
    "config",
    [
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "linspace", "set_alpha_to_one": True, "prediction_type": "v_prediction"},
        {"timestep_spacing": "trailing"},
        {
            "timestep_spacing": "trailing",
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
        },
        {"steps_offset": 1, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"set_alpha_to_one": True},
        {"trained_betas": np.linspace(2e-4, 0.03, 500).tolist(), "num_train_timesteps": 500},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [6, 15])
def test_options(steps: int, config: dict[str, Any], skip: bool) -> None:
    check_parity(PNDM, {"skip_prk_steps": skip, **config}, steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("skip", [True, False], ids=["plms", "prk"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_half_precision(prediction: str, skip: bool, dtype: torch.dtype) -> None:
    config = {"skip_prk_steps": skip, "prediction_type": prediction}
    for steps in (4, 20):
        check_parity(PNDM, config, steps, dtype=dtype)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="steps: expected 4 or more, or skip_prk_steps, got 3"):
        plan_from(PNDM(), 3)
    with pytest.raises(ValueError, match="cannot reproduce prediction_type='sample'"):
        plan_from(PNDM(prediction_type="sample"), 10)
    with pytest.raises(ValueError, match="outside"):
        plan_from(PNDM(skip_prk_steps=True, steps_offset=25), 50)


# ---- what is evaluated where ---------------------------------------------------------------------------------


def test_the_second_timestep_comes_twice() -> None:
    plan = planners.pndm(schedules.linear(), 5, skip_prk_steps=True)
    assert plan.timesteps.tolist() == [800, 600, 600, 400, 200, 0]
    assert plan.inputs == ("x", "prediction", "base1", "e1", "e2", "e3", "e4")


def test_runge_kutta_evaluates_half_way() -> None:
    plan = planners.pndm(schedules.linear(), 5)
    steps = [800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 200]
    assert plan.timesteps.tolist() == [*steps, 200, 0]


def test_runge_kutta_between_the_levels_of_any_schedule() -> None:
    """Half-way in sigma/alpha, where the model is told what the schedule tells it there."""
    plan = planners.pndm(schedules.karras(0.5, 8, rho=1.0), 4)
    assert plan.timesteps.tolist()[:4] == [8, 6.75, 6.75, 5.5]
    with pytest.raises(ValueError, match="level"):
        planners.pndm(
            schedules.from_levels([4, 3, 2, 1], [0.1, 0.3, 0.5, 0.8, 1], [0.9, 0.8, 0.7, 0.5, 0.1]), 4
        )


# ---- convergence ---------------------------------------------------------------------------------------------


@DATA
def test_runge_kutta_starts_with_order_four(data: Mixture) -> None:
    """On equal steps in rho, in the middle of the range: there the start is a good part of the error."""
    schedule = schedules.karras(0.4, 2, rho=1.0)
    oracles.check_order(lambda n: planners.pndm(schedule, n), 4, data, steps=(160, 320, 640))


def test_the_start_without_it_has_order_three() -> None:
    schedule = schedules.karras(0.3, 1, rho=1.0)
    oracles.check_order(
        lambda n: planners.pndm(schedule, n, skip_prk_steps=True), 3, GAUSSIAN, steps=(160, 320, 640)
    )


@DATA
@pytest.mark.parametrize("skip", [True, False], ids=["plms", "prk"])
def test_the_order_on_other_steps_is_two(skip: bool, data: Mixture) -> None:
    """Liu et al. 2022, section 3.4."""
    schedule = schedules.exponential(0.3, 30)
    oracles.check_order(lambda n: planners.pndm(schedule, n, skip_prk_steps=skip), 2, data)


# ---- identities and corrections ------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False], ids=["plms", "prk"])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow"])
def test_a_constant_eps_is_followed_exactly(prediction: str, skip: bool) -> None:
    """Whatever the weights: every mean is that constant, and DDIM is exact on it."""
    plan = planners.pndm(
        schedules.linear(),
        10,
        prediction=prediction,
        skip_prk_steps=skip,
        mean_of_eps=True,
        fixed_stride=False,
    )
    x, eps = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        alpha, sigma = levels[i]
        return oracles.predict(prediction, x, (x - sigma * eps) / alpha, alpha, sigma)

    (alpha, sigma), (alpha_t, sigma_t) = levels[0], levels[-1]
    exact = alpha_t * (x - sigma * eps) / alpha + sigma_t * eps
    torch.testing.assert_close(oracles.execute(plan, model, x), exact, rtol=1e-9, atol=1e-9)


def test_means_of_eps_are_one_program_for_every_prediction() -> None:
    """And means of v are another one, which is what diffusers has."""
    ends = {}
    for prediction in ("epsilon", "v", "x0"):
        for of_eps in (True, False):
            plan = planners.pndm(schedules.linear(), 10, prediction=prediction, mean_of_eps=of_eps)
            ends[prediction, of_eps] = oracles.end_point_error(plan, BIMODAL)
    assert ends["v", True] == pytest.approx(ends["epsilon", True], rel=1e-9)
    assert ends["x0", True] == pytest.approx(ends["epsilon", True], rel=1e-9)
    assert ends["epsilon", False] == ends["epsilon", True]
    assert ends["v", False] != pytest.approx(ends["epsilon", True], rel=1e-3)


def test_a_step_to_the_next_timestep_is_closer() -> None:
    """Where the strides of diffusers miss the timesteps at which it evaluates the model."""
    for skip in (True, False):
        fixed, exact = (
            oracles.end_point_error(
                planners.pndm(
                    schedules.linear(),
                    30,
                    skip_prk_steps=skip,
                    timestep_spacing="linspace",
                    fixed_stride=stride,
                ),
                BIMODAL,
            )
            for stride in (True, False)
        )
        assert exact < fixed / 2


def test_x0_predictions_to_the_end() -> None:
    """The last step has nothing of x then."""
    plan = planners.pndm(schedules.linear(), 10, prediction="x0", set_alpha_to_one=True)
    m = torch.randn(plan.steps, 64, dtype=torch.float64)
    x = oracles.execute(plan, lambda x, i: m[i], m[0])
    mean = (55 * m[18] - 59 * m[17] + 37 * m[16] - 9 * m[15]) / 24
    torch.testing.assert_close(x, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"prediction": "noise"}, {"timestep_spacing": "even"}], ids=str)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        planners.pndm(schedules.linear(), 10, **options)
