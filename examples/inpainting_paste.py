# SPDX-License-Identifier: Apache-2.0
"""Inpainting by pasting: where the mask is set, a step's result is the known image at the new noise level.

This is the replacement step of RePaint (Lugmayr et al. 2022, equation (8)) for DDIM, in the launch of the step itself.
Inputs are x, the prediction and the known image; `gate_table` holds what changes where the mask is 1:

    outside   x' = a x + b eps
    inside    x' = alpha' known + sigma' z
"""

import torch
from fastdiff import linear_step, planners, schedules

STEPS = 25


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Stands in for a network: the optimal noise prediction for data of standard deviation 0.5."""
    alpha, sigma = schedules.cosine().level(float(t))
    return sigma * x / (0.25 * alpha**2 + sigma**2)


def main() -> None:
    plan = planners.ddim(schedules.cosine(), STEPS)
    (alpha, alpha_next), (sigma, sigma_next) = (
        (level[:-1], level[1:]) for level in (plan.alphas, plan.sigmas)
    )
    # Columns: x, eps, known, x', z, lo, hi.
    table = torch.zeros(STEPS, 1, 7, dtype=torch.float64)
    table[:, 0, 0] = alpha_next / alpha
    table[:, 0, 1] = sigma_next - sigma * alpha_next / alpha
    table[..., -2], table[..., -1] = -torch.inf, torch.inf
    gate = torch.zeros(STEPS, 1, 5, dtype=torch.float64)
    gate[:, 0, :2] = -table[:, 0, :2]  # what the paste takes away, and
    gate[:, 0, 2], gate[:, 0, 4] = alpha_next, sigma_next  # what it puts in its place

    known = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16).contiguous()
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :8] = True  # the left half is given
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rng = torch.tensor([1234, 0])  # (seed, offset); the step is added to the offset
    for i, t in zip(torch.arange(STEPS), plan.timesteps, strict=True):
        linear_step([x, model(x, t), known], table, step=i, gate_table=gate, mask=mask, rng=rng, out=[x])

    print(f"given half: largest difference {(x - known)[..., :8].abs().max():.1e}")
    print(f"other half: standard deviation {x[..., 8:].std():.2f}")


if __name__ == "__main__":
    main()
