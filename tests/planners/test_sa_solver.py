# SPDX-License-Identifier: Apache-2.0
"""SA-Solver: parity with diffusers, orders at tau = 0, moments at tau > 0, the solvers it contains, refusals."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan, Threshold, sa_solver

from tests.kit import oracles, peers
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture
from tests.kit.peers import check_parity, options_id

diffusers = pytest.importorskip("diffusers")
SASolver = diffusers.SASolverScheduler

STEPS = (1, 2, 3, 5, 10, 20, 50)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("epsilon", "sample", "v_prediction")
NOISE = {"algorithm_type": "noise_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
BETAS = torch.linspace(1e-3, 0.03, 400).tolist()

VP = schedules.exponential(base=schedules.linear())  # uniform in lambda
# Some constants vanish for Gaussian data on a range that is symmetric in lambda, where it gains an order: end midway.
MIDWAY = schedules.exponential(0.5, base=schedules.linear())


def constant(tau: float) -> Any:
    return lambda t: tau


def parity(config: dict[str, Any], steps: int, dtype: torch.dtype = torch.float32) -> None:
    """In noise form the roundings of eps come out multiplied by sigma/alpha = 157 when few steps go down from there."""
    limit = 1e-4 if config.get("algorithm_type") == "noise_prediction" and steps < 10 else peers.FP32_LIMIT
    check_parity(SASolver, config, steps, dtype=dtype, limit=limit)


# ---- parity with diffusers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_parity(steps: int, dtype: torch.dtype) -> None:
    for kind in KINDS:
        parity({"prediction_type": kind}, steps, dtype)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(
    ("predictor", "corrector"), [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (3, 3), (3, 4), (4, 1), (4, 4)]
)
def test_parity_of_orders(predictor: int, corrector: int, lower: bool) -> None:
    orders = {"predictor_order": predictor, "corrector_order": corrector, "lower_order_final": lower}
    for steps in (1, 2, 3, 8, 25):
        parity({**orders, "tau_func": constant(0.7)}, steps)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 1.4])
@pytest.mark.parametrize("form", [{}, NOISE], ids=["data", "noise"])
def test_parity_of_tau(form: dict[str, Any], tau: float) -> None:
    for steps in (3, 10, 30):
        parity({**form, "tau_func": constant(tau)}, steps)
        parity({**form, "tau_func": lambda t: tau * t / 1000}, steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4)])
def test_parity_in_noise_form(orders: tuple[int, int], kind: str) -> None:
    config = {**NOISE, "predictor_order": orders[0], "corrector_order": orders[1], "prediction_type": kind}
    for steps in (1, 2, 5, 20):
        parity(config, steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"trained_betas": BETAS, "num_train_timesteps": 400},
        {"timestep_spacing": "leading", "steps_offset": 1, "predictor_order": 3},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "tau_func": constant(1.0)},
        {"timestep_spacing": "trailing", "lambda_min_clipped": -4.0},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"use_exponential_sigmas": True, "corrector_order": 3, "tau_func": constant(1.0)},
        {"use_exponential_sigmas": True, "lower_order_final": False},
        {"use_beta_sigmas": True, "prediction_type": "v_prediction"},
        FLOW,
        {**FLOW, "flow_shift": 3.0, "predictor_order": 3, "tau_func": constant(0.5)},
        {"use_flow_sigmas": True, "prediction_type": "epsilon", "flow_shift": 2.0},
        {"use_flow_sigmas": True, "prediction_type": "sample", **NOISE},
        NOISE,
    ],
    ids=options_id,
)
def test_parity_of_options(config: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in (3, 12):
        parity(config, steps, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_with_a_threshold(dtype: torch.dtype) -> None:
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4}
    parity({**config, "predictor_order": 3}, 10, dtype)


# ---- orders of convergence at tau = 0 ------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize("predict_x0", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize(
    ("predictor", "corrector", "order", "grid", "steps"),
    [
        (1, 0, 1, VP, (40, 80, 160)),
        (2, 0, 2, VP, (40, 80, 160)),
        (3, 0, 3, MIDWAY, (80, 160, 320)),
        (1, 2, 2, VP, (40, 80, 160)),
        (2, 3, 3, VP, (40, 80, 160)),
        (3, 4, 4, MIDWAY, (80, 160, 320)),
        # No better than the predictor: the error of the next order is as large at few steps.
        (1, 1, 1, MIDWAY, (160, 320)),
        (2, 2, 2, MIDWAY, (160, 320)),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_order(
    predictor: int, corrector: int, order: int, grid: Any, steps: Any, predict_x0: bool, data: Mixture
) -> None:
    """A predictor of p points has order p; a corrector of c points brings it to min(p + 1, c)."""
    make = functools.partial(
        sa_solver,
        grid,
        prediction="v",
        predictor_order=predictor,
        corrector_order=corrector,
        tau=0.0,
        predict_x0=predict_x0,
        lower_order_final=False,
    )
    assert make(10).order == order
    oracles.check_order(make, order, data, steps)


# ---- moments at tau > 0 --------------------------------------------------------------------------------------


def affine_moments(plan: Plan, data: Mixture) -> tuple[float, float]:
    """Mean and variance of the end point for one Gaussian as data, carried through the table in float64.

    Everything is an affine function of the state before the step, of z and of 1, and the state is Gaussian.
    """
    (m,), (v,) = data.means, (data.stds[0] ** 2,)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    state = ["x", *plan.history]
    size = len(state)
    mean, cov = np.zeros(size), np.zeros((size, size))
    (alpha, sigma) = levels[0]
    mean[0], cov[0, 0] = alpha * m, alpha**2 * v + sigma**2
    unit = np.eye(size + 2)  # the state, z, 1
    for rows, (alpha, sigma) in zip(plan.table.tolist(), levels[:-1], strict=True):
        slope = alpha * v / (alpha**2 * v + sigma**2)
        values = dict(zip(state, unit, strict=False)) | {"z": unit[-2]}
        values["prediction"] = slope * unit[0] + (1 - slope * alpha) * m * unit[-1]
        for name, weights in zip(plan.rows, rows, strict=True):
            columns = (*plan.inputs, *plan.rows, "z")
            values[name] = (
                sum(w * values[c] for w, c in zip(weights, columns, strict=False) if w) + 0 * unit[0]
            )
        step = np.stack([values[plan.carry[name]] for name in state])
        mean = step[:, :size] @ mean + step[:, -1]
        cov = step[:, :size] @ cov @ step[:, :size].T + np.outer(step[:, -2], step[:, -2])
    return float(mean[0]), float(cov[0, 0])


def exact_moments(plan: Plan, data: Mixture) -> tuple[float, float]:
    alpha, sigma = float(plan.alphas[-1]), float(plan.sigmas[-1])
    return alpha * data.means[0], (alpha * data.stds[0]) ** 2 + sigma**2


@pytest.mark.parametrize("predict_x0", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize("orders", [(1, 0), (2, 0), (2, 2), (3, 3)])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_moments_converge(tau: float, orders: tuple[int, int], predict_x0: bool) -> None:
    """The SDE keeps the marginals for every tau: mean and variance of Gaussian data come out, the more the finer."""

    def errors(steps: int) -> np.ndarray:
        plan = sa_solver(
            VP,
            steps,
            prediction="x0",
            predictor_order=orders[0],
            corrector_order=orders[1],
            tau=tau,
            predict_x0=predict_x0,
            lower_order_final=False,
        )
        return np.abs(np.subtract(affine_moments(plan, GAUSSIAN), exact_moments(plan, GAUSSIAN)))

    coarse, fine = errors(50), errors(400)
    assert (fine < 0.01).all(), fine
    assert (fine < np.maximum(coarse / 5, 5e-4)).all(), (coarse, fine)


def test_moments_of_samples() -> None:
    """Generated and given noise, run in float32, have the moments of the table."""
    plan = sa_solver(VP, 20, prediction="x0", tau=1.0, lower_order_final=False)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    count = 20_000
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    noise = [torch.randn(count, generator=g) for _ in range(sum(plan.noisy))]
    mean, variance = affine_moments(plan, GAUSSIAN)
    for options in ({"seed": 3}, {"noise": noise}):
        model = peers.ByIndex(GAUSSIAN, "x0", levels, [1.0] * plan.steps)
        sample = plan.run(lambda x, t, m=model: m(x, t).float(), x, **options).double()  # type: ignore[misc]
        assert abs(float(sample.mean()) - mean) < 4 * math.sqrt(variance / count)
        assert abs(float(sample.var()) / variance - 1) < 4 * math.sqrt(2 / count)


# ---- what it contains ----------------------------------------------------------------------------------------


def end_point(plan: Plan) -> torch.Tensor:
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        return oracles.predict(plan.prediction, x, BIMODAL.denoise(x, *levels[i]), *levels[i])

    g = torch.Generator().manual_seed(0)
    x, *noise = [torch.randn(64, generator=g, dtype=torch.float64) for _ in range(1 + sum(plan.noisy))]
    return oracles.execute(plan, model, x, noise)


def same(a: Plan, b: Plan) -> None:
    assert a.noisy == b.noisy
    torch.testing.assert_close(end_point(a), end_point(b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tau", "eta"), [(0.0, 0.0), (1.0, 1.0)])
def test_one_point_without_corrector_is_ddim(tau: float, eta: float) -> None:
    """Section 5.3: DDIM, and at tau = 1 ancestral sampling."""
    one = sa_solver(VP, 12, tau=tau, predictor_order=1, corrector_order=0, final_sigmas_type="zero")
    same(one, planners.ddim(VP, 12, eta=eta))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_tau_0_is_unipc(order: int) -> None:
    """In data form, with the two-point weights that both replace."""
    sa = sa_solver(VP, 12, tau=0.0, predictor_order=order, corrector_order=order + 1)
    same(sa, planners.unipc(VP, 12, order=order, solver_type="bh1", final_sigmas_type="sigma_min"))


def test_tau_1_is_sde_dpm_solver() -> None:
    one = sa_solver(VP, 12, tau=1.0, predictor_order=1, corrector_order=0)
    same(one, planners.dpm_solver_pp(VP, 12, order=1, sde=True, final_sigmas_type="sigma_min"))


def test_tau() -> None:
    """A number, a function of the time told, or the range in which it is 1; it is that of the step's start."""
    plans = [
        sa_solver(schedules.linear(), 10, tau=tau) for tau in ((200, 800), lambda t: float(200 <= t <= 800))
    ]
    assert torch.equal(plans[0].table, plans[1].table)
    times = plans[0].timesteps.tolist()
    assert list(plans[0].noisy) == [200 <= t <= 800 for t in times]
    assert torch.equal(plans[0].table, sa_solver(schedules.linear(), 10).table)
    assert all(sa_solver(schedules.linear(), 10, tau=0.2).noisy)
    told: list[float] = []
    sa_solver(schedules.karras(0.02, 20), 4, tau=lambda t: told.append(t) or 0.1)  # type: ignore[func-returns-value]
    assert told[0] == 20 and told[-1] == 0.02, "sigma, on a schedule without a base"


