# SPDX-License-Identifier: Apache-2.0
"""8 bits on a real network: how much the samples of the digits' UNet change, by where the ranges come from.

Ten digits are sampled with DPM-Solver++ 2M and guidance. Weights and what each layer reads are int8. The ranges of the
latter are those of each row, or of an image before convolutions; or one for each layer, the moving average over a
sampling run; or one for each layer and timestep of that run, which `set_timestep` picks.
"""

import copy
from functools import partial

import torch
from fastdiff import planners, schedules
from fastdiff.cli import digits
from fastdiff.guidance import CFG
from fastdiff.quant import QuantConfig, quantize_, set_timestep

STEPS, SCALE, DIGITS = 20, 3.0, torch.arange(10)
LABELS = torch.stack([torch.full_like(DIGITS, digits.NULL_LABEL), DIGITS])  # [branch, sample]
PLAN = planners.dpm_solver_pp(schedules.lu(base=schedules.linear(1000)), STEPS)


def sample(model: torch.nn.Module, seed: int, at=lambda t: None) -> torch.Tensor:
    """Ten images; `at` is told the timestep before each evaluation."""

    def network(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at(round(float(t.flatten()[0])))
        return tuple(model(x, t, labels) for labels in LABELS)

    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return PLAN.run(network, x, guidance=CFG(SCALE))


def quantised(model: torch.nn.Module, activations: str) -> tuple[torch.nn.Module, list]:
    small = copy.deepcopy(model)
    config = QuantConfig(activations=activations, skip=("stem", "head"))
    return small, quantize_(small, config, lambda collector: sample(small, 1, collector.at), progress=False)


def main() -> None:
    torch.set_num_threads(1)  # kernels this small only wait for a second one
    model = digits.load_digits_denoiser()
    full = sample(model, seed=0)
    for activations in ("dynamic", "static", "timestep"):
        small, reports = quantised(model, activations)
        images = sample(small, 0, partial(set_timestep, small))
        change = (images - full).norm() / full.norm()
        worst = max(reports, key=lambda report: report.output_error)
        print(f"{activations}: {len(reports)} layers, images change by {100 * change:.1f} %, "
              f"the worst layer is {worst.name} with {100 * worst.output_error:.1f} %")  # fmt: skip


if __name__ == "__main__":
    main()
