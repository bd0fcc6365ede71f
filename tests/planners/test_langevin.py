# SPDX-License-Identifier: Apache-2.0
"""Langevin dynamics: formulas, the stationary distribution of a finite step, predictor-corrector runs, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.planners import Plan

from tests.kit.oracles import (
    BIMODAL,
    GAUSSIAN,
    Mixture,
    execute,
    moments,
    predict,
    relative_error,
)

ON_VE = schedules.exponential(0.02, 40)
ON_VP = schedules.exponential(0.02, 40, base=schedules.linear())
NCSN = schedules.exponential(0.01, 1.0)


def weights(plan: Plan, step: int, row: str = "x'") -> dict[str, float]:
    names = [*plan.inputs, *plan.rows, "z"]
    return dict(zip(names, plan.table[step, plan.rows.index(row)].tolist(), strict=False))


# ---- formulas ------------------------------------------------------------------------------------------------


def test_annealed_langevin_dynamics_is_ncsn() -> None:
    """Algorithm 1: x <- x + alpha_i/2 score + sqrt(alpha_i) z, alpha_i = epsilon sigma_i^2/sigma_L^2, T times."""
    plan = planners.langevin(NCSN, 10, step_size=2e-5, correct_steps=3, predictor=None, denoise=False)
    assert plan.steps == 30
    ratios = [0.01 ** (k / 9) for k in range(10)]
    assert plan.timesteps.tolist() == pytest.approx([r for r in ratios for _ in range(3)])
    for i in (0, 14, 29):
        alpha = 2e-5 * (ratios[i // 3] / 0.01) ** 2
        assert weights(plan, i) == pytest.approx(
            {"x": 1, "prediction": alpha / 2, "x'": 0, "z": math.sqrt(alpha)}
        )
    assert plan.noisy == (True,) * 30
    assert plan.init_noise_sigma == 1


def test_the_last_evaluation_denoises() -> None:
    """x0 = (x + sigma^2 score)/alpha, at the last level."""
    for schedule in (NCSN, ON_VP):
        plan = planners.langevin(schedule, 10, correct_steps=2, predictor=None)
        level = float(plan.alphas[-2]), float(plan.sigmas[-2])
        x = torch.linspace(-1, 1, 9, dtype=torch.float64)
        single = {"x": x, "prediction": torch.cos(x)}
        d = sum(weights(plan, 20, "d")[name] * value for name, value in single.items())
        x0 = weights(plan, 20, "x0")["d"] * d
        torch.testing.assert_close(x0, (x + level[1] ** 2 * torch.cos(x)) / level[0])
        assert weights(plan, 20) == {"x": 0, "prediction": 0, "d": 0, "x0": 1, "x'": 0, "z": 0}
        assert plan.steps == 21
        assert (float(plan.alphas[-1]), float(plan.sigmas[-1])) == (1, 0)


def test_snr_and_step_size_are_one_rule() -> None:
    snr = math.sqrt(2e-5) / 0.02
    a = planners.langevin(NCSN, 10, step_size=2e-5, correct_steps=4, predictor=None)
    b = planners.langevin(NCSN, 10, snr=snr, correct_steps=4, predictor=None)
    torch.testing.assert_close(a.table, b.table)


def test_the_corrector_comes_first_and_the_predictor_is_that_of_the_reverse_sde() -> None:
    """Song et al.'s code: correctors at t_i, then from t_i to t_i+1; h = 2 (snr sigma)^2."""
    for options in (
        {},
        {"predictor": "euler_maruyama", "kappa": 0.0},
        {"predictor": "ancestral", "variance": "large"},
    ):
        both: Any = options
        plan = planners.langevin(ON_VP, 5, snr=0.2, correct_steps=2, **both)
        alone = planners.reverse_sde(
            ON_VP,
            5,
            kind=both.get("predictor", "reverse_diffusion"),
            **{name: value for name, value in both.items() if name != "predictor"},
        )
        torch.testing.assert_close(plan.table[2::3], alone.table, rtol=0, atol=0)
        for i in (0, 4, 13):
            h = 2 * (0.2 * float(plan.sigmas[i])) ** 2
            found = weights(plan, i)
            assert (found["x"], found["prediction"], found["z"]) == pytest.approx((1, h, math.sqrt(2 * h)))
        assert plan.timesteps[::3].tolist() == plan.timesteps[2::3].tolist() == alone.timesteps.tolist()
        torch.testing.assert_close(plan.sigmas[[0, 3, 6, 9, 12, 15]], alone.sigmas)
        assert not plan.noisy[-1]


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_every_prediction_gives_the_same_steps(prediction: str) -> None:
    ends = []
    x = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind in ("score", prediction):
        plan = planners.langevin(ON_VP, 6, prediction=kind, correct_steps=2)
        levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

        def model(x: torch.Tensor, i: int, kind: str = kind, levels: Any = levels) -> torch.Tensor:
            return predict(kind, x, BIMODAL.denoise(x, *levels[i]), *levels[i])

        ends.append(execute(plan, model, x, [x.flip(0) * (0.5 + i / 20) for i in range(plan.steps)]))
    assert relative_error(*ends) < 1e-9


