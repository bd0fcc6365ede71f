# SPDX-License-Identifier: Apache-2.0
"""`plan_from` reads the configuration of a diffusers scheduler and gives the plan that reproduces it."""

import torch

SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
    "UniPCMultistepScheduler": {"solver_order": 3},
    "DEISMultistepScheduler": {},
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing"},
}


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Stands in for a network that predicts the noise."""
    return torch.tanh(x)


def with_diffusers(scheduler, x: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(20)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def main() -> None:
    try:
        import diffusers
        from fastdiff.integrations.diffusers import plan_from, reproducible
    except ImportError:
        print("diffusers is not installed: pip install 'torch-fastdiff[diffusers]'")
        return
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, config in SCHEDULERS.items():
        scheduler = getattr(diffusers, name)(**config)
        plan = plan_from(scheduler, 20)
        ours = plan.run(model, plan.init_noise_sigma * noise)
        theirs = with_diffusers(scheduler, noise)
        difference = (ours - theirs).norm() / theirs.norm()
        print(f"{name}: {plan.solver} of order {plan.order}, relative difference {difference:.0e}")
    print(f"{len(reproducible())} classes are reproduced")


if __name__ == "__main__":
    main()
