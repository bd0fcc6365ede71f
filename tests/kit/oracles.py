# SPDX-License-Identifier: Apache-2.0
"""Outside oracles for the planners: closed-form flows, analytic models, the papers' solvers in float64.

Nothing here imports a planner or a schedule: levels come from numpy tables built from the definitions, the
solvers are the papers' formulas, one tensor operation after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Level = tuple[float, float]  # alpha, sigma


# ---- levels ------------------------------------------------------------------------------------------------


def alphas_cumprod(name: str, steps: int = 1000) -> np.ndarray:
    """ab_t, float64 [T], of the schedules "linear", "scaled_linear" and "cosine" with diffusers' defaults."""
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, steps)
    elif name == "scaled_linear":
        betas = np.linspace(1e-4**0.5, 0.02**0.5, steps) ** 2
    else:
        u = np.arange(steps + 1) / steps
        f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.cumprod(1 - betas)


def vp_level(ab: np.ndarray, t: float) -> Level:
    """(alpha, sigma) at timestep t; sigma/alpha is interpolated linearly between timesteps."""
    ratio = float(np.interp(t, np.arange(len(ab)), np.sqrt((1 - ab) / ab)))
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


def flow_level(t: float, steps: int = 1000) -> Level:
    return 1 - t / steps, t / steps