def test_a_diffusers_corrector_with_its_norms_at_their_expectation_is_this_one() -> None:
    """For a single data point score = -z/sigma: |z|/|score| is sigma, and step_correct's h is 2 (snr sigma)^2."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.ScoreSdeVeScheduler(snr=0.16)
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    sigma, count = 3.0, 40_000
    eps, noise = (torch.randn(1, 1, 200, 200, generator=g) for _ in range(2))
    x, score = 0.5 + sigma * eps, -eps / sigma
    plan = planners.langevin(schedules.from_levels([sigma], [1.0, 1.0], [sigma, 0.0]), 1, snr=0.16)
    ours, _ = plan.step(0, x, score, noise=noise)

    g.manual_seed(0)
    torch.randn(1, 1, 200, 200, generator=g)
    theirs = scheduler.step_correct(score, x, generator=g).prev_sample
    # Its noise is the second draw of the same generator; both norms are within 1/sqrt(2 count) of their mean.
    assert relative_error(ours, theirs) < 10 / math.sqrt(count)


# ---- the stationary distribution -----------------------------------------------------------------------------


def one_level(schedule_alpha: float, sigma: float, snr: float, count: int) -> Plan:
    schedule = schedules.from_levels([500.0], [schedule_alpha] * 2, [sigma, sigma])
    return planners.langevin(schedule, 1, snr=snr, correct_steps=count, predictor=None, denoise=False)


@pytest.mark.parametrize("level", [(1.0, 0.4), (0.8, 0.6), (0.1, 2.0)], ids=str)
@pytest.mark.parametrize("snr", [0.1, 0.3, 0.7])
def test_the_stationary_distribution_of_a_finite_step(snr: float, level: tuple[float, float]) -> None:
    """n steps from variance V give S + (V - S)(1 - h/V)^(2n), S = V/(1 - h/(2V)), and keep the mean alpha m."""
    (alpha, sigma), count = level, 60
    variance, h = (alpha * 0.5) ** 2 + sigma**2, 2 * (snr * sigma) ** 2
    stationary = variance / (1 - h / (2 * variance))
    left = (1 - h / variance) ** (2 * count)
    mean, found = moments(one_level(alpha, sigma, snr, count), GAUSSIAN)
    assert mean == pytest.approx(alpha * 0.3, rel=1e-12)
    assert found == pytest.approx(stationary + (variance - stationary) * left, rel=1e-12)


def test_langevin_forgets_a_wrong_start() -> None:
    """40 000 chains in float32 from the wrong mean: the table's stationary moments, within three standard errors."""
    plan = one_level(1.0, 0.4, 0.5, 120)
    variance, h = 0.41, 2 * (0.5 * 0.4) ** 2
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0)) + 4

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return predict("score", x, GAUSSIAN.denoise(x, 1.0, 0.4), 1.0, 0.4).float()

    end = plan.run(model, x, seed=1).double()
    stationary = variance / (1 - h / (2 * variance))
    assert float(end.mean()) == pytest.approx(0.3, abs=3 * math.sqrt(stationary / 40_000))
    assert float(end.var()) == pytest.approx(stationary, rel=3 * math.sqrt(2 / 40_000))


# ---- predictor-corrector -------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [ON_VE, ON_VP], ids=["ve", "vp"])
def test_correctors_pull_the_moments_to_their_stationary_ones(schedule: Any) -> None:
    """From few levels the predictor alone has a wrong variance, which correctors at each level halve at least."""
    alone = planners.reverse_sde(schedule, 12, final_sigmas_type="sigma_min")
    both = planners.langevin(schedule, 12, snr=0.2, correct_steps=20, final_sigmas_type="sigma_min")
    exact = (float(alone.alphas[-1]) * 0.5) ** 2 + float(alone.sigmas[-1]) ** 2
    errors = [abs(moments(plan, GAUSSIAN)[1] - exact) for plan in (alone, both)]
    assert errors[1] < errors[0] / 2, errors


def test_a_predictor_corrector_run_samples_a_mixture() -> None:
    """20 000 samples: both modes with their weights, in float32 from the prior."""
    data = Mixture((0.35, 0.65), (-0.8, 0.6), (0.15, 0.15))
    plan = planners.langevin(ON_VE, 40, snr=0.16)
    known = dict(zip(plan.timesteps.tolist(), plan.sigmas.tolist(), strict=False))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = known[min(known, key=lambda value: abs(value - float(t)))]
        return predict("score", x, data.denoise(x, 1.0, sigma), 1.0, sigma).float()

    x = plan.init_noise_sigma * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    end = plan.run(model, x, seed=2).double()
    assert float((end < -0.1).double().mean()) == pytest.approx(0.35, abs=0.03)
    assert float(end.mean()) == pytest.approx(0.35 * -0.8 + 0.65 * 0.6, abs=0.04)


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr": 0.1, "step_size": 1e-5}, "snr, step_size: pass one or the other"),
        ({"snr": 1.0}, "snr: expected more than 0 and less than 1, where Langevin steps diverge, got 1"),
        ({"snr": 0.0}, "snr: expected more than 0"),
        ({"step_size": -1.0}, "step_size: expected a positive number, got -1.0"),
        (
            {"step_size": 0.1},
            "snr: expected more than 0 and less than 1, where Langevin steps diverge, got 7.906",
        ),
        ({"correct_steps": 0}, "correct_steps: expected at least 1, got 0; `reverse_sde` has no corrector"),
        (
            {"predictor": "langevin"},
            "predictor: expected reverse_diffusion, euler_maruyama or ancestral, got 'langevin'",
        ),
        ({"predictor": "ancestral", "kappa": 0.5}, "kappa: an ancestral step is that of the SDE"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.langevin(ON_VE, 4, **options)
