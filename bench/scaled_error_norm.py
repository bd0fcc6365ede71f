# SPDX-License-Identifier: Apache-2.0
"""Cases of scaled_error_norm: the error of an adaptive step, against the expression of the published solver."""

from __future__ import annotations

import torch
from fastdiff import scaled_error_norm
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from fastdiff.solver.scaled_error_norm import reference
from torch import Tensor

OP = "scaled_error_norm"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (1, 4, 64, 64)  # Stable Diffusion, 512 x 512
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
PIXELS = (8, 3, 512, 512)  # beyond most last-level caches
DTYPES = (torch.float32, torch.bfloat16)

ATOL, RTOL = 0.0078, 0.05
ROUNDOFFS = 16.0  # of float32; eager's own sums have some


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape, dtype) for dtype in DTYPES for shape in (SMALL, LARGE, PIXELS)]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="norm",
        title="the scaled error of each sample",
        shape=shape,
        dtype=dtype,
        tensors=3,
        build=lambda device: _contenders(shape, dtype, device),
        targets=(Target(EAGER, factor=4.0), Target(COMPILED, factor=1.0)) if shape == LARGE else (),
    )


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    lower, error, move = (torch.randn(shape, generator=g) for _ in range(3))
    inputs = [x.to(device, dtype) for x in (lower, lower + 0.02 * error, lower + 0.1 * move)]
    want = reference(*(x.double() for x in inputs), atol=ATOL, rtol=RTOL)
    check = close_to([want], roundoffs=ROUNDOFFS)
    out = torch.empty(shape[0], device=device)

    def ours() -> tuple[Tensor]:
        return (scaled_error_norm(*inputs, atol=ATOL, rtol=RTOL, out=out),)

    return [
        Contender(EAGER, peers.with_tensors(error_norm, inputs, []), check),
        Contender(COMPILED, peers.compiled(error_norm, inputs, []), check),
        Contender(OURS, ours, check, rival=None),
    ]


def error_norm(x_lower: Tensor, x_higher: Tensor, x_prev: Tensor) -> tuple[Tensor]:
    """`dpm_solver_adaptive`'s delta and norm, in float32, without its maximum over the batch."""
    x_lower, x_higher, x_prev = x_lower.float(), x_higher.float(), x_prev.float()
    delta = torch.max(
        torch.ones_like(x_lower) * ATOL, RTOL * torch.max(torch.abs(x_lower), torch.abs(x_prev))
    )
    v = ((x_higher - x_lower) / delta).reshape(x_lower.shape[0], -1)
    return (torch.sqrt(torch.square(v).mean(dim=-1)),)
