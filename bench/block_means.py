# SPDX-License-Identifier: Apache-2.0
"""Cases of block_means: the pooling of queries or keys that plans by scores begin with. The floor is one read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import block_means
from fastdiff.attention.block_means import reference
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor

OP = "block_means"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (1, 1, 256, 64)
SHAPES = (
    SMALL,
    (1, 8, 4096, 64),
    (1, 24, 4000, 128),
)  # of an image; of a video's head, with a short last block
DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 64


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(s, d) for s in SHAPES for d in DTYPES]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="means",
        title="means of blocks of 64 tokens",
        shape=shape,
        dtype=dtype,
        tensors=1,
        build=lambda device: _contenders(shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.0), Target(COMPILED, factor=1.0)),
    )


def means(x: Tensor) -> Sequence[Tensor]:
    """With PyTorch."""
    tokens = x.shape[2]
    count = -(-tokens // BLOCK)
    whole = torch.nn.functional.pad(x.float(), (0, 0, 0, count * BLOCK - tokens)).unflatten(2, (count, BLOCK))
    sizes = torch.clamp(tokens - torch.arange(count, device=x.device) * BLOCK, max=BLOCK)
    return (whole.sum(3) / sizes[:, None],)


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    check = close_to([reference(x.double(), BLOCK)], roundoffs=64.0)
    return [
        Contender(EAGER, lambda: means(x), check),
        Contender(COMPILED, peers.compiled(means, [x], []), check),
        Contender(OURS, lambda: (block_means(x, BLOCK),), check, rival=None),
    ]
