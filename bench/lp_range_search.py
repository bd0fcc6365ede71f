# SPDX-License-Identifier: Apache-2.0
"""Cases of lp_range_search: PTQ4DM's hundred candidates for a tensor of activations and for each row of a weight.

Eager code passes over the tensor nine times for each candidate.
"""

from __future__ import annotations

import torch
from fastdiff import lp_range_search
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, Verdict
from torch import Tensor

OP = "lp_range_search"
EAGER, COMPILED = "eager", "torch.compile"

CANDIDATES, LEVELS, POWER = 100, 255, 2.4
SMALL = (4, 2, 8, 8)
# Activations of Stable Diffusion, and the weights of a convolution
SHAPES = (SMALL, (2, 320, 32, 32), (320, 320, 3, 3))
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape, dtype) for shape in SHAPES for dtype in DTYPES]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    by_rows = shape[0] > 2
    return Case(
        op=OP,
        name="weight" if by_rows else "activation",
        title="100 candidates for each row" if by_rows else "100 candidates",
        shape=shape,
        dtype=dtype,
        tensors=2,
        build=lambda device: _contenders(shape, dtype, by_rows, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=10.0),),
    )


def published(x: Tensor) -> tuple[Tensor]:
    """The search for each row [rows, n] of both signs: the scale."""
    peak = x.abs().amax(1)
    best, least = peak, torch.full_like(peak, torch.inf)
    for i in range(1, CANDIDATES + 1):
        scale = (2 * peak / CANDIDATES * i / LEVELS).clamp(min=1e-8)
        q = (x / scale[:, None]).round().add(128).clamp(0, LEVELS)
        score = (x - (q - 128) * scale[:, None]).abs().pow(POWER).mean(1)
        best, least = torch.where(score < least, scale, best), torch.where(score < least, score, least)
    return (best,)


def _close(x: Tensor) -> Check:
    """The loss by its definition is that of the best candidate, up to a hundredth: the optimum is flat."""

    def loss(scale: Tensor) -> Tensor:
        s = scale.double().reshape(-1, 1)
        q = (x / s).round().clamp(-128, 127)
        return (x - s * q).abs().pow(POWER).mean(1)

    want = loss(published(x)[0])

    def check(got: list[Tensor] | tuple[Tensor, ...]) -> Verdict:
        error = float((loss(got[0]) / want - 1).max())
        return Verdict(error, None if error <= 0.01 else f"loss above the least by {error:.1e}")

    return check


def _contenders(
    shape: tuple[int, ...], dtype: torch.dtype, by_rows: bool, device: torch.device
) -> list[Contender]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    rows = x.flatten(1) if by_rows else x.reshape(1, -1)
    wide = rows.float()  # in 16 bits the peers' own scales and scores would be rounded
    check = _close(rows.double())
    return [
        Contender(EAGER, peers.with_tensors(published, [wide], []), check),
        Contender(COMPILED, peers.compiled(published, [wide], []), check),
        Contender(OURS, lambda: lp_range_search(x, dim=0 if by_rows else None)[:1], check, rival=None),
    ]
