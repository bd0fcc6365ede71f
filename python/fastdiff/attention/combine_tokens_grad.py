# SPDX-License-Identifier: Apache-2.0
"""Gradients of combine_tokens: that of x is a combine_tokens over the transposed lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Lists = tuple[Tensor, Tensor, Tensor | None]  # offsets, members, weights


def differentiable_combine(
    x: Tensor,
    offsets: Tensor,
    members: Tensor,
    weights: Tensor | None,
    transposed: Lists | None = None,
) -> Tensor:
    """:func:`fastdiff.combine_tokens` with gradients to x and weights.

    Args:
        x, offsets, members, weights: as for :func:`fastdiff.combine_tokens`.
        transposed: what :func:`transpose` gives for N tokens, if it is known and the weights need no gradient; else the
            backward pass makes it.
    """
    return _combine(x, offsets, members, weights, *(transposed or (None, None, None)))


def transpose(offsets: Tensor, members: Tensor, weights: Tensor | None, tokens: int) -> Lists:
    """The lists of the adjoint: for each of so many tokens the lists that it is in, ascending.

    On the device and without waiting for it.
    """
    from fastdiff.attention.gather_tokens_grad import places_of

    rows = _lists_of(offsets, members.shape[1])
    named = torch.where(rows < 0, -1, members.long())
    of_tokens, entries = places_of(named, tokens)
    samples = entries.shape[0]
    mine = rows.expand(samples, -1).gather(1, entries)
    if weights is not None:
        samples = max(samples, weights.shape[0])
        weights = weights.expand(samples, -1).gather(1, entries.expand(samples, -1))
    return of_tokens, mine, weights


def _lists_of(offsets: Tensor, entries: int) -> Tensor:
    """The list [B or 1, E] that each entry is in; -1: none."""
    places = torch.arange(entries, device=offsets.device, dtype=offsets.dtype).expand(offsets.shape[0], -1)
    rows = torch.searchsorted(offsets.contiguous(), places.contiguous(), right=True) - 1
    return torch.where(rows < offsets.shape[1] - 1, rows, -1)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, offsets: Tensor, members: Tensor, weights: Tensor | None, *transposed: Tensor | None
    ) -> Tensor:
        y: Tensor = torch.ops.fastdiff.combine_tokens.default(x, offsets, members, weights)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *lists = inputs
        ctx.tokens, ctx.dtype = x.shape[1], x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, *lists)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x, offsets, members, weights, *transposed) = grads, ctx.saved_tensors
        dx = dweights = None
        if ctx.needs_input_grad[0]:
            known = transposed[0] is not None
            lists: Lists = (*transposed,) if known else transpose(offsets, members, weights, ctx.tokens)
            if torch.is_grad_enabled():
                # The adjoint of the adjoint is the sum itself.
                back = (offsets, members, weights) if known else None
                dx = differentiable_combine(dy, *lists, transposed=back)
            else:
                dx = torch.ops.fastdiff.combine_tokens.default(dy, *lists)
        if x is not None:
            dweights = _of_weights(x, dy, offsets, members, weights)
        return dx, None, None, dweights, None, None, None


def _of_weights(x: Tensor, dy: Tensor, offsets: Tensor, members: Tensor, weights: Tensor) -> Tensor:
    """The product of each entry's token with the gradient of its list; 0 for what is in none."""
    from fastdiff.attention.gather_tokens import gather_tokens

    rows = _lists_of(offsets, members.shape[1])
    named = torch.where(rows < 0, -1, members.long())
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    products = gather_tokens(x, named).to(wide) * gather_tokens(dy, rows).to(wide)
    return products.sum(-1).sum_to_size(weights.shape).to(weights.dtype)


_combine: Callable[..., Tensor] = _Combine.apply
