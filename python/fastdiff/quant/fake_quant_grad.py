# SPDX-License-Identifier: Apache-2.0
"""Gradients of fake_quant: straight through where the clamp changes nothing, by the op itself, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable_fake_quant(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, step: Tensor | None, low: int, high: int
) -> Tensor:
    """:func:`fastdiff.fake_quant` with the straight-through gradient to x."""
    return _fake_quant(x, scale, zero_point, step, low, high, None)


class _FakeQuant(torch.autograd.Function):
    """With a gradient it is linear in that, and its own derivative."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        step: Tensor | None,
        low: int,
        high: int,
        gradient: Tensor | None,
    ) -> Tensor:
        y: Tensor = torch.ops.fastdiff.fake_quant.default(x, scale, zero_point, step, low, high, gradient)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.low, ctx.high, gradient = inputs
        ctx.save_for_backward(*tensors)
        ctx.is_gradient = gradient is not None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        passed = _fake_quant(x.detach(), *others, ctx.low, ctx.high, grads[0])
        to_x, to_gradient = (None, passed) if ctx.is_gradient else (passed, None)
        return to_x, None, None, None, None, None, to_gradient


_fake_quant: Callable[..., Tensor] = _FakeQuant.apply