# ---- analytic models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """Every element of the data is drawn from sum_j weight_j N(mean_j, std_j^2)."""

    weights: tuple[float, ...] = (1.0,)
    means: tuple[float, ...] = (0.3,)
    stds: tuple[float, ...] = (0.5,)

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x] at this level, in float64 (Wang and Vastola 2023)."""
        x = x.double()
        log_r, guesses = [], []
        for w, m, s in zip(self.weights, self.means, self.stds, strict=True):
            var = alpha**2 * s**2 + sigma**2
            log_r.append(math.log(w / math.sqrt(var)) - (x - alpha * m) ** 2 / (2 * var))
            guesses.append(m + alpha * s**2 / var * (x - alpha * m))
        return (torch.stack(log_r).softmax(0) * torch.stack(guesses)).sum(0)

    def cdf(self, x: Tensor, level: Level) -> Tensor:
        alpha, sigma = level
        parts = zip(self.weights, self.means, self.stds, strict=True)
        return sum(
            (w * torch.special.ndtr((x - alpha * m) / math.hypot(alpha * s, sigma)) for w, m, s in parts),
            torch.zeros((), dtype=torch.float64),
        )

    def transport(self, x: Tensor, start: Level, end: Level) -> Tensor:
        """The exact probability flow from one level to another: in one dimension a flow keeps quantiles."""
        target = self.cdf(x.double(), start)
        low, high = torch.full_like(target, -100.0), torch.full_like(target, 100.0)
        for _ in range(70):  # bisection to the last bit of float64
            middle = (low + high) / 2
            above = self.cdf(middle, end) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


GAUSSIAN = Mixture()
BIMODAL = Mixture((0.35, 0.65), (-0.8, 0.6), (0.25, 0.4))


def predict(kind: str, x: Tensor, x0: Tensor, alpha: float, sigma: float) -> Tensor:
    """What a model of this prediction type says when it thinks that the data is x0."""
    eps = (x.double() - alpha * x0) / sigma
    if kind == "v":  # of the variance-preserving x/s, s = sqrt(alpha^2 + sigma^2)
        return (alpha * eps - sigma * x0) / math.hypot(alpha, sigma)
    if kind in ("edm", "edm_v"):  # F of Karras et al. 2022, table 1, of x = c_in (x0 + ratio eps)
        f = (sigma * x.double() - eps) / math.sqrt((1 - sigma) * (1 + sigma))
        return f if kind == "edm" else -f
    return {"epsilon": eps, "x0": x0, "flow": eps - x0, "reverse_flow": x0 - eps, "score": -eps / sigma}[kind]


@dataclass(frozen=True)
class AnalyticModel:
    """model(x, t), exact in float64, rounded to x's dtype as a network's output is."""

    data: Mixture
    kind: str
    level: Callable[[float], Level]

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = self.level(float(t))
        return predict(self.kind, x, self.data.denoise(x, alpha, sigma), alpha, sigma).to(x.dtype)


def recover(kind: str, x: Tensor, prediction: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """(x0, eps) from x and a prediction."""
    alpha, sigma = level
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if kind == "x0":
        return prediction, (x - alpha * prediction) / sigma
    if kind == "v":
        s = math.hypot(alpha, sigma)
        x0, eps = (alpha * x / s - sigma * prediction) / s, (sigma * x / s + alpha * prediction) / s
        return x0, eps
    return (x - sigma * prediction) / (alpha + sigma), (x + alpha * prediction) / (alpha + sigma)


# ---- solvers from their papers, float64 --------------------------------------------------------------------


def ddim(
    model: AnalyticModel,
    x: Tensor,
    times: Sequence[float],
    levels: Sequence[tuple[Level, Level]],
    *,
    eta: float = 0.0,
    noise: Sequence[Tensor] = (),
    clip: float = math.inf,
) -> Tensor:
    """Song et al. 2021, equations (12) and (16); levels are the pairs (this step's, the next one's), VP."""
    x, z = x.double(), iter(noise)
    for t, ((a, s), (a_next, s_next)) in zip(times, levels, strict=True):
        x0, eps = recover(model.kind, x, model(x, t), (a, s))
        std = eta * math.sqrt(s_next**2 / s**2) * math.sqrt(1 - a**2 / a_next**2)
        x = a_next * x0.clamp(-clip, clip) + math.sqrt(s_next**2 - std**2) * eps
        if std > 0:
            x = x + std * next(z).double()
    return x


def dpm_solver_pp_2m(
    model: AnalyticModel,
    x: Tensor,
    times: Sequence[float],
    levels: Sequence[Level],
    *,
    heun: bool,
    first_last: bool,
) -> Tensor:
    """Lu et al. 2022, algorithm 2 (midpoint) and the Taylor form; levels [S + 1]."""
    x, old = x.double(), torch.zeros(())
    lam = [math.inf if s == 0 else -math.inf if a == 0 else math.log(a / s) for a, s in levels]
    for i, t in enumerate(times):
        (_, s), (a_next, s_next) = levels[i], levels[i + 1]
        h = lam[i + 1] - lam[i]
        x0, _ = recover(model.kind, x, model(x, t), levels[i])
        x = s_next / s * x - a_next * math.expm1(-h) * x0
        if i > 0 and not (first_last and i == len(times) - 1) and h > 0:
            d = (x0 - old) / ((lam[i] - lam[i - 1]) / h)
            x = x + (a_next * (math.expm1(-h) / h + 1) if heun else -a_next * math.expm1(-h) / 2) * d
        old = x0
    return x


# ---- a plan's program, float64 -----------------------------------------------------------------------------


def execute(
    plan: Any, model: Callable[[Tensor, int], Any], x: Tensor, noise: Sequence[Tensor] = ()
) -> Tensor:
    """Run plan.table as its definition reads; model(x, i) gets the index, noise is for the noisy steps."""
    state: dict[str, Tensor] = {name: torch.full_like(x, math.nan).double() for name in plan.inputs}
    state["x"] = x.double()
    z = iter(noise)
    for i, rows in enumerate(plan.table.tolist()):
        prediction = model(state["x"], i)
        pair = prediction if isinstance(prediction, tuple) else (prediction,)
        deviation = torch.ones((), dtype=torch.float64)
        if plan.learned_variance is not None:
            a, b = plan.learned_variance[i].tolist()
            deviation = (a + b * pair[-1].double().chunk(2, 1)[1]).exp()
            pair = tuple(p.chunk(2, 1)[0] for p in pair)
        slots = [name for name in plan.inputs if name in ("prediction", "uncond", "cond")]
        values = state | dict(zip(slots, pair, strict=True))
        values["z"] = deviation * _noise(z, x) if plan.noisy[i] else torch.full_like(x, math.nan)
        for name, (*weights, low, high) in zip(plan.rows, rows, strict=True):
            columns = [*plan.inputs, *plan.rows, "z"]
            terms = [w * values[c].double() for w, c in zip(weights, columns, strict=True) if w]
            values[name] = sum(terms, torch.zeros((), dtype=torch.float64)).clamp(low, high)
            if name == "x0" and plan.threshold is not None:
                values[name] = threshold(values[name], plan.threshold)
        state |= {slot: values[source] for slot, source in plan.carry.items()}
    return state["x"]


def threshold(x0: Tensor, how: Any) -> Tensor:
    """Saharia et al. 2022, section 2.3, per sample."""
    s = x0.flatten(1).abs().quantile(how.ratio, dim=1).clamp(how.min_value, how.max_value)
    s = s.reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def _noise(z: Iterator[Tensor], like: Tensor) -> Tensor:
    return next(z).to(like.device, torch.float64)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference||, in float64."""
    reference = reference.double()
    return float((value.double() - reference).norm() / reference.norm())


