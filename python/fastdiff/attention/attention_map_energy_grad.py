# SPDX-License-Identifier: Apache-2.0
"""Gradients of attention_map_energy: formed together with the energies, multiplied by what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ORDERS = 1  # gradients of gradients are not defined


def differentiable_energy(q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, scale: float) -> Tensor:
    """:func:`fastdiff.attention_map_energy` with gradients to all tensors."""
    wants_reference = q_ref.requires_grad or k_ref.requires_grad
    energy: Tensor = _energy(q, k, q_ref, k_ref, scale, wants_reference)[0]
    return energy


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, scale: float, wants_reference: bool
    ) -> tuple[Tensor, ...]:
        gradient = torch.ops.fastdiff.attention_map_energy_gradient.default
        energy, *gradients = gradient(q, k, q_ref, k_ref, scale)
        if wants_reference:  # an energy is the same seen from there
            gradients += gradient(q_ref, k_ref, q, k, scale)[1:]
        return energy, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *gradients = output
        ctx.dtypes = [t.dtype for t in inputs[:4]]
        ctx.mark_non_differentiable(*gradients)
        ctx.save_for_backward(*gradients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients = [*ctx.saved_tensors, None, None][:4]
        found = [
            (g * factor[:, None, None, None]).to(dtype) if needed else None
            for g, dtype, needed in zip(gradients, ctx.dtypes, ctx.needs_input_grad, strict=False)
        ]
        return (*found, None, None)


_energy: Callable[..., Any] = _Energy.apply
