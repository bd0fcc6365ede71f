# SPDX-License-Identifier: Apache-2.0
"""Cases of laplacian_split: two and three bands, against kornia's `build_laplacian_pyramid`.

The floor of two bands is 2.25 images: one read, one and a quarter written. kornia blurs by a convolution with 25
weights, resizes, and does the same upwards: some eleven images for each level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import laplacian_split
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from fastdiff.wavelet.laplacian_split import reference
from torch import Tensor

OP = "laplacian_split"
EAGER, COMPILED = "kornia", "torch.compile"

BASE = (1, 4, 128, 128)  # SDXL, 1024 x 1024
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
PIXELS = (1, 3, 1024, 1024)
SHAPES = (BASE, LARGE, PIXELS)
DTYPES = (torch.float32, torch.bfloat16)
ROUNDOFFS = 64.0  # kornia rounds after each of its operations


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(levels, s, d) for levels in (2, 3) for d in DTYPES for s in SHAPES]


def _case(levels: int, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=f"{levels}_bands",
        title=f"Laplacian pyramid, {levels} bands",
        shape=shape,
        dtype=dtype,
        tensors=2,
        build=lambda device: _contenders(levels, shape, dtype, device),
        targets=(Target(EAGER, factor=10.0), Target(COMPILED, factor=1.0)),
    )


def _contenders(
    levels: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    from kornia.geometry.transform import build_laplacian_pyramid

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    check = close_to(reference(x.double(), levels), roundoffs=ROUNDOFFS)

    def expression(x: Tensor) -> Sequence[Tensor]:
        bands: list[Tensor] = build_laplacian_pyramid(x, levels)
        return bands

    return [
        Contender(EAGER, peers.with_tensors(expression, [x], []), check),
        Contender(COMPILED, peers.compiled(expression, [x], []), check),
        Contender(OURS, lambda: laplacian_split(x, levels), check, rival=None),
    ]
