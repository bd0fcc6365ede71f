# SPDX-License-Identifier: Apache-2.0
"""Gradients of fake_quant: straight through where the clamp changes nothing, by the op itself, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

ORDERS: Final = 1  # the gradient is constant in x: there is nothing to differentiate


def differentiable_fake_quant(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, step: Tensor | None, low: int, high: int
) -> Tensor:
    """:func:`fastdiff.fake_quant` with the straight-through gradient to x."""
    return _fake_quant(x, scale, zero_point, step, low, high)


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, scale: Tensor, zero_point: Tensor | None, step: Tensor | None, low: int, high: int
    ) -> Tensor:
        y: Tensor = torch.ops.fastdiff.fake_quant.default(x, scale, zero_point, step, low, high)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.low, ctx.high = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx = torch.ops.fastdiff.fake_quant.default(*ctx.saved_tensors, ctx.low, ctx.high, grads[0])
        return dx, None, None, None, None, None


_fake_quant: Callable[..., Tensor] = _FakeQuant.apply
