# SPDX-License-Identifier: Apache-2.0
"""UniPC: Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"
(arXiv 2302.04867)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from fastdiff.planners._adams import Adams
from fastdiff.planners._execution import Threshold
from fastdiff.planners._form import form
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Final, Placement, Schedule, Spacing, Steps


def unipc(
    schedule: Schedule,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    solver_type: Literal["bh1", "bh2"] = "bh2",
    predict_x0: bool = True,
    disable_corrector: Collection[int] = (),
    lower_order_final: bool = True,
    final_sigmas_type: Final = "zero",
    timestep_spacing: Spacing = "linspace",
    steps_offset: int = 0,
    clip_sample: float | tuple[float, float] | None = None,
    threshold: Threshold | None = None,
) -> Plan:
    """UniPC-p: the predictor UniP-p and the corrector UniC-p, in data form or noise form.

    With lambda = ln(alpha/sigma), h = lambda_t - lambda_s, m0 = m at s, m_k at the evaluations before, their
    r_k = (lambda_k - lambda_s)/h, D_k = m_k - m0, and m_t, of the predicted x_t, with r = 1:

        UniP  x_t = (sigma_t/sigma_s) x_s - alpha_t (e^-h - 1) m0 + alpha_t B(h) sum_k a_k D_k/r_k
        UniC  the same sum over k and t

    and in noise form sigma_t for alpha_t, alpha_t/alpha_s for sigma_t/sigma_s, -h for h, and the signs of
    `dpm_solver` (section 3, algorithms 1 and 2). The a_k integrate the polynomial through these points exactly, and
    B(h) drops out; only where the sum has one term is a = 1/2 in its place, and B(h) = h (bh1) or 1 - e^-h (bh2)
    matters.

    The model sees the predicted x; one launch per evaluation corrects it and predicts the next. The corrected x needs
    no history, since it is the predicted one and a combination of m.

    The defaults give what diffusers' `UniPCMultistepScheduler` gives.

    Args:
        schedule: of `fastdiff.schedules`.
        steps: how many model evaluations, or the decreasing timesteps themselves.
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm.
        order: p of the predictor, 1 or more; with the corrector the order of convergence is p + 1. The first
            evaluations have lower orders, for want of a history.
        solver_type: B(h).
        predict_x0: data form, else noise form.
        disable_corrector: indices of the steps whose result is not corrected; `range(steps)` leaves UniP-p.
        lower_order_final: orders fall to 1 towards the end. A last step to sigma = 0 has order 1 in any case, since h
            is infinite there. Trap: diffusers gives NaN there without this option, and always
            with bh1 and in noise form.
        final_sigmas_type: end at sigma = 0 or at the first training level.
        timestep_spacing, steps_offset: choice of timesteps in a discrete schedule.
        clip_sample: clamp x0 to (-r, r) or (low, high).
        threshold: dynamic threshold of x0 instead.

    Raises:
        ValueError: an order below 1, unknown names, bad ranges, a prediction that does not determine m at alpha = 0.
    """
    if order < 1:
        raise ValueError(f"order: expected 1 or more, got {order}")
    if solver_type not in ("bh1", "bh2"):
        raise ValueError(f"solver_type: expected bh1 or bh2, got {solver_type!r}")
    method = Adams(
        form=form(predict_x0, clip_sample, threshold),
        predictor=order,
        corrector=order + 1,
        two_point=solver_type,
        lower_order_final=lower_order_final,
        uncorrected=disable_corrector,
    )
    place = Placement(timestep_spacing, steps_offset, endpoint=False)
    return method.plan("unipc", schedule, steps, prediction=prediction, place=place, final=final_sigmas_type)
