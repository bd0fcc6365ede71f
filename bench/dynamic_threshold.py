# SPDX-License-Identifier: Apache-2.0
"""Cases of dynamic_threshold: x0 of pixel-space models, against `_threshold_sample` of diffusers' schedulers."""

from __future__ import annotations

import torch
from fastdiff import dynamic_threshold
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from fastdiff.solver.dynamic_threshold import reference
from torch import Tensor

OP = "dynamic_threshold"
EAGER, COMPILED = "eager", "torch.compile"

BASE = (1, 3, 64, 64)  # first stage of Imagen and DeepFloyd IF
HEADLINE = (4, 3, 256, 256)  # their second stage
LARGE = (1, 3, 1024, 1024)  # the last one
DTYPES = (torch.float32, torch.bfloat16)

RATIO, MAX_VALUE = 0.995, 1.5  # of DeepFloyd IF's schedulers
ROUNDOFFS = 4.0  # eager rounds the quantile, and the quotient again


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape, dtype) for dtype in DTYPES for shape in (BASE, HEADLINE, LARGE)]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="threshold",
        title="quantile of each sample, clamp and division",
        shape=shape,
        dtype=dtype,
        tensors=2,
        build=lambda device: _contenders(shape, dtype, device),
        targets=(Target(EAGER, factor=8.0),) if shape == HEADLINE else (),
    )


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    want = reference(x.double(), RATIO, MAX_VALUE)
    check = close_to([want], roundoffs=ROUNDOFFS)
    out = torch.empty_like(x)
    return [
        Contender(EAGER, peers.with_tensors(threshold_sample, [x], []), check),
        Contender(COMPILED, peers.compiled(threshold_sample, [x], []), check),
        Contender(OURS, lambda: (dynamic_threshold(x, RATIO, MAX_VALUE, out=out),), check, rival=None),
    ]


def threshold_sample(sample: Tensor) -> tuple[Tensor]:
    """`DPMSolverMultistepScheduler._threshold_sample`, operation by operation."""
    dtype = sample.dtype
    batch_size, channels, *remaining = sample.shape
    flat = sample.float().reshape(batch_size, -1)
    s = torch.quantile(flat.abs(), RATIO, dim=1)
    s = torch.clamp(s, min=1, max=MAX_VALUE).unsqueeze(1)
    flat = torch.clamp(flat, -s, s) / s
    return (flat.reshape(batch_size, channels, *remaining).to(dtype),)
