# SPDX-License-Identifier: Apache-2.0
"""Adaptive Guidance on a real network: how many evaluations it saves, and how much the samples change by that.

Ten digits are sampled with DPM-Solver++ 2M, steps even in log SNR, by the small model of `fastdiff demo`. It is a
`Rows` model: unconditional rows of samples whose predictions agree already are left out of the batch.

What the cosine compares matters more than the threshold. This model's noise predictions agree to 0.9999 in the first
step, where the image is all noise: every sample latches at once, nothing is guided, and what is saved is all that
guidance costs. The predictions of x0 agree once the digit stands, for each sample at a step of its own.
"""

import torch
from fastdiff import planners, schedules
from fastdiff.cli import digits
from fastdiff.guidance import CFG, AdaptiveGuidance, Guidance, Rows

SCALE, DIGITS = 3.0, torch.arange(10)
LABELS = torch.stack([torch.full_like(DIGITS, digits.NULL_LABEL), DIGITS])  # [branch, sample]


def sample(model: torch.nn.Module, steps: int, guidance: Guidance) -> tuple[torch.Tensor, torch.Tensor]:
    """The images, and how many times each was evaluated without its label."""
    unconditional = torch.zeros_like(DIGITS)

    def network(x: torch.Tensor, t: torch.Tensor, branch: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        unconditional[sample[branch == 0]] += 1
        return model(x, t, LABELS[branch, sample])

    plan = planners.dpm_solver_pp(schedules.lu(base=schedules.linear(1000)), steps)
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return plan.run(Rows(network), x, guidance=guidance), unconditional


def main() -> None:
    torch.set_num_threads(1)  # kernels this small only wait for a second one
    model = digits.load_digits_denoiser()
    for steps in (20, 50):
        full, _ = sample(model, steps, CFG(SCALE))
        for quantity in ("epsilon", "x0"):
            images, unconditional = sample(model, steps, AdaptiveGuidance(SCALE, prediction=quantity))
            saved = 50 - 100 * unconditional.sum() / (2 * 10 * steps)
            change = (images - full).norm() / full.norm()
            first, last = unconditional.aminmax()
            print(f"{steps} steps, cosine of {quantity}: {saved:.1f} % of the evaluations saved, images change by "
                  f"{100 * change:.1f} %, samples latch in step {first} to {last}")  # fmt: skip


if __name__ == "__main__":
    main()
