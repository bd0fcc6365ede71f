# SPDX-License-Identifier: Apache-2.0
"""What users run today: the expressions of diffusers' pipelines and schedulers, and the schedulers themselves.

The expressions keep the order of operations and the casts of diffusers 0.42. A scheduler computes its coefficients
anew in every step, as 0-d tensors; here they are given, so that only the work on the latents is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from fastdiff.planners import Plan
from torch import Tensor

Number = Tensor | float
Expression = Callable[..., Sequence[Tensor]]
Coefficients = tuple[Number, ...]


def guided(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The line that every pipeline with classifier-free guidance has."""
    return uncond + scale * (cond - uncond)


class Solver2M(NamedTuple):
    """Coefficients of one second-order step of `DPMSolverMultistepScheduler`."""

    sigma: Number  # sigma_s0
    alpha: Number  # alpha_s0
    ratio: Number  # sigma_t / sigma_s0
    drift: Number  # alpha_t (e^-h - 1)
    half_drift: Number
    inverse_r0: Number  # h / h_0


def solver_2m_coefficients(plan: Plan, i: int) -> list[float]:
    """:class:`Solver2M` of step i, in float64."""
    alphas, sigmas = plan.alphas.tolist(), plan.sigmas.tolist()
    lambda_s1, lambda_s0, lambda_t = (math.log(alphas[n] / sigmas[n]) for n in (i - 1, i, i + 1))
    h, h_0 = lambda_t - lambda_s0, lambda_s0 - lambda_s1
    drift = alphas[i + 1] * math.expm1(-h)
    return [sigmas[i], alphas[i], sigmas[i + 1] / sigmas[i], drift, 0.5 * drift, h / h_0]


def solver_2m(sample: Tensor, model_output: Tensor, m1: Tensor, *numbers: Number) -> Sequence[Tensor]:
    """`convert_model_output` (epsilon) and `multistep_dpm_solver_second_order_update`."""
    k = Solver2M(*numbers)
    m0 = (sample - k.sigma * model_output) / k.alpha
    sample = sample.to(torch.float32)
    d0, d1 = m0, k.inverse_r0 * (m0 - m1)
    x_t = k.ratio * sample - k.drift * d0 - k.half_drift * d1
    return x_t.to(m0.dtype), m0


def cfg_solver_2m(scale: float) -> Expression:
    """The guidance line and :func:`solver_2m`."""

    def expression(
        sample: Tensor, uncond: Tensor, cond: Tensor, m1: Tensor, *numbers: Number
    ) -> Sequence[Tensor]:
        return solver_2m(sample, guided(uncond, cond, scale), m1, *numbers)

    return expression


def cfg_only(scale: float) -> Expression:
    """The guidance line alone."""
    return lambda uncond, cond: (guided(uncond, cond, scale),)


def flow_euler(sample: Tensor, model_output: Tensor, dt: Number) -> Sequence[Tensor]:
    """`FlowMatchEulerDiscreteScheduler.step`."""
    sample = sample.to(torch.float32)
    prev_sample = sample + dt * model_output
    return (prev_sample.to(model_output.dtype),)


class Ddim(NamedTuple):
    """Coefficients of one step of `DDIMScheduler`; the names are those of its `step`."""

    sqrt_beta_prod_t: Number
    sqrt_alpha_prod_t: Number
    sqrt_alpha_prod_t_prev: Number
    direction: Number
    std_dev_t: Number


def ddim_coefficients(plan: Plan, i: int) -> list[float]:
    """:class:`Ddim` of step i for eta = 1, in float64."""
    alpha, alpha_prev = plan.alphas[i : i + 2].tolist()
    sigma, sigma_prev = plan.sigmas[i : i + 2].tolist()
    deviation = sigma_prev / sigma * math.sqrt(1 - (alpha / alpha_prev) ** 2)
    return [sigma, alpha, alpha_prev, math.sqrt(sigma_prev**2 - deviation**2), deviation]


