# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++ and its SDE: parity with diffusers, the paper's formulas, order of convergence, moments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture
from tests.kit.peers import check_parity

diffusers = pytest.importorskip("diffusers")

MULTI, SINGLE = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
CLASSES = [pytest.param(MULTI, id="multi"), pytest.param(SINGLE, id="single")]
ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")
SOLVERS = ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
HALF = (torch.float16, torch.bfloat16)
RUNS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {}),
    (3, {"final_sigmas_type": "sigma_min"}),
    (6, {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    (10, {}),
    (14, {"final_sigmas_type": "sigma_min"}),
    (15, {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    (20, {}),
    (50, {"lower_order_final": False}),
]


# ---- parity with diffusers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("order", "solver"), SOLVERS)
def test_orders(cls: type, algorithm: str, order: int, solver: str) -> None:
    for steps, options in RUNS:
        config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver, **options}
        check_parity(cls, config, steps)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("order", "solver"), SOLVERS)
def test_half_precision(cls: type, order: int, solver: str, dtype: torch.dtype) -> None:
    for steps, algorithm, prediction in zip((3, 10, 20), ALGORITHMS * 2, PREDICTIONS, strict=False):
        config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}
        check_parity(cls, {**config, "prediction_type": prediction}, steps, dtype=dtype)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
def test_predictions_and_beta_schedules(cls: type, betas: str, prediction: str) -> None:
    for steps, order in ((1, 2), (5, 3), (20, 2), (50, 3)):
        config = {"beta_schedule": betas, "prediction_type": prediction, "solver_order": order}
        check_parity(cls, config, steps)


@pytest.mark.parametrize(
    ("cls", "spaced"),
    [(c, s) for c in (MULTI, SINGLE) for s in SPACED if (c, s) != (SINGLE, "use_lu_lambdas")],
)
@pytest.mark.parametrize("betas", BETAS)
def test_spaced_sigmas(cls: type, spaced: str, betas: str) -> None:
    """Epsilon too: at sigma/alpha = 20000, the end of the cosine schedule, x0 = d/alpha is what keeps the digits.

    diffusers finds a timestep from float32 logarithms and cuts its fraction off: it may be one off.
    """
    for steps, algorithm in ((1, ALGORITHMS[0]), (5, ALGORITHMS[0]), (5, ALGORITHMS[1]), (20, ALGORITHMS[0])):
        for prediction in PREDICTIONS:
            config = {"algorithm_type": algorithm, "prediction_type": prediction, "beta_schedule": betas}
            check_parity(cls, {**config, spaced: True}, steps, times_within=1)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_spaced_sigmas_to_sigma_min(cls: type, solver: str) -> None:
    """The last step is empty, from sigma_min to sigma_min: below order 3 and heun diffusers gets through it."""
    config = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_type": solver}
    check_parity(cls, config, 6)


