# SPDX-License-Identifier: Apache-2.0
"""One compiled graph for all steps: the step index is a tensor, so that nothing about it is baked into the graph."""

from typing import Any

import torch
from fastdiff import planners, schedules

STEPS = 10


def main() -> None:
    plan = planners.dpm_solver_pp(schedules.cosine(), STEPS, prediction="v").guided(3.0)
    network = torch.nn.Conv2d(4, 4, 3, padding=1)
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward  # a backend that runs the graph as it is; "inductor" works the same way

    @torch.compile(backend=count, fullgraph=True)
    def step(i: torch.Tensor, x: torch.Tensor, m1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        uncond, cond = network(x), network(2 * x)
        x, (m1,) = plan.step(i, x, (uncond, cond), (m1,))
        return x, m1

    x = torch.randn(2, 4, 16, 16)
    m1 = torch.full_like(x, float("nan"))  # never read: the first step has order 1
    with torch.no_grad():
        for i in torch.arange(STEPS):
            x, m1 = step(i, x, m1)
    print(f"{STEPS} steps, {graphs} graph, result finite: {bool(x.isfinite().all())}")


if __name__ == "__main__":
    main()
