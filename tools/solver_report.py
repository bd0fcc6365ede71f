# SPDX-License-Identifier: Apache-2.0
"""Measures the deterministic solvers for docs/solvers.md: convergence orders, and error against model evaluations.

    python tools/solver_report.py          writes docs/solvers.json, docs/solvers-gaussian.png, docs/solvers-digits.png
    python tools/make_docs.py              then puts the numbers into docs/solvers.md

Two flows. In one the data is Gaussian, or a mixture of two Gaussians, element by element: the model and the end
point are known in closed form. In the other the model is the network of `fastdiff demo`, and the end point is that of
a run with many steps. Everything is float64, so that what shows is the solver's error.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastdiff  # noqa: E402
import torch  # noqa: E402
from fastdiff import planners, schedules  # noqa: E402
from fastdiff.cli.digits import load_digits_denoiser  # noqa: E402
from fastdiff.planners import Plan  # noqa: E402
from fastdiff.schedules import Schedule, SigmaSchedule  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.kit import oracles  # noqa: E402

JSON = ROOT / "docs/solvers.json"
PICTURES = {"gaussian": ROOT / "docs/solvers-gaussian.png", "digits": ROOT / "docs/solvers-digits.png"}
EVALUATIONS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
ORDER_EVALUATIONS = (160, 320, 640)
REFERENCE_EVALUATIONS = 1200
COLUMNS = 3  # of panels


class ExactTimes(SigmaSchedule):
    """A spacing that tells every solver its fractional timesteps: rounding them would be most of the error."""

    def solver_times(self, times: tuple[float, ...]) -> tuple[float, ...]:
        return times


def _whole() -> ExactTimes:
    """The linear schedule from its last timestep to its first, uniform in lambda: a long range, as in use."""
    spaced = schedules.exponential(base=schedules.linear())
    return ExactTimes("exponential", spaced.sigma_min, spaced.sigma_max, base=spaced.base)


WHOLE = _whole()
FLOW = schedules.flow(3.0)
# The orders are measured in the middle of the range, where the leading error neither vanishes nor cancels.
GRIDS = {
    "λ": schedules.exponential(0.5, base=schedules.linear()),
    "σ/α": schedules.karras(0.3, 6, rho=1),
    "σ, flow": FLOW,
}


@dataclass(frozen=True)
class Solver:
    """A deterministic solver.

    Attributes:
        name: for readers.
        order: in theory; None: there is none, the scheme was published with a flaw.
        make: from a schedule and the number of model evaluations.
        grid: key of GRIDS, steps of which kind it was made for.
        panel: of the pictures.
    """

    name: str
    order: int | None
    make: Callable[[Schedule, int], Plan]
    panel: str
    grid: str = "λ"


END: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
FULL: dict[str, Any] = {**END, "lower_order_final": False}
LOW, HIGH, SINGLE, ADAMS, ON_FLOW = (
    "multistep, 1 and 2",
    "multistep, 3 and 4",
    "several evaluations per step",
    "Adams–Bashforth in σ or t",
    "flow matching",
)


def _multistep(make: Callable[..., Plan], order: int, **options: Any) -> Callable[[Schedule, int], Plan]:
    return lambda schedule, n: make(schedule, n, order=order, **{**FULL, **options})


def _singlestep(make: Callable[..., Plan], order: int) -> Callable[[Schedule, int], Plan]:
    return lambda schedule, n: make(schedule, n, order=order, method="singlestep", **END)


def _pairs(make: Callable[..., Plan]) -> Callable[[Schedule, int], Plan]:
    return lambda schedule, n: make(schedule, n // 2, **END)


NOISE, DATA = planners.dpm_solver, planners.dpm_solver_pp
SOLVERS = [
    Solver("DDIM", 1, lambda schedule, n: planners.ddim(schedule, n, set_alpha_to_one=False), LOW),
    Solver("DPM-Solver 2M", 2, _multistep(NOISE, 2), LOW),
    Solver("DPM-Solver++ 2M", 2, _multistep(DATA, 2), LOW),
    Solver("DEIS log ρ, 2", 2, _multistep(planners.deis, 2), LOW),
    Solver(
        "UniP-2", 2, lambda schedule, n: planners.unipc(schedule, n, disable_corrector=range(n), **FULL), LOW
    ),
    Solver("UniPC-2", 3, _multistep(planners.unipc, 2), HIGH),
    Solver("DPM-Solver 3M, published", None, _multistep(NOISE, 3, solver_type="heun"), HIGH),
    Solver("DPM-Solver++ 3M, published", None, _multistep(DATA, 3), HIGH),
    Solver("DPM-Solver++ 3M, exact", 3, _multistep(DATA, 3, exact_third=True), HIGH),
    Solver("DEIS log ρ, 3", 3, _multistep(planners.deis, 3), HIGH),
    Solver("UniPC-3", 4, _multistep(planners.unipc, 3), HIGH),
    Solver("DPM-Solver-2", 2, _singlestep(NOISE, 2), SINGLE),
    Solver("DPM-Solver++ 2S", 2, _singlestep(DATA, 2), SINGLE),
    Solver("DPM-Solver-3", 3, _singlestep(NOISE, 3), SINGLE),
    Solver("DPM-Solver++ 3S", 3, _singlestep(DATA, 3), SINGLE),
    Solver("Heun", 2, _pairs(planners.heun), SINGLE),
    Solver("DPM2 (kdpm2)", 2, _pairs(planners.kdpm2), SINGLE),
    Solver("DEIS ρ, 3", 3, _multistep(planners.deis, 3, space="rho"), ADAMS, "σ/α"),
    Solver("LMS, 4", 4, lambda schedule, n: planners.lms(schedule, n, **END), ADAMS, "σ/α"),
    Solver("iPNDM", 4, lambda schedule, n: planners.ipndm(schedule, n, **END), ADAMS, "σ/α"),
    Solver("PNDM", 4, lambda schedule, n: planners.pndm(schedule, n - 9), ADAMS, "σ/α"),
    Solver("Euler", 1, lambda schedule, n: planners.euler(schedule, n), ON_FLOW, "σ, flow"),
    Solver("Heun, flow", 2, _pairs(planners.heun), ON_FLOW, "σ, flow"),
    Solver("DPM-Solver++ 2M, flow", 2, _multistep(DATA, 2, prediction="flow"), ON_FLOW, "σ, flow"),
    Solver("UniPC-2, flow", 3, _multistep(planners.unipc, 2, prediction="flow"), ON_FLOW, "σ, flow"),
]


# ---- errors --------------------------------------------------------------------------------------------------


def gaussian_error(plan: Plan, data: oracles.Mixture = oracles.GAUSSIAN) -> float:
    return oracles.end_point_error(plan, data)


class Digits:
    """The probability flow of the digits network on the linear schedule, with its end point."""

    def __init__(self) -> None:
        self._model = load_digits_denoiser().double()
        self._labels = torch.arange(4)
        g = torch.Generator().manual_seed(0)
        self._start = torch.randn(4, 1, 8, 8, generator=g, dtype=torch.float64)
        fine = _multistep(DATA, 3, exact_third=True)(WHOLE, REFERENCE_EVALUATIONS)
        self._end = fine.run(self.predict, self._start)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        epsilon: Tensor = self._model(x, t, self._labels)
        return epsilon

    def error(self, plan: Plan) -> float:
        return oracles.relative_error(plan.run(self.predict, self._start), self._end)


def measure() -> dict[str, Any]:
    flows: dict[str, Callable[[Plan], float]] = {"gaussian": gaussian_error, "digits": Digits().error}
    orders: list[dict[str, Any]] = []
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {flow: {} for flow in flows}
    for solver in SOLVERS:
        print(solver.name, flush=True)
        orders.append(
            {
                "solver": solver.name,
                "grid": solver.grid,
                "theory": solver.order,
                "measured": measured_orders(solver),
            }
        )
        for flow, error in flows.items():
            if flow == "digits" and solver.panel == ON_FLOW:
                continue  # the network was trained on another path
            schedule = FLOW if solver.panel == ON_FLOW else WHOLE
            plans = [solver.make(schedule, n) for n in EVALUATIONS if n > 12 or solver.name != "PNDM"]
            curves[flow][solver.name] = [(plan.steps, error(plan)) for plan in plans]
    versions = {
        "fastdiff": fastdiff.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {"versions": versions, "orders": orders, "curves": curves}


def measured_orders(solver: Solver) -> list[float]:
    """For Gaussian data and for the mixture."""
    plans = [solver.make(GRIDS[solver.grid], n) for n in ORDER_EVALUATIONS]
    steps = [plan.steps for plan in plans]
    return [
        oracles.measured_order(steps, [gaussian_error(plan, data) for plan in plans])
        for data in (oracles.GAUSSIAN, oracles.BIMODAL)
    ]


# ---- pictures ------------------------------------------------------------------------------------------------


def draw(path: Path, curves: dict[str, list[tuple[int, float]]], title: str) -> None:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(s.panel for s in SOLVERS if s.name in curves))
    lowest = max(1e-6, min(error for points in curves.values() for _, error in points))
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 4.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).flat
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes[: len(panels)], panels, strict=True):
        for solver in SOLVERS:
            if solver.panel == panel and solver.name in curves:
                evaluations, errors = zip(*curves[solver.name], strict=True)
                axis.loglog(evaluations, errors, marker="o", markersize=3, linewidth=1.4, label=solver.name)
        axis.set_title(panel, loc="left", fontsize=10.5, fontweight="bold")
        axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS], minor=False)
        axis.minorticks_off()
        axis.grid(color="0.92")
        axis.set_xlabel("model evaluations")
        axis.legend(fontsize=8, frameon=False, loc="lower left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("relative error of the end point")
        axis.set_ylim(lowest / 2, 3)
        axis.tick_params(labelbottom=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="0.35")
    figure.savefig(path, dpi=120)


def main() -> None:
    torch.set_num_threads(1)  # the tensors are small
    data = measure()
    JSON.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    titles = {
        "gaussian": "probability flow of Gaussian data, end point known in closed form, float64",
        "digits": f"the digits network of `fastdiff demo`, against {REFERENCE_EVALUATIONS} evaluations, float64",
    }
    for flow, path in PICTURES.items():
        draw(path, data["curves"][flow], titles[flow])


if __name__ == "__main__":
    main()
