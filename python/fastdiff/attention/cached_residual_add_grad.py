# SPDX-License-Identifier: Apache-2.0
"""Gradients of cached_residual_add, in PyTorch: products with the gates, and sums over what they were broadcast to."""

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
        wide = dy if dy.dtype == torch.float64 else dy.float()
        results: list[Tensor | None] = [None] * len(ctx.dtypes)
        for n, number in enumerate(ctx.gate_of):
            if needed[n]:
                results[n] = (wide if number < 0 else wide * gates[number]).to(ctx.dtypes[n])
            if number >= 0 and needed[count + number]:
                of_gate = (wide * components[n]).sum_to_size(ctx.shapes[number])
                results[count + number] = of_gate.to(ctx.dtypes[count + number])
        return (dy if ctx.needs_input_grad[0] else None, None, *results)


_add: Callable[..., Tensor] = _Add.apply
