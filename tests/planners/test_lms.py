# SPDX-License-Identifier: Apache-2.0
"""The linear multistep method: parity with diffusers, order, weights, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LMSDiscreteScheduler
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners.lms import adams_weights

from tests.kit import oracles
from tests.kit.configs import SIGMA_SPACE, ids
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture, check_order
from tests.kit.peers import FP32_LIMIT, check_parity

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VP = schedules.exponential(base=schedules.linear())  # uniform in lambda
DISCRETE = [*SIGMA_SPACE, (10, {"prediction_type": "sample"}), (4, {"prediction_type": "sample"})]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "config"), DISCRETE, ids=ids(DISCRETE))
def test_lms_discrete(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    # Beta sigmas crowd at both ends: the weights of order 4 multiply the rounding of a slope made of x and v.
    limit = 1e-4 if "use_beta_sigmas" in config else FP32_LIMIT
    plan = check_parity(LMSDiscreteScheduler, config, steps, dtype=dtype, limit=limit)
    assert (plan.steps, plan.order) == (steps, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms_discrete_of_other_orders(order: int, dtype: torch.dtype) -> None:
    plan = check_parity(
        LMSDiscreteScheduler, {"use_karras_sigmas": True}, 12, dtype=dtype, step={"order": order}
    )
    assert plan.history == tuple(f"m{n}" for n in range(1, order))


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_init_noise_is_that_of_diffusers(spacing: str) -> None:
    scheduler = LMSDiscreteScheduler(timestep_spacing=spacing)
    plan = plan_from(scheduler, 7)
    scheduler.set_timesteps(7)
    assert plan.init_noise_sigma == pytest.approx(
        float(scheduler.init_noise_sigma * plan.alphas[0]), rel=1e-6
    )


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order(order: int, data: Mixture) -> None:
    steps = (40, 80, 160) if order < 3 else (160, 320)
    check_order(lambda n: planners.lms(VP, n, order=order, final_sigmas_type="sigma_min"), order, data, steps)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_on_a_flow_is_at_most_that_of_its_first_step(order: int) -> None:
    check_order(
        lambda n: planners.lms(schedules.flow(), n, order=order), min(order, 2), BIMODAL, (80, 160, 320)
    )


@pytest.mark.parametrize("schedule", [schedules.karras(0.02, 20), schedules.edm(0.02, 20)], ids=["ve", "edm"])
def test_order_on_other_schedules(schedule: schedules.Schedule) -> None:
    check_order(
        lambda n: planners.lms(schedule, n, order=2, final_sigmas_type="sigma_min"), 2, BIMODAL, (40, 80)
    )


def test_order_1_is_euler() -> None:
    one, euler = planners.lms(VP, 12, order=1), planners.euler(VP, 12)
    for data in (GAUSSIAN, BIMODAL):
        errors = [oracles.end_point_error(plan, data) for plan in (one, euler)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9)


def test_weights_integrate_polynomials_exactly() -> None:
    times, end = [3.0, 5.5, 6.0, 14.0], 0.25
    for n in range(1, 5):
        weights = adams_weights(times[:n], end)
        for power in range(n):
            exact = (end ** (power + 1) - times[0] ** (power + 1)) / (power + 1)
            got = sum(w * t**power for w, t in zip(weights, times, strict=False))
            assert got == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order: expected 1 to 4, got 5"),
        ({"order": 0}, "order: expected 1 to 4, got 0"),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.lms(schedules.linear(), 4, **options)


def test_an_infinite_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="lms: expected alpha > 0, got 0 at the first level"):
        planners.lms(schedules.zero_terminal_snr(schedules.linear()), 4, prediction="v")


def test_an_order_that_diffusers_takes_but_the_plan_does_not() -> None:
    with pytest.raises(ValueError, match="order: expected 1 to 4, got 7"):
        plan_from(LMSDiscreteScheduler(), 10, order=7)
