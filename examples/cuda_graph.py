# SPDX-License-Identifier: Apache-2.0
"""A whole sampling loop as one CUDA graph: a counter on the device is the step index, so one captured step serves all.

NOTE: it has not run on a GPU yet; without one it says so and stops.
"""

import torch
from fastdiff import planners, schedules

STEPS = 20


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device (torch.cuda.is_available() is False): nothing to capture")
        return
    plan = planners.dpm_solver_pp(schedules.cosine(), STEPS, prediction="v").guided(3.0)
    network = torch.nn.Conv2d(4, 4, 3, padding=1).cuda()
    start = torch.randn(1, 4, 64, 64, device="cuda")
    x, m1 = start.clone(), torch.zeros_like(start)
    counter = torch.zeros((), dtype=torch.int64, device="cuda")

    def step() -> None:
        """One step in place; the addresses of x, m1 and counter never change."""
        new_x, (new_m1,) = plan.step(counter, x, (network(x), network(2 * x)), (m1,))
        x.copy_(new_x)
        m1.copy_(new_m1)
        counter.add_(1)

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm up: load kernels, fill the plan's tables
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        x.copy_(start)
        counter.zero_()
        for _ in range(STEPS):
            graph.replay()
        replayed = x.clone()

        x.copy_(start)
        counter.zero_()
        for _ in range(STEPS):
            step()
    print(f"{STEPS} replays of one graph: same bits as eager {bool(torch.equal(replayed, x))}")


if __name__ == "__main__":
    main()
