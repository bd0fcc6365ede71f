# SPDX-License-Identifier: Apache-2.0
"""mask_blocks: a boolean mask as an attention plan has it, in one read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.attention.list_blocks import IN_PART, UNSEEN, WHOLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor mask, int block_q, int block_k"


def _fake(mask: Tensor, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    if mask.dim() != 4 or block_q < 1 or block_k < 1:
        raise RuntimeError(
            "fastdiff::mask_blocks: mask must have 4 dimensions [B, H, N_q, N_kv] and block be positive, got "
            f"{list(mask.shape)} and {(block_q, block_k)}"
        )
    samples, heads, queries, keys = mask.shape
    rows, columns = -(-queries // block_q), -(-keys // block_k)
    kinds = mask.new_empty(samples, heads, rows, columns, dtype=torch.uint8)
    blocks = samples * heads * rows * columns
    return kinds, mask.new_empty(blocks, block_k, -(-block_q // 32), dtype=torch.int32)


def _fake_out(mask: Tensor, *_: Any, **results: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in results.items():
        if t.device != mask.device:
            raise RuntimeError(
                f"fastdiff::mask_blocks: {name} must be on {mask.device} like mask, got {t.device}"
            )


_native.define(f"mask_blocks({_ARGUMENTS}) -> (Tensor, Tensor)", _fake)
_native.define(f"mask_blocks.out({_ARGUMENTS}, *, Tensor(a!) kinds, Tensor(b!) bits) -> ()", _fake_out)


def mask_blocks(
    mask: Tensor, block: tuple[int, int], *, out: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    r"""A boolean mask as an :class:`AttentionPlan` has it: which of its blocks are seen, and the bits of each.

    One read of the mask. ``list_blocks(kinds)`` gives offsets, columns and masks that go with these bits; all sizes
    follow from the mask's own, so that the host need not wait for the device.

    Args:
        mask: bool ``[B, H, N_q, N_kv]``, any strides: True where a query sees a key.
        block: tokens of a block of queries, and of one of keys: multiples of 16, at most 256.
        out: where to write: (kinds, bits), which share no memory with the mask.

    Returns:
        kinds uint8 ``[B, H, R, C]``, R = ceil(N_q / block[0]), C = ceil(N_kv / block[1]): 0 where nothing of a block is
        seen, 1 where all is, 2 where some is; and bits int32 ``[B H R C, block[1], ceil(block[0] / 32)]``: bit q % 32
        of word q // 32 of a key, for query q of the block. Bits of tokens that are not there are 0.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.

    On the CPU and on CUDA, for any number of threads and any strides the results are the same.
    """
    if out is None:
        results: tuple[Tensor, Tensor] = torch.ops.fastdiff.mask_blocks.default(mask, *block)
        return results
    kinds, bits = out
    torch.ops.fastdiff.mask_blocks.out(mask, *block, kinds=kinds, bits=bits)
    _native.mark_written([kinds, bits])
    return kinds, bits


def reference(mask: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """:func:`mask_blocks` in plain PyTorch."""
    tiles, there = tiled(mask, block), tiled(torch.ones_like(mask), block)
    count, whole = tiles.sum((4, 5)), there.sum((4, 5))
    kinds = torch.where(count == 0, UNSEEN, torch.where(count == whole, WHOLE, IN_PART))
    return kinds.to(torch.uint8), packed(tiles.flatten(0, 3))


def tiled(mask: Tensor, block: tuple[int, int]) -> Tensor:
    """[B, H, N_q, N_kv] -> [B, H, R, C, block_q, block_k]; False where there are no tokens."""
    queries, keys = mask.shape[2:]
    rows, columns = -(-queries // block[0]), -(-keys // block[1])
    padded = torch.nn.functional.pad(mask, (0, columns * block[1] - keys, 0, rows * block[0] - queries))
    tiles: Tensor = padded.unflatten(3, (columns, block[1])).unflatten(2, (rows, block[0])).transpose(3, 4)
    return tiles


def packed(tiles: Tensor) -> Tensor:
    """bool [M, block_q, block_k] -> int32 [M, block_k, words]: a bit for each query, the keys in rows."""
    words = -(-tiles.shape[1] // 32)
    padded = torch.nn.functional.pad(tiles, (0, 0, 0, words * 32 - tiles.shape[1]))
    weights = 1 << torch.arange(32, device=tiles.device)
    values = (padded.unflatten(1, (words, 32)) * weights[:, None]).sum(2)  # [M, words, block_k]
    return torch.where(values >= 2**31, values - 2**32, values).int().transpose(1, 2).contiguous()


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(mask: Tensor, block: tuple[int, int]) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"mask": mask, "block_q": block[0], "block_k": block[1]}


def dlpack_outputs(stored: tuple[Tensor, ...], *_: Any, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free function."""
    return list(stored)


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def some(*shape: int, share: float = 0.4) -> Tensor:
        return torch.rand(shape, generator=g) < share

    band = (torch.arange(100)[:, None] - torch.arange(120)).abs() < 40
    return [
        Case("any mask", (some(2, 2, 40, 50), (16, 16))),
        Case("a band", (band[None, None], (32, 16))),
        Case("words that are not whole", (some(1, 1, 100, 35), (48, 32))),
        Case("two words", (band.expand(1, 2, -1, -1), (64, 64))),
        Case("eight words, few tokens", (some(1, 1, 7, 9), (256, 256))),
        Case("rows that are not aligned", (some(1, 2, 40, 67)[..., 1:], (32, 32))),
        Case("keys in rows", (some(1, 2, 50, 40).mT, (16, 32))),
        Case("many keys", (some(1, 1, 18, 1100, share=0.97), (16, 48))),
        Case("none", (some(1, 1, 20, 40, share=0), (16, 16))),
        Case("all", (some(1, 1, 20, 40, share=2), (16, 16))),
        *(Case(f"shape {list(s)}", (some(*s), (16, 16))) for s in ((1, 2, 0, 8), (1, 2, 8, 0))),
    ]  # fmt: skip
