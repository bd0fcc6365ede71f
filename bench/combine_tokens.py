# SPDX-License-Identifier: Apache-2.0
"""Cases of combine_tokens: FlexDiT's adaptive pooling, and the mean of merged tokens (ToMe).

The floor is a read of the tokens and a write of fewer. Eager pooling copies the tokens to channels first and back;
eager merging gathers three lists of tokens, copies one of them, scatters with a count, and concatenates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import TokenMerge, adaptive_pool_tokens
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench import match_tokens_peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

OP = "combine_tokens"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (2, 64, 72)
# DiT-XL at 256 and 512 pixels; Stable Diffusion at 512.
POOLED = (SMALL, (2, 256, 1152), (2, 1024, 1152))
MERGED = (SMALL, (2, 1024, 640), (2, 4096, 320))
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    pooled = [_case("pool", s, d) for s in POOLED for d in DTYPES]
    return pooled + [_case("merge", s, d) for s in MERGED for d in DTYPES]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    is_pool = name == "pool"
    targets = (Target(EAGER, factor=3.0), Target(COMPILED, factor=1.0))
    return Case(
        op=OP,
        name=name,
        title="adaptive pooling, a quarter of each side" if is_pool else "merging half of the tokens",
        shape=shape,
        dtype=dtype,
        tensors=1,
        build=lambda device: (_pool if is_pool else _merge)(shape, dtype, device),
        targets=() if shape == SMALL else targets,
    )


def _pool(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    side = round(shape[1] ** 0.5)
    grid, to = (side, side), (side // 4, side // 4)

    def eager(x: Tensor) -> Sequence[Tensor]:
        b, _, c = x.shape
        pooled = adaptive_avg_pool2d(x.permute(0, 2, 1).reshape(b, c, *grid), to)
        return (pooled.reshape(b, c, -1).permute(0, 2, 1).contiguous(),)

    check = close_to(eager(x.double()), roundoffs=8.0)
    return [
        Contender(EAGER, peers.with_tensors(eager, [x], []), check),
        Contender(COMPILED, peers.compiled(eager, [x], []), check),
        Contender(OURS, lambda: (adaptive_pool_tokens(x, grid, to),), check, rival=None),
    ]


def _merge(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    side = round(shape[1] ** 0.5)
    merge = TokenMerge.match(x, grid=(side, side), ratio=0.5, random=False)
    lists = match_tokens_peers.lists_of(merge)

    def published(x: Tensor, *lists: Tensor) -> Sequence[Tensor]:
        return (match_tokens_peers.merge(x, match_tokens_peers.Lists(*lists)),)

    check = close_to(published(x.double(), *lists), roundoffs=32.0)
    return [
        Contender(EAGER, peers.with_tensors(published, [x, *lists], []), check),
        Contender(COMPILED, peers.compiled(published, [x, *lists], []), check),
        Contender(OURS, lambda: (merge.merge(x),), check, rival=None),
    ]
