# SPDX-License-Identifier: Apache-2.0
"""DDPM against diffusers, and the moments that its variances must give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan, Threshold
from fastdiff.planners._posterior import Posterior
from torch import Tensor

from tests.kit.oracles import GAUSSIAN, Level, Mixture
from tests.kit.peers import ByIndex, check_parity
from tests.kit.tables import composed, moments

diffusers = pytest.importorskip("diffusers")

LINEAR = schedules.linear()
STEPS = (1, 2, 3, 7, 20, 50)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")

CONFIGS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"timestep_spacing": "linspace", "clip_sample_range": 0.7, "beta_schedule": "sigmoid"},
    {"timestep_spacing": "trailing", "prediction_type": "sample", "beta_schedule": "scaled_linear"},
    {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "steps_offset": 1},
    {"beta_schedule": "laplace", "prediction_type": "sample", "timestep_spacing": "linspace"},
    {"trained_betas": [1e-3 * 1.05**i for i in range(80)], "num_train_timesteps": 80},
    {"num_train_timesteps": 500, "beta_start": 2e-4, "beta_end": 0.04, "clip_sample_range": 2.0},
]


# ---- parity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_parity(index: int, variance: str) -> None:
    """Two of the step counts each, so that every config and variance meets every count."""
    first = index + VARIANCES.index(variance)
    for steps in (STEPS[first % 6], STEPS[(first + 3) % 6]):
        check_parity(diffusers.DDPMScheduler, CONFIGS[index] | {"variance_type": variance}, steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_parity_in_half_precision(index: int, dtype: torch.dtype) -> None:
    for k, variance in enumerate(VARIANCES[index % 2 :: 2]):
        config = CONFIGS[index] | {"variance_type": variance}
        check_parity(diffusers.DDPMScheduler, config, STEPS[(index + 3 * k) % 6], dtype=dtype)


@pytest.mark.parametrize("timesteps", [[999, 700, 401, 100, 7], [500, 0], [30]], ids=str)
def test_parity_with_given_timesteps(timesteps: list[int]) -> None:
    for variance in VARIANCES:
        config = {"variance_type": variance}
        plan = check_parity(diffusers.DDPMScheduler, config, None, set_timesteps={"timesteps": timesteps})
        assert plan.timesteps.tolist() == timesteps


def test_fractions_of_given_timesteps_are_cut_off() -> None:
    timesteps = {"timesteps": [900.9, 300.2]}
    assert check_parity(diffusers.DDPMScheduler, {}, None, set_timesteps=timesteps).timesteps.tolist() == [
        900,
        300,
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_with_a_threshold(dtype: torch.dtype) -> None:
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
    for variance in ("fixed_small", "learned_range"):
        check_parity(diffusers.DDPMScheduler, config | {"variance_type": variance}, 10, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_of_the_parallel_scheduler(dtype: torch.dtype) -> None:
    for variance in VARIANCES:
        check_parity(diffusers.DDPMParallelScheduler, {"variance_type": variance}, 10, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"variance_type": "learned_range", "clip_sample": False},
        {"prediction_type": "sample", "clip_sample_range": 0.5, "num_train_timesteps": 200},
    ],
    ids=str,
)
def test_parity_of_unclip(config: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in (2, 7, 50) if dtype == torch.float32 else (3, 20):
        check_parity(diffusers.UnCLIPScheduler, config, steps, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [{}, {"scaler": 1.2}, {"scaler": 0.5, "s": 0.02}], ids=str)
def test_parity_of_wuerstchen(config: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in STEPS if dtype == torch.float32 else (3, 20):
        check_parity(diffusers.DDPMWuerstchenScheduler, config, steps, dtype=dtype)


@pytest.mark.parametrize("times", [[1.0, 0.6, 0.3, 0.0], [0.9, 0.5, 0.2]], ids=str)
def test_parity_of_wuerstchen_with_given_timesteps(times: list[float]) -> None:
    """The list has the end point; noise is added in the last step too where that is not 0."""
    exact = torch.tensor(times, dtype=torch.float64)
    plan = check_parity(diffusers.DDPMWuerstchenScheduler, {}, None, set_timesteps={"timesteps": exact})
    assert plan.noisy[-1] == (times[-1] != 0)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, 10, "the root of a negative logarithm"),
        ("DDPMScheduler", {"variance_type": "learned"}, 10, "the root of the model's output"),
        (
            "DDPMScheduler",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            10,
            "x0 is undetermined",
        ),
        ("UnCLIPScheduler", {}, 1, "divides by num_inference_steps - 1"),
        ("DDPMWuerstchenScheduler", {}, 1000, "cannot reproduce scaler=1.0: .* two steps have one level"),
    ],
)
def test_what_is_refused(name: str, config: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(getattr(diffusers, name)(**config), steps)


def test_refused_arguments() -> None:
    rising = schedules.from_levels([1, 2], [0.9, 0.5, 0.1], [0.1, 0.5, 0.9], ascending=True)
    with pytest.raises(ValueError, match="variance_type: expected one of fixed_small"):
        planners.ddpm(LINEAR, 4, variance_type="small")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip_sample, threshold: pass one or the other"):
        planners.ddpm(LINEAR, 4, clip_sample=1.0, threshold=Threshold())
    with pytest.raises(ValueError, match="noise is added between levels that decrease"):
        planners.ddpm(rising, 2)


def test_what_diffusers_makes_of_fixed_large_log() -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large_log")
    scheduler.set_timesteps(10)
    x = torch.ones(1, 1, 2, 2)
    assert scheduler.step(x, scheduler.timesteps[0], x).prev_sample.isnan().all()


# ---- the deviation -----------------------------------------------------------------------------------------


def levels(plan: Plan) -> list[Level]:
    return list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))


def fixed(steps: int) -> tuple[Plan, Plan]:
    """With the small and with the large variance."""
    return planners.ddpm(LINEAR, steps), planners.ddpm(LINEAR, steps, variance_type="fixed_large")


def noise(plan: Plan) -> Tensor:
    """The coefficient of z in x', [S]."""
    return composed(plan)[:, -1]


