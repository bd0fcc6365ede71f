# SPDX-License-Identifier: Apache-2.0
"""Cases of block_sparse_attention: shares of the blocks, against dense attention and against FlexAttention.

The floor is arithmetic: 4 D operations per pair of tokens that is computed, 32 in a cycle of a core with AVX2, and one
exponential. PyTorch's `scaled_dot_product_attention` computes all pairs whatever the mask; FlexAttention, compiled,
computes the blocks of its mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fastdiff import AttentionPlan, block_sparse_attention, token_attention
from fastdiff.attention.block_sparse_attention import reference
from fastdiff.bench import block_sparse_attention_flexdit
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

OP = "block_sparse_attention"
DENSE, FLEX = "dense SDPA", "FlexAttention"

SMALL = (1, 1, 256, 64)
SHAPES = (
    SMALL,
    (1, 8, 4096, 64),
    (1, 16, 2048, 72),
)  # tokens of a 1024 x 1024 image; of PixArt and DiT-XL heads
DTYPES = (torch.float32, torch.bfloat16)
BLOCK = (64, 64)
# What dense SDPA must take at least, as a multiple of ours, at this share of the blocks.
SHARES = {1.0: 1.0, 0.25: 4.0, 0.1: 9.0}
ROUNDOFFS = 64.0  # a score of 30 has a rounding that its exponential multiplies by 30


# FlexDiT at 512 pixels: 64 of 1024 tokens ask all; MDT: 70 % of the tokens are among themselves.
TOKENS = {"64_queries_of_1024": (64, 1024), "717_of_1024_tokens": (717, 717)}
GATHERED = "gather + SDPA"


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [
        *(_case(share, s, d) for s in SHAPES for d in DTYPES for share in SHARES),
        *(_token_case(name, d) for d in DTYPES for name in TOKENS),
        *block_sparse_attention_flexdit.cases(),
    ]


def name_of(share: float) -> str:
    return f"{share:.0%}_of_the_blocks".replace("%", "_percent")


def seen(share: float, tokens: int) -> float:
    """The share of the blocks that :func:`plan_of` has."""
    n = -(-tokens // BLOCK[0])
    return max(1, round(share * n)) / n


def plan_of(share: float, tokens: int, device: torch.device) -> AttentionPlan:
    """The diagonal and random blocks, as many as the share says."""
    n = -(-tokens // BLOCK[0])
    order = torch.rand(n, n, generator=torch.Generator().manual_seed(0))
    order.fill_diagonal_(-1)
    blocks = order.argsort(1).argsort(1) < round(seen(share, tokens) * n)
    return AttentionPlan.from_blocks(blocks.to(device), queries=tokens, keys=tokens, block=BLOCK)


def tensors_of(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, count: int = 3
) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(device, dtype) for _ in range(count)]


def _case(share: float, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    flex = Target(FLEX, factor=1.8 if dtype == torch.float32 else 3.0)
    return Case(
        op=OP,
        name=name_of(share),
        title=f"attention, {share:.0%} of the blocks",
        shape=shape,
        dtype=dtype,
        tensors=4,
        build=lambda device: _contenders(share, shape, dtype, device),
        targets=() if shape == SMALL else (Target(DENSE, factor=SHARES[share]), flex),
        flops=4 * math.prod(shape) * shape[2] * seen(share, shape[2]),
    )


def flex_attention(plan: AttentionPlan) -> Callable[..., Sequence[Tensor]]:
    """Compiled, with the same blocks."""
    from torch.nn.attention.flex_attention import BlockMask
    from torch.nn.attention.flex_attention import flex_attention as flex

    blocks, (block_q, block_k) = plan.to_blocks(), plan.block
    seen = blocks[0, 0]
    counts = blocks.sum(-1).int()
    order = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
    none = torch.zeros_like(counts), torch.zeros_like(order)
    mask = BlockMask.from_kv_blocks(
        *none,
        counts,
        order,
        BLOCK_SIZE=plan.block,
        mask_mod=lambda b, h, q, k: seen[
            q // block_q, k // block_k
        ],  # called for blocks seen in part: there are none
        seq_lengths=(plan.queries, plan.keys),
    )
    compiled = torch.compile(lambda q, k, v: flex(q, k, v, block_mask=mask))
    return lambda q, k, v: (compiled(q, k, v),)


def _contenders(
    share: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    q, k, v = tensors_of(shape, dtype, device)
    plan = plan_of(share, shape[2], device)
    wide = [t.double() for t in (q, k, v)]
    check = close_to([reference(*wide, plan)[0]], roundoffs=ROUNDOFFS)
    dense = close_to([scaled_dot_product_attention(*wide)], roundoffs=ROUNDOFFS)
    flex = flex_attention(plan)
    return [
        Contender(DENSE, lambda: (scaled_dot_product_attention(q, k, v),), dense),
        Contender(FLEX, lambda: flex(q, k, v), check),
        Contender(OURS, lambda: block_sparse_attention(q, k, v, plan)[:1], check, rival=None),
    ]


def _token_case(name: str, dtype: torch.dtype) -> Case:
    shape = (2, 16, 1024, 72)
    return Case(
        op=OP,
        name=name,
        title=f"token_attention, {name.replace('_', ' ')}",
        shape=shape,
        dtype=dtype,
        tensors=4,
        build=lambda device: _token_contenders(*TOKENS[name], shape, dtype, device),
        targets=(Target(GATHERED, factor=1.5),),
        flops=4 * shape[0] * shape[1] * shape[3] * math.prod(TOKENS[name]),
    )


def _token_contenders(
    queries: int, keys: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    q, k, v = tensors_of(shape, dtype, device)
    g = torch.Generator().manual_seed(1)
    kept = torch.stack([torch.randperm(shape[2], generator=g) for _ in range(shape[0])]).to(device)
    q_index = kept[:, :queries].contiguous()
    kv_index = None if keys == shape[2] else kept[:, :keys].contiguous()

    def gather(t: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            return t
        return t.gather(2, index[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3]))

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
        return (scaled_dot_product_attention(gather(q, q_index), gather(k, kv_index), gather(v, kv_index)),)

    check = close_to(eager(q.double(), k.double(), v.double()), roundoffs=ROUNDOFFS)
    return [
        Contender(GATHERED, lambda: eager(q, k, v), check),
        Contender(OURS, lambda: token_attention(q, k, v, q_index, kv_index)[:1], check, rival=None),
    ]
