# SPDX-License-Identifier: Apache-2.0
"""Gradients of lowrank_apply: the one of x is lowrank_apply again, the others are sums over rows of small products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable_apply(*tensors: Tensor | None) -> Tensor:
    """:func:`fastdiff.lowrank_apply` with gradients to all its tensors, in the order of the operator."""
    return _apply(*tensors)


def _of_samples(x: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Sums over the rows of each sample, [B, r] or [B], as a gradient of numbers of this shape."""
    samples = x.shape[0] if x.dim() > 1 else 1
    per_row = rows.reshape(samples, -1, *rows.shape[x.dim() - 1 :])
    return per_row.sum(1).sum_to_size(like.shape).to(like.dtype)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(*tensors: Tensor | None) -> Tensor:
        y: Tensor = torch.ops.fastdiff.lowrank_apply.default(*tensors)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, base = inputs
        ctx.save_for_backward(*tensors)
        ctx.base = None if base is None else base.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fastdiff.quant.lowrank_apply import lowrank_apply, per_sample

        (dy,), (x, down, up, gates, offset, a, mu, b) = grads, ctx.saved_tensors
        to_x, to_down, to_up, to_gates, to_offset, to_a, to_mu, to_b, to_base = ctx.needs_input_grad
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        wide_x, wide_dy = x.to(dtype), dy.to(dtype)

        def gated(p: Tensor) -> Tensor:
            return p if gates is None else p * per_sample(x, gates.to(dtype))

        def over_rows(left: Tensor, right: Tensor) -> Tensor:
            return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])

        found: list[Tensor | None] = [None] * 9
        if to_x:
            found[0] = lowrank_apply(dy.to(x.dtype), up.T, down.T, gates=gates, a=a)
        if to_down or to_gates or to_offset:
            s = wide_dy @ up.to(dtype)
            found[1] = over_rows(gated(s), wide_x).to(down.dtype) if to_down else None
            found[4] = _of_samples(x, gated(s), offset) if to_offset else None
        if to_up or to_gates:
            q = wide_x @ down.to(dtype).T
            if offset is not None:
                q = q + per_sample(x, offset.to(dtype))
            found[2] = over_rows(wide_dy, gated(q)).to(up.dtype) if to_up else None
            found[3] = _of_samples(x, q * s, gates) if to_gates else None
        if to_a:
            found[5] = _of_samples(x, (wide_dy * wide_x).sum(-1), a)
        if to_mu:
            scaled = wide_dy if b is None else wide_dy * per_sample(x, b.to(dtype))
            found[6] = scaled.reshape(-1, mu.shape[0]).sum(0).to(mu.dtype)
        if to_b:
            found[7] = _of_samples(x, wide_dy @ mu.to(dtype), b)
        if to_base:
            found[8] = dy.to(ctx.base)
        return tuple(found)


_apply: Callable[..., Tensor] = _Apply.apply
