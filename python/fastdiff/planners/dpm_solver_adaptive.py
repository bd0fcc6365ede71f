# SPDX-License-Identifier: Apache-2.0
"""Adaptive DPM-Solver: Lu et al. 2022 (arXiv 2206.00927), appendix C, "Adaptive step size schedule"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fastdiff.planners._dpm import second_order
from fastdiff.planners._exponential import Interval
from fastdiff.planners._tables import Level, Table, combine, conversion, prediction_type, set_x0, x0_rows
from fastdiff.schedules import Placement, Schedule
from fastdiff.schedules._grid import half_log_snr
from fastdiff.solver.linear_step import linear_step

Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Terms = Mapping[str, float]


@dataclass(frozen=True)
class AdaptiveResult:
    """What `dpm_solver_adaptive` returns.

    Attributes:
        sample: x at the end of the schedule, in the dtype of the x to start from.
        evaluations: of the model.
        accepted, rejected: steps.
        lambdas: ln(alpha/sigma) where the run began and after each accepted step.
    """

    sample: torch.Tensor
    evaluations: int
    accepted: int
    rejected: int
    lambdas: tuple[float, ...]


def dpm_solver_adaptive(
    model: Model,
    x: torch.Tensor,
    schedule: Schedule,
    *,
    order: Literal[2, 3] = 2,
    rtol: float = 0.05,
    atol: float = 0.0078,
    theta: float = 0.9,
    h_init: float = 0.05,
    t_err: float = 1e-5,
    prediction: str = "epsilon",
    data: bool = False,
) -> AdaptiveResult:
    """DPM-Solver-12 or -23: steps as long as the local error allows, from the noisiest level to the cleanest.

    Each step of length h in lambda is taken with orders k - 1 and k, from the same evaluations. With

        delta = max(atol, rtol max(|x_lower|, |x_before|)),    E = max_b rms((x_lower - x_higher)/delta)

    x_higher is accepted if E <= 1, x_lower becomes x_before, and the next h is min(theta h E^(-1/k), what is left).
    Order 2: DPM-Solver-1, which is DDIM, and DPM-Solver-2 (algorithm 1); order 3: DPM-Solver-2 with r_1 = 1/3 and
    DPM-Solver-3 (algorithm 2). A rejected step keeps its evaluation at the base, which the official code repeats.

    It is no plan: how many steps there are depends on the data, and all samples share them. So E is read by the host,
    once a step, and the run can be neither captured in a CUDA graph nor compiled as one.

    Args:
        model: model(x, t) -> prediction; t is a floating scalar on x's device, with fractions.
        x: [B, *sample], fp32, fp16, bf16 or fp64, at the first level of the schedule. Kept. fp16 and bf16 are float32
            between steps; the model sees them rounded.
        schedule: one that has levels between the timesteps: all but `from_levels` without a base.
        order: k, 2 or 3.
        rtol, atol: of the local error; the values of the paper, for images in [-1, 1].
        theta: safety factor, 0 to 1.
        h_init: the first h.
        t_err: stop this close to the end, in lambda. (In t in the official code, for the rounding of float32.)
        prediction: what the model predicts: epsilon, x0 (sample), v (v_prediction), flow, edm.
        data: integrate x0 (DPM-Solver++) instead of eps.

    Raises:
        ValueError: another order, tolerances or factors out of range, an unknown name; an error that is not finite or
            does not fall below 1 however short the step.
    """
    if order not in (2, 3):
        raise ValueError(f"order: expected 2 or 3, got {order}")
    if not (atol > 0 and rtol >= 0 and 0 < theta < 1 and h_init > 0):
        raise ValueError(
            f"expected atol > 0, rtol >= 0, 0 < theta < 1, h_init > 0, got {atol}, {rtol}, {theta}, {h_init}"
        )
    run = _Run(model, schedule, prediction_type(prediction), data, x.dtype)
    start, end = (half_log_snr(*level) for level in _ends(schedule))
    state = before = x.to(run.dtype)
    lambdas, rejected, h = [start], 0, min(h_init, end - start)
    m0 = None
    while end - lambdas[-1] > t_err:
        s = lambdas[-1]
        m0 = run.evaluate(state, s) if m0 is None else m0
        lower, higher = (run.step_12 if order == 2 else run.step_23)(state, m0, s, h)
        error = _error(lower, higher, before, atol, rtol)
        if error <= 1:
            state, before, m0 = higher, lower, None
            lambdas.append(s + h)
        elif h < t_err:
            raise ValueError(f"dpm_solver_adaptive: a step of {h:.1e} is still too long at lambda = {s:.4g}")
        else:
            rejected += 1
        longest = theta * h * error ** (-1 / order) if error else math.inf
        h = min(longest, end - lambdas[-1])
    return AdaptiveResult(state.to(x.dtype), run.evaluations, len(lambdas) - 1, rejected, tuple(lambdas))


def _ends(schedule: Schedule) -> tuple[Level, Level]:
    """The first level, and the last one with sigma > 0."""
    grid = schedule.grid(1, Placement(endpoint=False), "sigma_min")
    first, last = zip(grid.alphas, grid.sigmas, strict=True)
    return first, last


def _error(
    lower: torch.Tensor, higher: torch.Tensor, before: torch.Tensor, atol: float, rtol: float
) -> float:
    import fastdiff  # which imports the planners

    error = float(fastdiff.scaled_error_norm(lower, higher, before, atol=atol, rtol=rtol).max())
    if not math.isfinite(error):
        raise ValueError("dpm_solver_adaptive: the error of a step is not finite; does the model return NaN?")
    return error


class _Run:
    """The steps of one run, and how often the model has been evaluated."""

    def __init__(self, model: Model, schedule: Schedule, kind: str, data: bool, seen: torch.dtype) -> None:
        self.model, self.schedule, self.kind, self.data, self.seen = model, schedule, kind, data, seen
        self.dtype = torch.float32 if seen in (torch.float16, torch.bfloat16) else seen
        self.evaluations = 0

    def evaluate(self, x: torch.Tensor, lam: float) -> torch.Tensor:
        """m, which is x0 or eps, at x and lambda."""
        time, level = self._at(lam)
        self.evaluations += 1
        real = torch.float64 if self.dtype == torch.float64 else torch.float32
        p = self.model(x.to(self.seen), torch.tensor(time, dtype=real, device=x.device))
        if self.data:
            table = Table(1, ("x", "prediction"), x0_rows(self.kind))
            set_x0(table, 0, self.kind, level)
        else:
            table = Table(1, ("x", "prediction"), ("eps",))
            eps = {"prediction": 1.0} if self.kind == "epsilon" else conversion(self.kind, level)[1]
            table.set(0, "eps", eps)
        return self._launch(table, [x, p], stored=1)[0]

    def step_12(
        self, x: torch.Tensor, m0: torch.Tensor, s: float, h: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """DPM-Solver-1 and -2 with r_1 = 1/2, from the same two evaluations."""
        middle, whole = self._interval(s, s + h / 2), self._interval(s, s + h)
        (u,) = self._rows({"x": x, "m0": m0}, [_first(middle)])
        m1 = self.evaluate(u, s + h / 2)
        second = combine((1, {"x": whole.x}), (1, second_order(whole, "m0", "m1", 1 / 2, "midpoint")))
        lower, higher = self._rows({"x": x, "m0": m0, "m1": m1}, [_first(whole), second])
        return lower, higher

    def step_23(
        self, x: torch.Tensor, m0: torch.Tensor, s: float, h: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """DPM-Solver-2 with r_1 = 1/3 and DPM-Solver-3, from the same three evaluations."""
        first, inner, whole = (self._interval(s, s + r * h) for r in (1 / 3, 2 / 3, 1))
        (u1,) = self._rows({"x": x, "m0": m0}, [_first(first)])
        m1 = self.evaluate(u1, s + h / 3)
        to_inner = combine((1, {"x": inner.x}), (1, second_order(inner, "m0", "m1", 1 / 2, "heun")))
        second = combine((1, {"x": whole.x}), (1, second_order(whole, "m0", "m1", 1 / 3, "midpoint")))
        u2, lower = self._rows({"x": x, "m0": m0, "m1": m1}, [to_inner, second])
        m2 = self.evaluate(u2, s + 2 * h / 3)
        third = combine((1, {"x": whole.x}), (1, second_order(whole, "m0", "m2", 2 / 3, "heun")))
        (higher,) = self._rows({"x": x, "m0": m0, "m2": m2}, [third])
        return lower, higher

    def _at(self, lam: float) -> tuple[float, Level]:
        return self.schedule.at(math.exp(-lam))

    def _interval(self, s: float, t: float) -> Interval:
        return Interval(self._at(s)[1], self._at(t)[1], self.data)

    def _rows(self, slots: Mapping[str, torch.Tensor], rows: Sequence[Terms]) -> tuple[torch.Tensor, ...]:
        names = [f"y{i}" for i in range(len(rows))]
        table = Table(1, tuple(slots), names)
        for name, terms in zip(names, rows, strict=True):
            table.set(0, name, terms)
        return self._launch(table, list(slots.values()), stored=len(rows))

    def _launch(self, table: Table, inputs: list[torch.Tensor], stored: int) -> tuple[torch.Tensor, ...]:
        """The last rows of a table of one step."""
        real = torch.float64 if self.dtype == torch.float64 else torch.float32
        dtypes = [None] * (len(table.rows) - stored) + [self.dtype] * stored
        return linear_step(inputs, table.data[0].to(inputs[0].device, real), dtypes=dtypes)


def _first(step: Interval) -> Terms:
    return {"x": step.x, "m0": step.first}
