# SPDX-License-Identifier: Apache-2.0
"""The patterns of attention plans: which tokens of a grid see each other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]
CHUNK = 1 << 24  # pairs of tokens whose rule is evaluated at once


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
    start = (q - window // 2).clamp(0, max(0, size - window))
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

    def rule(q: Tensor, k: Tensor) -> Tensor:
        apart = (q // tokens - k // tokens).abs()
        spread = torch.exp2(torch.floor(torch.log2(apart.clamp(min=1).double()))).long()
        offset = (q % tokens - k % tokens).abs()
        near = (spread <= tokens) & ((offset + 1) * spread <= tokens)
        every = (spread + tokens - 1) // tokens
        far = (apart % every == 0) & (offset == 0)
        return near | far | (k < tokens)  # the first frame is seen by all

    return rule


def strided(stride: int, local: int) -> Rule:
    """Sparse Transformers, section 4.2, in both directions: the next tokens, and every stride-th one."""
    return lambda q, k: ((q - k).abs() < local) | ((q - k) % stride == 0)


# ---- from a rule to tiles --------------------------------------------------------------------------------------


def tiles_of(
    rule: Rule, queries: int, keys: int, block: tuple[int, int], device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """bool [E, block_q, block_k] and bool [R, C]: what `AttentionPlan.from_tiles` takes."""
    rows, columns = -(-queries // block[0]), -(-keys // block[1])
    blocks, tiles = [], []
    step = max(1, CHUNK // (columns * block[0] * block[1]))
    k = torch.arange(columns * block[1], device=device)
    for first in range(0, rows, step):
        q = torch.arange(first * block[0], min(rows, first + step) * block[0], device=device)[:, None]
        seen = rule(q.clamp(max=queries - 1), k.clamp(max=keys - 1)) & (q < queries) & (k < keys)
        each = seen.unflatten(1, (columns, block[1])).unflatten(0, (-1, block[0])).transpose(1, 2)
        some = each.flatten(2).any(2)
        blocks.append(some)
        tiles.append(each[some])
    if not blocks:
        blocks, tiles = (
            [torch.zeros(0, columns, dtype=torch.bool, device=device)],
            [k.new_zeros(0, *block).bool()],
        )
    return torch.cat(tiles), torch.cat(blocks)


# ---- from the tokens themselves --------------------------------------------------------------------------------


def pooled_scores(q: Tensor, k: Tensor, block: tuple[int, int], scale: float | None) -> Tensor:
    """[B, H, R, C]: scores between the means of blocks of queries [B, H, N_q, D] and of keys [B, H_kv, N_kv, D]."""
    means = [_means(t, size) for t, size in zip((q, k), block, strict=True)]
    shared = means[1].repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores: Tensor = means[0] @ shared.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return scores


def _means(t: Tensor, block: int) -> Tensor:
    """[B, H, N, D] -> [B, H, ceil(N / block), D], in float32; the last block may be shorter."""
    tokens = t.shape[2]
    count = -(-tokens // block)
    whole = torch.nn.functional.pad(t.float(), (0, 0, 0, count * block - tokens)).unflatten(2, (count, block))
    sizes = torch.clamp(tokens - torch.arange(count, device=t.device) * block, max=block)
    means: Tensor = whole.sum(3) / sizes[:, None]
    return means


def by_mass(scores: Tensor, mass: float) -> Tensor:
    """bool [..., R, C]: the fewest blocks of each row that have this share of its softmax."""
    share, order = torch.softmax(scores, -1).sort(dim=-1, descending=True, stable=True)
    kept = share.cumsum(-1) - share < mass
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def by_rank(scores: Tensor, count: int) -> Tensor:
    """bool [..., R, C]: the `count` largest of each row."""
    best = scores.topk(min(count, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
