# SPDX-License-Identifier: Apache-2.0
"""DEIS: parity with diffusers, convergence orders, exactness on polynomials, and the official coefficients' error."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture
from tests.kit.peers import check_parity

# diffusers calls numpy on tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


DEIS = diffusers.DEISMultistepScheduler
STEPS = (1, 2, 3, 10, 14, 15, 25, 50)
SPACES = ("log_rho", "rho", "t")
DATA = pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])


def answers(plan: Any, m: Any) -> Tensor:
    """The end point where the model's answer at evaluation i is m(i), whatever x is."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return oracles.execute(plan, lambda x, i: m(i), x)


def same(one: Any, other: Any) -> None:
    """Two plans are the same linear map of x and of all predictions."""
    g = torch.Generator().manual_seed(1)
    m = [torch.randn(64, generator=g, dtype=torch.float64) for _ in range(one.steps)]
    torch.testing.assert_close(
        answers(one, m.__getitem__), answers(other, m.__getitem__), rtol=1e-12, atol=1e-12
    )


def weights_of(plan: Any, i: int) -> list[float]:
    """w_j of step i, newest first. x enters through d = x - sigma eps."""
    row = dict(zip([*plan.inputs, *plan.rows], plan.table[i, plan.rows.index("x'")].tolist(), strict=False))
    return [row["eps"] - row["d"] * float(plan.sigmas[i]), *(row[f"m{n}"] for n in range(1, plan.order))]


# ---- parity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", STEPS)
def test_orders(steps: int, order: int) -> None:
    check_parity(DEIS, {"solver_order": order}, steps)


@pytest.mark.parametrize(
    "config",
    [
        {"lower_order_final": False},
        {"lower_order_final": False, "solver_order": 3},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "solver_order": 3},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"trained_betas": np.linspace(2e-4, 0.03, 500).tolist(), "num_train_timesteps": 500},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing", "solver_order": 3},
        {"prediction_type": "sample"},
        {"prediction_type": "sample", "solver_order": 3},
        {"prediction_type": "v_prediction", "solver_order": 3},
        {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"},  # which it takes for its own
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "prediction_type": "v_prediction", "lower_order_final": False},
        {"use_exponential_sigmas": True, "solver_order": 3, "prediction_type": "v_prediction"},
        {"use_beta_sigmas": True, "prediction_type": "v_prediction", "solver_order": 1},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "solver_order": 3},
        {"use_flow_sigmas": True, "prediction_type": "epsilon", "flow_shift": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [3, 20])
def test_options(config: dict[str, Any], steps: int) -> None:
    check_parity(DEIS, config, steps)


@pytest.mark.parametrize("spaced", ["karras", "exponential", "beta", "flow"])
@pytest.mark.parametrize("steps", [1, 2])
def test_few_spaced_sigmas(steps: int, spaced: str) -> None:
    prediction = "flow_prediction" if spaced == "flow" else "v_prediction"
    check_parity(DEIS, {f"use_{spaced}_sigmas": True, "prediction_type": prediction}, steps)


@pytest.mark.parametrize("steps", [3, 20])
def test_beta_sigmas(steps: int) -> None:
    """Three of them go from sigma/alpha = 78 to 0.01 in one step of order 2, whose weights are 500 and -500."""
    config = {"use_beta_sigmas": True, "prediction_type": "v_prediction"}
    check_parity(DEIS, config, steps, limit=1e-4 if steps == 3 else 1e-5)


def test_karras_timesteps_are_rounded_on_the_cosine_schedule_too() -> None:
    config = {
        "use_karras_sigmas": True,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }
    check_parity(DEIS, config, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"solver_order": 3, "prediction_type": "v_prediction"},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_half_precision(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    check_parity(DEIS, config, steps, dtype=dtype)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "limits", [{}, {"dynamic_thresholding_ratio": 0.8, "sample_max_value": 2.0}], ids=str
)
def test_thresholding(limits: dict[str, Any], prediction: str) -> None:
    check_parity(DEIS, {"thresholding": True, "prediction_type": prediction, "solver_order": 3, **limits}, 20)


