# SPDX-License-Identifier: Apache-2.0
"""Cases of guidance_stats: the sums that adaptive guidance needs, against the same sums in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import guidance_stats
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.guidance_coefficients import predictions
from fastdiff.bench.kit import OURS, Case, Contender, Target, Verdict, close_to
from fastdiff.guidance.guidance_stats import reference, sums_of
from torch import Tensor

OP = "guidance_stats"
EAGER, COMPILED = "eager", "torch.compile"

PAIR = (2, 4, 128, 128)  # SDXL, 1024 x 1024
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
DTYPES = (torch.float32, torch.bfloat16)

ROUNDOFFS = 16.0  # of float32; eager's own sums have some


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
    close = close_to([reference(uncond, cond)], roundoffs=ROUNDOFFS)

    def check(got: Sequence[Tensor]) -> Verdict:
        return close([sums.float() for sums in got])  # ours come in float64, but their terms are float32

    out = torch.empty((shape[0], sums_of(2)), dtype=torch.float64, device=device)
    inputs = [uncond, cond]
    return [
        Contender(EAGER, peers.with_tensors(moments, inputs, []), check),
        Contender(COMPILED, peers.compiled(moments, inputs, []), check),
        Contender(OURS, lambda: (guidance_stats(uncond, cond, out=out),), check, rival=None),
    ]


def moments(uncond: Tensor, cond: Tensor) -> tuple[Tensor]:
    """The sums in the order of `fastdiff.guidance_stats`, in float32."""
    u, c = uncond.float().flatten(1), cond.float().flatten(1)
    d = c - u
    return (torch.stack([x.sum(1) for x in (u, u * u, d, u * d, d * d)], 1),)
