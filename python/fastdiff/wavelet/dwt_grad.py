# SPDX-License-Identifier: Apache-2.0
"""Gradients of dwt: the adjoint of a transform is idwt with the same taps and the same edge, one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.wavelet.dwt import Bank


def differentiable_dwt(
    x: Tensor, bank: Bank, scale: Tensor | None, divide: bool, grid: Sequence[int] | None
) -> Tensor:
    """:func:`fastdiff.wavelet.dwt.transform` with gradients to x and scale."""
    return _analyse(x, scale, bank, divide, grid)


# ---- numbers for each band, [*, 2**ndim] -----------------------------------------------------------------------


def factor_of(numbers: Tensor, ndim: int, dtype: torch.dtype, divide: bool = False) -> Tensor:
    """What multiplies bands [*, 2**ndim, *spatial]."""
    factor = numbers.to(dtype).reshape(*numbers.shape, *(1,) * ndim)
    return 1 / factor if divide else factor


def numbers_gradient(
    adjoint: Tensor, bands: Tensor, numbers: Tensor, ndim: int, divide: bool = False
) -> Tensor:
    """The gradient of the numbers that multiply (or divide) ``bands``; ``adjoint`` is that of the product."""
    sums = (adjoint * bands).sum(tuple(range(-ndim, 0)))
    if divide:
        sums = -sums / numbers.to(sums.dtype) ** 2
    return sums.sum_to_size(numbers.shape).to(numbers.dtype)


def at_least_float(t: Tensor) -> Tensor:
    """In the dtype in which the kernels calculate."""
    return t if t.dtype == torch.float64 else t.float()


class _Analysis(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, scale: Tensor | None, bank: Bank, divide: bool, grid: Sequence[int] | None
    ) -> Tensor:
        y: Tensor = torch.ops.fastdiff.dwt.default(x, *bank, scale, divide, grid)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, bank, divide, _ = inputs
        ctx.save_for_backward(scale, x if ctx.needs_input_grad[1] else None)
        ctx.bank, ctx.divide, ctx.size = bank, divide, x.shape[-bank.ndim :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.wavelet.dwt import transform
        from fastdiff.wavelet.idwt import transform as adjoint

        scale, x = ctx.saved_tensors
        of_x = of_scale = None
        if ctx.needs_input_grad[0]:
            of_x = adjoint(grads[0], ctx.bank, ctx.size, scale, ctx.divide)
        if x is not None:
            bands = transform(at_least_float(x), ctx.bank, grid=grads[0].shape[-ctx.bank.ndim :])
            of_scale = numbers_gradient(grads[0], bands, scale, ctx.bank.ndim, ctx.divide)
        return (of_x, of_scale, None, None, None)


_analyse: Callable[..., Tensor] = _Analysis.apply
