# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver in noise form: parity with diffusers, the paper's algorithms. Orders: `test_dpm_solver_pp`."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import BIMODAL
from tests.kit.peers import check_parity

diffusers = pytest.importorskip("diffusers")

MULTI, SINGLE = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
CLASSES = [pytest.param(MULTI, id="multi"), pytest.param(SINGLE, id="single")]
SOLVERS = ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
NOISE: dict[str, Any] = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}


# ---- parity with diffusers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("order", "solver"), SOLVERS)
@pytest.mark.parametrize("lower", [True, False])
def test_orders(cls: type, lower: bool, order: int, solver: str) -> None:
    for steps in (1, 2, 3, 6, 14, 15, 50):
        options = {"solver_order": order, "solver_type": solver, "lower_order_final": lower}
        check_parity(cls, {**NOISE, **options}, steps)


@pytest.mark.parametrize(("order", "solver"), SOLVERS[:3])
def test_sde(order: int, solver: str) -> None:
    for steps, betas in (
        (1, "linear"),
        (2, "linear"),
        (3, "scaled_linear"),
        (10, "linear"),
        (50, "scaled_linear"),
    ):
        for prediction in PREDICTIONS:
            options = {"solver_order": order, "solver_type": solver, "prediction_type": prediction}
            check_parity(MULTI, {**SDE, **options, "beta_schedule": betas}, steps)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(cls: type, dtype: torch.dtype) -> None:
    for prediction, (order, solver) in zip(PREDICTIONS * 2, SOLVERS, strict=False):
        options = {"solver_order": order, "solver_type": solver, "prediction_type": prediction}
        check_parity(cls, {**NOISE, **options}, 12, dtype=dtype)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("betas", BETAS)
def test_epsilon_on_spaced_sigmas(cls: type, betas: str) -> None:
    """At sigma/alpha = 20000, the end of the cosine schedule, alpha_t/alpha_s x and the term of eps nearly cancel."""
    for spaced, steps in (
        ("karras_sigmas", 5),
        ("exponential_sigmas", 5),
        ("karras_sigmas", 20),
        ("beta_sigmas", 12),
    ):
        config = {**NOISE, f"use_{spaced}": True, "beta_schedule": betas}
        check_parity(cls, config, steps, times_within=1)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("spaced", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_other_predictions_on_spaced_sigmas(cls: type, spaced: str, prediction: str) -> None:
    """The difference of two eps has a weight of the size of e^h, some hundreds in a long step from pure noise.

    So has the rounding of an eps that is not the network's own but made of x and a prediction. No float32 history of
    eps can do better; it is still less than diffusers' error. In data form there is no such weight.
    """
    config = {**NOISE, "prediction_type": prediction, spaced: True}
    check_parity(cls, config, 6, times_within=1, limit=5e-4)
    check_parity(cls, {**config, "solver_order": 1}, 6, times_within=1)


@pytest.mark.parametrize("options", [
    {"euler_at_final": True, "lower_order_final": False},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    {"timestep_spacing": "trailing", "solver_order": 3},
    {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "v_prediction"},
    {"use_lu_lambdas": True},
    {"use_flow_sigmas": True, "flow_shift": 2.0},
    {"use_flow_sigmas": True, "prediction_type": "sample"},
    {"trained_betas": [1e-4 + k * 4e-5 for k in range(500)], "num_train_timesteps": 500},
], ids=lambda options: "-".join(options))  # fmt: skip
def test_options(options: dict[str, Any]) -> None:
    for steps in (2, 9, 25):
        check_parity(MULTI, {**NOISE, **options}, steps, times_within=1)


def test_explicit_timesteps() -> None:
    for cls in (MULTI, SINGLE):
        check_parity(cls, NOISE, None, set_timesteps={"timesteps": [999, 850, 600, 590, 300, 120, 13]})


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_thresholding(prediction: str) -> None:
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "prediction_type": prediction}
    for options in (NOISE, SDE):
        check_parity(MULTI, {**config, **options, "sample_max_value": 1.5}, 6)


