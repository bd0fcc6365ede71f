# SPDX-License-Identifier: Apache-2.0
"""Euler for the diffusion ODE and for flow matching: parity with diffusers, order, churn, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit.oracles import BIMODAL, GAUSSIAN, AnalyticModel, Mixture, check_order, moments
from tests.kit.peers import check_parity

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HALVES = (torch.float16, torch.bfloat16)
VE = schedules.karras(0.02, 20)
VP = schedules.exponential(base=schedules.linear())  # uniform in lambda
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
SVD = {
    "prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002,
    "sigma_max": 700.0, "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip

# Each option in some combination, over numbers of steps from 1 to 50.
DISCRETE: list[tuple[int, dict[str, Any]]] = [
    (20, {}),
    (100, {}),
    (1, {"timestep_spacing": "trailing"}),
    (2, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (3, {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "scaled_linear"}),
    (50, {"timestep_spacing": "leading", "prediction_type": "sample"}),
    (10, {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}),
    (10, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}),
    (7, {"trained_betas": torch.linspace(1e-4, 0.03, 500).tolist(), "num_train_timesteps": 500}),
    (10, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (10, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    (12, {"final_sigmas_type": "sigma_min"}),
    (12, {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading", "steps_offset": 1}),
    (12, {"interpolation_type": "log_linear"}),
    (1, {"interpolation_type": "log_linear", "prediction_type": "v_prediction"}),
    (9, {"interpolation_type": "log_linear", "use_karras_sigmas": True}),
    (
        9,
        {
            "interpolation_type": "log_linear",
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
        },
    ),
    (15, {"use_karras_sigmas": True}),
    (1, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    (15, {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}),
    (15, {"use_beta_sigmas": True, "timestep_spacing": "trailing"}),
    (8, {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 14.0, "beta_schedule": "scaled_linear"}),
    (25, SVD),
]


def cases(listed: Sequence[Any]) -> list[Any]:
    """Every case in float32, and in float16 and bfloat16 by turns."""
    made = []
    for n, case in enumerate(listed):
        name = "-".join("betas" if "trained_betas" in str(part) else str(part) for part in case)
        made += [pytest.param(*case, d, id=f"{name}-{d}") for d in (torch.float32, HALVES[n % 2])]
    return made


@pytest.mark.parametrize(("steps", "config", "dtype"), cases(DISCRETE))
def test_euler_discrete(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    plan = check_parity(EulerDiscreteScheduler, config, steps, dtype=dtype)
    assert not plan.stochastic
    assert plan.order == 1


@pytest.mark.parametrize(
    ("config", "lists"),
    [
        ({}, {"timesteps": [999, 600, 250, 30]}),
        ({"prediction_type": "v_prediction"}, {"timesteps": [980.5, 600, 250.25, 0]}),
        ({}, {"sigmas": [100.0, 20.0, 3.0, 0.5, 0.0]}),
        ({"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, {"sigmas": [14.6, 4.0, 1.0, 0.2]}),
        (
            {"prediction_type": "v_prediction", "timestep_type": "continuous"},
            {"sigmas": [700.0, 9.0, 0.3, 0.0]},
        ),
    ],
)
def test_euler_discrete_on_a_given_list(config: dict[str, Any], lists: dict[str, Any]) -> None:
    check_parity(EulerDiscreteScheduler, config, None, set_timesteps=lists)


CHURNED: list[tuple[int, dict[str, Any]]] = [
    (1, {"timestep_spacing": "trailing"}),
    (10, {}),
    (11, {}),
    (10, {"prediction_type": "v_prediction"}),
    (11, {"prediction_type": "v_prediction"}),
    (10, {"prediction_type": "sample"}),
    (10, {"interpolation_type": "log_linear"}),
    (10, {"interpolation_type": "log_linear", "use_karras_sigmas": True}),
    (10, {"final_sigmas_type": "sigma_min"}),
    (25, SVD),
]


@pytest.mark.parametrize(("steps", "config", "dtype"), cases(CHURNED))
def test_euler_discrete_with_churn(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    plan = check_parity(EulerDiscreteScheduler, config, steps, dtype=dtype, step=CHURN | {"s_tmax": 800.0})
    assert plan.noisy[0]


def test_churn_only_between_its_limits_and_capped() -> None:
    plan = check_parity(EulerDiscreteScheduler, {}, 20, step={"s_churn": 80.0, "s_tmin": 0.3, "s_tmax": 20.0})
    ratios = [s / a for a, s in zip(plan.alphas[:-1].tolist(), plan.sigmas[:-1].tolist(), strict=True)]
    assert list(plan.noisy) == [0.3 <= r <= 20 for r in ratios]
    i = plan.noisy.index(True)
    # gamma = sqrt(2) - 1: sqrt(r^^2 - r^2) = r
    assert float(plan.table[i, 0, -3]) == pytest.approx(float(plan.sigmas[i]), rel=1e-12)


# ---- EDM -----------------------------------------------------------------------------------------------------

EDM: list[tuple[int, dict[str, Any]]] = [
    (20, {}),
    (1, {}),
    (2, {"prediction_type": "v_prediction"}),
    (3, {"sigma_data": 1.0, "prediction_type": "v_prediction", "sigma_min": 0.01, "sigma_max": 50.0}),
    (50, {"rho": 3.0, "final_sigmas_type": "sigma_min"}),
    (12, {"sigma_schedule": "exponential", "sigma_max": 120.0}),
    (1, {"sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"}),
]


@pytest.mark.parametrize(("steps", "config", "dtype"), cases(EDM))
def test_edm_euler(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    plan = check_parity(EDMEulerScheduler, config, steps, dtype=dtype)
    scheduler = EDMEulerScheduler(**config)
    assert plan.init_noise_sigma == pytest.approx(scheduler.init_noise_sigma * float(plan.alphas[0]))


@pytest.mark.parametrize(("prediction", "dtype"), cases([("epsilon",), ("v_prediction",)]))
def test_edm_euler_with_churn(prediction: str, dtype: torch.dtype) -> None:
    check_parity(
        EDMEulerScheduler, {"prediction_type": prediction}, 18, dtype=dtype, step=CHURN | {"s_churn": 40.0}
    )


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm_euler_at_given_positions(spacing: str) -> None:
    positions = {"sigmas": torch.tensor([0.0, 0.3, 0.5, 0.9])}
    check_parity(EDMEulerScheduler, {"sigma_schedule": spacing}, None, set_timesteps=positions)


# ---- flow matching -------------------------------------------------------------------------------------------

FLOW: list[tuple[int | None, dict[str, Any], dict[str, Any]]] = [
    (20, {}, {}),
    (1, {}, {}),
    (2, {"shift": 3.0}, {}),
    (3, {"shift": 3.0, "num_train_timesteps": 500}, {}),
    (50, {"shift": 7.0, "stochastic_sampling": True}, {}),
    (10, {"use_dynamic_shifting": True, "base_shift": 0.6, "max_image_seq_len": 8192}, {"mu": 0.8}),
    (10, {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 1.7}),
    (10, {"use_dynamic_shifting": True, "shift_terminal": 0.1}, {"mu": 1.2}),
    (10, {"shift_terminal": 0.02, "use_karras_sigmas": True}, {}),
    (1, {"use_karras_sigmas": True}, {}),
    (10, {"use_exponential_sigmas": True, "shift": 2.0}, {}),
    (10, {"use_beta_sigmas": True, "stochastic_sampling": True}, {}),
    (12, {"invert_sigmas": True, "shift": 2.0}, {}),
    (None, {"shift": 3.0}, {"sigmas": [1.0, 0.8, 0.4, 0.1]}),
    (4, {"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.75, 0.5, 0.25], "mu": 1.15}),
    (None, {"shift": 3.0}, {"timesteps": [1000.0, 700.0, 300.0]}),
    (3, {"use_exponential_sigmas": True}, {"timesteps": [999.0, 500.0, 20.0], "sigmas": [0.9, 0.5, 0.1]}),
    (None, {"invert_sigmas": True}, {"timesteps": [999.0, 500.0, 20.0], "sigmas": [0.9, 0.5, 0.1]}),
]


@pytest.mark.parametrize(("steps", "config", "lists", "dtype"), cases(FLOW))
def test_flow_match_euler(
    steps: int | None, config: dict[str, Any], lists: dict[str, Any], dtype: torch.dtype
) -> None:
    plan = check_parity(FlowMatchEulerDiscreteScheduler, config, steps, dtype=dtype, set_timesteps=lists)
    assert plan.init_noise_sigma == 1
    assert plan.prediction == ("reverse_flow" if config.get("invert_sigmas") else "flow")


@pytest.mark.parametrize(("steps", "dtype"), cases([(1,), (2,), (4,), (8,)]))
def test_flow_match_lcm(steps: int, dtype: torch.dtype) -> None:
    plan = check_parity(
        FlowMatchLCMScheduler, {"shift": 3.0, "use_beta_sigmas": steps == 8}, steps, dtype=dtype
    )
    assert list(plan.noisy) == [True] * (steps - 1) + [False]


# ---- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "keywords", "message"),
    [
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"timesteps": [9, 3]}, "timesteps=.*their own rule"),
        ("EulerDiscreteScheduler", SVD | {"use_karras_sigmas": False}, {"timesteps": [9, 3]}, "their own rule"),
        ("EulerDiscreteScheduler", {}, {"num_inference_steps": 2, "sigmas": [9.0, 3.0, 0.0]}, "without num_inference"),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True, "sigma_min": 0.001, "final_sigmas_type": "sigma_min"},
            {"num_inference_steps": 4},
            "final_sigmas_type='sigma_min': the lowest training level lies above",
        ),
        ("EulerDiscreteScheduler", {}, {"num_inference_steps": 4, "s_churn": -1.0}, "s_churn, s_noise: expected 0 or"),
        ("EulerDiscreteScheduler", {}, {"sigmas": [1.0, 2.0, 0.0]}, "noise levels must decrease"),
        ("EDMEulerScheduler", {}, {"num_inference_steps": 2, "sigmas": torch.tensor([0.0, 1.0])}, "without num_inf"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"num_inference_steps": 4}, "pass mu"),
        ("FlowMatchEulerDiscreteScheduler", {}, {"num_inference_steps": 4, "mu": 1.0}, "mu would have no effect"),
        ("FlowMatchEulerDiscreteScheduler", {}, {"num_inference_steps": 4, "s_churn": 1.0}, "unknown keyword s_churn"),
        ("FlowMatchEulerDiscreteScheduler", {}, {"num_inference_steps": 4, "sigmas": [1.0]}, "sigmas=.*expected 4"),
        (
            "FlowMatchEulerDiscreteScheduler", {}, {"sigmas": [1.0, 0.5], "timesteps": [9.0]},
            "timesteps=.*expected 2",
        ),
        (
            "FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True, "stochastic_sampling": True},
            {"num_inference_steps": 4}, "invert_sigmas=True: stochastic",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, {"num_inference_steps": 1}, "shift_terminal"),
        ("FlowMatchLCMScheduler", {"scale_factors": [0.5]}, {"num_inference_steps": 2}, "scale_factors=.*change size"),
    ],
)  # fmt: skip
def test_refused_by_name(name: str, config: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(getattr(diffusers, name)(**config), **keywords)


def test_a_shift_set_later_is_refused() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_shift(3.0)
    with pytest.raises(ValueError, match=r"cannot reproduce shift=1.0: set_shift has changed it to 3.0"):
        plan_from(scheduler, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_churn": -1.0}, "s_churn, s_noise: expected 0 or more, got -1.0 and 1.0"),
        (
            {"s_churn": 1.0, "stochastic_sampling": True},
            "s_churn, stochastic_sampling: pass one or the other",
        ),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.euler(schedules.linear(), 4, **options)


# ---- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda n: planners.euler(VP, n, final_sigmas_type="sigma_min"), id="vp"),
        pytest.param(lambda n: planners.euler(schedules.flow(), n), id="flow"),
        pytest.param(
            lambda n: planners.euler(schedules.flow(), n, prediction="reverse_flow"), id="reverse-flow"
        ),
        pytest.param(lambda n: planners.euler(VE, n, final_sigmas_type="sigma_min"), id="ve"),
        pytest.param(
            lambda n: planners.euler(VP, n, prediction="score", final_sigmas_type="sigma_min"), id="score"
        ),
        pytest.param(
            lambda n: planners.euler(schedules.edm(0.02, 20), n, final_sigmas_type="sigma_min"), id="edm"
        ),
    ],
)
def test_order(make: Any, data: Mixture) -> None:
    check_order(make, 1, data)


def test_no_churn_is_no_churn() -> None:
    plain = planners.euler(VP, 8)
    for exact in (False, True):
        assert torch.equal(planners.euler(VP, 8, s_churn=0.0, exact_churn=exact).table, plain.table)
        limited = planners.euler(VP, 8, s_churn=3.0, s_tmin=1e3, exact_churn=exact)
        torch.testing.assert_close(limited.table, plain.table, rtol=1e-13, atol=1e-15)


# ---- noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True], ids=["diffusers", "algorithm 2"])
@pytest.mark.parametrize("schedule", [VE, VP, schedules.edm(0.02, 20)], ids=["ve", "vp", "edm"])
def test_churn_keeps_the_moments_of_gaussian_data(schedule: Any, exact: bool) -> None:
    """To first order in the step: the error of the variance halves when the steps are doubled."""
    errors = []
    for steps in (200, 400):
        plan = planners.euler(schedule, steps, s_churn=10.0, exact_churn=exact, final_sigmas_type="sigma_min")
        mean, variance = moments(plan, GAUSSIAN)
        alpha, sigma = float(plan.alphas[-1]), float(plan.sigmas[-1])
        assert mean == pytest.approx(alpha * GAUSSIAN.means[0], rel=1e-9 if exact else 10 / steps)
        errors.append(abs(variance / (alpha**2 * GAUSSIAN.stds[0] ** 2 + sigma**2) - 1))
    assert errors[0] < 0.06
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)


def test_algorithm_2_evaluates_at_the_churned_level_and_starts_there() -> None:
    plan = planners.euler(VP, 10, s_churn=1.0, exact_churn=True, s_noise=1.1)
    plain = planners.euler(VP, 10)
    ratios, before = (p.sigmas[:-1] / p.alphas[:-1] for p in (plan, plain))
    torch.testing.assert_close(ratios, 1.1 * before, rtol=1e-12, atol=0)
    assert list(plan.noisy) == [True] * 9 + [False], "the first churn is in the noise that x starts with"
    alpha, r = float(plan.alphas[0]), float(before[0])
    assert plan.init_noise_sigma == pytest.approx(alpha * (1 + r**2 + 1.1**2 * r**2 * (1.1**2 - 1)) ** 0.5)
    assert (plan.timesteps.double() >= plain.timesteps.double()).all()


@pytest.mark.parametrize(
    "options",
    [{"s_churn": 8.0}, {"s_churn": 8.0, "exact_churn": True}, {"stochastic_sampling": True}],
    ids=str,
)
def test_samples_have_the_moments_that_the_table_says(options: dict[str, Any]) -> None:
    plan = planners.euler(VE, 20, **options)
    model = AnalyticModel(GAUSSIAN, "epsilon", lambda t: (1.0, t))
    g = torch.Generator().manual_seed(0)
    spread = math.hypot(GAUSSIAN.stds[0], float(plan.sigmas[0]))
    x = GAUSSIAN.means[0] + spread * torch.randn(40_000, generator=g)
    sample = plan.run(model, x, seed=1).double()
    mean, variance = moments(plan, GAUSSIAN)
    assert float(sample.mean()) == pytest.approx(mean, abs=0.02)
    assert float(sample.var()) == pytest.approx(variance, rel=0.04)
