# SPDX-License-Identifier: Apache-2.0
"""Tokens of a grid as fewer or more tokens, and tokens that a mask has left out back in their places."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from fastdiff.attention.combine_tokens_grad import differentiable_combine, transpose
from fastdiff.attention.gather_tokens import gather_tokens

Grid = tuple[int, ...]


def adaptive_pool_tokens(x: Tensor, grid: Grid, to: Grid) -> Tensor:
    r"""Means of a grid's tokens over the bins of a smaller grid, as ``adaptive_avg_pool2d`` has them.

    Bin i of a side of k bins over H tokens is ⌊iH/k⌋ … ⌈(i+1)H/k⌉ − 1; bins overlap where k does not divide H. One read
    of the tokens, in the layout that transformers have; eager code copies them to channels first and back.

    Args:
        x: tokens ``[B, N, C]``, row by row of the grid: float32, float16, bfloat16 or float64.
        grid: the sizes of its sides, whose product is N: one, two, three or more.
        to: those of the smaller grid, as many; M is their product. They may be larger too, as for PyTorch.

    Returns:
        ``[B, M, C]``, in the dtype of x; a :func:`combine_tokens`.

    Raises:
        ValueError: grids that do not fit x or each other.

    Differentiable, of any order. The lists of a grid are made once and kept.

    Source: FlexDiT (SparseDiT), ``DownSample``.
    """
    _check_grids("adaptive_pool_tokens", x, grid, to)
    offsets, members, weights, *transposed = _bins(tuple(grid), tuple(to), x.device)
    if torch.is_grad_enabled() and x.requires_grad:
        return differentiable_combine(x, offsets, members, weights, tuple(transposed))
    # Not its function: dynamo does not know yet that its constants require no gradient.
    pooled: Tensor = torch.ops.fastdiff.combine_tokens.default(x, offsets, members, weights)
    return pooled


def unpool_tokens(x: Tensor, grid: Grid, to: Grid, *, residual: Tensor | None = None) -> Tensor:
    r"""Every token of a larger grid gets the token of its place in a smaller one, and a residual.

    The index is that of ``interpolate(mode="nearest")``. A map W of tokens commutes with it:
    ``unpool_tokens(W(x), grid, to, residual=y)`` is W of the unpooled tokens, plus y, with fewer products.

    Args:
        x: tokens ``[B, M, C]``, row by row of the grid: float32, float16, bfloat16 or float64.
        grid: the sizes of its sides, whose product is M: one, two, three or more.
        to: those of the larger grid, as many; N is their product.
        residual: ``[B, N, C]``: what is added.

    Returns:
        ``[B, N, C]``, in the dtype of x; a :func:`gather_tokens`.

    Raises:
        ValueError: grids that do not fit x or each other.

    Differentiable, of any order.

    Source: FlexDiT (SparseDiT), ``RecoveryBlock``.
    """
    _check_grids("unpool_tokens", x, grid, to)
    return gather_tokens(x, _nearest(tuple(grid), tuple(to), x.device), residual=residual)


def scatter_tokens(
    x: Tensor,
    index: Tensor,
    tokens: int,
    *,
    fill: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Kept tokens back in their places among so many, and something else in all other places.

    Masked transformers restore their tokens so: ``scatter_tokens(x, kept, N, fill=mask_token, residual=positions)``.

    Args:
        x: tokens ``[B, M, C]``: float32, float16, bfloat16 or float64.
        index: int64 ``[B or 1, M]``: where each of them goes, from 0 to tokens − 1. Of several that go to one place the
            last in the list is taken.
        tokens: N, how many there are then.
        fill: ``[C]`` or ``[B or 1, N or 1, C]``: what is in the places that no token goes to. Default: 0.
        residual: ``[B, N, C]``: what is added everywhere.

    Returns:
        ``[B, N, C]``, in the dtype of x; a :func:`gather_tokens`.

    Raises:
        RuntimeError: as :func:`gather_tokens`, or an index outside of 0 … tokens − 1.

    Differentiable with respect to x, fill and residual, of any order. Never waits for the device.

    Source: MDT and ITA-MDT, the mask token and ``ids_restore``.
    """
    places = torch.arange(index.shape[1], device=index.device).expand_as(index)
    source = torch.full((index.shape[0], tokens), -1, dtype=torch.int64, device=index.device)
    source.scatter_reduce_(1, index.long(), places, "amax")
    return gather_tokens(x, source, fill=fill, residual=residual)


def _check_grids(name: str, x: Tensor, grid: Grid, to: Grid) -> None:
    if not grid or len(grid) != len(to) or min(*grid, *to) < 1:
        raise ValueError(f"fastdiff.{name}: grid and to must be as many sizes above 0, got {grid} and {to}")
    if x.dim() != 3 or x.shape[1] != math.prod(grid):
        raise ValueError(
            f"fastdiff.{name}: x must have shape [B, {math.prod(grid)}, C] for the grid {grid}, "
            f"got {list(x.shape)}"
        )


# ---- lists that are made once -----------------------------------------------------------------------------------

# A compiled graph takes them as constants. They are of use to calls outside of inference mode too, whoever was first.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _bins(grid: Grid, to: Grid, device: torch.device) -> tuple[Tensor, ...]:
    return _make_bins(grid, to, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _nearest(grid: Grid, to: Grid, device: torch.device) -> Tensor:
    return _make_nearest(grid, to, device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _make_bins(grid: Grid, to: Grid, device: torch.device) -> tuple[Tensor, ...]:
    """The lists of means over bins, and those of their adjoint."""
    sides = [
        [range(i * size // k, -(-(i + 1) * size // k)) for i in range(k)]
        for size, k in zip(grid, to, strict=True)
    ]
    strides = [math.prod(grid[d + 1 :]) for d in range(len(grid))]
    offsets, members, weights = [0], [], []
    for ranges in itertools.product(*sides):
        cells = itertools.product(*ranges)
        members += [sum(n * s for n, s in zip(cell, strides, strict=True)) for cell in cells]
        weights += [1 / math.prod(map(len, ranges))] * (len(members) - offsets[-1])
        offsets.append(len(members))
    lists = torch.tensor([offsets]), torch.tensor([members]), torch.tensor([weights], dtype=torch.float64)
    return tuple(t.to(device) for t in (*lists, *transpose(*lists, math.prod(grid))) if t is not None)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _make_nearest(grid: Grid, to: Grid, device: torch.device) -> Tensor:
    """[1, N]: the token of the smaller grid for each of the larger one, side by side as PyTorch finds it."""
    index = torch.zeros((), dtype=torch.int64)
    for size, larger in zip(grid, to, strict=True):
        numbers = torch.arange(float(size))[None, None]
        side = torch.nn.functional.interpolate(numbers, larger, mode="nearest")[0, 0].long()
        index = index[..., None] * size + side
    return index.flatten()[None].to(device)
