# SPDX-License-Identifier: Apache-2.0
"""Gradients of normed_token_mean: those of the same expression in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable_mean(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    """:func:`fastdiff.normed_token_mean` with gradients to all tensors."""
    return _mean(x, scale, shift, eps)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
        y: Tensor = torch.ops.fastdiff.normed_token_mean.default(x, scale, shift, eps)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.attention.normed_token_mean import expression

        x, scale, shift = ctx.saved_tensors
        with torch.enable_grad():
            y = expression(x, scale, shift, ctx.eps)
        wanted = [t for t, needed in zip((x, scale, shift), ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(y, wanted, grads[0], create_graph=torch.is_grad_enabled()))
        return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None)


_mean: Callable[..., Tensor] = _Mean.apply