def ddim(sample: Tensor, model_output: Tensor, *numbers: Number) -> Sequence[Tensor]:
    """`DDIMScheduler.step` with eta > 0 and without clipping."""
    k = Ddim(*numbers)
    pred_original_sample = (sample - k.sqrt_beta_prod_t * model_output) / k.sqrt_alpha_prod_t
    prev_sample = k.sqrt_alpha_prod_t_prev * pred_original_sample + k.direction * model_output
    noise = torch.randn(model_output.shape, device=model_output.device, dtype=model_output.dtype)
    return (prev_sample + k.std_dev_t * noise,)


# ---- ways to run an expression -------------------------------------------------------------------------------


def with_tensors(expression: Expression, tensors: Sequence[Tensor], numbers: Sequence[float]) -> Expression:
    """Eager, the coefficients 0-d CPU tensors, as they are in a scheduler's step."""
    scalars = torch.tensor(numbers, dtype=torch.float32).unbind()
    return lambda: expression(*tensors, *scalars)


def with_floats(expression: Expression, tensors: Sequence[Tensor], numbers: Sequence[float]) -> Expression:
    """Eager, the coefficients Python numbers: what a careful author would write."""
    return lambda: expression(*tensors, *numbers)


def compiled(expression: Expression, tensors: Sequence[Tensor], numbers: Sequence[float]) -> Expression:
    """`torch.compile` for exactly these shapes; the coefficients come in one tensor, so new values do not recompile."""
    torch.compiler.reset()  # NOTE: past eight compilations of one function, torch would silently run it eagerly
    coefficients = torch.tensor(numbers, dtype=torch.float32, device=tensors[0].device)

    @torch.compile(dynamic=False, fullgraph=True)
    def run(coefficients: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        return expression(*tensors, *coefficients.unbind())

    return lambda: run(coefficients, *tensors)


class SchedulerLoop:
    """Consecutive real steps of a diffusers scheduler, each with the guidance line before it.

    ``reset`` starts the schedule again and takes its first step; a call takes the next ``count``.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        x: Tensor,
        predictions: Sequence[Tensor],
        scale: float,
        count: int,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._scheduler, self._steps, self._count, self._scale = scheduler, steps, count, scale
        self._options = options
        scheduler.is_scale_input_called = True  # or some of them warn, in every step
        self._start, self._predictions = x, predictions
        self._times: list[Tensor] = []
        self._x = x

    def reset(self) -> None:
        self._scheduler.set_timesteps(self._steps, device=self._start.device)
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(
                0
            )  # as pipelines do: without it the first step searches, and waits
        first, *self._times = self._scheduler.timesteps[: 1 + self._count]
        self._x = self._step(first, self._start)

    def __call__(self) -> Sequence[Tensor]:
        for t in self._times:
            self._x = self._step(t, self._x)
        return (self._x,)

    def _step(self, t: Tensor, x: Tensor) -> Tensor:
        model_output = self._predictions[-1]
        if len(self._predictions) == 2:
            uncond, cond = self._predictions
            model_output = guided(uncond, cond, self._scale)
        prev_sample: Tensor = self._scheduler.step(model_output, t, x, return_dict=False, **self._options)[0]
        return prev_sample


class PlanLoop:
    """The same steps by `Plan.step`, in place."""

    def __init__(
        self, plan: Plan, x: Tensor, predictions: Sequence[Tensor], count: int, seed: Tensor | None = None
    ) -> None:
        self._plan, self._count, self._seed = plan, count, seed
        self._start, self._predictions = x, predictions
        self._x, self._history = torch.empty_like(x), tuple(torch.empty_like(x) for _ in plan.history)

    def reset(self) -> None:
        self._x.copy_(self._start)
        self._advance(0)

    def __call__(self) -> Sequence[Tensor]:
        for i in range(1, 1 + self._count):
            self._advance(i)
        return (self._x,)

    def _advance(self, i: int) -> None:
        self._x, self._history = self._plan.step(
            i, self._x, self._predictions, self._history, seed=self._seed, inplace=True
        )
