# SPDX-License-Identifier: Apache-2.0
"""Token merging: bipartite soft matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fastdiff.attention.combine_tokens import combine_tokens
from fastdiff.attention.combine_tokens_grad import differentiable_combine
from fastdiff.attention.gather_tokens import gather_tokens
from fastdiff.attention.gather_tokens_grad import places_of
from fastdiff.attention.match_tokens import match_tokens

MODES: Final = ("mean", "sum", "drop")


@dataclass(frozen=True, eq=False)
class TokenMerge:
    """Which tokens are merged with which: from N tokens to M and back.

    Make one with :meth:`match`, and merge and unmerge with it any tokens of that size, in this layer or others.

    Attributes:
        place: int64 ``[B, N]``: where each token is among the M.
        kept: int64 ``[B, M]``: the token that stands for each of the M where others are dropped.
        offsets, members: int64 ``[B, M + 1]`` and ``[B, N]``: the tokens of each of the M, for :func:`combine_tokens`.
        weights: float64 ``[B, N]``: of each member in the mean.
    """

    place: Tensor
    kept: Tensor
    offsets: Tensor
    members: Tensor
    weights: Tensor

    @staticmethod
    def match(
        metric: Tensor,
        *,
        grid: tuple[int, int],
        ratio: float | None = None,
        r: int | None = None,
        stride: tuple[int, int] = (2, 2),
        random: bool = True,
        generator: torch.Generator | None = None,
    ) -> TokenMerge:
        """The merge of the r tokens that are most like another one.

        One token of each cell of the grid is a destination, all others are sources. Each source has one destination
        that it is most like, by the cosine of the metric; the r sources with the highest are merged into theirs.

        Args:
            metric: ``[B, N, C]``: what tells how alike tokens are, most often the tokens themselves: float32, float16,
                bfloat16 or float64.
            grid: H and W, whose product is N; tokens are row by row.
            ratio: r as a share of N, from 0 to 1; rounded down.
            r: how many tokens are merged; at most as many as there are sources. Give this or the ratio.
            stride: the height and width of a cell. Tokens beyond the last whole cell are sources.
            random: a random token of each cell, the same for all samples, else its first one.
            generator: of the random tokens; default: that of the device.

        Returns: a merge from N to M = N − r tokens: first the sources that stay, the most alike first, then the
            destinations, row by row.

        Raises:
            ValueError: a grid, stride, ratio or r that does not fit.
            RuntimeError: as :func:`match_tokens`.

        Never waits for the device. Has no gradients: a matching is a choice.

        Source: Token Merging for Fast Stable Diffusion, ``bipartite_soft_matching_random2d``.
        """
        tokens = metric.shape[1] if metric.dim() == 3 else -1
        (height, width), (down, across) = grid, stride
        if height * width != tokens or not (1 <= down <= height and 1 <= across <= width):
            raise ValueError(
                f"fastdiff.TokenMerge.match: metric must be [B, N, C] with N of the grid {grid}, and stride "
                f"{stride} within it, got {list(metric.shape)}"
            )
        if (ratio is None) == (r is None):
            raise ValueError(f"fastdiff.TokenMerge.match: give ratio or r, got {ratio} and {r}")
        count = int(tokens * ratio) if ratio is not None else r
        if count is None or not 0 <= count <= tokens:
            raise ValueError(f"fastdiff.TokenMerge.match: r must be from 0 to {tokens}, got {count}")
        source, destination = _split(grid, stride, random, generator, metric.device)
        merged = min(count, source.shape[1])
        with torch.no_grad():
            return _matched(metric.detach(), source, destination, merged)

    def merge(self, x: Tensor, *, mode: str = "mean", size: Tensor | None = None) -> Tensor:
        """Tokens ``[B, N, C]`` to ``[B, M, C]``.

        Args:
            x: float32, float16, bfloat16 or float64.
            mode: "mean" or "sum" of what is merged, or "drop" what is not a destination.
            size: ``[B or 1, N]``: how many tokens each one already stands for: weights of the mean and the sum.

        Returns: in the dtype of x. ``merge(size[..., None], mode="sum")`` are the sizes that come out.

        Raises: ValueError: an unknown mode. RuntimeError: as :func:`combine_tokens`.

        Differentiable with respect to x, and the size, of any order.
        """
        if mode not in MODES:
            raise ValueError(f"fastdiff.TokenMerge.merge: mode must be one of {MODES}, got {mode!r}")
        if mode == "drop":
            return gather_tokens(x, self.kept)
        if size is not None:
            return combine_tokens(x, self.offsets, self.members, self._weights_of(size, mode))
        weights = self.weights if mode == "mean" else None
        if not (torch.is_grad_enabled() and x.requires_grad):
            return combine_tokens(x, self.offsets, self.members, weights)
        # Each token is in one list: what unmerge does.
        samples, tokens = self.place.shape
        one_each = torch.arange(tokens + 1, device=x.device).expand(samples, -1)
        of_tokens = None if weights is None else torch.empty_like(weights).scatter(1, self.members, weights)
        adjoint = (one_each, self.place, of_tokens)
        return differentiable_combine(x, self.offsets, self.members, weights, adjoint)

    def unmerge(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Tokens ``[B, M, C]`` to ``[B, N, C]``: each gets what it was merged into, plus a residual ``[B, N, C]``.

        Raises: RuntimeError: as :func:`gather_tokens`.

        Differentiable, of any order.
        """
        return gather_tokens(x, self.place, residual=residual)

    def _weights_of(self, size: Tensor, mode: str) -> Tensor:
        samples = self.members.shape[0]
        weights = size.expand(samples, -1).gather(1, self.members)
        if mode == "sum":
            return weights
        totals = self.merge(size.expand(samples, -1)[..., None], mode="sum")[..., 0]
        return weights / totals.gather(1, self.place.gather(1, self.members))


