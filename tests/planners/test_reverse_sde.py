# SPDX-License-Identifier: Apache-2.0
"""Reverse SDE and probability flow: parity with diffusers, formulas, orders of the moments and of the ODE, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan

from tests.kit.oracles import (
    BIMODAL,
    GAUSSIAN,
    Mixture,
    check_order,
    execute,
    measured_order,
    moments,
    predict,
    relative_error,
)
from tests.kit.peers import check_parity

VE: Any = diffusers.ScoreSdeVeScheduler
VP: Any = ScoreSdeVpScheduler

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF = [(n, dtype) for n in (1, 2, 20) for dtype in DTYPES[1:]]
KINDS = ("reverse_diffusion", "euler_maruyama", "ancestral")
ON_VP = schedules.exponential(0.02, 40, base=schedules.linear())
ON_VE = schedules.exponential(0.02, 40)
PATHS = {"vp": ON_VP, "ve": ON_VE}


def weights(plan: Plan, step: int, row: str = "x'") -> dict[str, float]:
    names = [*plan.inputs, *plan.rows, "z"]
    return dict(zip(names, plan.table[step, plan.rows.index(row)].tolist(), strict=False))


# ---- diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "dtype"), [(n, torch.float32) for n in (1, 2, 3, 10, 50)] + HALF)
def test_parity_of_the_ve_sde(steps: int, dtype: torch.dtype) -> None:
    check_parity(VE, {"correct_steps": 0}, steps, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [{"sigma_min": 0.02, "sigma_max": 50.0}, {"sampling_eps": 1e-3}], ids=str)
def test_parity_of_ve_options(config: dict[str, Any], dtype: torch.dtype) -> None:
    check_parity(VE, {"correct_steps": 0, "num_train_timesteps": 100, "snr": 0.3, **config}, 20, dtype=dtype)
    check_parity(VE, {"correct_steps": 0}, 7, set_timesteps={"sampling_eps": 1e-4}, dtype=dtype)


@pytest.mark.parametrize(("steps", "dtype"), [(n, torch.float32) for n in (1, 2, 3, 10, 50)] + HALF)
def test_parity_of_the_vp_sde(steps: int, dtype: torch.dtype) -> None:
    check_parity(VP, {}, steps, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_of_vp_options(dtype: torch.dtype) -> None:
    check_parity(VP, {"beta_min": 0.5, "beta_max": 12, "sampling_eps": 0.02}, 20, dtype=dtype)


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({}, 10, "cannot reproduce correct_steps=1: a corrector's step size is a ratio of norms"),
        ({"correct_steps": 0, "sampling_eps": 0.1}, 20, "cannot reproduce sampling_eps=0.1: with 20 steps"),
        ({"correct_steps": 0}, 0, "steps: expected at least 1, got 0"),
    ],
)
def test_refused_by_name(config: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(VE(**config), steps)


# ---- formulas ------------------------------------------------------------------------------------------------


def test_the_training_grid_gives_the_steps_of_the_paper() -> None:
    """On all T levels of a VP schedule, with beta_i: appendix E, equation (46), and equation (4)."""
    schedule = schedules.linear(100, beta_start=1e-3, beta_end=0.2)
    ab = schedule.alphas_cumprod
    beta = float(1 - ab[60] / ab[59])
    diffusion = planners.reverse_sde(schedule, 100, kind="reverse_diffusion")
    found = weights(diffusion, 39)
    assert found == pytest.approx(
        {"x": 2 - math.sqrt(1 - beta), "prediction": beta, "x'": 0, "z": math.sqrt(beta)}
    )
    for variance, share in (("large", 1.0), ("small", math.sqrt(float((1 - ab[59]) / (1 - ab[60]))))):
        plan = planners.reverse_sde(schedule, 100, kind="ancestral", variance=variance)  # type: ignore[arg-type]
        x = torch.tensor([0.7], dtype=torch.float64)
        score = torch.tensor([-0.4], dtype=torch.float64)
        z = torch.tensor([1.3], dtype=torch.float64)
        row = weights(plan, 39)
        x0 = (x + float(1 - ab[60]) * score) / math.sqrt(ab[60])
        got = row["x"] * x + row["x0"] * x0 + row["z"] * z
        want = (x + beta * score) / math.sqrt(1 - beta) + math.sqrt(beta) * share * z
        torch.testing.assert_close(got, want)


def test_on_ve_levels_reverse_diffusion_and_euler_maruyama_are_one() -> None:
    a, b = (planners.reverse_sde(ON_VE, 12, kind=kind) for kind in KINDS[:2])  # type: ignore[arg-type]
    torch.testing.assert_close(a.table, b.table, rtol=1e-13, atol=1e-13)


def test_small_variance_is_ddim_with_eta_1() -> None:
    for name, schedule in {"vp": schedules.linear(), **PATHS}.items():
        ours = planners.reverse_sde(schedule, 10, kind="ancestral", prediction="epsilon")
        ddim = planners.ddim(schedule, 10, eta=1.0, timestep_spacing="linspace", fixed_stride=False)
        x = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = [x.flip(0) * (0.5 + i / 20) for i in range(10)]
        levels = list(zip(ours.alphas.tolist(), ours.sigmas.tolist(), strict=True))

        def model(x: torch.Tensor, i: int, levels: Any = levels) -> torch.Tensor:
            return predict("epsilon", x, BIMODAL.denoise(x, *levels[i]), *levels[i])

        ends = [execute(plan, model, x, noise) for plan in (ours, ddim)]
        assert relative_error(*ends) < 1e-10, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["score", "epsilon", "x0", "v", "flow"])
def test_every_prediction_gives_the_same_step(kind: Any, prediction: str) -> None:
    plans = [planners.reverse_sde(ON_VP, 8, kind=kind, prediction=p) for p in ("score", prediction)]
    x = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = [x.flip(0) * (0.5 + i / 20) for i in range(8)]
    ends = []
    for plan in plans:
        levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

        def model(x: torch.Tensor, i: int, plan: Plan = plan, levels: Any = levels) -> torch.Tensor:
            return predict(plan.prediction, x, BIMODAL.denoise(x, *levels[i]), *levels[i])

        ends.append(execute(plan, model, x, noise))
    assert relative_error(*ends) < 1e-9


@pytest.mark.parametrize(
    "make", [planners.ddim, planners.euler, planners.dpm_solver_pp, planners.dpm_solver, planners.heun]
)
def test_other_planners_take_a_score(make: Callable[..., Plan]) -> None:
    x = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for kind in ("score", "epsilon"):
        plan = make(schedules.linear(), 6, prediction=kind)
        levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

        def model(x: torch.Tensor, i: int, kind: str = kind, levels: Any = levels) -> torch.Tensor:
            return predict(kind, x, BIMODAL.denoise(x, *levels[i]), *levels[i])

        ends.append(execute(plan, model, x))
    assert relative_error(*ends) < 1e-10


def test_ancestral_steps_start_at_alpha_0() -> None:
    plan = planners.reverse_sde(
        schedules.zero_terminal_snr(schedules.linear()), 4, kind="ancestral", prediction="v"
    )
    assert bool(plan.table[..., :-2].isfinite().all())
    assert plan.init_noise_sigma == 1


def test_the_last_step_gives_its_mean() -> None:
    """On a VE schedule the mean of a step to sigma = 0 is Tweedie's x0."""
    plan = planners.reverse_sde(ON_VE, 5)
    assert plan.noisy == (True, True, True, True, False)
    assert weights(plan, 4) == pytest.approx({"x": 1, "prediction": 0.02**2, "x'": 0, "z": 0})
    assert planners.reverse_sde(ON_VE, 5, denoise=False).noisy[-1]
    assert plan.init_noise_sigma == 40


