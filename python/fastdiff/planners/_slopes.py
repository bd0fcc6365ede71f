# SPDX-License-Identifier: Apache-2.0
"""Solvers of the diffusion ODE written as du/dtau = slope: what Heun, DPM2 and LMS share.

On any path x = alpha x0 + sigma eps, with u = x/alpha and tau = sigma/alpha, the probability flow is du/dtau = eps
(Karras et al. 2022, equation (1) with s = 1). On a straight path, alpha + sigma = 1, flow matching takes u = x,
tau = sigma and du/dtau = eps - x0 instead. Both are one rule,

    x = c u,    slope = eps (c = alpha)  or  eps - x0 (c = alpha + sigma),    tau = sigma/c

and in both Euler's step from s to t is x_t = alpha_t x0 + sigma_t eps, x0 and eps being those at s. The other solvers
are written as this step and differences of slopes: u itself, of the size of tau, never appears, so that no row is the
small difference of large terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fastdiff.planners._tables import (
    Level,
    Table,
    combine,
    conversion,
    levels_of,
    timestep_tensor,
)
from fastdiff.planners.plan import Plan
from fastdiff.schedules import Grid, Schedule

Clamp = tuple[float, float] | None
Terms = Mapping[str, float]

LONG = 0.5  # a step that changes x by more of its size is not written as x plus a change


@dataclass(frozen=True)
class Path:
    """The variable u = x/c and the time tau = sigma/c in which a solver steps."""

    straight: bool

    def scale(self, level: Level) -> float:
        """c."""
        return sum(level) if self.straight else level[0]

    def time(self, level: Level) -> float:
        """tau."""
        return level[1] / self.scale(level)

    def at(self, schedule: Schedule, tau: float) -> tuple[float, Level]:
        """What the model is told at tau, and the level there."""
        ratio = tau
        if self.straight:
            ratio = tau / (1 - tau) if tau < 1 else math.inf
        return schedule.at(ratio)


def path_of(solver: str, grid: Grid) -> Path:
    """The straight path where alpha + sigma = 1 all along.

    Raises:
        ValueError: sigma/alpha is infinite at the start.
    """
    path = Path(all(math.isclose(a + s, 1) for a, s in levels_of(grid)))
    if grid.alphas[0] == 0 and not path.straight:
        raise ValueError(
            f"{solver}: expected alpha > 0, got 0 at the first level; sigma/alpha is infinite there"
        )
    return path


@dataclass(frozen=True)
class Step:
    """What an evaluation does to x: x' = x + terms if it adds, else x' = terms."""

    terms: Terms
    adds: bool

    def plus(self, *parts: tuple[float, Terms]) -> Step:
        return Step(combine((1, self.terms), *parts), self.adds)


class Evaluations:
    """The table of a solver in x and slopes, one evaluation of the model after the other.

    Rows: signal = alpha x0 where the model predicts eps, else x0; cut, what clamping takes away from it; m, the slope
    or x0; step and x'. The history keeps m of the evaluations before, m1 being the last. Where a step is short, so is
    its rounding, and that of x' = x + step is all that adds up over a run; after a long one x' = step.
    """

    def __init__(self, kind: str, path: Path, history: int, clamp: Clamp = None) -> None:
        self._kind, self._path, self._clamp = kind, path, clamp
        self._guess = "signal" if kind == "epsilon" else "x0"
        self._past = tuple(f"m{n}" for n in range(1, history + 1))
        self._told: list[float] = []
        self._levels: list[Level] = []
        self._steps: list[Step] = []
        self._m: list[tuple[bool, float]] = []
        self._moves: list[tuple[float, float]] = []

    def keeps_x0(self, level: Level) -> bool:
        """Whether a step with its second evaluation at this level is better written in x0, see `change`."""
        if self._path.straight or self._kind == "epsilon":
            return False
        return self._kind == "x0" or level[1] > level[0]

    def line(self, level: Level, target: Level, *, x0: bool = False) -> Step:
        """alpha_t x0 + sigma_t eps = c_t x0 + sigma_t slope, with the x0 and eps of the evaluation at this level."""
        c, c_t = self._path.scale(level), self._path.scale(target)
        sigma, sigma_t = level[1], target[1]
        adds = abs(c_t - c) + abs(sigma_t - sigma) <= LONG * math.hypot(c_t, sigma_t)
        if x0:
            return Step({"x": sigma_t / sigma - adds, "m": c_t - c * sigma_t / sigma}, adds)
        kept, kept_sigma = (c, sigma) if adds else (0.0, 0.0)
        return Step({self._guess: (c_t - kept) / self._unit(level), "m": sigma_t - kept_sigma}, adds)

    def change(self, level: Level, *, x0: bool) -> Terms:
        """slope - slope_before, where x at this level is Euler's step from the evaluation before.

        Then x = c x0_before + sigma slope_before as well as c x0 + sigma slope: the difference is (x0_before - x0)/tau.
        At tau > 1 that is the smaller rounding, by tau, unless x0 itself comes from the slope.
        """
        w = -1 / self._path.time(level) if x0 else 1.0
        return {"m": w, "m1": -w}

    def add(
        self,
        told: float,
        level: Level,
        step: Step,
        *,
        x0: bool = False,
        noise: float = 0.0,
        shrink: float = 1.0,
    ) -> None:
        """One evaluation, told this, at this level.

        Args:
            x0: m is x0, not the slope.
            noise: standard deviation of what is added to x'.
            shrink: factor on m.
        """
        self._told.append(told)
        self._levels.append(level)
        self._steps.append(step)
        self._m.append((x0, shrink))
        self._moves.append((1.0, noise))

    def moved(self, factor: float, noise: float) -> None:
        """After the last evaluation so far x' is multiplied by this, and more noise added."""
        before, z = self._moves[-1]
        self._moves[-1] = factor * before, math.hypot(factor * z, noise)

    def plan(self, solver: str, order: int, end: Level, init_noise_sigma: float = math.nan) -> Plan:
        """The plan, whose last x' is at level `end`."""
        cut = () if self._clamp is None else ("cut",)
        rows = (self._guess, *cut, "m", "step", "x'")
        table = Table(len(self._told), ("x", "prediction", *self._past), rows)
        for i, (level, step, (x0, shrink)) in enumerate(zip(self._levels, self._steps, self._m, strict=True)):
            slope = self._set_guess(table, i, level)
            table.set(i, "m", {self._guess: 1.0} if x0 else combine((shrink, slope)))
            factor, noise = self._moves[i]
            table.set(i, "step", step.terms)
            table.set(i, "x'", {"x": factor * step.adds, "step": factor, "z": noise})
        alphas, sigmas = torch.tensor([*self._levels, end], dtype=torch.float64).unbind(-1)
        return Plan(
            solver=solver,
            table=table.data,
            timesteps=timestep_tensor(self._told),
            alphas=alphas.contiguous(),
            sigmas=sigmas.contiguous(),
            inputs=("x", "prediction", *self._past),
            rows=rows,
            carry={"x": "x'"} | dict(zip(self._past, ("m", *self._past), strict=False)),
            prediction=self._kind,
            order=order,
            init_noise_sigma=init_noise_sigma,
        )

    def _unit(self, level: Level) -> float:
        """q: the guess is q x0."""
        conversion(self._kind, level)  # refuses epsilon at alpha = 0
        return level[0] if self._kind == "epsilon" else 1.0

    def _set_guess(self, table: Table, i: int, level: Level) -> Terms:
        """The guess; returns the slope. Where the clamp takes nothing the cut is exactly 0, the slope as without it."""
        (alpha, sigma), q, guess = level, self._unit(level), self._guess
        x0, slope = conversion(self._kind, level)
        on_cut = alpha / sigma / q  # eps = (x - alpha x0)/sigma
        if self._kind == "epsilon":
            x0 = {"x": 1.0, "prediction": -sigma}
            slope = {"prediction": 1.0} | ({guess: -1 / q} if self._path.straight else {})
        elif self._path.straight:
            slope, on_cut = combine((1, slope), (-1, x0)), on_cut + 1
        if self._clamp is None:
            table.set(i, guess, x0)
            return slope
        table.set(i, guess, x0, clamp=(q * self._clamp[0], q * self._clamp[1]))
        table.set(i, "cut", x0 | {guess: -1.0})
        return slope | {"cut": on_cut}


