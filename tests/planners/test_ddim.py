# SPDX-License-Identifier: Apache-2.0
"""DDIM against diffusers, its order, its identities with DDPM and Euler, and the moments of its noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Threshold

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, AnalyticModel, Mixture, check_order
from tests.kit.peers import ByIndex, check_parity
from tests.kit.tables import composed, moments

diffusers = pytest.importorskip("diffusers")

LINEAR = schedules.linear()
VP = schedules.exponential(base=LINEAR)  # uniform in lambda
STEPS = (1, 2, 3, 7, 20, 50)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# ---- parity ------------------------------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"timestep_spacing": "linspace", "clip_sample_range": 0.7},
    {"timestep_spacing": "trailing", "prediction_type": "sample", "beta_schedule": "scaled_linear"},
    {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True, "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "steps_offset": 1},
    {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    {"set_alpha_to_one": False, "prediction_type": "sample", "timestep_spacing": "linspace"},
    {"trained_betas": [1e-3 * 1.05**i for i in range(80)], "num_train_timesteps": 80},
    {"num_train_timesteps": 500, "beta_end": 0.04, "clip_sample_range": 2.0},
]
KEYWORDS: list[dict[str, Any]] = [
    {},
    {"eta": 1.0},
    {"eta": 0.4, "use_clipped_model_output": True},
    {"use_clipped_model_output": True},
]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_parity(index: int, keywords: dict[str, Any]) -> None:
    """Two of the step counts each, so that every config and keyword meets every count."""
    first = index + KEYWORDS.index(keywords)
    for steps in (STEPS[first % 6], STEPS[(first + 3) % 6]):
        check_parity(diffusers.DDIMScheduler, CONFIGS[index], steps, step=keywords)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_parity_in_half_precision(index: int, dtype: torch.dtype) -> None:
    for k, keywords in enumerate(KEYWORDS[index % 2 :: 2]):
        steps = STEPS[(index + 3 * k) % 6]
        check_parity(diffusers.DDIMScheduler, CONFIGS[index], steps, step=keywords, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("high", [1.0, 1.5])
def test_parity_with_a_threshold(high: float, dtype: torch.dtype) -> None:
    for keywords in KEYWORDS[:: 1 if dtype == torch.float32 else 2]:
        config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": high}
        check_parity(diffusers.DDIMScheduler, config, 10, step=keywords, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_of_the_parallel_scheduler(dtype: torch.dtype) -> None:
    for keywords in KEYWORDS:
        check_parity(diffusers.DDIMParallelScheduler, {}, 10, step=keywords, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"prediction_type": "sample", "snr_shift_scale": 1.0, "set_alpha_to_one": False},
        {"beta_schedule": "linear", "steps_offset": 1, "timestep_spacing": "leading"},
        {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    ],
    ids=str,
)  # fmt: skip
def test_parity_of_cogvideox(config: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in (1, 3, 50) if dtype == torch.float32 else (2, 10):
        check_parity(diffusers.CogVideoXDDIMScheduler, config, steps, dtype=dtype)


def test_a_surplus_timestep_is_left_out() -> None:
    """diffusers ends in timestep -1 here, and so in the level of timestep 999."""
    for name in ("DDIMScheduler", "DDPMScheduler", "DDIMInverseScheduler"):
        scheduler = getattr(diffusers, name)(timestep_spacing="trailing")
        scheduler.set_timesteps(61)
        theirs = scheduler.timesteps.tolist()
        assert min(theirs) == -1
        assert plan_from(scheduler, 61).timesteps.tolist() == [t for t in theirs if t >= 0]


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "keywords", "message"),
    [
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {},
            "prediction epsilon: x0 is undetermined",
        ),
        ({}, {"eta": 1.5}, "eta: expected 0 to 1.* here, got 1.5"),
        ({}, {"eta": -0.1}, "eta: expected 0 or more, got -0.1"),
        ({"trained_betas": [0.1, 0.2]}, {}, "cannot reproduce num_train_timesteps=1000: there are 2"),
    ],
    ids=str,
)
def test_what_is_refused(config: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(diffusers.DDIMScheduler(**config), 10, **keywords)


def test_cogvideox_ignores_eta() -> None:
    with pytest.raises(ValueError, match="eta would have no effect"):
        plan_from(diffusers.CogVideoXDDIMScheduler(), 10, eta=0.5)


def test_increasing_levels_are_refused() -> None:
    rising = schedules.from_levels([1, 2], [0.9, 0.5, 0.1], [0.1, 0.5, 0.9], ascending=True)
    with pytest.raises(ValueError, match="expected levels that decrease"):
        planners.ddim(rising, 2)


def test_clip_or_threshold() -> None:
    with pytest.raises(ValueError, match="clip_sample, threshold: pass one or the other"):
        planners.ddim(LINEAR, 4, clip_sample=1.0, threshold=Threshold())


# ---- the paper's formula -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_the_table_is_the_papers_formula(name: str, kind: str) -> None:
    """Equations (12) and (16) step by step in float64, with diffusers' stride."""
    ab, x = oracles.alphas_cumprod(name), torch.randn(64, dtype=torch.float64)
    model = AnalyticModel(BIMODAL, kind, lambda t: oracles.vp_level(ab, t))
    for eta, spacing in ((0.0, "leading"), (0.4, "linspace"), (1.0, "trailing")):
        options: dict[str, Any] = {"eta": eta, "timestep_spacing": spacing, "clip_sample": 0.9}
        plan = planners.ddim(
            getattr(schedules, name)(), 12, prediction=kind, set_alpha_to_one=False, **options
        )
        times = plan.timesteps.tolist()
        levels = [(oracles.vp_level(ab, t), oracles.vp_level(ab, max(t - 1000 // 12, 0))) for t in times]
        noise = [torch.randn(64, dtype=torch.float64) for _ in range(sum(plan.noisy))]
        told = iter(times)
        got = oracles.execute(plan, lambda x, _, told=told: model(x, next(told)), x, noise)  # type: ignore[misc]
        want = oracles.ddim(model, x, times, levels, eta=eta, noise=noise, clip=0.9)
        assert oracles.relative_error(got, want) < 1e-11


# ---- order and identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "kind"), [(VP, "epsilon"), (VP, "v"), (schedules.flow(), "flow")], ids=["vp", "vp-v", "flow"]
)
@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
def test_order(data: Mixture, schedule: Any, kind: str) -> None:
    check_order(lambda n: planners.ddim(schedule, n, prediction=kind, set_alpha_to_one=False), 1, data)


@pytest.mark.parametrize(("steps", "kind"), [(1000, "epsilon"), (25, "x0"), (25, "v"), (25, "flow")])
def test_eta_1_is_ddpm(steps: int, kind: str) -> None:
    """Song et al. 2021, section 4.1."""
    ddim = planners.ddim(LINEAR, steps, prediction=kind, eta=1.0, fixed_stride=False)
    ddpm = planners.ddpm(LINEAR, steps, prediction=kind)
    torch.testing.assert_close(composed(ddim), composed(ddpm), rtol=1e-11, atol=1e-12)


def test_clipped_eta_1_is_clipped_ddpm() -> None:
    """DDPM's mean is that of x and the clipped x0: DDIM must derive eps again from it."""
    options: dict[str, Any] = {"prediction": "v", "clip_sample": 0.5}
    ddim = planners.ddim(LINEAR, 25, eta=1.0, use_clipped_model_output=True, **options)
    ddpm = planners.ddpm(LINEAR, 25, **options)
    assert ddim.rows == ddpm.rows
    torch.testing.assert_close(ddim.table, ddpm.table, rtol=1e-11, atol=1e-14)


def test_eta_0_is_the_first_order_exponential_integrator() -> None:
    ddim, dpm = planners.ddim(VP, 12), planners.dpm_solver_pp(VP, 12, order=1)
    torch.testing.assert_close(composed(ddim), composed(dpm), rtol=1e-11, atol=1e-13)


def test_a_clip_that_does_not_bind_changes_nothing() -> None:
    plain, clipped = planners.ddim(LINEAR, 12), planners.ddim(LINEAR, 12, clip_sample=1e9)
    assert clipped.rows == ("d", "x0", "cut", "dx", "x'")
    torch.testing.assert_close(composed(plain), composed(clipped), rtol=1e-11, atol=1e-12)


def test_a_stride_that_divides_leads_to_the_next_timestep() -> None:
    stride, following = (planners.ddim(LINEAR, 20, fixed_stride=fixed) for fixed in (True, False))
    assert torch.equal(stride.table, following.table)
    stride, following = (
        planners.ddim(LINEAR, 20, timestep_spacing="linspace", fixed_stride=fixed) for fixed in (True, False)
    )
    assert not torch.equal(stride.table, following.table)


# ---- moments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moments_of_one_point(eta: float) -> None:
    """q(x_t | x0) is kept for any eta, Song et al. 2021, lemma 1: data in one point has the right marginals."""
    plan = planners.ddim(LINEAR, 10, eta=eta, set_alpha_to_one=False, fixed_stride=False)
    point = Mixture(means=(0.7,), stds=(0.0,))
    for (mean, variance), alpha, sigma in zip(
        moments(plan, point), plan.alphas.tolist(), plan.sigmas.tolist(), strict=True
    ):
        assert mean == pytest.approx(0.7 * alpha, rel=1e-11)
        assert variance == pytest.approx(sigma**2, rel=1e-11)


def test_moments_of_samples() -> None:
    """What is drawn has the moments of the table: 4 standard deviations of the estimate."""
    plan, n = planners.ddim(LINEAR, 20, eta=0.7, prediction="v"), 50_000
    (first, *_, (mean, variance)) = moments(plan, GAUSSIAN)
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(0)) * math.sqrt(first[1]) + first[0]
    got = plan.run(_answers(plan), x, seed=1).double()
    assert abs(float(got.mean()) - mean) < 4 * math.sqrt(variance / n)
    assert abs(float(got.var()) - variance) < 4 * variance * math.sqrt(2 / n)


def _answers(plan: planners.Plan) -> Any:
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    exact = ByIndex(GAUSSIAN, plan.prediction, levels, [1.0] * plan.steps)
    return lambda x, t: exact(x, t).to(x.dtype)
