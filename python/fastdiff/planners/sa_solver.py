# SPDX-License-Identifier: Apache-2.0
"""SA-Solver: Xue et al. 2023, "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models"
(arXiv 2309.05019)."""

from __future__ import annotations

from collections.abc import Callable

from fastdiff.planners._adams import Adams
from fastdiff.planners._execution import Threshold
from fastdiff.planners._form import form
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps

Tau = float | tuple[float, float] | Callable[[float], float]


def sa_solver(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: Tau = (200.0, 800.0),
    predict_x0: bool = True,
    lower_order_final: bool = True,
    final_sigmas_type: Final = "sigma_min",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
) -> Plan:
    """Stochastic Adams methods for the diffusion SDE whose noise is scaled by tau(t), the ODE at tau = 0.

    With lambda = ln(alpha/sigma), h = lambda_t - lambda_s, c = 1 + tau^2 and m the x0 predictions:

        predictor  x_t = (sigma_t/sigma_s) e^(-tau^2 h) x_s + sum_k b_k m_k + sigma_t sqrt(1 - e^(-2 tau^2 h)) z
        b_k = alpha_t c int_s^t e^(-c (lambda_t - lambda)) l_k(lambda) dlambda
        corrector  the same x_s and the same z, with m_t among the m_k

    l_k are the Lagrange polynomials of the points (section 5). In noise form m is eps, and

        x_t = (alpha_t/alpha_s) x_s + sum_k b_k m_k + sigma_t tau sqrt(e^(2h) - 1) z
        b_k = -sigma_t c int_s^t e^(lambda_t - lambda) l_k(lambda) dlambda

    Where predictor or corrector have two points, the data form has c h alpha_t/2 for the weight of h m', which differs
    from the exact integral by O(h^3): published with the paper's code, not with the paper. At tau = 0 that is UniPC
    with bh1.

    The model sees the predicted x; one launch per evaluation corrects it and predicts the next. The noise that both
    share needs no history, since the corrected x is the predicted one and a combination of m (see `_adams`).

    The defaults give what diffusers' `SASolverScheduler` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many model evaluations, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm.
        predictor_order: how many points the predictor has, 1 or more; its order.
        corrector_order: how many points the corrector has, m_t included; its order. 0: no corrector. The paper counts
            the points before t only.
        tau: a number, a function of the time that the model is told (sigma on a schedule without a base), or the range
            (low, high) of times in which it is 1, and 0 outside. It is taken at s for the step from s to t.
        predict_x0: data form, else noise form.
        lower_order_final: orders fall to 1 (corrector: 2) towards the end.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r) or (low, high).
        threshold: dynamic threshold of x0 instead.

    Raises:
        ValueError: an order out of range, a negative tau, unknown names, bad ranges, a prediction that does not
            determine m at alpha = 0.
    """
    if predictor_order < 1 or corrector_order < 0:
        raise ValueError(
            "predictor_order, corrector_order: expected 1 or more, and 0 or more, "
            f"got {predictor_order} and {corrector_order}"
        )
    method = Adams(
        form=form(predict_x0, clip_sample, threshold),
        predictor=predictor_order,
        corrector=corrector_order,
        two_point="bh1" if predict_x0 else "exact",
        lower_order_final=lower_order_final,
    )
    place = Placement(timestep_spacing, steps_offset, endpoint=False)
    return method.plan(
        "sa_solver",
        schedule,
        steps,
        prediction=prediction,
        place=place,
        final=final_sigmas_type,
        tau=_function(tau),
    )


def _function(tau: Tau) -> Callable[[float], float]:
    """tau(t), checked."""

    def at(t: float) -> float:
        if callable(tau):
            value = float(tau(t))
        elif isinstance(tau, tuple):
            value = float(tau[0] <= t <= tau[1])
        else:
            value = float(tau)
        if not value >= 0:
            raise ValueError(f"tau: expected 0 or more, got {value} at t = {t}")
        return value

    return at
