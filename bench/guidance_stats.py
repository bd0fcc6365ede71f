# SPDX-License-Identifier: Apache-2.0
"""Cases of guidance_stats: the sums that adaptive guidance needs, against the same sums in PyTorch."""

from __future__ import annotations

import torch
from fastdiff import guidance_stats
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.guidance_coefficients import predictions
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, close_to
from fastdiff.guidance.guidance_stats import reference, sums_of
from torch import Tensor

OP = "guidance_stats"
EAGER, COMPILED = "eager", "torch.compile"

PAIR = (2, 4, 128, 128)  # SDXL, 1024 x 1024
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
DTYPES = (torch.float32, torch.bfloat16)

# Of float32, relative to the largest sum. torch.compile adds bfloat16 one after another (measured: 74).
ROUNDOFFS, THEIR_ROUNDOFFS = 4.0, 256.0


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape, dtype) for dtype in DTYPES for shape in (PAIR, LARGE)]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="moments",
        title="sums and products of u and c − u, per sample",
        shape=shape,
        dtype=dtype,
        tensors=2,
        build=lambda device: _contenders(shape, dtype, device),
        targets=(Target(COMPILED, factor=1.0),),
    )


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    cond, uncond = predictions(shape, dtype, device, 2)
    want = reference(uncond, cond)

    def check(roundoffs: float) -> Check:
        close = close_to([want], roundoffs=roundoffs)
        return lambda got: close([sums.float() for sums in got])  # ours are float64, of float32 terms

    out = torch.empty((shape[0], sums_of(2)), dtype=torch.float64, device=device)
    inputs = [uncond, cond]
    return [
        Contender(EAGER, peers.with_tensors(moments, inputs, []), check(THEIR_ROUNDOFFS)),
        Contender(COMPILED, peers.compiled(moments, inputs, []), check(THEIR_ROUNDOFFS)),
        Contender(OURS, lambda: (guidance_stats(uncond, cond, out=out),), check(ROUNDOFFS), rival=None),
    ]


def moments(uncond: Tensor, cond: Tensor) -> tuple[Tensor]:
    """The sums in the order of `fastdiff.guidance_stats`, in float32."""
    u, c = uncond.float().flatten(1), cond.float().flatten(1)
    d = c - u
    return (torch.stack([x.sum(1) for x in (u, u * u, d, u * d, d * d)], 1),)