def test_the_variances_are_those_of_the_paper() -> None:
    """beta_t and beta~_t of equation (7) on the full schedule; the last step adds none."""
    ab = LINEAR.alphas_cumprod.flip(0)
    before = torch.cat((ab[1:], torch.ones(1, dtype=torch.float64)))
    beta = 1 - ab / before
    small = (1 - before) / (1 - ab) * beta
    for variance, want in (("fixed_small", small), ("fixed_small_log", small), ("fixed_large", beta)):
        got = noise(planners.ddpm(LINEAR, 1000, variance_type=variance)) ** 2  # type: ignore[arg-type]
        torch.testing.assert_close(got[:-1], want[:-1], rtol=1e-9, atol=0)
        assert got[-1] == 0


def test_the_learned_range_is_between_them() -> None:
    """log s^2 = f log beta + (1 - f) log beta~, f = (v + 1)/2: Nichol and Dhariwal, equation (15)."""
    learned = planners.ddpm(LINEAR, 20, variance_type="learned_range")
    small, large = map(noise, fixed(20))
    assert learned.learned_variance is not None
    for v in (-1.0, 0.3, 1.0):
        a, b = learned.learned_variance.unbind(1)
        f = (v + 1) / 2
        want = large**f * small ** (1 - f)
        torch.testing.assert_close(noise(learned) * (a + b * v).exp(), want, rtol=1e-12, atol=0)


def test_the_learned_variance_is_a_logarithm() -> None:
    """improved-diffusion's LEARNED: the deviation is e^(v/2)."""
    plan = planners.ddpm(LINEAR, 5, variance_type="learned")
    x, z = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    v = torch.full_like(x, math.log(0.04))
    got, _ = plan.step(0, x, torch.cat((x, v), 1), noise=z)
    mean, _ = plan.step(0, x, torch.cat((x, v), 1), noise=torch.zeros_like(z))
    torch.testing.assert_close(got - mean, 0.2 * z, rtol=1e-4, atol=1e-5)


