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
    if scale is None or not scale.requires_grad:
        return _analyse(x, scale, bank, divide, grid)
    y = _analyse(x, None, bank, False, grid)
    factor = scale.reshape(*scale.shape, *(1,) * bank.ndim)
    return (y / factor if divide else y * factor).to(x.dtype)


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
        ctx.save_for_backward(scale)
        ctx.bank, ctx.divide, ctx.size = bank, divide, x.shape[-bank.ndim :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.wavelet.idwt import transform

        (scale,) = ctx.saved_tensors
        return (transform(grads[0], ctx.bank, ctx.size, scale, ctx.divide), None, None, None, None)


_analyse: Callable[..., Tensor] = _Analysis.apply
