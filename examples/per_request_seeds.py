# SPDX-License-Identifier: Apache-2.0
"""Serving: each request brings its own seed, and its sample has the same bits in whatever batch it runs."""

import torch
from fastdiff import planners, schedules

SEEDS = [11, 22, 33, 44, 55]


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Stands in for a network; it acts on each element alone, as a network does on each sample."""
    return 0.5 * torch.tanh(x)


def first_noise(seed: int) -> torch.Tensor:
    return torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(seed))


def sample(seeds: list[int]) -> torch.Tensor:
    plan = planners.ddim(schedules.scaled_linear(), 20, eta=1.0)  # ancestral: every step adds noise
    x = torch.stack([first_noise(seed) for seed in seeds])
    return plan.run(model, x, seed=seeds)


def main() -> None:
    together = sample(SEEDS)
    for sizes in ([5], [2, 3], [1, 1, 1, 1, 1]):
        parts = torch.tensor(SEEDS).split(sizes)
        apart = torch.cat([sample(part.tolist()) for part in parts])
        print(f"batches of {sizes}: same bits {bool(torch.equal(apart, together))}")
    again = sample([33])
    print(f"request 33 alone: same bits {bool(torch.equal(again[0], together[2]))}")


if __name__ == "__main__":
    main()