def test_noise_at_the_end() -> None:
    """diffusers' last step adds it unless the timestep is 0; algorithm 2 never does."""
    options: dict[str, Any] = {"variance_type": "fixed_large", "timestep_spacing": "trailing"}
    plan = planners.ddpm(LINEAR, 10, **options)
    assert float(noise(plan)[-1]) == pytest.approx(LINEAR.level(99)[1])
    without = planners.ddpm(LINEAR, 10, noise_at_end=False, **options)
    assert without.noisy == (True,) * 9 + (False,)
    assert torch.equal(noise(without)[:-1], noise(plan)[:-1])
    assert not planners.ddpm(LINEAR, 10, variance_type="fixed_large").noisy[-1], "leading ends with t = 0"


# ---- moments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variance", "std"), [("fixed_small", 0.0), ("fixed_large", 1.0)], ids=["one-point", "normal"]
)
@pytest.mark.parametrize("steps", [10, 1000])
def test_moments_for_which_a_fixed_variance_is_exact(steps: int, variance: Any, std: float) -> None:
    """Ho et al., section 3.2: beta~ for data in one point, beta for standard normal data."""
    plan, data = planners.ddpm(LINEAR, steps, variance_type=variance), Mixture(means=(0.7,), stds=(std,))
    for (mean, spread), (alpha, sigma) in list(zip(moments(plan, data), levels(plan), strict=True))[:-1]:
        assert mean == pytest.approx(0.7 * alpha, rel=1e-9)
        assert spread == pytest.approx((alpha * std) ** 2 + sigma**2, rel=1e-9)


def optimal(data: Mixture, q: Posterior) -> float:
    """v of the learned range whose variance is that of x_t given x_s: small^2 + (weight of x0)^2 Var(x0 | x_s)."""
    (alpha, sigma), spread = q.s, data.stds[0] ** 2
    given = spread * sigma**2 / (alpha**2 * spread + sigma**2)
    log = math.log(q.small**2 + q.x0**2 * given)
    low, high = 2 * math.log(q.small), 2 * math.log(q.large)
    return 2 * (log - low) / (high - low) - 1


def test_moments_of_a_learned_variance() -> None:
    """With the right variance every marginal is exact, in any number of steps; fixed ones are off, one on each side."""
    plan = planners.ddpm(LINEAR, 10, variance_type="learned_range")
    pairs = [Posterior(s, t) for s, t in zip(levels(plan), levels(plan)[1:], strict=False)]
    right = [optimal(GAUSSIAN, q) for q in pairs[:-1]] + [0.0]
    assert all(-1 <= v <= 1 for v in right), "between the bounds of section 3.2"
    assert plan.learned_variance is not None
    slope = plan.learned_variance[:, 1].tolist()
    got = moments(plan, GAUSSIAN, lambda i: math.exp(slope[i] * right[i]))
    small, large = (moments(plan, GAUSSIAN) for plan in fixed(10))
    for i, (alpha, sigma) in enumerate(levels(plan)[:-1]):
        exact = (alpha * GAUSSIAN.stds[0]) ** 2 + sigma**2
        assert got[i] == pytest.approx((alpha * GAUSSIAN.means[0], exact), rel=1e-10)
        if i:
            assert small[i][1] < exact < large[i][1]


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_moments_of_samples(variance: Any) -> None:
    """What is drawn has the moments of the table: within 4 standard deviations of the estimate."""
    plan, n = planners.ddpm(LINEAR, 20, prediction="v", variance_type=variance), 50_000
    slope = [0.0] * plan.steps if plan.learned_variance is None else plan.learned_variance[:, 1].tolist()
    first, *_, (mean, spread) = moments(plan, GAUSSIAN, lambda i: math.exp(0.4 * slope[i]))
    exact = ByIndex(GAUSSIAN, plan.prediction, levels(plan), [1.0] * plan.steps)

    def model(x: Tensor, t: Tensor) -> Tensor:
        p = exact(x, t).to(x.dtype)
        return p if plan.learned_variance is None else torch.cat((p, torch.full_like(p, 0.4)), 1)

    x = torch.randn(1, n, generator=torch.Generator().manual_seed(0)) * math.sqrt(first[1]) + first[0]
    got = plan.run(model, x, seed=1).double()
    assert abs(float(got.mean()) - mean) < 4 * math.sqrt(spread / n)
    assert abs(float(got.var()) - spread) < 4 * spread * math.sqrt(2 / n)
