# SPDX-License-Identifier: Apache-2.0
"""Annealed Langevin dynamics and predictor-corrector sampling.

Song and Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution" (NCSN, arXiv 1907.05600);
Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv 2011.13456).
"""

from __future__ import annotations

import math

from fastdiff.planners._score import Kind, Predictor, Variance, plan_of, score
from fastdiff.planners._tables import Level, Table, combine, levels_of, prediction_type, set_x0, x0_rows
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def langevin(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "score",
    snr: float | None = None,
    step_size: float | None = None,
    correct_steps: int = 1,
    predictor: Kind | None = "reverse_diffusion",
    kappa: float = 1.0,
    variance: Variance = "small",
    denoise: bool = True,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """At each level `correct_steps` of x <- x + h score + sqrt(2h) z, then a predictor's step to the next level.

    Each of them evaluates the model, so that the plan has (correct_steps + 1) S steps. As in the code of Song et al.
    2021 (algorithms 2 and 3 there, but for the order of the two halves), the corrector comes first. The step size is
    fixed by the level,

        h = 2 (snr sigma)^2         their corrector "ald"; algorithms 4 and 5 with norms replaced by their expectation
        h = step_size sigma^2 / (2 sigma_L^2)    NCSN, algorithm 1, where step_size is epsilon; sigma_L the last level

    which are one rule, snr = sqrt(step_size)/(2 sigma_L). With predictor = None it is NCSN's annealed Langevin
    dynamics, followed, where `denoise`, by x0 = (x + sigma^2 score)/alpha, one more evaluation (Jolicoeur-Martineau et
    al. 2020, arXiv 2009.05475).

    On a Gaussian level of variance V the corrector's stationary variance is V / (1 - h/(2V)), and its mean is exact.

    Trap: the corrector "langevin" of that code, which is diffusers' `ScoreSdeVeScheduler.step_correct`, measures
    h = 2 (snr |z|/|score|)^2 from norms over the batch. That is a reduction and no table: here |z|/|score| is sigma,
    what it is for a single data point. Nor is there the factor 1 - beta of "ald" on a VP schedule.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: S, the number of levels, or the decreasing timesteps themselves.
        prediction: what the model predicts: score, epsilon, x0 (sample), v (v_prediction) or flow.
        snr: 0 to 1, exclusive: beyond, the corrector diverges. Default 0.16, the paper's for VE.
        step_size: NCSN's epsilon instead (2e-5 there).
        correct_steps: Langevin steps per level, at least 1; 100 in NCSN.
        predictor, kappa, variance: the predictor's `kind` and options, as in `reverse_sde`; None: no predictor.
        denoise: the last step gives its mean, without noise.
        final_sigmas_type: the predictor ends at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.

    Raises:
        ValueError: unknown names, bad ranges, both snr and step_size, an infinite drift or eps at alpha = 0.
    """
    predicts = prediction_type(prediction)
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset), final_sigmas_type)
    levels, count = levels_of(grid), len(grid.times)
    share = _share(snr, step_size, levels[-2][1])
    if correct_steps < 1:
        raise ValueError(
            f"correct_steps: expected at least 1, got {correct_steps}; `reverse_sde` has no corrector"
        )
    step = None if predictor is None else Predictor(predictor, kappa, variance)

    steps_at = [i for i in range(count) for _ in range(correct_steps + (step is not None))]
    if step is None:
        levels[-1] = (1.0, 0.0) if denoise else levels[-2]
        steps_at += [count - 1] * denoise
    inputs, rows = ("x", "prediction"), (*(x0_rows(predicts) if denoise else ()), "x'")
    table = Table(len(steps_at), inputs, rows if step is None else step.rows(predicts))
    for n, i in enumerate(steps_at):
        last = n + 1 == len(steps_at)
        if step is not None and (last or steps_at[n + 1] > i):
            step.set(table, n, predicts, levels[i], levels[i + 1], None, noisy=not (last and denoise))
        elif step is None and last and denoise:
            set_x0(table, n, predicts, levels[i])
            table.set(n, "x'", {"x0": 1.0})
        else:
            table.set(n, "x'", _correction(predicts, levels[i], share))
    times = [grid.times[i] for i in steps_at]
    return plan_of("langevin", predicts, table, inputs, times, [*(levels[i] for i in steps_at), levels[-1]])


def _share(snr: float | None, step_size: float | None, smallest: float) -> float:
    """snr, that is h = 2 (snr sigma)^2."""
    if snr is not None and step_size is not None:
        raise ValueError("snr, step_size: pass one or the other")
    share = 0.16 if snr is None else snr
    if step_size is not None:
        if not step_size > 0:
            raise ValueError(f"step_size: expected a positive number, got {step_size}")
        share = math.sqrt(step_size) / (2 * smallest)
    if not 0 < share < 1:
        raise ValueError(
            f"snr: expected more than 0 and less than 1, where Langevin steps diverge, got {share:.4g}"
        )
    return share


def _correction(prediction: str, level: Level, snr: float) -> dict[str, float]:
    h = 2 * (snr * level[1]) ** 2
    return combine((1, {"x": 1.0}), (h, score(prediction, level)), (math.sqrt(2 * h), {"z": 1.0}))