@pytest.mark.parametrize("steps", [3, 20])
def test_dynamic_shifting(steps: int) -> None:
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    check_parity(DEIS, config, steps, set_timesteps={"mu": 0.8})
    check_parity(DEIS, config, steps)


@pytest.mark.parametrize(
    ("config", "keywords", "message"),
    [
        ({"solver_order": 4}, {}, "cannot reproduce solver_order=4"),
        ({"prediction_type": "flow_prediction"}, {}, "cannot reproduce prediction_type='flow_prediction'"),
        (
            {"prediction_type": "v_prediction", "use_flow_sigmas": True},
            {},
            "cannot reproduce prediction_type='v_prediction'",
        ),
        ({"use_karras_sigmas": True, "use_flow_sigmas": True}, {}, "cannot reproduce use_flow_sigmas=True"),
        ({"use_flow_sigmas": True}, {"mu": 0.5}, "cannot reproduce mu=0.5"),
        ({"use_dynamic_shifting": True}, {"mu": 0.5}, "cannot reproduce mu=0.5"),
    ],
    ids=str,
)
def test_refusals(config: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"plan_from: DEISMultistepScheduler: {message}"):
        plan_from(DEIS(**config), 10, **keywords)


# ---- convergence ---------------------------------------------------------------------------------------------

# Uniform in lambda. It ends where the data are half visible: over the whole range the leading errors cancel.
UNIFORM = schedules.exponential(0.3, 30)


@DATA
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_log_rho(order: int, data: Mixture) -> None:
    oracles.check_order(lambda n: planners.deis(UNIFORM, n, order=order), order, data)


@DATA
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_rho(order: int, data: Mixture) -> None:
    """On a grid that is no function of rho alone, so that the steps differ."""
    oracles.check_order(
        lambda n: planners.deis(schedules.karras(0.02, 20), n, order=order, space="rho"), order, data
    )


@DATA
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_t(order: int, data: Mixture) -> None:
    """On a flow, where t is a smooth function of rho; a table of training levels is one only piece by piece."""
    make = lambda n: planners.deis(schedules.flow(3.0), n, order=order, space="t", prediction="flow")  # noqa: E731
    oracles.check_order(make, order, data)


# ---- identities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize(
    "schedule",
    [schedules.linear(), schedules.cosine(), UNIFORM, schedules.flow(3.0)],
    ids=lambda s: s.name if hasattr(s, "name") else "flow",
)
def test_log_rho_is_the_exponential_adams_method_of_dpm_solver(schedule: Any, steps: int) -> None:
    for order in (1, 2, 3):
        deis = planners.deis(schedule, steps, order=order)
        same(deis, planners.dpm_solver(schedule, steps, order=order, solver_type="heun", exact_third=True))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_weights_add_up_to_ddims(order: int, space: Any) -> None:
    """sum_j w_j = sigma_t - (alpha_t/alpha_s) sigma_s, so that a constant eps is followed exactly."""
    for schedule in (schedules.linear(), schedules.cosine(), schedules.flow()):
        plan = planners.deis(schedule, 20, order=order, space=space)
        g = torch.Generator().manual_seed(0)
        x, eps = torch.randn(2, 64, generator=g, dtype=torch.float64)
        (alpha, sigma), (alpha_t, sigma_t) = ((float(plan.alphas[n]), float(plan.sigmas[n])) for n in (0, -1))
        exact = alpha_t / alpha * x + (sigma_t - alpha_t / alpha * sigma) * eps
        torch.testing.assert_close(
            oracles.execute(plan, lambda x, i, eps=eps: eps, x), exact, rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_one_step_is_exact_on_polynomials(order: int, space: Any) -> None:
    """eps a polynomial of degree order - 1 in the variable: the full-order steps make no error."""
    schedule = schedules.flow()
    plan = planners.deis(schedule, 20, order=order, space=space)
    rhos = [s / a for a, s in zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True)]
    variable = {"log_rho": math.log, "rho": lambda r: r, "t": lambda r: r / (1 + r)}[space]
    # the same polynomial's integral, by a far finer rule than the planner's, in ln rho
    u, w = np.polynomial.legendre.leggauss(200)

    def integral(a: float, b: float) -> float:
        lo, hi = math.log(a), math.log(b)
        at = np.exp((hi - lo) / 2 * u + (hi + lo) / 2)
        return float(sum((hi - lo) / 2 * w * at * np.array([poly(r) for r in at])))

    def poly(rho: float) -> float:
        return sum(c * variable(rho) ** k for k, c in enumerate((0.3, -0.7, 0.2, 0.4)[:order]))

    for i in range(order - 1, plan.steps):
        got = sum(w * poly(rhos[i - n]) for n, w in enumerate(weights_of(plan, i)))
        exact = float(plan.alphas[i + 1]) * integral(rhos[i], rhos[i + 1])
        assert got == pytest.approx(exact, rel=1e-11, abs=1e-13)