@pytest.mark.parametrize(
    ("cls", "config", "option"),
    [
        (MULTI, {**NOISE, "variance_type": "learned"}, "variance_type"),
        (MULTI, {**SDE, "solver_order": 3}, "solver_order"),
        (SINGLE, {**NOISE, "thresholding": True}, "thresholding"),
        (MULTI, {**NOISE, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "prediction_type"),
    ],
)
def test_what_is_refused(cls: Any, config: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: cannot reproduce {option}"):
        plan_from(cls(**config), 10)


# ---- the paper's algorithms, float64 -------------------------------------------------------------------------


def linear_in_lambda(steps: int) -> schedules.LevelSchedule:
    """VP levels at equidistant lambda from -4 to 4."""
    lambdas = [-4 + 8 * k / steps for k in range(steps + 1)]
    levels = [(1 / math.hypot(1, math.exp(-u)), 1 / math.hypot(1, math.exp(u))) for u in lambdas]
    return schedules.from_levels(range(steps, 0, -1), *zip(*levels, strict=True))


def eps(x: Tensor, lam: float) -> Tensor:
    alpha, sigma = 1 / math.hypot(1, math.exp(-lam)), 1 / math.hypot(1, math.exp(lam))
    return (x - alpha * BIMODAL.denoise(x, alpha, sigma)) / sigma


def algorithm_1(x: Tensor, lam: float, h: float) -> Tensor:
    """DPM-Solver-2 with r_1 = 1/2 (Lu et al. 2022, algorithm 1)."""
    (a, _), (a1, s1), (a2, s2) = (_level(lam + r * h) for r in (0, 0.5, 1))
    u = a1 / a * x - s1 * math.expm1(h / 2) * eps(x, lam)
    return a2 / a * x - s2 * math.expm1(h) * eps(u, lam + h / 2)


def algorithm_2(x: Tensor, lam: float, h: float, *, taylor: bool) -> Tensor:
    """DPM-Solver-3 with r_1 = 1/3, r_2 = 2/3 (Lu et al. 2022, algorithm 2; taylor: the official code's other form).

    Trap: diffusers, and so we, take the second inner point u2 by the midpoint form unless taylor, the paper never.
    """
    (a, _), (a1, s1), (a2, s2), (a3, s3) = (_level(lam + r * h) for r in (0, 1 / 3, 2 / 3, 1))
    at_s, r2h = eps(x, lam), 2 * h / 3
    u1 = a1 / a * x - s1 * math.expm1(h / 3) * at_s
    d1 = 3 * (eps(u1, lam + h / 3) - at_s)
    weight = math.expm1(r2h) / r2h - 1 if taylor else math.expm1(r2h) / 2
    u2 = a2 / a * x - s2 * math.expm1(r2h) * at_s - 2 / 3 * s2 * weight * d1
    d2 = 1.5 * (eps(u2, lam + r2h) - at_s)
    x = a3 / a * x - s3 * math.expm1(h) * at_s
    phi2 = math.expm1(h) / h - 1
    if not taylor:
        return x - s3 * phi2 * d2
    return x - s3 * phi2 * (2 * d1 - d2) - s3 * (phi2 / h - 0.5) * 6 * (d2 - d1)


def _level(lam: float) -> tuple[float, float]:
    return 1 / math.hypot(1, math.exp(-lam)), 1 / math.hypot(1, math.exp(lam))


@pytest.mark.parametrize(
    ("order", "solver", "step"),
    [
        (2, "midpoint", algorithm_1),
        (3, "midpoint", functools.partial(algorithm_2, taylor=False)),
        (3, "heun", functools.partial(algorithm_2, taylor=True)),
    ],
    ids=["2", "3", "3-taylor"],
)
@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
def test_singlestep_is_the_papers(kind: str, order: int, solver: Any, step: Any) -> None:
    blocks = 5
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    plan = planners.dpm_solver(
        linear_in_lambda(order * blocks), order * blocks, prediction=kind, order=order, solver_type=solver,
        method="singlestep", lower_order_final=False,
    )  # fmt: skip
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    ours = oracles.execute(
        plan, lambda x, i: oracles.predict(kind, x, BIMODAL.denoise(x, *levels[i]), *levels[i]), x
    )
    paper = x
    for k in range(blocks):
        paper = step(paper, -4 + 8 * k / blocks, 8 / blocks)
    assert oracles.relative_error(ours, paper) < 1e-10


def test_noise_form_refuses_pure_noise() -> None:
    schedule = schedules.from_levels([1, 0.5], [0.0, 0.5, 0.9], [1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match="divides by alpha"):
        planners.dpm_solver(schedule, 2, prediction="v")


def test_sde_of_order_3_was_not_published_in_noise_form() -> None:
    with pytest.raises(ValueError, match="exact_third=True"):
        planners.dpm_solver(schedules.linear(), 5, order=3, sde=True)
