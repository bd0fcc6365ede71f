# SPDX-License-Identifier: Apache-2.0
"""Latent consistency models: parity with diffusers, the boundary condition, timesteps, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from

from tests.kit import oracles
from tests.kit.peers import check_parity

diffusers = pytest.importorskip("diffusers")
LCM = diffusers.LCMScheduler

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4}
CLIP = {"clip_sample": True, "clip_sample_range": 0.7}
SD = schedules.scaled_linear(beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 25, 49, 50])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_parity(kind: str, steps: int) -> None:
    check_parity(LCM, {"prediction_type": kind}, steps)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_parity_in_half_precision(kind: str, steps: int, dtype: torch.dtype) -> None:
    check_parity(LCM, {"prediction_type": kind}, steps, dtype=dtype)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", **CLIP},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"trained_betas": torch.linspace(1e-3, 0.03, 400).tolist(), "num_train_timesteps": 400},
        {"original_inference_steps": 100},
        {"original_inference_steps": 37, "prediction_type": "sample"},
        {"timestep_scaling": 0.01},
        {"timestep_scaling": 0.0, "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample", **CLIP},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **THRESHOLD},
        CLIP,
        {"prediction_type": "v_prediction", **CLIP},
        THRESHOLD,
        {**THRESHOLD, **CLIP, "prediction_type": "sample"},
        {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_of_options(config: dict[str, Any], dtype: torch.dtype) -> None:
    check_parity(LCM, config, 6, dtype=dtype)


@pytest.mark.parametrize(
    ("steps", "keywords"),
    [
        (4, {"strength": 0.58}),  # int(50 * 0.58) is 28
        (1, {"strength": 0.02}),
        (10, {"original_inference_steps": 10}),
        (7, {"original_inference_steps": 200, "strength": 0.3}),
        (None, {"timesteps": [999, 760, 500, 13]}),
        (None, {"timesteps": [613, 0]}),
    ],
    ids=str,
)
def test_parity_of_timesteps(steps: int | None, keywords: dict[str, Any]) -> None:
    check_parity(LCM, {}, steps, set_timesteps=keywords)


def test_timesteps_are_those_of_diffusers() -> None:
    """For every count, and with the rounding of float strengths."""
    scheduler = LCM()
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert planners.lcm(SD, steps).timesteps.tolist() == scheduler.timesteps.tolist()
    for strength in (0.07, 0.29, 0.57, 0.58, 0.9):
        scheduler.set_timesteps(3, strength=strength)
        assert planners.lcm(SD, 3, strength=strength).timesteps.tolist() == scheduler.timesteps.tolist()


# ---- identities ----------------------------------------------------------------------------------------------


def test_the_boundary_condition_is_exact() -> None:
    """f(x, 0) = x: what was there comes back, whatever the model says."""
    plan = planners.lcm(SD, [500, 0])
    (_, last) = plan.table
    names = [*plan.inputs, *plan.rows, "z"]
    weights = dict(zip(names, last[plan.rows.index("x'")].tolist(), strict=False))
    assert weights == {name: float(name == "x") for name in names}


def test_the_last_step_returns_the_consistency_function() -> None:
    """One step: c_skip x + c_out x0 by hand, and no noise."""
    plan = planners.lcm(SD, 1)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = torch.sin(x)
    alpha, sigma = SD.level(999)
    tau = 9990.0
    f = 0.25 / (tau**2 + 0.25) * x + tau / math.hypot(tau, 0.5) * (x - sigma * eps) / alpha
    assert not plan.stochastic
    torch.testing.assert_close(plan.run(lambda x, t: eps, x), f, rtol=1e-13, atol=1e-12)
    assert (float(plan.alphas[-1]), float(plan.sigmas[-1])) == (1, 0)


def test_a_perfect_consistency_function_gives_the_data() -> None:
    """For data that is one point m, E[x0 | x] is the consistency function: every run ends at m."""
    point = oracles.Mixture((1.0,), (0.7,), (0.0,))
    plan = planners.lcm(SD, 4, prediction="x0")
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = [torch.full_like(x, z) for z in (0.3, -1.0, 2.0)]
    end = oracles.execute(plan, lambda x, i: point.denoise(x, *levels[i]), x, noise)
    c_skip = 0.25 / ((10 * plan.timesteps[-1].item()) ** 2 + 0.25)
    torch.testing.assert_close(end, torch.full_like(x, 0.7), rtol=0, atol=4 * c_skip)


def test_noise_reaches_the_next_level() -> None:
    """The weight of z is sigma of the next timestep, zero only at the end."""
    plan = planners.lcm(SD, 4)
    z = plan.table[:, plan.rows.index("x'"), len(plan.inputs) + len(plan.rows)]
    torch.testing.assert_close(z, torch.cat((plan.sigmas[1:4], torch.zeros(1, dtype=torch.float64))))
    assert plan.noisy == (True, True, True, False)


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 51}, r"steps: expected 1 to int\(original_inference_steps \* strength\) = 50, got 51"),
        ({"steps": 0}, "steps: expected 1 to"),
        ({"strength": 0.0}, "strength: expected more than 0 and at most 1, got 0.0"),
        ({"steps": 3, "strength": 0.05}, "steps: expected 1 to .* = 2, got 3"),
        ({"steps": [900.0, 500.0], "strength": 0.4}, "strength: 0.4 of 2 timesteps is none"),
        ({"original_inference_steps": 1001}, "original_inference_steps: expected 1 to 1000, got 1001"),
        ({"steps": [500, 500]}, "noise levels must decrease"),
        ({"steps": [1000, 500]}, "timestep 1000.0 is outside"),
        (
            {"clip_sample": 1.0, "threshold": planners.Threshold()},
            "clip_sample, threshold: pass one or the other",
        ),
        (
            {"schedule": schedules.zero_terminal_snr(SD)},
            "prediction epsilon: x0 is undetermined where alpha = 0",
        ),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"schedule": SD, "steps": 4} | options
    with pytest.raises(ValueError, match=message):
        planners.lcm(**arguments)


def test_a_schedule_without_timesteps_is_refused() -> None:
    with pytest.raises(TypeError, match="schedule: expected one with a level per training timestep"):
        planners.lcm(schedules.flow(), 4)


@pytest.mark.parametrize(
    ("config", "keywords", "message"),
    [
        (
            {},
            {"timesteps": [999, 500], "strength": 0.5},
            "cannot reproduce strength=0.5: with timesteps it adds noise",
        ),
        ({"prediction_type": "flow"}, {}, "cannot reproduce prediction_type='flow'"),
        ({"rescale_betas_zero_snr": True}, {}, "prediction epsilon: x0 is undetermined where alpha = 0"),
    ],
)
def test_refused_by_name(config: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(LCM(**config), None if keywords else 4, **keywords)


def test_why_strength_with_timesteps_is_refused() -> None:
    """diffusers' last prev_sample is noisy there: it is not its denoised, which is what this plan returns."""
    scheduler = LCM()
    scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        x, denoised = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)
    assert float((x - denoised).abs().max()) > 0.1
