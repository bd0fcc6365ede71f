# SPDX-License-Identifier: Apache-2.0
"""Trajectory consistency distillation: parity with diffusers, limits in eta, timesteps, refusals."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan

from tests.kit import oracles
from tests.kit.peers import check_parity

diffusers = pytest.importorskip("diffusers")
TCD = diffusers.TCDScheduler

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SD = schedules.scaled_linear(beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_parity(kind: str, eta: float, steps: int) -> None:
    check_parity(TCD, {"prediction_type": kind}, steps, step={"eta": eta})


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("steps", "eta"), [(1, 0.3), (2, 1.0), (4, 0.3), (4, 0.0), (20, 0.3)])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_parity_in_half_precision(kind: str, steps: int, eta: float, dtype: torch.dtype) -> None:
    check_parity(TCD, {"prediction_type": kind}, steps, step={"eta": eta}, dtype=dtype)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"trained_betas": torch.linspace(1e-3, 0.03, 400).tolist(), "num_train_timesteps": 400},
        {"original_inference_steps": 100, "timestep_scaling": 10.0},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
        {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"},
        {"clip_sample": True, "clip_sample_range": 0.1},  # which its step ignores
        {"thresholding": True, "dynamic_thresholding_ratio": 0.5},  # so is this
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_of_options(config: dict[str, Any], dtype: torch.dtype) -> None:
    check_parity(TCD, config, 6, dtype=dtype)


@pytest.mark.parametrize(
    ("steps", "keywords"),
    [
        (4, {"strength": 0.58}),
        (1, {"strength": 0.02}),
        (7, {"original_inference_steps": 10}),
        (7, {"original_inference_steps": 10, "strength": 0.29}),
        (None, {"timesteps": [999, 760, 500, 13]}),
        (None, {"timesteps": [999, 760, 500, 13], "strength": 0.6}),
        (None, {"timesteps": [613, 0]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_parity_of_timesteps(steps: int | None, keywords: dict[str, Any], eta: float) -> None:
    check_parity(TCD, {}, steps, set_timesteps=keywords, step={"eta": eta})


@pytest.mark.parametrize("original", [None, 50, 200])
@pytest.mark.parametrize("strength", [1.0, 0.58])
def test_timesteps_are_those_of_diffusers(original: int | None, strength: float) -> None:
    scheduler = TCD()
    for steps in range(1, 29):
        scheduler.set_timesteps(steps, original_inference_steps=original, strength=strength)
        plan = planners.tcd(SD, steps, original_inference_steps=None if original else 50, strength=strength)
        assert plan.timesteps.tolist() == scheduler.timesteps.tolist()


# ---- identities ----------------------------------------------------------------------------------------------


def noise_weights(plan: Plan) -> torch.Tensor:
    return plan.table[:, plan.rows.index("x'"), len(plan.inputs) + len(plan.rows)]


def test_without_eta_it_is_ddim() -> None:
    """The same states at every evaluation; the last step goes to the first training level instead of sigma = 0."""
    times = planners.tcd(SD, 8).timesteps.tolist()
    tcd, ddim = planners.tcd(SD, times, eta=0.0), planners.ddim(SD, times)
    levels = list(zip(tcd.alphas.tolist(), tcd.sigmas.tolist(), strict=True))
    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def states(plan: Plan) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def model(x: torch.Tensor, i: int) -> torch.Tensor:
            seen.append(x)
            return oracles.predict("epsilon", x, oracles.BIMODAL.denoise(x, *levels[i]), *levels[i])

        oracles.execute(plan, model, x)
        return seen

    assert not tcd.stochastic
    for ours, theirs in zip(states(tcd), states(ddim), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("data", [oracles.GAUSSIAN, oracles.BIMODAL], ids=["gaussian", "bimodal"])
def test_order_without_eta(data: oracles.Mixture) -> None:
    """First order: from timestep 999 to 0 in equal steps of the index."""
    oracles.check_order(
        lambda n: planners.tcd(SD, n, eta=0.0, original_inference_steps=None), 1, data, (20, 40, 80, 160)
    )


def test_with_eta_1_it_is_multistep_consistency_sampling() -> None:
    """To timestep 0 and from there to the next timestep by the forward process."""
    plan = planners.tcd(SD, 4, eta=1.0)
    alpha0 = SD.level(0)[0]
    expected = [math.sqrt(1 - (a / alpha0) ** 2) for a in plan.alphas[1:4].tolist()] + [0.0]
    torch.testing.assert_close(noise_weights(plan), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_every_step_keeps_the_level(eta: float) -> None:
    """With the true x0 and eps, x' = alpha' x0 + sigma' times unit noise: the weights say so exactly."""
    plan = planners.tcd(SD, 6, eta=eta)
    p, z = plan.rows.index("x'"), noise_weights(plan)
    on_x0 = plan.table[:, p, len(plan.inputs) + plan.rows.index("x0")]
    on_eps = plan.table[:, p, plan.inputs.index("prediction")]
    torch.testing.assert_close(on_x0, plan.alphas[1:])
    torch.testing.assert_close(on_eps**2 + z**2, plan.sigmas[1:] ** 2)


@pytest.mark.parametrize("eta", [0.1, 0.2, 0.3, 0.8, 0.9])
def test_the_intermediate_timestep_is_the_exact_floor(eta: float) -> None:
    """float64 has 1 - 0.9 = 0.09999999999999998, whose product with 10 would be rounded down to 0."""
    alphas = SD.alphas.tolist()
    for after in range(5, 995, 5):
        plan = planners.tcd(SD, [999, after], eta=eta)
        z = float(noise_weights(plan)[0])
        s = math.floor((1 - Fraction(str(eta))) * after)
        assert z == pytest.approx(math.sqrt(1 - (alphas[after] / alphas[s]) ** 2), rel=1e-9, abs=1e-12), after


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.1}, "eta: expected 0 to 1, got 1.1"),
        ({"steps": 51}, "steps: expected 1 to .* = 50, got 51"),
        ({"strength": 1.5}, "strength: expected more than 0 and at most 1, got 1.5"),
        ({"original_inference_steps": 0}, "original_inference_steps: expected 1 to 1000, got 0"),
        ({"steps": [100, 500]}, "noise levels must"),
        (
            {"schedule": schedules.zero_terminal_snr(SD)},
            "prediction epsilon: x0 is undetermined where alpha = 0",
        ),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"schedule": SD, "steps": 4} | options
    with pytest.raises(ValueError, match=message):
        planners.tcd(**arguments)


@pytest.mark.parametrize(
    ("config", "keywords", "message"),
    [
        (
            {},
            {"original_inference_steps": 3},
            "cannot reproduce original_inference_steps=3: it is fewer than 4 steps",
        ),
        ({"prediction_type": "flow"}, {}, "cannot reproduce prediction_type='flow'"),
        ({}, {"eta": 2.0}, "eta: expected 0 to 1, got 2.0"),
    ],
)
def test_refused_by_name(config: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(TCD(**config), 4, **keywords)
