# SPDX-License-Identifier: Apache-2.0
"""Cases of sparse_fill: the weights of a layer that SaRA has tuned, put together of base and checkpoint.

The floor is two reads of the weights and a write. Eager code writes |w| and a mask before it scatters.
"""

from __future__ import annotations

import torch
from fastdiff import sparse_fill
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor

OP = "sparse_fill"
EAGER, COMPILED = "eager", "torch.compile"

SHARE = 0.15  # of the weights that are below the threshold
SMALL = (32, 72)
# Projections and convolutions of Stable Diffusion.
SHAPES = (SMALL, (1280, 1280), (10240, 1280), (1280, 1280, 3, 3))
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape, dtype) for shape in SHAPES for dtype in DTYPES]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="load",
        title="load a sparse delta of 15 %",
        shape=shape,
        dtype=dtype,
        tensors=3,
        build=lambda device: _contenders(shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.5),),
    )


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=g).to(device, dtype)
    tau = float(torch.distributions.Normal(0, 1).icdf(torch.tensor((1 + SHARE) / 2)))
    values = torch.randn(int((w.abs() < tau).sum()), generator=g).to(device, dtype)
    threshold = torch.tensor(tau, device=device)

    def eager(w: Tensor, values: Tensor) -> tuple[Tensor]:
        return (w.masked_scatter(w.abs() < tau, values),)

    check = close_to([eager(w, values)[0].double()], roundoffs=0.0)
    return [
        Contender(EAGER, peers.with_tensors(eager, [w, values], []), check),
        Contender(COMPILED, peers.compiled(eager, [w, values], []), check),
        Contender(OURS, lambda: (sparse_fill(w, threshold, values),), check, rival=None),
    ]
