# SPDX-License-Identifier: Apache-2.0
"""Gradients of gather_tokens: each token gets the sum over the places that it went to, by combine_tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable_gather(x: Tensor, index: Tensor, fill: Tensor | None, residual: Tensor | None) -> Tensor:
    """:func:`fastdiff.gather_tokens` with gradients to x, fill and residual."""
    return _gather(x, index, fill, residual)


def places_of(index: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """For each of so many tokens the places of an index [B or 1, M] that name it, ascending: offsets and members.

    What is below 0 belongs to no token: it is before the first list.
    """
    named, members = index.long().sort(dim=1, stable=True)
    bounds = torch.arange(tokens + 1, device=index.device).expand(index.shape[0], -1)
    return torch.searchsorted(named, bounds.contiguous()), members


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, index: Tensor, fill: Tensor | None, residual: Tensor | None) -> Tensor:
        y: Tensor = torch.ops.fastdiff.gather_tokens.default(x, index, fill, residual)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, index, fill, residual = inputs
        ctx.save_for_backward(index)
        ctx.tokens, ctx.dtype = x.shape[1], x.dtype
        ctx.fill = None if fill is None else (fill.shape, fill.dtype)
        ctx.residual = None if residual is None else residual.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.attention.combine_tokens import combine_tokens

        (dy,), (index,) = grads, ctx.saved_tensors
        to_x, _, to_fill, to_residual = ctx.needs_input_grad
        dx = combine_tokens(dy, *places_of(index, ctx.tokens)) if to_x else None
        dfill = None
        if to_fill:
            shape, dtype = ctx.fill
            missing = (index < 0)[..., None]
            wide = dy if dy.dtype == torch.float64 else dy.float()
            dfill = torch.where(missing, wide, 0).sum_to_size(shape).to(dtype)
        return dx, None, dfill, dy.to(ctx.residual) if to_residual else None


_gather: Callable[..., Tensor] = _Gather.apply