def test_history() -> None:
    """The corrector's noise is that of its predictor: no slot keeps it, nor the x that both start from."""
    assert sa_solver(VP, 9).history == ("m1", "m2")
    assert sa_solver(VP, 9, corrector_order=0).history == ("m1",)
    assert sa_solver(VP, 9, predictor_order=1, corrector_order=4).history == ("m1", "m2", "m3")


def test_to_sigma_0() -> None:
    """The last step is x0, without noise."""
    plan = sa_solver(VP, 6, tau=1.0, final_sigmas_type="zero", clip_sample=0.2)
    assert not plan.noisy[-1]
    assert end_point(plan).abs().max() <= 0.2 + 1e-12
    assert bool(
        end_point(sa_solver(VP, 6, tau=1.0, final_sigmas_type="zero", predict_x0=False)).isfinite().all()
    )


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor_order": 0}, "predictor_order, corrector_order: .*got 0 and 2"),
        ({"corrector_order": -1}, "predictor_order, corrector_order: .*got 2 and -1"),
        ({"tau": -0.5}, "tau: expected 0 or more, got -0.5 at t = "),
        ({"tau": lambda t: math.nan}, "tau: expected 0 or more, got nan"),
        ({"clip_sample": 1.0, "threshold": Threshold()}, "clip_sample, threshold: pass one or the other"),
    ],
    ids=options_id,
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sa_solver(VP, 5, **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variance_type": "learned_range"}, "variance_type='learned_range'"),
        ({"predictor_order": 5}, "predictor_order=5"),
        ({"corrector_order": 5}, "corrector_order=5"),
        (
            {"prediction_type": "flow_prediction"},
            "prediction_type='flow_prediction': without use_flow_sigmas",
        ),
        ({**FLOW, "prediction_type": "v_prediction"}, "prediction_type='v_prediction': its x0"),
        ({**FLOW, **NOISE}, "prediction_type='flow_prediction': algorithm_type"),
        ({**NOISE, "thresholding": True}, "thresholding=True: algorithm_type='noise_prediction' fails on it"),
    ],
    ids=options_id,
)
def test_refusals_of_plan_from(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(SASolver(**config), 5)


def test_diffusers_cannot_threshold_in_noise_form() -> None:
    scheduler = SASolver(**NOISE, thresholding=True)
    scheduler.set_timesteps(3)
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="size"):
        scheduler.step(x, scheduler.timesteps[0], x)
