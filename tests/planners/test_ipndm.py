# SPDX-License-Identifier: Apache-2.0
"""iPNDM: parity with diffusers, convergence orders on equal and on other steps, its first step at alpha = 0."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture
from tests.kit.peers import check_parity

IPNDM = diffusers.IPNDMScheduler
DATA = pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])


# ---- parity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [2, 3, 4, 5, 10, 25, 50])
def test_steps(steps: int, dtype: torch.dtype) -> None:
    check_parity(IPNDM, {}, steps, dtype=dtype)


def test_one_step_ends_at_zero() -> None:
    """x0 = 0 is all that it has at alpha = 0."""
    x = torch.randn(2, 64)
    assert not bool(plan_from(IPNDM(), 1).run(lambda x, t: x, x).any())
    scheduler = IPNDM()
    scheduler.set_timesteps(1)
    assert not bool(scheduler.step(x, scheduler.timesteps[0], x).prev_sample.any())


@pytest.mark.parametrize(("first", "steps"), [(0.999, 1), (0.999, 12), (1.0, 3), (1.0, 12)])
def test_its_trained_betas_are_the_levels(first: float, steps: int) -> None:
    sigmas = [first * (1 - k / steps) for k in range(steps + 1)]
    plan = check_parity(IPNDM, {"trained_betas": sigmas, "num_train_timesteps": steps}, steps)
    torch.testing.assert_close(plan.sigmas, torch.tensor(sigmas, dtype=torch.float64))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.9, 0.5, 0.1], "cannot reproduce trained_betas=.*: these are the levels of 2 steps, not of 3"),
        ([1.5, 0.9, 0.5, 0.1], "cannot reproduce trained_betas=.*: they are taken for sigma"),
        ([0.1, 0.5, 0.9, 0.95], "noise levels must decrease"),
    ],
    ids=str,
)
def test_refusals(betas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(IPNDM(trained_betas=betas), 3)


# ---- the first step --------------------------------------------------------------------------------------------


def from_pure_noise(steps: int) -> Any:
    """diffusers' levels, which start at alpha = 0."""
    sigmas = [math.sin(math.pi / 2 * (1 - k / steps)) ** 2 for k in range(steps + 1)]
    return schedules.from_levels(range(steps, 0, -1), [math.sqrt(1 - s * s) for s in sigmas], sigmas)


def test_where_alpha_is_zero_the_peer_does_not_use_its_prediction() -> None:
    x, v = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    schedule = from_pure_noise(4)
    level = float(schedule.levels.alphas[1]), float(schedule.levels.sigmas[1])
    scheduler = IPNDM()
    scheduler.set_timesteps(4)
    theirs = scheduler.step(v.float(), scheduler.timesteps[0], x.float()).prev_sample.double()
    for exact, x0 in ((False, torch.zeros_like(x)), (True, -v)):
        plan = planners.ipndm(schedule, 4, prediction="v", exact_start=exact)
        first, _ = plan.step(0, x, v)
        torch.testing.assert_close(first, level[0] * x0 + level[1] * x, rtol=1e-12, atol=1e-12)
        if not exact:
            torch.testing.assert_close(first, theirs, rtol=1e-6, atol=1e-6)


def test_an_exact_start_is_closer() -> None:
    errors = [
        oracles.end_point_error(
            planners.ipndm(from_pure_noise(20), 20, prediction="v", exact_start=exact), BIMODAL
        )
        for exact in (False, True)
    ]
    assert errors[1] < errors[0]


# ---- convergence ---------------------------------------------------------------------------------------------


@DATA
@pytest.mark.parametrize(("order", "limits"), [(1, (0.4, 4)), (2, (0.4, 4)), (3, (0.4, 4)), (4, (0.3, 6))])
def test_order_on_equal_steps(order: int, limits: tuple[float, float], data: Mixture) -> None:
    """Steps that are equal in rho = sigma/alpha, for which the classical coefficients are made.

    Order 4 needs noisier beginnings, where the lower orders of the first steps cost less.
    """
    schedule = schedules.karras(*limits, rho=1.0)

    def make(n: int) -> Any:
        return planners.ipndm(schedule, n, order=order, final_sigmas_type="sigma_min")

    oracles.check_order(make, order, data, steps=(160, 320, 640))


@DATA
def test_order_on_other_steps_is_two(data: Mixture) -> None:
    schedule = schedules.exponential(0.3, 30)
    oracles.check_order(lambda n: planners.ipndm(schedule, n, final_sigmas_type="sigma_min"), 2, data)


# ---- identities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow"])
def test_order_one_is_ddim(prediction: str) -> None:
    schedule = schedules.linear()
    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ipndm = planners.ipndm(schedule, 12, order=1, prediction=prediction, final_sigmas_type="sigma_min")
    deis = planners.deis(schedule, 12, order=1, prediction=prediction)
    model = lambda x, i: torch.sin((i + 1) * x)  # noqa: E731
    torch.testing.assert_close(
        oracles.execute(ipndm, model, x), oracles.execute(deis, model, x), rtol=1e-9, atol=1e-9
    )


def test_on_equal_steps_it_is_rho_ab() -> None:
    """The coefficients of deis(space="rho") are then the classical ones."""
    schedule = schedules.karras(0.1, 5, rho=1.0)
    m = torch.randn(12, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for order in (2, 3, 4):
        ends = [
            oracles.execute(make, lambda x, i: m[i], m[0])
            for make in (
                planners.ipndm(schedule, 12, order=order, final_sigmas_type="sigma_min"),
                planners.deis(schedule, 12, order=order, space="rho", lower_order_final=False),
            )
        ]
        torch.testing.assert_close(*ends, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order: expected 1 to 4, got 5"),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.ipndm(schedules.linear(), 10, **options)


def test_eps_says_nothing_of_x0_at_alpha_zero() -> None:
    with pytest.raises(ValueError, match="undetermined where alpha = 0"):
        planners.ipndm(from_pure_noise(4), 4, prediction="epsilon")
