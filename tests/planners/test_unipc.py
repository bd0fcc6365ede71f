# SPDX-License-Identifier: Apache-2.0
"""UniPC: parity with diffusers, orders of convergence, the solvers it contains, end points, refusals."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Threshold, unipc

from tests.kit import oracles, peers
from tests.kit.oracles import BIMODAL, GAUSSIAN, Mixture
from tests.kit.peers import check_parity, options_id

diffusers = pytest.importorskip("diffusers")
UniPC = diffusers.UniPCMultistepScheduler

STEPS = (1, 2, 3, 5, 10, 20, 50)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("epsilon", "sample", "v_prediction")
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}  # diffusers' bh1 and its noise form are NaN at sigma = 0
NOISE = {"predict_x0": False, **TO_SIGMA_MIN}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
BETAS = torch.linspace(1e-3, 0.03, 400).tolist()

VP = schedules.exponential(base=schedules.linear())  # uniform in lambda
# Some constants vanish for Gaussian data on a range that is symmetric in lambda, where it gains an order: end midway.
MIDWAY = schedules.exponential(0.5, base=schedules.linear())


def parity(config: dict[str, Any], steps: int, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    check_parity(UniPC, config, steps, dtype=dtype, **options)


# ---- parity with diffusers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_parity(kind: str, steps: int, dtype: torch.dtype) -> None:
    parity({"prediction_type": kind}, steps, dtype)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_parity_of_orders(order: int, solver_type: str, steps: int) -> None:
    shared = {"solver_order": order, "solver_type": solver_type}
    parity({**shared, **TO_SIGMA_MIN}, steps)
    parity({**shared, **TO_SIGMA_MIN, "lower_order_final": False}, steps)
    if solver_type == "bh2":
        parity(shared, steps)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_in_noise_form(kind: str, order: int, steps: int) -> None:
    """With few steps from sigma/alpha = 157 on, weights of eps are as large as that, and so its roundings come out."""
    for solver_type in ("bh1", "bh2"):
        config = {"prediction_type": kind, "solver_order": order, "solver_type": solver_type, **NOISE}
        parity(config, steps, limit=5e-5 if steps < 5 else peers.FP32_LIMIT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        {"trained_betas": BETAS, "num_train_timesteps": 400},
        {"timestep_spacing": "leading", "steps_offset": 1, "solver_order": 3},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "beta_schedule": "scaled_linear"},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 40.0, "solver_order": 3},
        {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"use_karras_sigmas": True, "solver_type": "bh1", **TO_SIGMA_MIN},
        {"use_exponential_sigmas": True, "solver_order": 3},
        {"use_exponential_sigmas": True, "sigma_min": 0.03, **NOISE},
        {"use_beta_sigmas": True, "prediction_type": "v_prediction"},
        {"use_beta_sigmas": True, **TO_SIGMA_MIN},
        {"disable_corrector": [0]},
        {"disable_corrector": [1, 4, 5], "solver_order": 3, "solver_type": "bh1", **TO_SIGMA_MIN},
        {"disable_corrector": list(range(50)), "solver_order": 3},
        {"solver_type": "midpoint"},
        {"solver_type": "logrho"},
        {"solver_order": 3, "lower_order_final": False, **TO_SIGMA_MIN},
        NOISE,
        {**NOISE, "prediction_type": "v_prediction", "solver_order": 3, "disable_corrector": [2]},
        {**NOISE, "thresholding": True, "sample_max_value": 0.5},  # which it does not look at
    ],
    ids=options_id,
)
def test_parity_of_options(config: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in (3, 12):
        parity(config, steps, dtype, limit=5e-5 if steps < 5 else peers.FP32_LIMIT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("config", "keywords"),
    [
        (FLOW, {}),
        ({**FLOW, "flow_shift": 3.0, "solver_order": 3}, {}),
        ({**FLOW, "flow_shift": 5.0, "solver_type": "bh1", **TO_SIGMA_MIN}, {}),
        ({**FLOW, "shift_terminal": 0.1}, {}),
        ({**FLOW, "num_train_timesteps": 500}, {}),
        ({**FLOW, "use_dynamic_shifting": True}, {"mu": 0.8}),
        ({**FLOW, "use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.5}),
        ({**FLOW, "use_dynamic_shifting": True, "shift_terminal": 0.02, **TO_SIGMA_MIN}, {"mu": 1.1}),
        ({**FLOW, "use_karras_sigmas": True, "flow_shift": 3.0}, {}),
        ({**FLOW, "use_karras_sigmas": True, "sigma_max": 200.0, **TO_SIGMA_MIN}, {}),
        ({"use_flow_sigmas": True, "prediction_type": "epsilon"}, {}),
    ],
    ids=options_id,
)
def test_parity_on_a_flow(config: dict[str, Any], keywords: dict[str, Any], dtype: torch.dtype) -> None:
    for steps in (2, 3, 25):
        parity(config, steps, dtype, set_timesteps=keywords)


def test_parity_on_given_flow_sigmas() -> None:
    sigmas = np.array([1.0, 0.7, 0.3, 0.1])
    check_parity(UniPC, {**FLOW, "flow_shift": 2.0}, None, set_timesteps={"sigmas": sigmas})


def test_parity_in_noise_form_on_a_flow() -> None:
    """From alpha = 1e-6 on, roundings of eps are multiplied by a million; diffusers' alpha alone is off by 5 %."""
    for kind in ("epsilon", "sample"):
        config = {"use_flow_sigmas": True, "prediction_type": kind, **NOISE}
        parity(config, 25, limit=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity_with_a_threshold(dtype: torch.dtype) -> None:
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4}
    for order in (2, 3):
        parity({**config, "solver_order": order}, 10, dtype)