def measured_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Slope of -ln(error) against ln(steps), least squares."""
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


ORDER_STEPS = (40, 80, 160, 320)
ORDER_WITHIN = 0.15


def end_point_error(plan: Any, data: Mixture) -> float:
    """Of a deterministic plan's end point against the closed form, from x at its first level, in float64."""
    x = torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))

    def model(x: Tensor, i: int) -> Tensor:
        return predict(plan.prediction, x, data.denoise(x, *levels[i]), *levels[i])

    exact = data.transport(x, levels[0], levels[-1])
    return relative_error(execute(plan, model, x), exact)


def check_order(
    make: Callable[[int], Any], order: float, data: Mixture, steps: Sequence[int] = ORDER_STEPS
) -> None:
    """The end-point error of make(n) falls like n^-order, within 0.15."""
    measured = measured_order(steps, [end_point_error(make(n), data) for n in steps])
    assert abs(measured - order) <= ORDER_WITHIN, f"measured order {measured:.3f}, expected {order}"


def moments(plan: Any, data: Mixture = GAUSSIAN) -> tuple[float, float]:
    """Mean and variance of the end point for Gaussian data, exactly, through plan.table.

    The posterior mean of Gaussian data is affine in x, so each row is an affine function of the state and z: the mean
    and the covariance of the state's slots go from step to step in closed form.
    """
    slots = ["x", *plan.history]
    k, (m,), (std,) = len(slots), data.means, data.stds
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    columns = [*plan.inputs, *plan.rows, "z"]
    unit = torch.eye(k + 2, dtype=torch.float64)  # of the slots, 1 and z
    mean, covariance = torch.zeros(k).double(), torch.zeros(k, k).double()
    mean[0], covariance[0, 0] = levels[0][0] * m, (levels[0][0] * std) ** 2 + levels[0][1] ** 2
    for i, rows in enumerate(plan.table.tolist()):
        at = torch.tensor([0.0, 1.0]).double()
        zero, one = predict(plan.prediction, at, data.denoise(at, *levels[i]), *levels[i]).tolist()
        values = {slot: unit[n] for n, slot in enumerate(slots)} | {"z": unit[-1]}
        values["prediction"] = (one - zero) * unit[0] + zero * unit[k]
        for name, (*weights, _, _) in zip(plan.rows, rows, strict=True):
            terms = [w * values[c] for w, c in zip(weights, columns, strict=True) if w]
            values[name] = sum(terms, torch.zeros(k + 2).double())
        state = torch.stack([values[plan.carry[slot]] for slot in slots])
        step, shift, noise = state[:, :k], state[:, k], state[:, k + 1]
        mean = step @ mean + shift
        covariance = step @ covariance @ step.T + torch.outer(noise, noise)
    return float(mean[0]), float(covariance[0, 0])