def test_t_and_rho_are_one_variable_where_t_is_sigma() -> None:
    schedule = schedules.karras(0.02, 20)
    for order in (2, 3, 4):
        same(*(planners.deis(schedule, 16, order=order, space=space) for space in ("t", "rho")))


def test_a_last_step_to_zero() -> None:
    for space in SPACES:
        plan = planners.deis(schedules.linear(), 20, order=3, space=space, final_sigmas_type="zero")
        row = dict(zip([*plan.inputs, *plan.rows], plan.table[-1, -1].tolist(), strict=False))
        assert plan.sigmas[-1] == 0
        assert (row["m1"] != 0) == (space == "rho"), "rho is finite there"
        assert plan.table[..., :-2].isfinite().all()


def test_a_clipped_x0_gives_a_new_eps() -> None:
    plan = planners.deis(schedules.linear(), 12, order=3, clip_sample=1.0)
    x = 3 * torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(oracles.execute(plan, lambda x, i: 0.1 * x, x).abs().max()) < 1.1


# ---- the official coefficients -------------------------------------------------------------------------------


def test_the_official_coefficients_are_riemann_sums() -> None:
    """10^4 float32 terms, from the left: 1.5e-5 to 1e-4 from the exact integral, twice that in the last step."""
    schedule, steps = schedules.linear(), 10
    plan = planners.deis(schedule, steps, order=3, space="t", lower_order_final=False)
    times = [*plan.timesteps.tolist(), 0]
    log_rho = np.log(schedule.sigmas.numpy() / schedule.alphas.numpy())
    errors = []
    for i in range(2, steps):
        tau = np.linspace(times[i], times[i + 1], 10_001, dtype=np.float32)[:-1]
        rho = np.exp(np.interp(tau, np.arange(1000), log_rho)).astype(np.float32)
        slope = np.diff(log_rho).astype(np.float32)[np.ceil(tau).astype(int) - 1]
        width = np.float32((times[i + 1] - times[i]) / 10_000)
        for j, exact in enumerate(weights_of(plan, i)):
            basis = np.ones_like(tau)
            for k in {0, 1, 2} - {j}:
                basis *= (tau - np.float32(times[i - k])) / np.float32(times[i - j] - times[i - k])
            official = float(plan.alphas[i + 1]) * float((rho * slope * basis).sum(dtype=np.float32) * width)
            errors.append(abs(official / exact - 1))
    assert min(errors) > 1e-5
    assert max(errors[:-3]) < 1.2e-4
    assert max(errors) < 2.5e-4


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order: expected 1 to 4, got 5"),
        ({"space": "lambda"}, "space: expected log_rho, rho or t, got 'lambda'"),
        ({"clip_sample": 1.0, "threshold": planners.Threshold()}, "clip_sample, threshold"),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.deis(schedules.linear(), 10, **options)


def test_schedules_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="the noise form divides by alpha"):
        planners.deis(schedules.zero_terminal_snr(schedules.linear()), 10, prediction="v")
    levels = schedules.from_levels([3, 2, 1], [0.1, 0.5, 0.8, 1.0], [0.9, 0.8, 0.5, 0.1])
    with pytest.raises(ValueError, match="level"):
        planners.deis(levels, 3, space="t")
    assert planners.deis(levels, 3, space="rho").steps == 3
