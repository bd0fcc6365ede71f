# SPDX-License-Identifier: Apache-2.0
"""Token merging in the steps of "Token Merging for Fast Stable Diffusion", as plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastdiff import TokenMerge
from torch import Tensor


class Lists(NamedTuple):
    """Numbers of tokens, [B, ...]."""

    source: Tensor  # of all sources
    destination: Tensor
    staying: Tensor  # among the sources
    merged: Tensor  # among the sources
    partner: Tensor  # of each that is merged, among the destinations


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, m]]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def split(side: int, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first token of each cell of 2 x 2 is a destination."""
    numbers = torch.zeros(side // 2, side // 2, 4, dtype=torch.int64, device=device)
    numbers[..., 0] = -1
    order = (
        numbers.view(side // 2, side // 2, 2, 2).transpose(1, 2).reshape(1, -1).argsort(dim=1, stable=True)
    )
    count = side * side // 4
    order = order.expand(samples, -1)
    return order[:, count:], order[:, :count]


def best(metric: Tensor, source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    """The best destination of each source, by a matrix of all scores."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    scores = rows(unit, source) @ rows(unit, destination).transpose(-1, -2)
    score, partner = scores.max(dim=-1)
    return score, partner


def match(metric: Tensor, side: int, r: int) -> Lists:
    """The published matching, without random choices."""
    source, destination = split(side, metric.shape[0], metric.device)
    score, partner = best(metric, source, destination)
    order = score.argsort(dim=-1, descending=True)
    merged = order[:, :r]
    return Lists(source, destination, order[:, r:], merged, partner.gather(1, merged))


def merge(x: Tensor, lists: Lists) -> Tensor:
    """The published merge, by means."""
    source, destination = rows(x, lists.source), rows(x, lists.destination)
    index = lists.partner[..., None].expand(-1, -1, x.shape[2])
    destination = destination.scatter_reduce(1, index, rows(source, lists.merged), reduce="mean")
    return torch.cat([rows(source, lists.staying), destination], dim=1)


def unmerge(y: Tensor, lists: Lists) -> Tensor:
    """The published unmerge: three scatters."""
    staying = lists.staying.shape[1]
    kept, destination = y[:, :staying], y[:, staying:]
    out = y.new_zeros(y.shape[0], lists.source.shape[1] + lists.destination.shape[1], y.shape[2])

    def put(index: Tensor, values: Tensor) -> None:
        out.scatter_(1, index[..., None].expand(-1, -1, y.shape[2]), values)

    put(lists.destination, destination)
    put(lists.source.gather(1, lists.staying), kept)
    put(lists.source.gather(1, lists.merged), rows(destination, lists.partner))
    return out


def lists_of(plan: TokenMerge) -> Lists:
    """The same matching as the published code has it."""
    samples, tokens = plan.place.shape
    side, few = round(tokens**0.5), plan.kept.shape[1]
    source, destination = split(side, samples, plan.place.device)
    staying = few - destination.shape[1]
    place = plan.place.gather(1, source)
    order = torch.where(place < staying, tokens, 0).argsort(dim=1, stable=True)
    merged = order[:, : tokens - few]
    rank = torch.where(place < staying, place, tokens).argsort(dim=1, stable=True)
    return Lists(source, destination, rank[:, :staying], merged, place.gather(1, merged) - staying)
