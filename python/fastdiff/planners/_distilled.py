# SPDX-License-Identifier: Apache-2.0
"""The timesteps of models distilled on a short schedule: what LCM and TCD share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.schedules import DiscreteSchedule, Grid, Schedule, Steps


def distilled_grid(
    schedule: Schedule, steps: Steps, original_inference_steps: int | None, strength: float
) -> Grid:
    """The levels of S timesteps of the distillation schedule; the end point is sigma = 0.

    The model was distilled at t = k, 2k, ... Nk, less 1, with k = T//N. Of the first int(N strength) of these, from the
    noisiest on, S are taken at equal distances, rounded down in their index. Explicit timesteps are taken as they are,
    the last int(S strength) of them.

    Args:
        schedule: one with a level per training timestep.
        steps: S, or the decreasing timesteps.
        original_inference_steps: N; None: any training timestep.
        strength: in (0, 1], where image-to-image starts.

    Raises:
        TypeError: a schedule without training timesteps.
        ValueError: S, N or strength out of range.
    """
    if not isinstance(schedule, DiscreteSchedule):
        raise TypeError(f"schedule: expected one with a level per training timestep, got {schedule}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength: expected more than 0 and at most 1, got {strength}")
    count = schedule.num_train_timesteps
    original = count if original_inference_steps is None else original_inference_steps
    if not 1 <= original <= count:
        raise ValueError(f"original_inference_steps: expected 1 to {count}, got {original}")
    return schedule.grid(
        _spread(steps, int(original * strength), count // original)
        if isinstance(steps, int)
        else _kept(steps, strength)
    )


def _spread(steps: int, most: int, stride: int) -> list[int]:
    if not 1 <= steps <= most:
        raise ValueError(
            f"steps: expected 1 to int(original_inference_steps * strength) = {most}, got {steps}"
        )
    # NOTE: k * (most / steps) in this order rounds as numpy.linspace does
    return [(most - math.floor(k * (most / steps))) * stride - 1 for k in range(steps)]


def _kept(timesteps: Sequence[float], strength: float) -> Sequence[float]:
    kept = int(len(timesteps) * strength)
    if kept == 0:
        raise ValueError(f"strength: {strength} of {len(timesteps)} timesteps is none")
    return timesteps[len(timesteps) - kept :]
