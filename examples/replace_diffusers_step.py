# SPDX-License-Identifier: Apache-2.0
"""Replace two lines of a diffusers sampling loop, guidance and `scheduler.step`, by one call, and compare."""

import torch
from fastdiff import planners, schedules

STEPS, SCALE = 20, 7.5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion


def model(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(unconditional, conditional): stands in for a network of two prompts."""
    return 0.9 * torch.tanh(x), 0.9 * torch.tanh(x + 0.01)


def with_diffusers(x: torch.Tensor) -> torch.Tensor:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", **BETAS)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        uncond, cond = model(x, t)
        prediction = uncond + SCALE * (cond - uncond)
        x = scheduler.step(prediction, t, x).prev_sample
    return x


def with_fastdiff(x: torch.Tensor) -> torch.Tensor:
    plan = planners.dpm_solver_pp(schedules.scaled_linear(**BETAS), STEPS).guided(SCALE)
    history = None
    for i, t in enumerate(plan.timesteps):
        x, history = plan.step(i, x, model(x, t), history)
    return x


def main() -> None:
    try:
        import diffusers
    except ImportError:
        print("diffusers is not installed: pip install 'torch-fastdiff[diffusers]'")
        return
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs, ours = with_diffusers(x), with_fastdiff(x)
    exact = with_fastdiff(x.double())
    scale = exact.abs().max()
    print(f"diffusers {diffusers.__version__}: relative error {(theirs - exact).abs().max() / scale:.1e}")
    print(f"fastdiff: relative error {(ours - exact).abs().max() / scale:.1e}")


if __name__ == "__main__":
    main()
