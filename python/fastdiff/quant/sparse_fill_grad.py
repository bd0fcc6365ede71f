# SPDX-License-Identifier: Apache-2.0
"""Gradients of sparse_fill: those of what was replaced go to the values, the others to the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable_fill(w: Tensor, threshold: Tensor, values: Tensor) -> Tensor:
    """:func:`fastdiff.sparse_fill` with gradients to w and values."""
    return _fill(w, threshold, values)


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(w: Tensor, threshold: Tensor, values: Tensor) -> Tensor:
        y: Tensor = torch.ops.fastdiff.sparse_fill.default(w, threshold, values)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        w, threshold, values = inputs
        ctx.save_for_backward(w, threshold)
        ctx.count, ctx.dtype = values.shape[0], values.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.quant.sparse_fill import is_below

        (dy,), (w, threshold) = grads, ctx.saved_tensors
        to_w, _, to_values = ctx.needs_input_grad
        replaced = is_below(w, threshold)
        dvalues = None
        if to_values:
            # Their number is known: no wait for the device.
            places = replaced.reshape(-1).nonzero_static(size=ctx.count)[:, 0]
            dvalues = dy.reshape(-1)[places].to(ctx.dtype)
        return dy.masked_fill(replaced, 0) if to_w else None, None, dvalues


_fill: Callable[..., Tensor] = _Fill.apply