# ---- churn ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, up to the level tau_hat = (1 + gamma) tau: Karras et al. 2022, algorithm 2.

    gamma = min(s_churn/N, sqrt(2) - 1) where s_tmin <= tau <= s_tmax, N the number of steps, else 0.
    """

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __post_init__(self) -> None:
        if not (self.s_churn >= 0 and self.s_noise >= 0):
            raise ValueError(f"s_churn, s_noise: expected 0 or more, got {self.s_churn} and {self.s_noise}")

    def gamma(self, tau: float, steps: int) -> float:
        return min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_tmin <= tau <= self.s_tmax else 0.0


NO_CHURN = Churn(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Start:
    """Where a step starts: what the model is told, the level, and how x got there: factor x + noise z."""

    told: float
    level: Level
    factor: float = 1.0
    noise: float = 0.0


def starts(grid: Grid, schedule: Schedule, path: Path, churn: Churn) -> list[Start]:
    """The start of each step: its level, or the noisier one to which x is churned.

    Any level can be reached from a less noisy one: x_hat = (alpha_hat/alpha) x + s_noise sqrt(sigma_hat^2 -
    (alpha_hat/alpha)^2 sigma^2) z, which in u is lines 5 and 6 of algorithm 2.
    """
    made, steps = [], len(grid.times)
    for told, level in zip(grid.times, levels_of(grid)[:-1], strict=True):
        tau = path.time(level)
        gamma = churn.gamma(tau, steps)
        if gamma == 0 or level[0] == 0:  # pure noise already
            made.append(Start(told, level))
            continue
        hat = (1 + gamma) * tau
        told, (alpha, sigma) = path.at(schedule, min(hat, 1.0) if path.straight else hat)
        factor = alpha / level[0]
        noise = math.sqrt(max(sigma**2 - (factor * level[1]) ** 2, 0.0))
        made.append(Start(told, (alpha, sigma), factor, churn.s_noise * noise))
    return made


def churned_init(first: Start, grid: Grid) -> float:
    """init_noise_sigma of a plan that starts at the level to which its first step churns."""
    return math.hypot(first.factor * math.hypot(grid.alphas[0], grid.sigmas[0]), first.noise)
