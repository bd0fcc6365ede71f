# SPDX-License-Identifier: Apache-2.0
"""Schedulers that are DPM-Solver++ under other names: EDM's, Stable Audio's, CogVideoX's, and the inverse one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN
from tests.kit.peers import check_parity, cosine_dpm_solver

diffusers = pytest.importorskip("diffusers")

EDM, COG = diffusers.EDMDPMSolverMultistepScheduler, diffusers.CogVideoXDPMScheduler
INVERSE = diffusers.DPMSolverMultistepInverseScheduler
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOLVERS = ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"))


@pytest.fixture(scope="module")
def cosine() -> Any:
    """Its Brownian path is replaced by the test's noise."""
    return cosine_dpm_solver()


# ---- EDM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "solver"), SOLVERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm(prediction: str, order: int, solver: str) -> None:
    config = {"solver_order": order, "solver_type": solver, "prediction_type": prediction}
    for steps, options in (
        (1, {}),
        (2, {"sigma_data": 1.0}),
        (5, {"lower_order_final": False, "sigma_min": 0.01, "sigma_max": 50.0}),
        (20, {"rho": 5.0, "euler_at_final": True}),
    ):
        check_parity(EDM, {**config, **options}, steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edm_sde_and_schedules(dtype: torch.dtype) -> None:
    for steps, algorithm, schedule, end in (
        (1, "dpmsolver++", "exponential", "zero"),
        (1, "dpmsolver++", "karras", "sigma_min"),
        (6, "sde-dpmsolver++", "exponential", "zero"),
        (14, "sde-dpmsolver++", "karras", "sigma_min"),
    ):
        config = {"algorithm_type": algorithm, "sigma_schedule": schedule, "final_sigmas_type": end}
        check_parity(EDM, config, steps, dtype=dtype)


def test_edm_thresholding() -> None:
    check_parity(EDM, {"thresholding": True, "sample_max_value": 1.5}, 6)


# ---- cosine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("order", "solver"), SOLVERS[:3])
def test_cosine(cosine: Any, order: int, solver: str, dtype: torch.dtype) -> None:
    config = {"solver_order": order, "solver_type": solver}
    for steps, options in (
        (1, {}),
        (5, {"sigma_schedule": "karras", "prediction_type": "epsilon"}),
        (8, {"lower_order_final": False, "final_sigmas_type": "sigma_min", "euler_at_final": True}),
        (20, {"sigma_data": 0.5, "sigma_max": 80.0}),
    ):
        check_parity(cosine, {**config, **options}, steps, dtype=dtype)


# ---- CogVideoX -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "sample", "set_alpha_to_one": False, "steps_offset": 1},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"beta_schedule": "linear", "snr_shift_scale": 1.0, "timestep_spacing": "trailing"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    ],
    ids=lambda config: "-".join(config) or "defaults",
)
def test_cogvideox(config: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in (1, 2, 5, 50):
        check_parity(COG, config, steps, dtype=dtype)


# ---- from data to noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_inverse(algorithm: str, prediction: str, spacing: str) -> None:
    """sigma_t/sigma_s is 100 in a long step from data: x as alpha x0 + sigma eps keeps that from mattering."""
    for steps, (order, solver) in zip((2, 3, 7, 14, 20, 50), SOLVERS * 2, strict=False):
        config = {"solver_order": order, "solver_type": solver, "timestep_spacing": spacing}
        config |= {"algorithm_type": algorithm, "prediction_type": prediction}
        check_parity(INVERSE, config, steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inverse_options(dtype: torch.dtype) -> None:
    options: list[dict[str, Any]] = [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "prediction_type": "v_prediction"},
        {"use_beta_sigmas": True},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"beta_schedule": "scaled_linear", "euler_at_final": True, "lower_order_final": False},
        {"timestep_spacing": "leading", "steps_offset": 1, "solver_order": 3},
        {"trained_betas": [1e-4 + k * 4e-5 for k in range(500)], "num_train_timesteps": 500},
    ]
    for config in options:
        check_parity(INVERSE, config, 6, dtype=dtype, times_within=1)


def _epsilon(plan: planners.Plan) -> Any:
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    return lambda x, i: oracles.predict("epsilon", x, BIMODAL.denoise(x, *levels[i]), *levels[i])


def test_inversion_and_back() -> None:
    """Data to noise and back along the same ODE: the error is that of the two solvers, and falls with their order."""
    errors = []
    for steps in (50, 100):
        there = plan_from(INVERSE(solver_order=2, lower_order_final=False), steps)
        back = planners.dpm_solver_pp(
            schedules.from_levels(
                *(v.flip(0).tolist() for v in (there.timesteps, there.alphas, there.sigmas))
            ),
            steps,
            lower_order_final=False,
        )
        x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
        y = x
        for plan in (there, back):
            y = oracles.execute(plan, _epsilon(plan), y)
        errors.append(oracles.relative_error(y, x))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "config", "steps", "option"),
    [
        (EDM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, 10, "solver_order"),
        (EDM, {"prediction_type": "sample"}, 10, "prediction_type"),
        (COG, {"timestep_spacing": "linspace"}, 10, "timestep_spacing"),
        (COG, {"timestep_spacing": "trailing"}, 7, "timestep_spacing"),
        (INVERSE, {"algorithm_type": "sde-dpmsolver++"}, 10, "algorithm_type"),
        (INVERSE, {"use_flow_sigmas": True}, 10, "use_flow_sigmas"),
        (INVERSE, {"use_exponential_sigmas": True}, 50, "use_exponential_sigmas"),
        (INVERSE, {"variance_type": "learned"}, 10, "variance_type"),
    ],
)
def test_what_is_refused(cls: Any, config: dict[str, Any], steps: int, option: str) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: cannot reproduce {option}"):
        plan_from(cls(**config), steps)


def test_cosine_of_order_3_is_refused(cosine: Any) -> None:
    with pytest.raises(ValueError, match="cannot reproduce solver_order=3"):
        plan_from(cosine(solver_order=3), 10)


def test_edm_predictions_are_those_of_karras() -> None:
    """D = c_skip (x0 + sigma n) + c_out F (Karras et al. 2022, table 1), the state being c_in times the noisy data."""
    sigma, data = 2.0, 0.5
    c_skip, c_in = data**2 / (sigma**2 + data**2), 1 / (sigma**2 + data**2) ** 0.5
    c_out = sigma * data * c_in
    plan = planners.dpm_solver_pp(schedules.edm(0.01, sigma), 1, prediction="edm", order=1)
    noisy = torch.randn(16, generator=torch.Generator().manual_seed(0)).double()
    f = (GAUSSIAN.denoise(c_in * noisy, c_in, c_in * sigma) - c_skip * noisy) / c_out
    x, _ = plan.step(0, c_in * noisy, f)  # one step to sigma = 0 gives D
    torch.testing.assert_close(x, c_skip * noisy + c_out * f, rtol=1e-12, atol=1e-12)
