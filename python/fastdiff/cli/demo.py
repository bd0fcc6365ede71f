# SPDX-License-Identifier: Apache-2.0
"""``fastdiff demo``: handwritten digits, sampled by diffusers and by fastdiff from the same noise, side by side.

The model is small but real (see `fastdiff.cli.digits`), so that the picture shows whether the samplers work, and
the difference of the two sets whether they are the same.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from fastdiff import planners, schedules
from fastdiff.bench.kit import Stopwatch
from fastdiff.bench.report import time_text
from fastdiff.cli import digits
from fastdiff.planners import Plan

#: Of pixels in [-1, 1]. Both samplers compute in fp32 (unit roundoff 6e-8) and differ in the order of their
#: roundings, and diffusers' schedule is an fp32 table; twenty evaluations of the model make 3e-6 of that. The bound
#: leaves room for more steps and guidance, and is still an eightieth of a grey level: the pictures are the same.
TOLERANCE: Final = 1e-4
ROWS: Final = 6  # images of each digit
ROUNDS: Final = 3  # the samplers take turns, and the median of their times is shown

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=20, help="evaluations of the model (default: 20)")
    parser.add_argument(
        "--guidance-scale", type=float, default=3.0, help="of classifier-free guidance (default: 3)"
    )
    parser.add_argument(
        "--solver", choices=sorted(SOLVERS), default="dpm_solver_pp", help="default: dpm_solver_pp"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("fastdiff-demo.png"), help="default: fastdiff-demo.png"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if both sets of images agree, else 1. The picture is written either way."""
    theirs, ours = sample_both(args.solver, args.steps, args.guidance_scale, args.seed)
    difference = float((theirs.images - ours.images).abs().max())
    agree = difference <= TOLERANCE
    what = f"{args.solver}, {args.steps} steps, guidance {args.guidance_scale:g}, seed {args.seed}"
    draw(args.output, theirs, ours, f"{what} · largest difference of a pixel {difference:.1e} (range −1 … 1)")
    print(f"{what}: {len(ours.images)} digits")
    for result in (theirs, ours):
        print(f"  {result.name:<10} {result.times}")
    verdict = "the images agree" if agree else "THE IMAGES DIFFER"
    print(f"  largest difference of a pixel {difference:.1e}, allowed {TOLERANCE:.0e}: {verdict}")
    print(f"saved {args.output}")
    return 0 if agree else 1


# ---- two samplers --------------------------------------------------------------------------------------------


def diffusers_sampler(scheduler: Any, steps: int, scale: float) -> Callable[[Predict, Tensor], Tensor]:
    """The loop that a user of diffusers writes."""

    def sample(predict: Predict, x: Tensor) -> Tensor:
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            uncond, cond = predict(x, t)
            epsilon = uncond + scale * (cond - uncond)
            x = scheduler.step(epsilon, t, x).prev_sample
        return x

    return sample


def fastdiff_sampler(plan: Plan, scale: float) -> Callable[[Predict, Tensor], Tensor]:
    """The same with a plan: guidance and the step are one launch."""
    return lambda predict, x: plan.run(predict, x, guidance_scale=scale)


def schedule() -> schedules.DiscreteSchedule:
    """What the model was trained on."""
    return schedules.linear(
        digits.NUM_TRAIN_TIMESTEPS, beta_start=digits.BETA_START, beta_end=digits.BETA_END
    )


SCHEDULE_OF_DIFFUSERS: Final = {
    "num_train_timesteps": digits.NUM_TRAIN_TIMESTEPS,
    "beta_start": digits.BETA_START,
    "beta_end": digits.BETA_END,
    "beta_schedule": "linear",
}

#: For each solver, diffusers' scheduler and the planner of the same name.
SOLVERS: Final[dict[str, tuple[Callable[[], Any], Callable[[int], Plan]]]] = {
    "dpm_solver_pp": (
        partial(
            DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", solver_order=2, **SCHEDULE_OF_DIFFUSERS
        ),
        lambda steps: planners.dpm_solver_pp(schedule(), steps),
    ),
    "ddim": (
        partial(DDIMScheduler, clip_sample=False, **SCHEDULE_OF_DIFFUSERS),
        lambda steps: planners.ddim(schedule(), steps),
    ),
}


