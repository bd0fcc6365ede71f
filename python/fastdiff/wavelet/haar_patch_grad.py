# SPDX-License-Identifier: Apache-2.0
"""Gradients of haar_patch, made of haar_patch itself.

The map is linear, so its gradient is its transpose: the same sums over a patch, with the same scale, where the first
frame's repetitions are added up or dropped frames are filled with zeros. That is one launch of the same kernels, and
its own transpose is the map again: derivatives of any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.wavelet.haar_patch import haar_patch


class _HaarPatch(torch.autograd.Function):
    """x ``[B, C, T, H, W]`` of either side."""

    @staticmethod
    def forward(x: Tensor, patch: int, inverse: bool, adjoint: bool) -> Tensor:
        y: Tensor = torch.ops.fastdiff.haar_patch.default(x, patch, inverse, adjoint)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.patch, ctx.inverse, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return haar_patch(grads[0], ctx.patch, inverse=ctx.inverse, adjoint=not ctx.adjoint), None, None, None


differentiable_haar_patch: Callable[[Tensor, int, bool, bool], Tensor] = _HaarPatch.apply
"""``(x, patch, inverse, adjoint)``: :func:`fastdiff.haar_patch` with gradients to x; the same bits."""