# ---- orders of convergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize(("predict_x0", "solver_type"), [(True, "bh1"), (True, "bh2"), (False, "bh1")])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order(order: int, corrected: bool, predict_x0: bool, solver_type: Any, data: Mixture) -> None:
    """UniP-p has order p and UniPC-p order p + 1 (theorem 3.1 and its corollary).

    The first steps, of lower order, do not show: there x0 hardly depends on x, and their error is a small constant.
    The last step has no corrector, and must not be of order 1.
    """
    grid, steps = (VP, (40, 80, 160)) if order < 3 else (MIDWAY, (80, 160, 320))
    make = functools.partial(
        unipc_to_sigma_min,
        grid,
        order=order,
        corrected=corrected,
        predict_x0=predict_x0,
        solver_type=solver_type,
    )
    assert make(10).order == order + corrected
    oracles.check_order(make, order + corrected, data, steps)


def unipc_to_sigma_min(grid: Any, steps: int, *, corrected: bool, **options: Any) -> planners.Plan:
    return unipc(
        grid,
        steps,
        prediction="v",
        disable_corrector=() if corrected else range(steps),
        lower_order_final=False,
        final_sigmas_type="sigma_min",
        **options,
    )


@pytest.mark.parametrize("corrected", [False, True])
def test_order_4(corrected: bool) -> None:
    make = functools.partial(unipc_to_sigma_min, MIDWAY, order=4, corrected=corrected)
    oracles.check_order(make, 4 + corrected, BIMODAL, (80, 160, 320))


# ---- what it contains ----------------------------------------------------------------------------------------


def end_point(plan: planners.Plan, data: Mixture = BIMODAL) -> torch.Tensor:
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

    def model(x: torch.Tensor, i: int) -> torch.Tensor:
        return oracles.predict(plan.prediction, x, data.denoise(x, *levels[i]), *levels[i])

    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return oracles.execute(plan, model, x)