@dataclass(frozen=True)
class Samples:
    """Images [ROWS * 10, 1, 8, 8] and how long they took: the whole loop, and all of it but the model."""

    name: str
    images: Tensor
    total: float
    solver: float

    @property
    def times(self) -> str:
        return f"{time_text(self.total)} in total, {time_text(self.solver)} of it in the solver"


@torch.no_grad()
def sample_both(solver: str, steps: int, scale: float, seed: int) -> tuple[Samples, Samples]:
    """Samples of diffusers and of fastdiff, from the same noise and model."""
    make_scheduler, make_plan = SOLVERS[solver]
    samplers = {
        "diffusers": diffusers_sampler(make_scheduler(), steps, scale),
        "fastdiff": fastdiff_sampler(make_plan(steps), scale),
    }
    predict = guided_model(torch.arange(digits.NUM_CLASSES).repeat(ROWS))
    shape = (ROWS * digits.NUM_CLASSES, 1, digits.IMAGE_SIZE, digits.IMAGE_SIZE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    for sampler in samplers.values():
        sampler(predict, noise)  # whatever is done once only
    runs: dict[str, list[Samples]] = {name: [] for name in samplers}
    for _ in range(ROUNDS):
        for name, sampler in samplers.items():
            runs[name].append(_timed(name, sampler, predict, noise))
    theirs, ours = (_median(results) for results in runs.values())
    return theirs, ours


def guided_model(labels: Tensor) -> Predict:
    """The model as both loops call it: one batch with every image twice, without and with its label."""
    model = digits.load_digits_denoiser()
    both = torch.cat([torch.full_like(labels, digits.NULL_LABEL), labels])

    def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        uncond, cond = model(torch.cat([x, x]), t, both).chunk(2)
        return uncond, cond

    return predict


def _timed(
    name: str, sampler: Callable[[Predict, Tensor], Tensor], predict: Predict, noise: Tensor
) -> Samples:
    total, inside = Stopwatch(), Stopwatch()

    def watched(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with inside:
            return predict(x, t)

    with total:
        images = sampler(watched, noise)
    return Samples(name, images, total.seconds, total.seconds - inside.seconds)


def _median(results: list[Samples]) -> Samples:
    total = statistics.median(r.total for r in results)
    return Samples(results[0].name, results[0].images, total, statistics.median(r.solver for r in results))


# ---- one picture ---------------------------------------------------------------------------------------------


def grid(images: Tensor) -> Tensor:
    """[ROWS * 10, 1, 8, 8] -> one picture, a column for each digit, two pixels between images."""
    gap = 2
    padded = torch.nn.functional.pad(images[:, 0], (0, gap, 0, gap), value=-1.0)
    size = digits.IMAGE_SIZE + gap
    picture = padded.reshape(ROWS, digits.NUM_CLASSES, size, size).transpose(1, 2)
    return picture.reshape(ROWS * size, digits.NUM_CLASSES * size)[:-gap, :-gap]


def draw(path: Path, theirs: Samples, ours: Samples, caption: str) -> None:
    """Write both grids side by side as a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11, 4.3), layout=ConstrainedLayoutEngine(wspace=0.06))
    for axis, result in zip(figure.subplots(1, 2), (theirs, ours), strict=True):
        axis.imshow(grid(result.images).clamp(-1, 1).numpy(), cmap="gray_r", vmin=-1, vmax=1)
        axis.set_title(f"{result.name}\n", loc="left", fontsize=13, fontweight="bold")
        axis.text(0, 1.03, result.times, transform=axis.transAxes, fontsize=9.5, color="0.35")
        pitch = digits.IMAGE_SIZE + 2
        axis.set_xticks([n * pitch + 3.5 for n in range(digits.NUM_CLASSES)], range(digits.NUM_CLASSES))
        axis.set_yticks([])
        axis.tick_params(length=0, colors="0.35")
        axis.spines[:].set_visible(False)
    figure.supxlabel(caption, fontsize=9, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
