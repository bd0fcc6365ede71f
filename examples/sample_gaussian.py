# SPDX-License-Identifier: Apache-2.0
"""Sample with `plan.run` from a distribution whose perfect denoiser is known, and compare with the exact result.

The data are N(mean, SPREAD^2) in every element, noised as x = x0 + sigma eps. The optimal prediction of eps then has
a closed form, and so has the end point of the probability-flow ODE: the error shown is the solver's own.
"""

import torch
from fastdiff import planners, schedules

MEAN, SPREAD, SCALE = 0.5, 0.2, 1.5


def denoise(x: torch.Tensor, sigma: torch.Tensor, mean: float) -> torch.Tensor:
    """E[eps | x] for data N(mean, SPREAD^2)."""
    return sigma * (x - mean) / (SPREAD**2 + sigma**2)


def model(x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(unconditional, conditional) predictions: data around 0, and data around MEAN."""
    return denoise(x, sigma, 0.0), denoise(x, sigma, MEAN)


def exact(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The ODE keeps the standardised variable. Guidance by SCALE moves the mean to SCALE * MEAN."""
    mean = SCALE * MEAN
    return mean + SPREAD * (x - mean) / (SPREAD**2 + sigma**2) ** 0.5


def main() -> None:
    schedule = schedules.karras(sigma_min=0.002, sigma_max=80)
    x = 80 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    print(planners.dpm_solver_pp(schedule, 4).guided(SCALE))
    for steps in (5, 10, 20, 40, 80):
        sample = planners.dpm_solver_pp(schedule, steps).run(model, x, guidance_scale=SCALE)
        error = (sample - exact(x, 80.0)).abs().max()
        print(f"{steps:3} steps: mean {sample.mean():.4f}, std {sample.std():.4f}, largest error {error:.1e}")


if __name__ == "__main__":
    main()
