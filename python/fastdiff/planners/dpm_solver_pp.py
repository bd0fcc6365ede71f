# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
(arXiv 2211.01095)."""

from __future__ import annotations

from fastdiff.planners._dpm import Family, Method, SolverType
from fastdiff.planners._execution import Threshold
from fastdiff.planners._form import form
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def dpm_solver_pp(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    solver_type: SolverType = "midpoint",
    method: Method = "multistep",
    sde: bool = False,
    exact_third: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
) -> Plan:
    """DPM-Solver++ of order 1, 2 ("2M", "2S") or 3 ("3M", "3S"), and its SDE form. Row 0 is the (clipped) x0.

    With lambda = ln(alpha/sigma), h = lambda_t - lambda_s, h0 the h of the step before, m0, m1, m2 the x0
    predictions of this evaluation and of the ones before, D = (m0 - m1) h/h0:

        order 1   x_t = (sigma_t/sigma_s) x - alpha_t (e^-h - 1) m0     section 4.1; this is DDIM
        midpoint  x_t = order 1 - alpha_t (e^-h - 1)/2 D                algorithm 2
        heun      x_t = order 1 + alpha_t ((e^-h - 1)/h + 1) D          the Taylor expansion of section 4.1
        order 3   x_t = order 1 + alpha_t ((e^-h - 1)/h + 1) D1 - alpha_t ((e^-h - 1 + h)/h^2 - 1/2) D2

    with D1 and D2 from divided differences of m0, m1, m2; `singlestep` takes the same terms from inner points
    (algorithm 1, r = 1/2), which are here the following points of the grid. `sde` is SDE-DPM-Solver++ (appendix).
    In a short step x_t is x plus a row dx of its own, so that no rounded coefficient moves x.

    The defaults give what diffusers' `DPMSolverMultistepScheduler(algorithm_type="dpmsolver++")` gives; singlestep
    that of `DPMSolverSinglestepScheduler`.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many model evaluations, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm.
        order: 1, 2 or 3. The first evaluations have lower orders, for want of a history.
        solver_type: form of the second-order term; of the third-order one too if singlestep.
        method: "multistep", or "singlestep": blocks of `order` evaluations, each starting anew.
        sde: along the diffusion SDE instead of the ODE, with noise in every step.
        exact_third: correct what was published. The multistep scheme of order 3 has half of its second-derivative
            term, so that it converges with order 2; diffusers' SDE form also has the sign of a 1/2 turned, which
            makes it of weak order 1, and as singlestep keeps it from converging. The default is what was published.
        lower_order_final: lower orders for the last two evaluations when there are fewer than 15 (the
            official code: 10). If singlestep: shorter blocks at the end.
        euler_at_final: last step of order 1 always; where sigma ends at 0 it is so in any case, since h is
            infinite there.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r) or (low, high).
        threshold: dynamic threshold of x0 instead.

    Raises:
        ValueError: another order, unknown names, bad ranges, a prediction that does not determine x0 at alpha = 0.
    """
    options = Family(
        form=form(True, clip_sample, threshold),
        order=order,
        solver_type=solver_type,
        method=method,
        sde=sde,
        exact_third=exact_third,
        lower_order_final=lower_order_final,
        euler_at_final=euler_at_final,
    )
    place = Placement(timestep_spacing, steps_offset, endpoint=False)
    return options.plan("dpm_solver_pp", schedule, steps, prediction, place, final_sigmas_type)
