# SPDX-License-Identifier: Apache-2.0
"""Cases of mask_blocks: a plan from a boolean mask, against PyTorch and against FlexAttention's `create_block_mask`.

The floor is one read of the mask, and a write of an eighth of that. FlexAttention keeps no bits: it evaluates the
mask again inside the attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import AttentionPlan, block_sparse_attention
from fastdiff.attention.list_blocks import UNSEEN
from fastdiff.attention.mask_blocks import reference
from fastdiff.bench.block_sparse_attention import tensors_of
from fastdiff.bench.kit import OURS, Case, Contender, Target, Verdict
from torch import Tensor

OP = "mask_blocks"
EAGER, FLEX, ATTENTION = "eager", "create_block_mask", "attention"

SMALL = (1, 1, 128, 128)
SHAPES = (SMALL, (1, 1, 4096, 4096), (1, 8, 2048, 2048))
BLOCK = (64, 64)
HEADS, DIM = 8, 64  # of the attention


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape) for shape in SHAPES]


def _case(shape: tuple[int, ...]) -> Case:
    targets = [Target(EAGER, factor=10.0), Target(FLEX, factor=10.0)]
    if shape[1] == 1:  # of a mask for each head the bytes alone take longer than 5 % of the attention's time
        targets.append(Target(ATTENTION, factor=20.0))
    return Case(
        op=OP,
        name="neighbors",
        title="plan from a mask",
        shape=shape,
        dtype=torch.bool,
        tensors=1,
        build=lambda device: _contenders(shape, device),
        targets=() if shape == SMALL else tuple(targets),
    )


def _contenders(shape: tuple[int, ...], device: torch.device) -> list[Contender]:
    numbers = torch.arange(shape[2], device=device)
    band = (numbers[:, None] - numbers).abs() < shape[2] // 8
    mask = band.expand(shape).contiguous()
    kinds, bits = reference(mask, BLOCK)
    plan = AttentionPlan.from_mask(mask, BLOCK)
    q, k, v = tensors_of((1, HEADS, shape[2], DIM), torch.float32, device)

    def flex() -> Sequence[Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask

        made = create_block_mask(
            lambda b, h, i, j: mask[b, h, i, j], *shape, device=device.type, BLOCK_SIZE=BLOCK
        )
        return (made.to_dense(),)

    def eager() -> Sequence[Tensor]:
        """As many steps as it takes, in PyTorch."""
        return reference(mask, BLOCK)

    def ours() -> Sequence[Tensor]:
        made = AttentionPlan.from_mask(mask, BLOCK, compact=False)
        return made.offsets, made.columns, made.masks, made.bits  # type: ignore[return-value]

    def same(got: Sequence[Tensor]) -> Verdict:
        made = AttentionPlan(shape[2], shape[3], BLOCK, *got)
        right = torch.equal(made.to_mask(), mask)
        return Verdict(0.0, None if right else "another mask")

    def same_tensors(got: Sequence[Tensor]) -> Verdict:
        right = torch.equal(got[0], kinds) and torch.equal(got[1], bits)
        return Verdict(0.0, None if right else "another mask")

    def same_blocks(got: Sequence[Tensor]) -> Verdict:
        return Verdict(0.0, None if torch.equal(got[0] != 0, kinds != UNSEEN) else "other blocks")

    return [
        Contender(EAGER, eager, same_tensors),
        Contender(FLEX, flex, same_blocks),
        Contender(ATTENTION, lambda: block_sparse_attention(q, k, v, plan), lambda _: Verdict(0.0)),
        Contender(OURS, ours, same, rival=None),
    ]
