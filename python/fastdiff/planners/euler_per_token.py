# SPDX-License-Identifier: Apache-2.0
"""Euler's method for flow matching where every token has its own noise level.

Video models are conditioned on frames that are given clean, or nearly so, as tokens among those to be generated: the
model is told a timestep per token (LTX-Video, HaCohen et al. 2024, arXiv 2501.00103, section 3.2; Wan 2.2 TI2V).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdiff.planners._execution import noise_key
from fastdiff.planners._tables import Table
from fastdiff.planners.plan import Prediction
from fastdiff.schedules import FlowSchedule, Steps
from fastdiff.solver.linear_step import linear_step

_HALF = (torch.float16, torch.bfloat16)


def euler_per_token(
    schedule: FlowSchedule, steps: Steps, levels: Tensor, *, stochastic_sampling: bool = False
) -> TokenPlan:
    """x' = x + (sigma' - sigma) v per token, sigma_i = min(schedule's sigma_i, the token's own level).

    A token of level 1 follows the schedule, one of level 0 keeps what it is, and one between stays until the schedule
    comes below its level, then steps from its own level to the schedule's. Where it steps, that is what diffusers'
    `FlowMatchEulerDiscreteScheduler.step(per_token_timesteps=...)` computes.

    Traps: with `per_token_timesteps` diffusers turns the sign of the prediction for Euler but not for stochastic
    sampling; here v = eps - x0 for both. Its LTX pipeline drops the one step from a token's own level to the
    schedule's, and tells the model the schedule's all the same.

    Args:
        schedule: of `fastdiff.schedules.flow`.
        steps: how many, or the decreasing timesteps themselves.
        levels: sigma of the tokens as they are given, 0 to 1, of x's rank and broadcast to it: [B, N, 1] for tokens,
            [B, 1, F, 1, 1] for the frames of a video.
        stochastic_sampling: x' = (1 - sigma') x0 + sigma' z where sigma' < sigma, instead.

    Raises:
        TypeError: a schedule that is no flow.
        ValueError: levels outside [0, 1], or as `euler`.
    """
    if not isinstance(schedule, FlowSchedule):
        raise TypeError(f"schedule: expected fastdiff.schedules.flow, got {type(schedule).__name__}")
    levels = levels.double()
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError("levels: expected sigma, 0 to 1")
    grid = schedule.grid(steps)
    shape = (-1, *[1] * levels.ndim)
    sigmas = torch.tensor(grid.sigmas, dtype=torch.float64, device=levels.device).reshape(shape)
    return TokenPlan(torch.minimum(sigmas, levels), schedule.num_train_timesteps, stochastic_sampling)


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """S steps of a flow with a level per token; each is one evaluation of the model and one launch.

    Attributes:
        sigmas: float64 [S+1, *levels], which never rise.
        num_train_timesteps: T.
        stochastic: whether a step draws noise.
        timesteps: T sigma, float32 [S, *levels] on the device of `sigmas`: what the model is told.
        steps: S.
    """

    sigmas: Tensor = field(repr=False)
    num_train_timesteps: int = 1000
    stochastic: bool = False

    timesteps: Tensor = field(init=False, repr=False)
    steps: int = field(init=False)
    _ready: dict[_Key, _Ready] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", (self.num_train_timesteps * self.sigmas[:-1]).float())
        object.__setattr__(self, "steps", self.sigmas.shape[0] - 1)
        object.__setattr__(self, "_ready", {})

    def run(
        self,
        model: Callable[[Tensor, Tensor], Prediction],
        x: Tensor,
        *,
        guidance_scale: float | None = None,
        seed: int | Tensor | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Sample: S evaluations model(x, t), t being the step's row of `timesteps`.

        A fp16 or bf16 x is kept in float32 between steps, and the model sees it rounded.

        Args:
            model: returns v like x, or the pair (uncond, cond) when there is guidance.
            x: [B, *sample], each token at its own level. Kept.
            guidance_scale: w of v = (1 - w) uncond + w cond.
            seed: of the generated noise, as for `Plan.run`, but one for the batch.
            noise: [S] standard normal tensors like x instead.

        Returns:
            x at the last of `sigmas`, same shape and dtype.

        Raises:
            ValueError: as `step`.
        """
        state = x.float() if x.dtype in _HALF else x
        key = noise_key(seed, x.device) if self.stochastic and noise is None else None
        noises = [None] * self.steps if noise is None else list(noise)
        for i, z in enumerate(noises):
            prediction = model(state.to(x.dtype), self.timesteps[i])
            state = self.step(i, state, prediction, guidance_scale=guidance_scale, seed=key, noise=z)
        return state.to(x.dtype)

    def step(
        self,
        i: int | Tensor,
        x: Tensor,
        prediction: Prediction,
        *,
        guidance_scale: float | None = None,
        seed: int | Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The next x, in x's dtype.

        Args:
            i: index of the step. An int64 scalar tensor on x's device makes one compiled graph for all steps.
            x, prediction, guidance_scale, seed, noise: as for `run`.

        Raises:
            ValueError: a pair without guidance_scale or the other way round, a stochastic step without noise.
        """
        pair = [prediction] if isinstance(prediction, Tensor) else list(prediction)
        if len(pair) != (1 if guidance_scale is None else 2):
            raise ValueError(f"guidance_scale: got {guidance_scale} with {len(pair)} prediction(s)")
        if self.stochastic and seed is None and noise is None:
            raise ValueError("seed, noise: a stochastic step needs one of them")
        explicit = self.stochastic and noise is not None
        on = self._on(x, guidance_scale, explicit)
        step = i if isinstance(i, Tensor) else on.steps[i]
        inputs = [x, *pair, noise] if explicit else [x, *pair]
        mask = None if on.masks is None else on.masks.index_select(0, step.reshape(1))
        key = noise_key(seed, x.device) if self.stochastic and not explicit else None
        (result,) = linear_step(
            [t[None] for t in inputs if t is not None],  # maps have no batch, so ours is part of their sample
            on.table,
            step=step,
            rng=key,
            gate_table=on.gate,
            mask=mask,
            maps=on.maps.expand(self.steps, 1, *x.shape),
            map_index=on.map_index,
        )
        return result[0]

    def _on(self, x: Tensor, guidance_scale: float | None, explicit: bool) -> _Ready:
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        key = (x.device, real, guidance_scale, explicit)
        if key not in self._ready:
            if len(self._ready) > 8:  # a sweep over scales must not collect tables
                self._ready.clear()
            w = () if guidance_scale is None else (1 - guidance_scale, guidance_scale)
            self._ready[key] = _ready(self, w or (1.0,), explicit, x.device, real)
        return self._ready[key]


_Key = tuple[torch.device, torch.dtype, float | None, bool]


@dataclass(frozen=True)
class _Ready:
    """The arguments of `linear_step` on one device: tables [S, M, ...], maps [S, 1, *levels], masks [S, *levels]."""

    table: Tensor
    gate: Tensor | None
    maps: Tensor
    masks: Tensor | None
    map_index: list[int]
    steps: Sequence[Tensor]


def _ready(
    plan: TokenPlan, weights: Sequence[float], explicit: bool, device: torch.device, real: torch.dtype
) -> _Ready:
    """x + (sigma' - sigma) v; stochastic, x0 = x - sigma v, then x0 + sigma' (z - x0). A token that stays has neither.

    The factor of v is a map, that of z - x0 the weight of a gate.
    """
    now, after = plan.sigmas[:-1], plan.sigmas[1:]
    moves, rows = after < now, ("x0", "x'") if plan.stochastic else ("x'",)
    predictions = [f"v{n}" for n in range(len(weights))]
    inputs = ("x", *predictions, *(("noise",) if explicit else ()))
    table, gate = Table(plan.steps, inputs, rows), Table(plan.steps, inputs, rows)
    for i in range(plan.steps):
        table.set(i, rows[0], {"x": 1.0} | dict(zip(predictions, weights, strict=True)))
        if plan.stochastic:
            table.set(i, "x'", {"x0": 1.0})
            gate.set(i, "x'", {"x0": -1.0, "noise" if explicit else "z": 1.0})
    maps = torch.where(moves, -now, 0.0) if plan.stochastic else after - now
    masks = torch.where(moves, after, 0.0) if plan.stochastic else None
    index = [-1] * (len(rows) * len(inputs))
    index[1 : 1 + len(weights)] = [0] * len(weights)
    return _Ready(
        table=table.data.to(device, real),
        gate=gate.data[..., :-2].contiguous().to(device, real) if plan.stochastic else None,
        maps=maps[:, None].to(device, real),
        masks=None if masks is None else masks.to(device, real),
        map_index=index,
        steps=torch.arange(plan.steps, device=device).unbind(),
    )
