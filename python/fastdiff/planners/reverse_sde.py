# SPDX-License-Identifier: Apache-2.0
"""The reverse-time SDE and its probability-flow ODE: Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations" (arXiv 2011.13456).
"""

from __future__ import annotations

from collections.abc import Sequence

from fastdiff.planners._score import Kind, Predictor, Rate, Variance, plan_of
from fastdiff.planners._tables import Table, levels_of, prediction_type
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def reverse_sde(
    schedule: Schedule,
    steps: Steps,
    *,
    kind: Kind = "reverse_diffusion",
    prediction: str = "score",
    kappa: float = 1.0,
    variance: Variance = "small",
    rates: Sequence[Rate] | None = None,
    denoise: bool = True,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
) -> Plan:
    """First-order steps of dx = [f x - (1 + kappa^2)/2 g^2 score] dt + kappa g dW, backwards in time.

    kappa = 1 is the reverse SDE, equation (6); kappa = 0 the probability-flow ODE, equation (13); all have the same
    marginals (Deveney et al. 2023, "Closing the ODE-SDE gap", arXiv 2311.15996). With a and b of the forward step from
    the next level t to this one, x_s = a x_t + b z, a = alpha_s/alpha_t, b^2 = sigma_s^2 - a^2 sigma_t^2:

        reverse_diffusion   x' = (2 - a) x + (1 + kappa^2)/2 b^2 score + kappa b z                          appendix E
        euler_maruyama      x' = (1 - f dt) x + (1 + kappa^2)/2 g^2 dt score + kappa g sqrt(dt) z           section 4.1
        ancestral           x' = (x + b^2 score)/a + b sigma_t/sigma_s z, or + b z with large variance      appendix F

    On a VE schedule (alpha = 1) the first two are the same, x' = x + (sigma_s^2 - sigma_t^2) score + ... z, which is
    what diffusers' `ScoreSdeVeScheduler.step_pred` computes. Ancestral is DDPM's step on a VP schedule (large variance:
    equation (4); small: Ho et al. 2020, section 3.2) and equation (47) on a VE schedule.

    Args:
        schedule: of `fastdiff.schedules`; `exponential(sigma_min, sigma_max)` without a base is the paper's VE SDE.
        steps: how many, or the decreasing timesteps themselves.
        kind: the discretisation.
        prediction: what the model predicts: score, epsilon, x0 (sample), v (v_prediction) or flow.
        kappa: 0 to 1, the share of noise; 1 for ancestral.
        variance: of ancestral steps.
        rates: (f dt, g^2 dt) of each step, for euler_maruyama; on the VP SDE (-beta(t) dt/2, beta(t) dt). Default:
            from the levels, f dt = ln(alpha_s/alpha_t), g^2 dt = sigma_s^2 - sigma_t^2 - f dt (sigma_s^2 + sigma_t^2).
        denoise: the last step gives its mean, without noise.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.

    Raises:
        ValueError: unknown names, bad ranges, not one rate per step, an infinite drift or eps at alpha = 0.
    """
    predicts = prediction_type(prediction)
    predictor = Predictor(kind, kappa, variance)
    grid = schedule.grid(steps, Placement(timestep_spacing, steps_offset), final_sigmas_type)
    levels, count = levels_of(grid), len(grid.times)
    if rates is not None and (kind != "euler_maruyama" or len(rates) != count):
        raise ValueError(f"rates: expected {count} pairs, and euler_maruyama, got {len(rates)} and {kind}")

    inputs = ("x", "prediction")
    table = Table(count, inputs, predictor.rows(predicts))
    for i in range(count):
        rate = None if rates is None else rates[i]
        noisy = i + 1 < count or not denoise
        predictor.set(table, i, predicts, levels[i], levels[i + 1], rate, noisy=noisy)
    return plan_of("reverse_sde", predicts, table, inputs, grid.times, levels)
