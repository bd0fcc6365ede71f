# SPDX-License-Identifier: Apache-2.0
"""The patterns of attention plans: which tokens of a grid see each other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdiff.attention.block_means import block_means
from fastdiff.attention.list_blocks import IN_PART
from fastdiff.attention.mask_blocks import mask_blocks

Rule = Callable[[Tensor, Tensor], Tensor]
CHUNK = 1 << 20  # pairs of tokens whose rule is evaluated at once


# ---- tokens on a grid ------------------------------------------------------------------------------------------


def check_grid(pattern: str, shape: Sequence[int], **others: Sequence[int]) -> None:
    if not 1 <= len(shape) <= 3 or any(n < 1 for n in shape):
        raise ValueError(f"AttentionPlan.{pattern}: shape must be 1 to 3 positive sizes, got {tuple(shape)}")
    for name, numbers in others.items():
        if len(numbers) != len(shape) or any(n < 1 for n in numbers):
            raise ValueError(
                f"AttentionPlan.{pattern}: {name} must be {len(shape)} positive numbers like shape, "
                f"got {tuple(numbers)}"
            )


def coordinates(numbers: Tensor, shape: Sequence[int], tile: Sequence[int] | None = None) -> list[Tensor]:
    """Of tokens by their numbers: row by row, or tile by tile and row by row inside each tile."""
    if tile is None:
        tile = (1,) * len(shape)
    inside = list(torch.unravel_index(numbers % math.prod(tile), tuple(tile)))
    tiles = torch.unravel_index(
        numbers // math.prod(tile), tuple(n // t for n, t in zip(shape, tile, strict=True))
    )
    return [a * t + i for a, t, i in zip(tiles, tile, inside, strict=True)]


def check_tiles(pattern: str, shape: Sequence[int], tile: Sequence[int]) -> None:
    if any(n % t for n, t in zip(shape, tile, strict=True)):
        raise ValueError(
            f"AttentionPlan.{pattern}: shape must be whole tiles of {tuple(tile)}, got {tuple(shape)}; pad the tokens"
        )


def tile_order(
    shape: Sequence[int], tile: Sequence[int], *, device: torch.device | str | None = None
) -> Tensor:
    """The tokens of a grid tile by tile, as sliding tiles want them.

    Args:
        shape: of the grid, such as (T, H, W): whole tiles.
        tile: the size of a tile.
        device: of the result.

    Returns:
        int64 ``[N]``: ``x[:, order]`` has the tokens of x, which are row by row, tile by tile; ``order.argsort()`` is
        the way back.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    check_grid("tile_order", shape, tile=tile)
    check_tiles("tile_order", shape, tile)
    numbers = torch.arange(math.prod(shape), device=device)
    order = torch.zeros_like(numbers)
    for axis, n in zip(coordinates(numbers, shape, tile), shape, strict=True):
        order = order * n + axis
    return order


# ---- rules -----------------------------------------------------------------------------------------------------


def in_window(q: Tensor, k: Tensor, size: int, window: int, dilation: int = 1) -> Tensor:
    """Along one axis of `size` places: the `window` ones nearest to q, fewer nowhere; `dilation` apart."""
    if dilation > 1:
        same = q % dilation == k % dilation
        length = (
            torch.div(size - 1 - q % dilation, dilation, rounding_mode="floor") + 1
        )  # places of q's residue
        q, k = q // dilation, k // dilation
        start = torch.minimum((q - window // 2).clamp(min=0), (length - window).clamp(min=0))
        return same & (k >= start) & (k < start + window)
    start, k = (q - window // 2).clamp(0, max(0, size - window)).int(), k.int()
    return (k >= start) & (k < start + window)


def neighborhood(
    shape: Sequence[int], window: Sequence[int], dilation: Sequence[int], tile: Sequence[int] | None
) -> Rule:
    """Nearest neighbours along each axis (Neighborhood Attention)."""

    def rule(q: Tensor, k: Tensor) -> Tensor:
        places = zip(
            coordinates(q, shape, tile), coordinates(k, shape, tile), shape, window, dilation, strict=True
        )
        return functools.reduce(torch.logical_and, (in_window(*place) for place in places))

    return rule


def radial(frames: int, tokens: int) -> Rule:
    """Radial Attention, section 4.2: a window in space that halves as the distance in time doubles."""
    apart = torch.arange(frames)
    spread = torch.exp2(torch.floor(torch.log2(apart.clamp(min=1).double()))).long()
    every = (spread + tokens - 1) // tokens
    # How far apart two tokens may be, by their frames' distance; -1: not at all.
    reach = torch.where(spread <= tokens, tokens // spread - 1, torch.where(apart % every == 0, 0, -1)).int()

    def rule(q: Tensor, k: Tensor) -> Tensor:
        frame, number = torch.unique(q // tokens, return_inverse=True)
        far = reach.to(q.device)[(frame[:, None] - k // tokens).abs()]
        far = torch.where(k < tokens, tokens, far)  # the first frame is seen by all
        return ((q % tokens).int() - (k % tokens).int()).abs() <= far[number.flatten()]

    return rule


def strided(stride: int, local: int) -> Rule:
    """Sparse Transformers, section 4.2, in both directions: the next tokens, and every stride-th one."""
    return lambda q, k: ((q.int() - k.int()).abs() < local) | (q % stride == k % stride)


# ---- from a rule to blocks --------------------------------------------------------------------------------------


def kinds_of(
    rule: Rule, queries: int, keys: int, block: tuple[int, int], device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """uint8 [1, 1, R, C] as :func:`mask_blocks` gives it, and the bits of the blocks that are seen in part.

    Some rows of blocks at a time, whose mask is gone before the next: memory goes with the plan, not with all pairs.
    """
    k = torch.arange(keys, device=device)
    step = max(1, CHUNK // max(1, keys * block[0])) * block[0]
    kinds, bits = [], []
    for first in range(0, max(1, queries), step):
        q = torch.arange(first, min(queries, first + step), device=device)[:, None]
        mask = rule(q, k).expand(len(q), keys)
        some, of_all = mask_blocks(mask[None, None], block)
        kinds.append(some)
        bits.append(of_all[some.flatten() == IN_PART])
    return torch.cat(kinds, 2), torch.cat(bits)


# ---- from the tokens themselves --------------------------------------------------------------------------------


def pooled_scores(q: Tensor, k: Tensor, block: tuple[int, int], scale: float | None) -> Tensor:
    """[B, H, R, C]: scores between the means of blocks of queries [B, H, N_q, D] and of keys [B, H_kv, N_kv, D]."""
    of_q, of_k = block_means(q.detach(), block[0]), block_means(k.detach(), block[1])
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    # The queries of all heads that share keys at once.
    group = of_q.shape[1] // max(1, of_k.shape[1])
    grouped = of_q.reshape(*of_k.shape[:2], group * of_q.shape[2], of_q.shape[3])
    scores: Tensor = (grouped @ of_k.mT).mul_(factor).view(*of_q.shape[:3], of_k.shape[2])
    return scores