@pytest.mark.parametrize(("order", "solver"), [(2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize("sde", [False, True])
def test_an_empty_last_step_copies(sde: bool, order: int, solver: Any) -> None:
    """diffusers divides 0 by 0 there."""
    schedule = schedules.karras(base=schedules.linear())
    plan = planners.dpm_solver_pp(
        schedule, 16, order=order, solver_type=solver, sde=sde, final_sigmas_type="sigma_min"
    )
    x = torch.randn(8).double()
    *_, before, end = iterates(plan, x)
    assert torch.equal(before, end)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["flow_prediction", "epsilon", "sample"])
def test_flow_sigmas(cls: type, prediction: str, shift: float) -> None:
    config = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": prediction}
    for steps, algorithm, order in ((1, ALGORITHMS[0], 2), (4, ALGORITHMS[1], 2), (20, ALGORITHMS[0], 3)):
        check_parity(cls, {**config, "algorithm_type": algorithm, "solver_order": order}, steps)


@pytest.mark.parametrize("cls", CLASSES)
def test_dynamic_shift(cls: type) -> None:
    config = {"use_flow_sigmas": True, "use_dynamic_shifting": True, "prediction_type": "flow_prediction"}
    for dtype in (torch.float32, *HALF):
        check_parity(cls, config, 8, set_timesteps={"mu": 0.8}, dtype=dtype)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_timestep_spacings(spacing: str, offset: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    for steps, end in ((1, "zero"), (3, "sigma_min"), (7, "zero"), (50, "sigma_min")):
        check_parity(MULTI, {**config, "final_sigmas_type": end}, steps)


OPTIONS: list[dict[str, Any]] = [
    {"euler_at_final": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"euler_at_final": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "solver_order": 3},
    {"trained_betas": [1e-4 + k * 4e-5 for k in range(500)], "num_train_timesteps": 500},
    {"num_train_timesteps": 300, "beta_start": 0.001, "beta_end": 0.03},
    {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_options(options: dict[str, Any]) -> None:
    for steps in (2, 9, 25):
        check_parity(MULTI, options, steps)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_explicit_timesteps(cls: type, end: str) -> None:
    times = [999, 850, 600, 590, 300, 120, 13]
    for order in (2, 3):
        config = {"solver_order": order, "final_sigmas_type": end}
        check_parity(cls, config, None, set_timesteps={"timesteps": times})


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_thresholding(cls: type, prediction: str) -> None:
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "prediction_type": prediction}
    for most, algorithm in ((1.0, ALGORITHMS[0]), (1.5, ALGORITHMS[1])):
        check_parity(cls, {**config, "sample_max_value": most, "algorithm_type": algorithm}, 6)


@pytest.mark.parametrize(
    ("cls", "config", "option"),
    [
        (MULTI, {"variance_type": "learned_range"}, "variance_type"),
        (SINGLE, {"variance_type": "learned"}, "variance_type"),
        (MULTI, {"prediction_type": "flow_prediction"}, "prediction_type"),
        (SINGLE, {"prediction_type": "v_prediction", "use_flow_sigmas": True}, "prediction_type"),
    ],
)
def test_what_is_refused(cls: Any, config: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: cannot reproduce {option}"):
        plan_from(cls(**config), 10)


# ---- the paper's formulas, float64 ---------------------------------------------------------------------------


def at_index(kind: str, plan: planners.Plan) -> Any:
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    return lambda x, i: oracles.predict(kind, x, BIMODAL.denoise(x, *levels[i]), *levels[i])


@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("place", ["karras", "exponential", "flow"])
def test_2m_on_spaced_levels(place: str, steps: int, heun: bool) -> None:
    """The levels of Karras et al. 2022, equation (5), of equidistant lambda, and of a shifted flow."""
    kind = "flow" if place == "flow" else "v"
    ramp = [k / max(steps - 1, 1) for k in range(steps)]
    low, high = (math.sqrt(1 / ab - 1) for ab in oracles.alphas_cumprod("linear")[[0, -1]])
    if place == "karras":
        ratios = [(high ** (1 / 7) + r * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for r in ramp]
    else:
        ratios = [math.exp((1 - r) * math.log(high) + r * math.log(low)) for r in ramp]
    levels = [(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratios]
    schedule: schedules.Schedule = schedules.flow(3.0)
    if place == "flow":
        raw = [0.999 * (1 - k / steps) for k in range(steps)]
        levels = [(1 - 3 * s / (1 + 2 * s), 3 * s / (1 + 2 * s)) for s in raw]
    else:
        schedule = getattr(schedules, place)(base=schedules.linear())
    plan = planners.dpm_solver_pp(
        schedule, steps, prediction=kind, solver_type="heun" if heun else "midpoint"
    )
    model = oracles.AnalyticModel(BIMODAL, kind, lambda i: levels[int(i)])
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    paper = oracles.dpm_solver_pp_2m(
        model, x, range(steps), [*levels, (1.0, 0.0)], heun=heun, first_last=True
    )
    assert oracles.relative_error(oracles.execute(plan, at_index(kind, plan), x), paper) < 1e-10


def iterates(plan: planners.Plan, x: Tensor) -> list[Tensor]:
    """x after each step."""
    model, history, visited = at_index(plan.prediction, plan), None, []
    for i in range(plan.steps):
        x, history = plan.step(i, x, model(x, i), history, seed=0)
        visited.append(x)
    return visited


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_2m_is_algorithm_2(steps: int, final: Any, heun: bool, kind: str) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    plan = planners.dpm_solver_pp(
        schedules.scaled_linear(),
        steps,
        prediction=kind,
        solver_type="heun" if heun else "midpoint",
        final_sigmas_type=final,
    )
    ab, times = oracles.alphas_cumprod("scaled_linear"), plan.timesteps.tolist()
    end = (1.0, 0.0) if final == "zero" else oracles.vp_level(ab, 0)
    levels = [*(oracles.vp_level(ab, t) for t in times), end]
    model = oracles.AnalyticModel(BIMODAL, kind, lambda t: oracles.vp_level(ab, t))
    paper = oracles.dpm_solver_pp_2m(
        model, x, times, levels, heun=heun, first_last=final == "zero" or steps < 15
    )
    assert oracles.relative_error(oracles.execute(plan, at_index(kind, plan), x), paper) < 1e-10


def test_the_first_step_at_alpha_zero_and_the_one_after_it() -> None:
    """A flow that starts at pure noise: the first level has lambda = -inf, so nothing can be extrapolated from it."""
    times = [1.0, 0.7, 0.5, 0.3, 0.1]
    schedule = schedules.from_levels(times, [1 - t for t in times] + [1.0], [*times, 0.0])
    x = torch.randn(8).double()
    low = iterates(planners.dpm_solver_pp(schedule, 5, prediction="flow", order=1), x)
    for method in ("multistep", "singlestep"):
        plan = planners.dpm_solver_pp(schedule, 5, prediction="flow", order=3, method=method)
        got = iterates(plan, x)
        torch.testing.assert_close(got[:2], low[:2], rtol=1e-12, atol=1e-12)
        assert oracles.relative_error(got[2], low[2]) > 1e-4


# ---- order of convergence ------------------------------------------------------------------------------------


def uniform(steps: int) -> schedules.LevelSchedule:
    """Levels of the linear schedule at equidistant lambda, no step of which is empty."""
    base = schedules.linear()
    (a, s), (b, r) = base.level(999), base.level(0)
    low, high = math.log(a / s), math.log(b / r)
    lambdas = [low + (high - low) * k / steps for k in range(steps + 1)]
    levels = [(1 / math.hypot(1, math.exp(-u)), 1 / math.hypot(1, math.exp(u))) for u in lambdas]
    return schedules.from_levels(range(steps, 0, -1), *zip(*levels, strict=True))


STEPS = (42, 84, 168, 336)  # multiples of 2 and of 3, for whole blocks


def plan_of(make: Any, steps: int, **options: Any) -> planners.Plan:
    return make(uniform(steps), steps, lower_order_final=False, **options)  # type: ignore[no-any-return]


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize("make", [planners.dpm_solver_pp, planners.dpm_solver])
@pytest.mark.parametrize(
    ("method", "order", "solver"),
    [("singlestep", *solver) for solver in SOLVERS]
    + [("multistep", *solver) for solver in SOLVERS if solver[0] < 3],
)
def test_order(make: Any, method: str, order: int, solver: str, data: Mixture) -> None:
    oracles.check_order(
        lambda n: plan_of(make, n, order=order, solver_type=solver, method=method), order, data, STEPS
    )


@pytest.mark.parametrize("make", [planners.dpm_solver_pp, planners.dpm_solver])
def test_published_3m(make: Any) -> None:
    """It has half of its second-derivative term, so it is of order 2, with a smaller error than 2M; whole, it has 3.

    On Gaussian data the whole one has 4.
    """

    def measured(data: Mixture, exact: bool) -> float:
        plans = [plan_of(make, n, order=3, exact_third=exact) for n in STEPS]
        return oracles.measured_order(STEPS, [oracles.end_point_error(plan, data) for plan in plans])

    assert 1.9 < measured(GAUSSIAN, False) < 2.5
    assert 1.9 < measured(BIMODAL, False) < 2.5
    assert measured(BIMODAL, True) == pytest.approx(3, abs=0.15)
    assert measured(GAUSSIAN, True) > 2.85
    errors = [oracles.end_point_error(plan_of(make, 84, order=order), BIMODAL) for order in (2, 3)]
    assert errors[1] < 0.5 * errors[0]


# ---- the SDE -------------------------------------------------------------------------------------------------


def variance_error(plan: planners.Plan, data: Mixture = GAUSSIAN) -> float:
    """Of the end point, relative; its mean is right to rounding."""
    alpha, sigma = float(plan.alphas[-1]), float(plan.sigmas[-1])
    mean, variance = oracles.moments(plan, data)
    assert mean == pytest.approx(alpha * data.means[0], rel=1e-10)
    return abs(variance / ((alpha * data.stds[0]) ** 2 + sigma**2) - 1)


def weak_order(make: Any, **options: Any) -> tuple[float, float]:
    """The order in which the variance of Gaussian data converges, and the error at the end."""
    errors = [variance_error(plan_of(make, n, sde=True, **options)) for n in STEPS]
    return oracles.measured_order(STEPS, errors), errors[-1]


@pytest.mark.parametrize(
    ("make", "order", "solver", "exact", "expected"),
    [
        (planners.dpm_solver_pp, 1, "midpoint", False, 1),
        (planners.dpm_solver_pp, 2, "midpoint", False, 2),
        (planners.dpm_solver_pp, 2, "heun", False, 2),
        (planners.dpm_solver_pp, 3, "midpoint", False, 1),  # the turned sign costs an order
        (planners.dpm_solver_pp, 3, "midpoint", True, 2),
        (planners.dpm_solver, 1, "midpoint", False, 2),  # by luck: the error term of the variance vanishes
        (planners.dpm_solver, 2, "midpoint", False, 2),
        (planners.dpm_solver, 2, "heun", False, 2),
        (planners.dpm_solver, 3, "midpoint", True, 2),
    ],
)
def test_weak_order_of_the_multistep_sde(
    make: Any, order: int, solver: str, exact: bool, expected: int
) -> None:
    measured, error = weak_order(make, order=order, solver_type=solver, exact_third=exact)
    assert measured == pytest.approx(expected, abs=0.15)
    assert error < 0.03


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("make", [planners.dpm_solver_pp, planners.dpm_solver])
def test_the_singlestep_sde_converges_with_order_1(make: Any, solver: str, order: int) -> None:
    """Each evaluation of a block draws its own noise: the inner points are not on the path of the end point."""
    measured, error = weak_order(make, order=order, solver_type=solver, exact_third=True, method="singlestep")
    assert 0.65 < measured < 1.55
    assert error < 0.1


def test_the_published_singlestep_sde_of_order_3_does_not_converge() -> None:
    """Trap: with the sign of 1/2 turned, the weight of the second derivative does not go to 0 with h."""
    _, error = weak_order(planners.dpm_solver_pp, order=3, solver_type="heun", method="singlestep")
    assert error > 10


@pytest.mark.parametrize("make", [planners.dpm_solver_pp, planners.dpm_solver])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_samples_of_the_sde_have_the_moments_of_the_table(make: Any, method: str) -> None:
    plan = plan_of(make, 60, order=2, sde=True, method=method)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    model = oracles.AnalyticModel(GAUSSIAN, "epsilon", lambda t: levels[60 - int(t)])
    alpha, sigma = levels[0]
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    x = math.hypot(alpha * GAUSSIAN.stds[0], sigma) * noise + alpha * GAUSSIAN.means[0]
    mean, variance = oracles.moments(plan)
    sample: Tensor = plan.run(model, x, seed=1).double()
    assert float(sample.mean()) == pytest.approx(mean, abs=0.01)
    assert float(sample.var()) == pytest.approx(variance, rel=0.03)


# ---- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order: expected 1, 2 or 3, got 4"),
        ({"solver_type": "bh2"}, "solver_type: expected midpoint or heun, got 'bh2'"),
        ({"method": "both"}, "method: expected multistep or singlestep"),
        ({"clip_sample": 1.0, "threshold": planners.Threshold()}, "clip_sample, threshold: pass one"),
        ({"clip_sample": (1.0, 1.0)}, "clip_sample: expected a positive range"),
        ({"method": "singlestep", "lower_order_final": False, "order": 3}, "needs a multiple of it, got 10"),
    ],
)
def test_bad_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.dpm_solver_pp(schedules.linear(), 10, **options)


@pytest.mark.parametrize("make", [planners.dpm_solver_pp, planners.dpm_solver])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_a_clip_is_in_force_in_every_form(make: Any, method: str) -> None:
    """Order 1 with x0 clipped to nearly nothing: x' = sigma_t eps, eps = x/sigma."""
    plan = make(schedules.linear(), 4, order=1, method=method, clip_sample=1e-9)
    x = torch.randn(16).double()
    end = oracles.execute(plan, lambda x, i: torch.zeros_like(x), x)
    torch.testing.assert_close(end, x * plan.sigmas[-1] / plan.sigmas[0], atol=1e-8, rtol=1e-6)
