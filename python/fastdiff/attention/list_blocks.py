# SPDX-License-Identifier: Apache-2.0
"""list_blocks: the lists of a plan from a matrix of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastdiff._case import Case

IN_PLACE: Final = False
UNSEEN: Final = 0
WHOLE: Final = 1
IN_PART: Final = 2

_RESULTS = ("offsets", "columns", "masks")


def _fake(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if blocks.dim() != 4:
        raise RuntimeError(
            f"fastdiff::list_blocks: blocks must have 4 dimensions [B, H, R, C], got {list(blocks.shape)}"
        )
    samples, heads, rows, columns = blocks.shape
    entries = samples * heads * rows * columns
    sizes = ((samples, heads, rows + 1), (entries,), (entries if blocks.dtype == torch.uint8 else 0,))
    offsets, found, masks = (blocks.new_empty(size, dtype=torch.int32) for size in sizes)
    return offsets, found, masks


def _fake_out(blocks: Tensor, **results: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in results.items():
        if t.device != blocks.device:
            raise RuntimeError(
                f"fastdiff::list_blocks: {name} must be on {blocks.device} like blocks, got {t.device}"
            )


_native.define("list_blocks(Tensor blocks) -> (Tensor, Tensor, Tensor)", _fake)
_native.define(
    "list_blocks.out(Tensor blocks, *, Tensor(a!) offsets, Tensor(b!) columns, Tensor(c!) masks) -> ()",
    _fake_out,
)


def list_blocks(blocks: Tensor, *, out: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    r"""The lists of an :class:`AttentionPlan` in compressed rows (CSR), from a matrix of blocks.

    Row r of a sample and head has the entries offsets[r] ... offsets[r + 1] - 1: the columns c, ascending, for which
    blocks[r, c] is not 0. The list of each sample and head begins at a place of its own, R C entries after the one
    before, so that the host need not wait for any count. Entries that are not used are 0, in masks −1.

    Args:
        blocks: ``[B, H, R, C]``, any strides, at most 2³¹ − 1 in number. bool: whether a block is seen; or uint8, as
            :func:`mask_blocks` gives it: 0 not at all, 1 whole, 2 in part.
        out: where to write: (offsets, columns, masks), which share no memory with blocks.

    Returns:
        offsets int32 ``[B, H, R + 1]``; columns int32 ``[B H R C]``; and masks int32 ``[B H R C]``: of blocks that are
        seen in part their number among all blocks, which is that of their bits, of others −1. For bool masks is
        ``[0]``.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.

    On the CPU and on CUDA, for any number of threads and any strides the results are the same.
    """
    if out is None:
        results: tuple[Tensor, Tensor, Tensor] = torch.ops.fastdiff.list_blocks.default(blocks)
        return results
    offsets, columns, masks = out
    torch.ops.fastdiff.list_blocks.out(blocks, offsets=offsets, columns=columns, masks=masks)
    _native.mark_written([offsets, columns, masks])
    return offsets, columns, masks


def reference(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`list_blocks` in plain PyTorch."""
    samples, heads, rows, columns = blocks.shape
    room = rows * columns
    flat = blocks.reshape(samples * heads, room)
    seen = flat != UNSEEN
    begin = torch.arange(samples * heads)[:, None] * room
    counts = seen.view(samples * heads, rows, columns).sum(2)
    ends = begin + counts.cumsum(1)
    offsets = torch.cat([begin, ends], 1).view(samples, heads, rows + 1).int()
    at = (begin + seen.cumsum(1) - 1)[seen]
    found = torch.zeros(flat.numel(), dtype=torch.int32)
    found[at] = (torch.arange(room, dtype=torch.int32) % max(1, columns)).expand_as(flat)[seen]
    masks = torch.full((flat.numel() if blocks.dtype == torch.uint8 else 0,), -1, dtype=torch.int32)
    if len(masks):
        numbers = torch.arange(flat.numel(), dtype=torch.int32).view_as(flat)
        masks[at] = torch.where(flat == WHOLE, -1, numbers)[seen]
    return offsets, found, masks


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(blocks: Tensor) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"blocks": blocks}


def dlpack_outputs(stored: tuple[Tensor, ...], *_: Any, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free function."""
    return list(stored)


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def some(*shape: int, share: float = 0.4) -> Tensor:
        return torch.rand(shape, generator=g) < share

    def kinds(*shape: int) -> Tensor:
        return torch.randint(0, 3, shape, generator=g, dtype=torch.uint8)

    return [
        Case("whole blocks", (some(2, 3, 5, 40),)),
        Case("blocks in part", (kinds(2, 2, 7, 37),)),
        Case("one list", (some(1, 1, 33, 9),)),
        Case("more rows than threads", (kinds(1, 1, 520, 3),)),
        Case("heads last", (kinds(1, 9, 5, 3).permute(0, 3, 2, 1),)),
        Case("none", (some(1, 2, 3, 4, share=0),)),
        Case("all", (some(1, 2, 3, 4, share=2),)),
        *(Case(f"shape {list(s)}", (kinds(*s),)) for s in ((0, 2, 3, 4), (1, 2, 0, 3), (2, 1, 3, 0))),
    ]  # fmt: skip
