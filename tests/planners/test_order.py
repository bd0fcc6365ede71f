# SPDX-License-Identifier: Apache-2.0
"""Convergence orders, on flows whose end point is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff import planners, schedules

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture

STEPS = (40, 80, 160, 320)
WITHIN = 0.15

VP = schedules.exponential(base=schedules.linear())  # uniform in lambda, ends at sigma_min


def error(plan: Any, data: Mixture) -> float:
    """Of the end point, from x at the first level, in float64."""
    x = torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        return oracles.predict(plan.prediction, x, data.denoise(x, *levels[i]), *levels[i])

    exact = data.transport(x, levels[0], levels[-1])
    return oracles.relative_error(oracles.execute(plan, model, x), exact)


def test_transport_is_the_gaussian_closed_form() -> None:
    """x_t = alpha_t m + sqrt((alpha_t^2 v + sigma_t^2)/(alpha_T^2 v + sigma_T^2)) (x_T - alpha_T m)."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    (a, s), (b, r) = (0.2, 0.95), (0.9, 0.3)
    m, v = GAUSSIAN.means[0], GAUSSIAN.stds[0] ** 2
    closed = b * m + ((b**2 * v + r**2) / (a**2 * v + s**2)) ** 0.5 * (x - a * m)
    torch.testing.assert_close(GAUSSIAN.transport(x, (a, s), (b, r)), closed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize(
    ("make", "order"),
    [
        pytest.param(lambda n: planners.ddim(VP, n, set_alpha_to_one=False), 1, id="ddim"),
        pytest.param(lambda n: planners.euler(VP, n, final_sigmas_type="sigma_min"), 1, id="euler-vp"),
        pytest.param(lambda n: planners.euler(schedules.flow(), n), 1, id="euler-flow"),
        pytest.param(
            lambda n: planners.euler(schedules.karras(0.02, 20), n, final_sigmas_type="sigma_min"),
            1,
            id="euler-ve",
        ),
    ],
)
def test_order(make: Any, order: int, data: Mixture) -> None:
    plans = [make(n) for n in STEPS]
    measured = oracles.measured_order(STEPS, [error(plan, data) for plan in plans])
    assert abs(measured - order) <= WITHIN, measured
    assert plans[0].order == order


def test_ddim_is_the_first_order_solver() -> None:
    """DPM-Solver++ of order 1 and DDIM at eta = 0 are the same map, and so is Euler."""
    ddim = planners.ddim(VP, 12)
    dpm = planners.dpm_solver_pp(VP, 12, order=1)
    euler = planners.euler(VP, 12)
    for data in (GAUSSIAN, BIMODAL):
        assert error(ddim, data) == pytest.approx(error(dpm, data), rel=1e-9)
        assert error(euler, data) == pytest.approx(error(dpm, data), rel=1e-9)


def test_ancestral_sampling_keeps_the_variance_of_gaussian_data() -> None:
    """With eta = 1 each step draws from the posterior of a point, so N(0, 1) data keep (nearly) N(0, 1)."""
    plan = planners.ddim(schedules.linear(), 500, eta=1.0)
    data = Mixture((1.0,), (0.0,), (1.0,))
    model = oracles.AnalyticModel(
        data, "epsilon", lambda t: oracles.vp_level(oracles.alphas_cumprod("linear"), t)
    )
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    generated = plan.run(model, x, seed=1)
    g = torch.Generator().manual_seed(2)
    explicit = plan.run(model, x, noise=[torch.randn(x.shape, generator=g) for _ in range(sum(plan.noisy))])
    # A finite step loses some variance, E[x0 | x] having less than x0: the table says exactly how much.
    _, variance = oracles.moments(plan, data)
    assert variance == pytest.approx(1, abs=0.03)
    for sample in (generated, explicit):
        assert float(sample.double().var()) == pytest.approx(variance, rel=0.03)
        assert abs(float(sample.double().mean())) < 0.02
