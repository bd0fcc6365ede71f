# SPDX-License-Identifier: Apache-2.0
"""Adaptive DPM-Solver against the official algorithm in float64, and against flows of known end points."""

from __future__ import annotations

import math
from typing import Any

import fastdiff
import pytest
import torch
from fastdiff import planners, schedules
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Level, Mixture

VP = schedules.linear()
START, END = VP.level(999), VP.level(0)


@pytest.fixture(autouse=True)
def _norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the op is there."""

    def norm(lower: Tensor, higher: Tensor, previous: Tensor, *, atol: float, rtol: float) -> Tensor:
        delta = (rtol * torch.maximum(lower.abs(), previous.abs())).clamp(min=atol)
        return (((higher - lower) / delta) ** 2).flatten(1).mean(1).sqrt()

    if not hasattr(fastdiff, "scaled_error_norm"):
        monkeypatch.setattr(fastdiff, "scaled_error_norm", norm, raising=False)


class Model:
    """The analytic model at the level that a timestep stands for; records what it is told."""

    def __init__(self, data: Mixture, kind: str = "epsilon", schedule: Any = VP) -> None:
        self.data, self.kind, self.schedule, self.times = data, kind, schedule, list[float]()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(float(t))
        level = self.level(float(t))
        return oracles.predict(self.kind, x, self.data.denoise(x, *level), *level).to(x.dtype)

    def level(self, t: float) -> Level:
        """The inverse of `schedule.time`, which is linear in ln(sigma/alpha) between two timesteps."""
        if isinstance(self.schedule, schedules.FlowSchedule):
            return oracles.flow_level(t)
        if isinstance(self.schedule, schedules.SigmaSchedule):
            return 1.0, t
        low = min(int(t), 998)
        logs = [math.log(s / a) for a, s in (VP.level(low), VP.level(low + 1))]
        ratio = math.exp(logs[0] + (t - low) * (logs[1] - logs[0]))
        return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


# ---- the official algorithm ----------------------------------------------------------------------------------


def official(
    x: Tensor, data: Mixture, order: int, form: str, rtol: float, atol: float
) -> tuple[Tensor, list[float], int]:
    """`dpm_solver_adaptive` of the official code, on the VP path; (x, lambdas, rejected)."""

    def level(lam: float) -> Level:
        return 1 / math.hypot(1, math.exp(-lam)), 1 / math.hypot(1, math.exp(lam))

    def m(x: Tensor, lam: float) -> Tensor:
        x0 = data.denoise(x, *level(lam))
        return x0 if form == "data" else (x - level(lam)[0] * x0) / level(lam)[1]

    def scales(lam: float, h: float) -> tuple[float, float]:  # of x, of phi_1 in it
        (a, s), (b, r) = level(lam), level(lam + h)
        return (b / a, -r) if form == "noise" else (r / s, -b)

    sign = 1 if form == "noise" else -1

    def first(x: Tensor, lam: float, h: float, m0: Tensor) -> Tensor:
        a, b = scales(lam, h)
        return a * x + b * math.expm1(sign * h) * m0

    def second(x: Tensor, lam: float, h: float, r: float, m0: Tensor) -> tuple[Tensor, Tensor]:
        m1 = m(first(x, lam, r * h, m0), lam + r * h)
        _, b = scales(lam, h)
        return first(x, lam, h, m0) + 0.5 / r * b * math.expm1(sign * h) * (m1 - m0), m1

    def third(x: Tensor, lam: float, h: float, m0: Tensor, m1: Tensor) -> Tensor:
        r, (_, b2), (_, b) = 2 / 3, scales(lam, 2 / 3 * h), scales(lam, h)
        phi22 = math.expm1(sign * r * h) / (r * h) - sign
        u2 = first(x, lam, r * h, m0) + 2 * sign * b2 * phi22 * (m1 - m0)
        phi2 = math.expm1(sign * h) / h - sign
        return first(x, lam, h, m0) + 1.5 * sign * b * phi2 * (m(u2, lam + r * h) - m0)

    lam, end = math.log(START[0] / START[1]), math.log(END[0] / END[1])
    before, h, lambdas, rejected = x, 0.05, [lam], 0
    while end - lam > 1e-5:
        m0 = m(x, lam)
        if order == 2:
            lower, (higher, _) = first(x, lam, h, m0), second(x, lam, h, 0.5, m0)
        else:
            lower, m1 = second(x, lam, h, 1 / 3, m0)
            higher = third(x, lam, h, m0, m1)
        delta = (rtol * torch.maximum(lower.abs(), before.abs())).clamp(min=atol)
        error = float((((higher - lower) / delta) ** 2).mean(1).sqrt().max())
        if error <= 1:
            x, before, lam = higher, lower, lam + h
            lambdas.append(lam)
        else:
            rejected += 1
        h = min(0.9 * h * error ** (-1 / order), end - lam)
    return x, lambdas, rejected


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("tolerance", [1.0, 0.1])
def test_is_the_official_algorithm(tolerance: float, kind: str, form: str, order: Any) -> None:
    rtol, atol = 0.05 * tolerance, 0.0078 * tolerance
    x, lambdas, rejected = official(start(), BIMODAL, order, form, rtol, atol)
    model = Model(BIMODAL, kind)
    got = planners.dpm_solver_adaptive(
        model, start(), VP, order=order, rtol=rtol, atol=atol, prediction=kind, data=form == "data"
    )
    assert (got.accepted, got.rejected) == (len(lambdas) - 1, rejected)
    assert got.lambdas == pytest.approx(lambdas, abs=1e-6)
    assert oracles.relative_error(got.sample, x) < 1e-6
    # A rejected step has kept its evaluation at the base.
    assert got.evaluations == len(model.times) == order * got.accepted + (order - 1) * got.rejected
    assert (
        all(a >= b for a, b in zip(model.times[::order], model.times[order::order], strict=False)) or rejected
    )


# ---- the error -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("form", ["noise", "data"])
def test_the_tolerance_controls_the_error(form: str, order: Any, data: Mixture) -> None:
    exact = data.transport(start(), START, END)
    errors, evaluations = [], []
    for tolerance in (1.0, 0.1, 0.01):
        got = planners.dpm_solver_adaptive(
            Model(data),
            start(),
            VP,
            order=order,
            rtol=0.05 * tolerance,
            atol=0.0078 * tolerance,
            data=form == "data",
        )
        errors.append(oracles.relative_error(got.sample, exact))
        evaluations.append(got.evaluations)
    assert errors[0] < 0.1
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 20
    assert evaluations == sorted(evaluations)


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (VP, "v"),
        (schedules.exponential(base=VP), "x0"),
        (schedules.karras(base=VP), "epsilon"),
        (schedules.karras(0.02, 20), "epsilon"),
        (schedules.flow(), "flow"),
    ],
    ids=["vp", "exponential", "karras", "ve", "flow"],
)
def test_schedules_and_predictions(schedule: Any, kind: str) -> None:
    got = planners.dpm_solver_adaptive(
        Model(BIMODAL, kind, VP if getattr(schedule, "base", None) else schedule), start(), schedule, order=3,
        rtol=1e-3, atol=1e-3, prediction=kind, data=True,
    )  # fmt: skip
    ends = [schedule.at(math.exp(-lam))[1] for lam in (got.lambdas[0], got.lambdas[-1])]
    assert oracles.relative_error(got.sample, BIMODAL.transport(start(), ends[0], ends[1])) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Rounding decides about single steps, the first of which have errors of its size, but not about the end."""
    x = start(dtype)
    kept = x.clone()
    for order, data in ((2, False), (3, True)):
        got = planners.dpm_solver_adaptive(Model(BIMODAL), x, VP, order=order, data=data)  # type: ignore[arg-type]
        assert got.sample.dtype == dtype
        assert oracles.relative_error(got.sample, BIMODAL.transport(x, START, END)) < 0.05
    assert torch.equal(x, kept)


# ---- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order: expected 2 or 3, got 1"),
        ({"atol": 0.0}, "expected atol > 0"),
        ({"theta": 1.0}, "theta < 1"),
        ({"prediction": "noise"}, "prediction: expected one of"),
        ({"schedule": schedules.from_levels([1.0], [0.5, 0.9], [0.8, 0.1])}, "pass base="),
    ],
)
def test_bad_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planners.dpm_solver_adaptive(Model(GAUSSIAN), start(), **{"schedule": VP, **options})


def test_a_model_that_fails_is_said_to() -> None:
    with pytest.raises(ValueError, match="not finite"):
        planners.dpm_solver_adaptive(lambda x, t: x * math.nan, start(), VP)
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="still too long"):
        planners.dpm_solver_adaptive(
            lambda x, t: 1e6 * torch.randn(x.shape, generator=noise, dtype=x.dtype), start(), VP, data=True
        )