def _split(
    grid: tuple[int, int],
    stride: tuple[int, int],
    random: bool,
    generator: torch.Generator | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Sources and destinations, [1, N_s] and [1, N_d], ascending."""
    (height, width), (down, across) = grid, stride
    rows, columns = height // down, width // across
    choice = torch.zeros(rows, columns, 1, dtype=torch.int64, device=device)
    if random:
        drawn_on = device if generator is None else generator.device
        choice = torch.randint(down * across, choice.shape, generator=generator, device=drawn_on).to(device)
    y = torch.arange(rows, device=device)[:, None, None] * down + choice // across
    x = torch.arange(columns, device=device)[:, None] * across + choice % across
    is_source = torch.ones(1, height * width, dtype=torch.int64, device=device)
    is_source.scatter_(1, (y * width + x).view(1, -1), 0)
    order = is_source.argsort(dim=1, stable=True)
    return order[:, rows * columns :], order[:, : rows * columns]


def _matched(metric: Tensor, source: Tensor, destination: Tensor, merged: int) -> TokenMerge:
    samples, tokens = metric.shape[:2]
    score, partner = match_tokens(gather_tokens(metric, source), gather_tokens(metric, destination))
    order = score.argsort(dim=1, descending=True, stable=True)
    staying = source.shape[1] - merged
    source = source.expand(samples, -1).gather(1, order)
    destination = destination.expand(samples, -1)
    places = torch.arange(tokens - merged, device=metric.device).expand(samples, -1)
    place = torch.empty(samples, tokens, dtype=torch.int64, device=metric.device)
    place.scatter_(1, source[:, :merged], partner.gather(1, order[:, :merged]) + staying)
    place.scatter_(1, source[:, merged:], places[:, :staying])
    place.scatter_(1, destination, places[:, staying:])
    offsets, members = places_of(place, tokens - merged)
    counts = offsets.diff(dim=1).gather(1, place.gather(1, members))
    return TokenMerge(
        place=place,
        kept=torch.cat([source[:, merged:], destination], 1),
        offsets=offsets,
        members=members,
        weights=counts.double().reciprocal(),
    )
