# SPDX-License-Identifier: Apache-2.0
"""Gradients of idwt: the adjoint of an inverse is dwt with the same taps and the same edge, one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.wavelet.dwt import Bank
from fastdiff.wavelet.dwt_grad import at_least_float, factor_of, numbers_gradient


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
    return _synthesise(y, approximation, scale, threshold, bank, tuple(size), divide, hard)


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(
        y: Tensor,
        approximation: Tensor | None,
        scale: Tensor | None,
        threshold: Tensor | None,
        bank: Bank,
        size: tuple[int, ...],
        divide: bool,
        hard: bool,
    ) -> Tensor:
        x: Tensor = torch.ops.fastdiff.idwt.default(
            y, *bank, size, scale, divide, threshold, hard, approximation
        )
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, approximation, scale, threshold, bank, size, divide, hard = inputs
        ctx.bank, ctx.size, ctx.divide, ctx.hard = bank, size, divide, hard
        ctx.grids = [None if t is None else tuple(t.shape[-bank.ndim :]) for t in (y, approximation)]
        ctx.is_linear = threshold is None and not ctx.needs_input_grad[2]
        ctx.save_for_backward(scale, *((None,) * 3 if ctx.is_linear else (threshold, y, approximation)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.wavelet.dwt import transform

        bank, (x,) = ctx.bank, grads
        scale, threshold, y, approximation = ctx.saved_tensors
        of_scale = of_threshold = None
        if ctx.is_linear:
            grid = tuple(map(max, ctx.grids[0], ctx.grids[1] or ctx.grids[0]))
            of_bands = transform(x, bank, scale, ctx.divide, grid)
        else:
            of_bands = transform(at_least_float(x), bank)
            values = at_least_float(_bands(y, approximation, of_bands.shape[-bank.ndim :]))
            factor = None if scale is None else factor_of(scale, bank.ndim, values.dtype, ctx.divide)
            if threshold is not None:
                c = values if factor is None else values * factor
                shut = _is_shut(c, factor_of(threshold, bank.ndim, c.dtype), ctx.hard)
                of_bands = of_bands.masked_fill(shut, 0)
                if ctx.needs_input_grad[3] and not ctx.hard:
                    of_threshold = numbers_gradient(of_bands, -c.sign(), threshold, bank.ndim)
            if ctx.needs_input_grad[2]:
                of_scale = numbers_gradient(of_bands, values, scale, bank.ndim, ctx.divide)
            of_bands = of_bands if factor is None else of_bands * factor
        of_y, of_approximation = _split(of_bands.to(x.dtype), *ctx.grids)
        return (of_y, of_approximation, of_scale, of_threshold, *(None,) * 4)


def _fitted(t: Tensor, size: Sequence[int]) -> Tensor:
    """The first so many along the last dimensions, with zeros after them where there are fewer."""
    margins = [m for n, there in zip(size, t.shape[-len(size) :], strict=True) for m in (n - there, 0)]
    return torch.nn.functional.pad(t, margins[::-1])


def _bands(y: Tensor, approximation: Tensor | None, size: Sequence[int]) -> Tensor:
    """All bands as one tensor [*, 2**ndim, *size]."""
    y = _fitted(y, size)
    if approximation is None:
        return y
    return torch.cat([_fitted(approximation, size).unsqueeze(-1 - len(size)), y], dim=-1 - len(size))


def _split(
    bands: Tensor, size: Sequence[int], approximation: Sequence[int] | None
) -> tuple[Tensor | None, ...]:
    """The way back: what belongs to y and what to the approximation, each of its own size."""
    if approximation is None:
        return _fitted(bands, size), None
    low, high = bands.split([1, bands.shape[-1 - len(size)] - 1], dim=-1 - len(size))
    return _fitted(high, size), _fitted(low.squeeze(-1 - len(size)), approximation)


def _is_shut(c: Tensor, threshold: Tensor, hard: bool) -> Tensor:
    """Where the threshold makes a 0: not where c is NaN, and nowhere if it is 0 itself."""
    return c.abs() < threshold if hard else (c.abs() <= threshold) & (threshold > 0)


_synthesise: Callable[..., Tensor] = _Synthesis.apply
