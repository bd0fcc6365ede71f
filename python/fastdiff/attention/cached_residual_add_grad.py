# SPDX-License-Identifier: Apache-2.0
"""Gradients of cached_residual_add, in PyTorch: products with the gates, and sums over what they were broadcast to.

Products have the dtype that PyTorch gives them, as in the eager expression's own gradient, and take as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable_add(
    h: Tensor, components: Sequence[Tensor], gates: Sequence[Tensor], gate_of: Sequence[int]
) -> Tensor:
    """:func:`fastdiff.cached_residual_add` with gradients to all tensors."""
    return _add(h, tuple(gate_of), *components, *gates)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, gate_of: tuple[int, ...], *tensors: Tensor) -> Tensor:
        components, gates = list(tensors[: len(gate_of)]), list(tensors[len(gate_of) :])
        y: Tensor = torch.ops.fastdiff.cached_residual_add.default(h, components, gates, gate_of)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, gate_of, *tensors = inputs
        count = len(gate_of)
        ctx.gate_of, ctx.dtypes = gate_of, [t.dtype for t in tensors]
        # A component is needed for its gate's gradient only, and a gate for its component's.
        needed = ctx.needs_input_grad[2:]
        used = [gate_of[n] >= 0 and needed[count + gate_of[n]] for n in range(count)]
        of_gates = [
            any(needed[n] for n in range(count) if gate_of[n] == g) for g in range(len(tensors) - count)
        ]
        ctx.shapes = [t.shape for t in tensors[count:]]
        ctx.save_for_backward(
            *(t if keep else None for t, keep in zip(tensors, used + of_gates, strict=True))
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        count, needed = len(ctx.gate_of), ctx.needs_input_grad[2:]
        components, gates = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        results: list[Tensor | None] = [None] * len(ctx.dtypes)
        for n, number in enumerate(ctx.gate_of):
            if needed[n]:
                results[n] = (dy if number < 0 else dy * gates[number]).to(ctx.dtypes[n])
            if number >= 0 and needed[count + number]:
                of_gate = _sum_to(dy * components[n], ctx.shapes[number])
                results[count + number] = of_gate.to(ctx.dtypes[count + number])
        return (dy if ctx.needs_input_grad[0] else None, None, *results)


def _sum_to(t: Tensor, shape: torch.Size) -> Tensor:
    """As ``sum_to_size``, but for 16 bits in float32, which it returns."""
    added = t.dim() - len(shape)
    dims = [d for d in range(t.dim()) if d < added or (shape[d - added] == 1 and t.shape[d] != 1)]
    wide = torch.float64 if t.dtype == torch.float64 else torch.float32
    return t.sum(dims, keepdim=True, dtype=wide).reshape(shape) if dims else t


_add: Callable[..., Tensor] = _Add.apply