# ---- orders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize(
    ("kind", "path"), [("reverse_diffusion", "vp"), ("reverse_diffusion", "ve"), ("euler_maruyama", "vp")]
)
def test_order_of_the_probability_flow(kind: Any, path: str, data: Mixture) -> None:
    """On the VE path Euler is the same table."""
    check_order(
        lambda n: planners.reverse_sde(PATHS[path], n, kind=kind, kappa=0.0, final_sigmas_type="sigma_min"),
        1,
        data,
        (40, 80, 120),
    )


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("reverse_diffusion", {}),
        ("reverse_diffusion", {"kappa": 0.5}),
        ("euler_maruyama", {"kappa": 0.9}),
        ("ancestral", {}),
        ("ancestral", {"variance": "large"}),
    ],
    ids=str,
)
def test_weak_order_of_the_moments(kind: Any, options: dict[str, Any], path: str) -> None:
    """Mean and variance of Gaussian data are kept up to O(step size), which is measured, exactly propagated.

    The mean of an ancestral step is the true posterior mean; without drift any step keeps the mean.
    """
    counts, errors = (50, 100, 200), []
    for n in counts:
        plan = planners.reverse_sde(PATHS[path], n, kind=kind, final_sigmas_type="sigma_min", **options)
        alpha, sigma = float(plan.alphas[-1]), float(plan.sigmas[-1])
        mean, variance = moments(plan, GAUSSIAN)
        errors.append((abs(mean - alpha * 0.3), abs(variance - (alpha * 0.5) ** 2 - sigma**2)))
    of_mean, of_variance = zip(*errors, strict=True)
    assert measured_order(counts, of_variance) == pytest.approx(1, abs=0.15), of_variance
    if kind == "ancestral" or path == "ve":
        assert max(of_mean) < 1e-13
    else:
        assert measured_order(counts, of_mean) == pytest.approx(1, abs=0.15), of_mean
    assert max(errors[-1]) < 0.06


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_moments_of_the_table(kind: Any, path: str) -> None:
    """40 000 samples in float32 with generated noise, within three standard errors of what the table says."""
    plan = planners.reverse_sde(PATHS[path], 30, kind=kind, final_sigmas_type="sigma_min")
    mean, variance = moments(plan, GAUSSIAN)
    alpha, sigma = float(plan.alphas[0]), float(plan.sigmas[0])
    g = torch.Generator().manual_seed(3)
    x = alpha * 0.3 + math.hypot(alpha * 0.5, sigma) * torch.randn(40_000, generator=g)
    levels = dict(
        zip(
            plan.timesteps.tolist(),
            zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True),
            strict=False,
        )
    )

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = levels[min(levels, key=lambda known: abs(known - float(t)))]
        return predict("score", x, GAUSSIAN.denoise(x, *level), *level).float()

    end = plan.run(model, x, seed=5).double()
    assert float(end.mean()) == pytest.approx(mean, abs=3 * math.sqrt(variance / 40_000))
    assert float(end.var()) == pytest.approx(variance, rel=3 * math.sqrt(2 / 40_000))


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "heun"}, "predictor: expected reverse_diffusion, euler_maruyama or ancestral, got 'heun'"),
        ({"kappa": 1.5}, "kappa: expected 0 to 1, got 1.5"),
        ({"kind": "ancestral", "kappa": 0.0}, "kappa: an ancestral step is that of the SDE"),
        ({"kind": "ancestral", "variance": "learned"}, "variance: expected small or large, got 'learned'"),
        ({"variance": "large"}, "variance: it is a choice of ancestral steps, reverse_diffusion has one"),
        (
            {"rates": [(0.0, 1.0)] * 4},
            "rates: expected 4 pairs, and euler_maruyama, got 4 and reverse_diffusion",
        ),
        ({"rates": [(0.0, 1.0)], "kind": "euler_maruyama"}, "rates: expected 4 pairs"),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.reverse_sde(ON_VP, 4, **options)


def test_an_infinite_drift_is_refused() -> None:
    zero = schedules.zero_terminal_snr(schedules.linear())
    with pytest.raises(ValueError, match="euler_maruyama: the drift is infinite where alpha = 0"):
        planners.reverse_sde(zero, 4, kind="euler_maruyama", prediction="v")
    with pytest.raises(ValueError, match="prediction score: x0 is undetermined where alpha = 0"):
        planners.reverse_sde(zero, 4, kind="ancestral")
