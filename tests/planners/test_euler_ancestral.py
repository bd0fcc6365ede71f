# SPDX-License-Identifier: Apache-2.0
"""Ancestral Euler: parity with diffusers, the same program as DDIM at eta = 1, moments, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, LTXEulerAncestralRFScheduler
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit.oracles import (
    BIMODAL,
    GAUSSIAN,
    AnalyticModel,
    Mixture,
    execute,
    moments,
    predict,
)
from tests.kit.peers import check_parity

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VP = schedules.exponential(base=schedules.linear())
VE = schedules.karras(0.02, 20)
SCHEDULES = {"vp": VP, "ve": VE, "edm": schedules.edm(0.02, 20), "flow": schedules.flow(3.0)}

DISCRETE: list[tuple[int, dict[str, Any]]] = [
    (20, {}),
    (1, {"timestep_spacing": "trailing"}),
    (2, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (3, {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "scaled_linear"}),
    (50, {"prediction_type": "v_prediction", "beta_start": 0.00085, "beta_end": 0.012}),
    (10, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
    (7, {"trained_betas": torch.linspace(1e-4, 0.03, 500).tolist(), "num_train_timesteps": 500}),
    (10, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (10, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "config"), DISCRETE, ids=[str(n) for n in range(len(DISCRETE))])
def test_euler_ancestral(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    plan = check_parity(EulerAncestralDiscreteScheduler, config, steps, dtype=dtype)
    assert list(plan.noisy) == [True] * (steps - 1) + [False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("steps", "config"),
    [(1, {}), (8, {}), (20, {"eta": 0.6, "s_noise": 1.02}), (4, {"eta": 0.0, "num_train_timesteps": 500})],
    ids=str,
)
def test_rectified_flow(steps: int, config: dict[str, Any], dtype: torch.dtype) -> None:
    plan = check_parity(LTXEulerAncestralRFScheduler, config, steps, dtype=dtype)
    assert plan.stochastic == (config.get("eta", 1) > 0 and steps > 1)


def test_rectified_flow_on_given_sigmas() -> None:
    """diffusers evaluates the model once more at the end, where it changes nothing: our plan does not."""
    sigmas = [1.0, 0.9, 0.6, 0.25, 0.0]
    for name in ("sigmas", "timesteps"):
        plan = plan_from(LTXEulerAncestralRFScheduler(), **{name: sigmas})
        assert plan.timesteps.tolist() == [1000, 900, 600, 250]
        scheduler = LTXEulerAncestralRFScheduler()
        scheduler.set_timesteps(**{name: sigmas})
        assert len(scheduler.timesteps) == plan.steps + 1
        x, last = torch.randn(4), scheduler.timesteps[-1]
        scheduler._step_index = plan.steps
        assert torch.equal(scheduler.step(torch.randn(4), last, x).prev_sample, x)
    plan = plan_from(LTXEulerAncestralRFScheduler(), sigmas=sigmas)
    assert torch.equal(plan.table, planners.euler_ancestral(schedules.flow(), [1000, 900, 600, 250]).table)


# ---- identities ----------------------------------------------------------------------------------------------


def test_eta_1_is_ddim_with_eta_1() -> None:
    """The deviation of q(x'|x, x0) is one number, in whichever variable."""
    steps = 10
    place: dict[str, Any] = {"timestep_spacing": "trailing"}
    ours = planners.euler_ancestral(schedules.linear(), steps, **place)
    ddim = planners.ddim(schedules.linear(), steps, eta=1.0, fixed_stride=False, **place)
    levels = list(zip(ours.alphas.tolist(), ours.sigmas.tolist(), strict=True))
    g = torch.Generator().manual_seed(0)
    x, *noise = (torch.randn(64, generator=g, dtype=torch.float64) for _ in range(steps))

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        return predict("epsilon", x, BIMODAL.denoise(x, *levels[i]), *levels[i])

    torch.testing.assert_close(
        execute(ours, model, x, noise), execute(ddim, model, x, noise), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_eta_0_is_euler(name: str) -> None:
    ancestral = planners.euler_ancestral(SCHEDULES[name], 9, eta=0.0)
    torch.testing.assert_close(
        ancestral.table, planners.euler(SCHEDULES[name], 9).table, rtol=1e-13, atol=1e-14
    )
    assert not ancestral.stochastic


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_noise_level_after_a_step_is_the_next_one(name: str, eta: float) -> None:
    """For data that are 0, x0 and eps are known: sigma'^2 = (weight of eps)^2 + (weight of z)^2."""
    zero = Mixture((1.0,), (0.0,), (0.0,))
    plan = planners.euler_ancestral(SCHEDULES[name], 9, eta=eta)
    mean, variance = moments(plan, zero)
    assert (mean, variance) == (0, pytest.approx(0, abs=1e-12))
    plan = planners.euler_ancestral(SCHEDULES[name], 9, eta=eta, final_sigmas_type="sigma_min")
    assert moments(plan, zero) == (0, pytest.approx(float(plan.sigmas[-1]) ** 2, rel=1e-9))


# ---- moments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_moments_of_gaussian_data_are_kept(name: str, eta: float) -> None:
    """To first order: the error of the variance halves when the steps are doubled; the mean is exact."""
    errors = []
    final: Any = "zero" if name == "flow" else "sigma_min"
    for steps in (200, 400):
        plan = planners.euler_ancestral(SCHEDULES[name], steps, eta=eta, final_sigmas_type=final)
        mean, variance = moments(plan, GAUSSIAN)
        alpha, sigma = float(plan.alphas[-1]), float(plan.sigmas[-1])
        assert mean == pytest.approx(alpha * GAUSSIAN.means[0], rel=1e-9)
        errors.append(abs(variance / (alpha**2 * GAUSSIAN.stds[0] ** 2 + sigma**2) - 1))
    assert errors[0] < 0.1
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["ve", "flow"])
def test_samples_have_the_moments_that_the_table_says(name: str) -> None:
    plan = planners.euler_ancestral(SCHEDULES[name], 20)
    flow = name == "flow"
    model = AnalyticModel(GAUSSIAN, plan.prediction, lambda t: (1 - t / 1000, t / 1000) if flow else (1.0, t))
    g = torch.Generator().manual_seed(0)
    alpha, sigma = float(plan.alphas[0]), float(plan.sigmas[0])
    x = alpha * GAUSSIAN.means[0] + math.hypot(alpha * GAUSSIAN.stds[0], sigma) * torch.randn(
        40_000, generator=g
    )
    sample = plan.run(model, x, seed=1).double()
    mean, variance = moments(plan, GAUSSIAN)
    assert float(sample.mean()) == pytest.approx(mean, abs=0.01)
    assert float(sample.var()) == pytest.approx(variance, rel=0.04)


# ---- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.2}, "eta: expected 0 to 1, got 1.2"),
        ({"s_noise": -1.0}, "s_noise: expected 0 or more, got -1.0"),
        ({"rectified_flow": True}, "rectified_flow: expected a schedule with alpha = 1 - sigma"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.euler_ancestral(VP, 4, **options)


def test_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"cannot reproduce prediction_type='sample'"):
        plan_from(EulerAncestralDiscreteScheduler(prediction_type="sample"), 4)
    with pytest.raises(
        ValueError, match=r"cannot reproduce s_noise=0.0: without noise it skips the rescaling"
    ):
        plan_from(LTXEulerAncestralRFScheduler(s_noise=0.0), 4)
    with pytest.raises(ValueError, match="unknown keyword s_churn; it takes none"):
        plan_from(EulerAncestralDiscreteScheduler(), 4, s_churn=1.0)
