# SPDX-License-Identifier: Apache-2.0
"""One step along a straight line: what `euler` and `euler_ancestral` share."""

from __future__ import annotations

from fastdiff.planners._tables import Level, Table, combine, conversion, prediction_type, x0_rows
from fastdiff.schedules import FlowSchedule, Schedule, SigmaSchedule

Weights = tuple[float, float, float]  # of x0, eps and z


def default_prediction(prediction: str | None, schedule: Schedule) -> str:
    """The canonical name; None is what models on this schedule are trained to predict."""
    if prediction is not None:
        return prediction_type(prediction)
    if isinstance(schedule, FlowSchedule):
        return "flow"
    return "edm" if isinstance(schedule, SigmaSchedule) and schedule.sigma_data is not None else "epsilon"


def step_rows(kind: str) -> tuple[str, ...]:
    """The rows of `set_step`."""
    return (*x0_rows(kind)[:-1], "x'")


def set_step(
    table: Table,
    i: int,
    kind: str,
    level: Level,
    weights: Weights,
    *,
    scale: float = 1.0,
    noise: float = 0.0,
) -> None:
    """x' = w_0 x0 + w_1 eps + w_2 z, with x0 and eps as the prediction makes them of y = scale x + noise z at `level`.

    Only one of the noises may be there: z is the same.
    """
    on_x0, on_eps, on_z = weights
    x0, eps = conversion(kind, level)
    if "d" in table.rows:  # w_0/alpha can be large: see x0_rows
        alpha, sigma = level
        table.set(i, "d", {"x": scale, "prediction": -sigma * eps["prediction"], "z": noise})
        table.set(i, "x'", {"d": on_x0 / alpha, "prediction": on_eps * eps["prediction"], "z": on_z})
    else:
        row = combine((on_x0, x0), (on_eps, eps))
        on_y = row["x"]
        table.set(i, "x'", row | {"x": on_y * scale, "z": on_y * noise + on_z})
