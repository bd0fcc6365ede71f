# SPDX-License-Identifier: Apache-2.0
"""Gradients of idwt: the adjoint of an inverse is dwt with the same taps and the same edge, one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.wavelet.dwt import Bank


def differentiable_idwt(
    y: Tensor,
    bank: Bank,
    size: Sequence[int],
    scale: Tensor | None,
    divide: bool,
    threshold: Tensor | None,
    hard: bool,
    approximation: Tensor | None,
) -> Tensor:
    """:func:`fastdiff.wavelet.idwt.transform` with gradients to its tensors."""
    if threshold is None and not (scale is not None and scale.requires_grad):
        return _synthesise(y, approximation, scale, bank, tuple(size), divide)
    from fastdiff.wavelet.idwt import first_of, shrunk

    ones = (1,) * bank.ndim
    if approximation is not None:
        both = tuple(map(min, y.shape[-bank.ndim :], approximation.shape[-bank.ndim :]))
        low, high = (first_of(t, both) for t in (approximation, y))
        y = torch.cat([low.unsqueeze(-1 - bank.ndim), high], dim=-1 - bank.ndim)
    c = y if y.dtype == torch.float64 else y.float()
    if scale is not None:
        factor = scale.to(c.dtype).reshape(*scale.shape, *ones)
        c = c / factor if divide else c * factor
    if threshold is not None:
        c = shrunk(c, threshold.to(c.dtype).reshape(*threshold.shape, *ones).expand(c.shape), hard)
    return _synthesise(c, None, None, bank, tuple(size), False).to(y.dtype)


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(
        y: Tensor,
        approximation: Tensor | None,
        scale: Tensor | None,
        bank: Bank,
        size: tuple[int, ...],
        divide: bool,
    ) -> Tensor:
        x: Tensor = torch.ops.fastdiff.idwt.default(y, *bank, size, scale, divide, None, False, approximation)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, approximation, scale, bank, _, divide = inputs
        ctx.save_for_backward(scale)
        ctx.bank, ctx.divide = bank, divide
        ctx.grid = tuple(y.shape[-bank.ndim :])
        ctx.approximation_grid = None if approximation is None else tuple(approximation.shape[-bank.ndim :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.wavelet.dwt import transform

        (scale,) = ctx.saved_tensors
        if ctx.approximation_grid is None:
            return (transform(grads[0], ctx.bank, scale, ctx.divide, ctx.grid), *(None,) * 5)
        grid = tuple(map(max, ctx.grid, ctx.approximation_grid))
        both = transform(grads[0], ctx.bank, scale, ctx.divide, grid)
        low, high = both.split([1, both.shape[-1 - ctx.bank.ndim] - 1], dim=-1 - ctx.bank.ndim)
        high = high[(..., *(slice(n) for n in ctx.grid))]
        low = low.squeeze(-1 - ctx.bank.ndim)[(..., *(slice(n) for n in ctx.approximation_grid))]
        return (high, low, *(None,) * 4)


_synthesise: Callable[..., Tensor] = _Synthesis.apply