def same(a: planners.Plan, b: planners.Plan) -> None:
    torch.testing.assert_close(end_point(a), end_point(b), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("predict_x0", [True, False])
def test_order_1_without_corrector_is_ddim(predict_x0: bool) -> None:
    uncorrected = unipc(VP, 12, order=1, predict_x0=predict_x0, disable_corrector=range(12))
    same(uncorrected, planners.ddim(VP, 12))


def test_order_2_without_corrector_is_dpm_solver_2m() -> None:
    """With B(h) = e^h - 1 the a_1 = 1/2 of UniP-2 is the midpoint form."""
    options: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
    for make, predict_x0 in ((planners.dpm_solver_pp, True), (planners.dpm_solver, False)):
        uncorrected = unipc(
            VP, 20, predict_x0=predict_x0, disable_corrector=range(20), lower_order_final=False, **options
        )
        same(uncorrected, make(VP, 20, lower_order_final=False, **options))


@pytest.mark.parametrize("predict_x0", [True, False])
def test_b_matters_only_where_one_term_stands_alone(predict_x0: bool) -> None:
    """From three points on the a_k solve the moment conditions, and B cancels."""
    one, two = (
        unipc(VP, 9, order=3, solver_type=b, predict_x0=predict_x0, final_sigmas_type="sigma_min").table
        for b in ("bh1", "bh2")
    )
    differ = ((one - two).abs() > 1e-9).flatten(1).any(1).tolist()
    # Order 2 while the history fills and before the last step; the step after it corrects what it predicted.
    assert differ == [False, True, True, False, False, False, False, True, True]


def test_corrector_as_published() -> None:
    """Predictor and corrector as two updates from the kept x_s, as algorithms 1 and 2 are written."""
    grid = VP.grid(8, final="sigma_min")
    levels = list(zip(grid.alphas, grid.sigmas, strict=True))
    lam = grid.lambdas
    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = [b - a for a, b in pairwise(lam)]
    expm1 = [float(torch.tensor(-step, dtype=torch.float64).expm1()) for step in h]
    base, m = x, []
    for i, (alpha, sigma) in enumerate(levels[:-1]):
        m.append(BIMODAL.denoise(x, alpha, sigma))
        if i:  # UniC-1
            s, e = levels[i - 1][1], expm1[i - 1]
            base = sigma / s * base - alpha * e * m[-2] - alpha * e / 2 * (m[-1] - m[-2])
        alpha, s, sigma = levels[i + 1][0], sigma, levels[i + 1][1]
        x = sigma / s * base - alpha * expm1[i] * m[-1]  # UniP-1
    plan = unipc(VP, 8, order=1, prediction="x0", final_sigmas_type="sigma_min")
    torch.testing.assert_close(end_point(plan), x, rtol=1e-12, atol=1e-12)


def test_history() -> None:
    """Neither x at the last evaluation nor the corrected x is kept: one slot per order, one less without corrector."""
    assert unipc(VP, 9, order=3).history == ("m1", "m2", "m3")
    assert unipc(VP, 9, order=3, disable_corrector=range(9)).history == ("m1", "m2")
    assert len(unipc(VP, 9, predict_x0=False, clip_sample=1.0).seen_in(torch.float16).rows) == 6


# ---- end points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"solver_type": "bh1"},
        {"predict_x0": False},
        {"lower_order_final": False},
        {"predict_x0": False, "solver_order": 3},
    ],
    ids=options_id,
)
def test_where_diffusers_is_not_finite(config: dict[str, Any]) -> None:
    """At sigma = 0 its h is infinite; ours is the limit of the order 1 step."""
    scheduler = UniPC(prediction_type="sample", **config)
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(x.tanh(), t, x).prev_sample
    assert not x.isfinite().any()

    plan = plan_from(scheduler, 4)
    alphas, sigmas = plan.alphas.tolist(), plan.sigmas.tolist()
    near = schedules.from_levels(plan.timesteps.tolist(), alphas, [*sigmas[:-1], 1e-9])
    options = {name: value for name, value in config.items() if name in ("predict_x0", "solver_type")}
    limit = unipc(near, 4, prediction="x0", order=config.get("solver_order", 2), **options)
    torch.testing.assert_close(end_point(plan), end_point(limit), rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
def test_from_pure_noise(solver_type: Any) -> None:
    """alpha = 0: h is infinite, so the step from there has order 1 and is not corrected."""
    schedule = schedules.zero_terminal_snr(schedules.linear())

    def make(steps: int) -> planners.Plan:
        return unipc(
            schedule, steps, order=3, solver_type=solver_type, prediction="v", timestep_spacing="trailing"
        )

    plan = make(10)
    assert plan.alphas[0] == 0
    assert bool((plan.table[1, :, plan.inputs.index("m1")] == 0).all())
    assert oracles.end_point_error(make(80), GAUSSIAN) < oracles.end_point_error(plan, GAUSSIAN) / 4


def test_clip() -> None:
    assert end_point(unipc(VP, 8, clip_sample=0.2)).abs().max() <= 0.2 + 1e-12
    for predict_x0 in (True, False):
        same(unipc(VP, 8, predict_x0=predict_x0, clip_sample=1e3), unipc(VP, 8, predict_x0=predict_x0))


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order: expected 1 or more, got 0"),
        ({"solver_type": "heun"}, "solver_type: expected bh1 or bh2, got 'heun'"),
        ({"clip_sample": 1.0, "threshold": Threshold()}, "clip_sample, threshold: pass one or the other"),
        ({"clip_sample": (1.0, -1.0)}, "clip_sample: expected"),
        ({"prediction": "noise"}, "prediction: expected one of"),
    ],
    ids=options_id,
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unipc(VP, 5, **options)


def test_noise_form_needs_alpha() -> None:
    with pytest.raises(ValueError, match="noise form divides by alpha"):
        unipc(
            schedules.zero_terminal_snr(schedules.linear()),
            5,
            prediction="v",
            timestep_spacing="trailing",
            predict_x0=False,
        )


@pytest.mark.parametrize(
    ("config", "keywords", "message"),
    [
        ({"solver_p": object()}, {}, "solver_p=.*its predictor is another scheduler"),
        (
            {"prediction_type": "flow_prediction"},
            {},
            "prediction_type='flow_prediction': without use_flow_sigmas",
        ),
        ({**FLOW, "prediction_type": "v_prediction"}, {}, "prediction_type='v_prediction': its x0"),
        ({**FLOW, "predict_x0": False}, {}, "prediction_type='flow_prediction': predict_x0=False"),
        ({**FLOW, "use_exponential_sigmas": True}, {}, "use_exponential_sigmas=True: with use_flow_sigmas"),
        ({**FLOW, "use_beta_sigmas": True}, {}, "use_beta_sigmas=True: with use_flow_sigmas"),
        ({**FLOW, "use_dynamic_shifting": True}, {}, "use_dynamic_shifting=True: pass mu"),
        (FLOW, {"mu": 0.5}, "mu would have no effect"),
        ({}, {"sigmas": [0.9, 0.5]}, "sigmas=.*use_flow_sigmas only"),
        ({**FLOW, "use_karras_sigmas": True}, {"sigmas": [0.9, 0.5]}, "sigmas would have no effect"),
    ],
    ids=options_id,
)
def test_refusals_of_plan_from(config: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(UniPC(**config), 5, **keywords)
