# SPDX-License-Identifier: Apache-2.0
"""Cases of list_blocks: compressed rows of a matrix of blocks. The floor is one read and a write of four times that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import AttentionPlan, list_blocks
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, Verdict
from torch import Tensor

OP = "list_blocks"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (1, 2, 8, 64)
SHAPES = (SMALL, (1, 8, 64, 64), (1, 8, 256, 256))  # of 4096 and of 16384 tokens


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape) for shape in SHAPES]


def _case(shape: tuple[int, ...]) -> Case:
    return Case(
        op=OP,
        name="25_percent_of_the_blocks",
        title="lists of blocks",
        shape=shape,
        dtype=torch.bool,
        tensors=5,
        build=lambda device: _contenders(shape, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.0), Target(COMPILED, factor=1.0)),
    )


def lists(blocks: Tensor) -> Sequence[Tensor]:
    """With PyTorch, and without waiting for the device."""
    samples, heads, rows, columns = blocks.shape
    flat = blocks.reshape(samples * heads * rows, columns)
    counts = flat.sum(1)
    ends = counts.cumsum(0)
    begin = (ends - counts).view(samples, heads, rows)
    last = ends.view(samples, heads, rows)[..., -1:]
    room = flat.numel()
    place = begin.flatten()[:, None] + flat.cumsum(1) - 1
    # The last one takes all that is not used.
    found = torch.zeros(room + 1, dtype=torch.int32, device=blocks.device)
    numbers = torch.arange(columns, dtype=torch.int32, device=blocks.device).expand_as(flat)
    found.scatter_(0, torch.where(flat, place, room).flatten(), numbers.flatten())
    return torch.cat([begin, last], -1).int(), found[:room]


def _contenders(shape: tuple[int, ...], device: torch.device) -> list[Contender]:
    blocks = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.25).to(device)
    check = _lists_of(blocks)
    return [
        Contender(EAGER, lambda: lists(blocks), check),
        Contender(COMPILED, peers.compiled(lists, [blocks], []), check),
        Contender(OURS, lambda: list_blocks(blocks)[:2], check, rival=None),
    ]


def _lists_of(blocks: Tensor) -> Check:
    """A check: as a plan they are these blocks."""

    def check(got: Sequence[Tensor]) -> Verdict:
        rows, columns = blocks.shape[2:]
        plan = AttentionPlan(16 * rows, 16 * columns, (16, 16), *got)
        return Verdict(0.0, None if torch.equal(plan.to_blocks(), blocks) else "other blocks")

    return check
