# SPDX-License-Identifier: Apache-2.0
"""Gradients of block_sparse_attention: one pass over the same blocks, from the two results and no matrix of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdiff.attention._plan import AttentionPlan
from fastdiff.attention.block_sparse_attention import Biases, plan_arguments

ORDERS = 1  # gradients of gradients are not defined


def differentiable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_index: Tensor | None,
    kv_index: Tensor | None,
    plan: AttentionPlan,
    biases: Biases,
    weights: Tensor | None,
    lerp: tuple[Tensor, float] | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """:func:`fastdiff.block_sparse_attention` with gradients, also to the end of lerp and to weights.

    Sets of keys are attended to one after the other here: the gradient of each needs its own result.
    """
    bias, q_code, k_code = biases
    if bias is not None and bias.requires_grad and bias.dim() == 4 and bias.shape[2] != 1:
        raise NotImplementedError(
            "fastdiff.block_sparse_attention: bias has a gradient where it is one of keys, [B or 1, H or 1, 1, N_kv], "
            f"or a RelativeBias, got {list(bias.shape)}"
        )
    _check(q, k, v, plan, biases, weights, lerp)
    if lerp is not None:
        q = torch.lerp(q, *lerp)
    if len(plan.parts) < 2:
        out, lse = _attend(q, k, v, bias, q_index, kv_index, *plan_arguments(plan), q_code, k_code, scale)
        return out if weights is None else _weighted(out, weights[0]), lse
    outs, lses, first = [], [], 0
    for n, part in enumerate(plan.parts):
        of_set = slice(first, first := first + part.keys)
        there, at, k_codes = (k, v), None if kv_index is None else kv_index[:, of_set], k_code
        if kv_index is None:
            there, k_codes = (k[:, :, of_set], v[:, :, of_set]), None if k_code is None else k_code[:, of_set]
        here = bias if bias is None or q_code is not None or bias.shape[3] == 1 else bias[..., of_set]
        out, lse = _attend(q, *there, here, q_index, at, *plan_arguments(part), q_code, k_codes, scale)
        outs.append(out if weights is None else _weighted(out, weights[n]))
        lses.append(lse)
    return torch.stack(outs).sum(0), torch.stack(lses)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    biases: Biases,
    weights: Tensor | None,
    lerp: tuple[Tensor, float] | None,
) -> None:
    """What the operator checks and the calls of single sets would not see."""
    if lerp is not None:
        end, mix = lerp
        if end.shape != q.shape or end.dtype != q.dtype:
            _refuse(f"q_end must be {q.dtype} {list(q.shape)} like q, got {end.dtype} {list(end.shape)}")
        if not math.isfinite(mix):
            _refuse(f"mix must be finite, got {mix}")
    if not plan.parts:
        return
    sets = len(plan.parts)
    whole = (q.shape[0], q.shape[1], plan.queries)
    if weights is not None and (
        weights.dim() != 4
        or weights.shape[0] != sets
        or any(n not in (1, most) for n, most in zip(weights.shape[1:], whole, strict=True))
    ):
        wanted = ", ".join(f"{n} or 1" for n in whole)
        _refuse(
            f"weights must have shape [{sets}, {wanted}] (one for each set of keys), got {list(weights.shape)}"
        )
    if v.shape != k.shape:
        _refuse(f"v must have shape {list(k.shape)} like k, got {list(v.shape)}")
    bias, _, k_code = biases
    if bias is not None and (bias.dim() != 4 or (k_code is None and bias.shape[3] not in (1, plan.keys))):
        _refuse(f"bias must have 4 dimensions, the last {plan.keys} or 1, got {list(bias.shape)}")
    if k_code is not None and (k_code.dim() != 2 or k_code.shape[1] != k.shape[2]):
        _refuse(f"k_code must have shape [{k.shape[0]} or 1, {k.shape[2]}], got {list(k_code.shape)}")


def _refuse(why: str) -> None:
    raise RuntimeError(f"fastdiff::block_sparse_attention: {why}")


def _weighted(out: Tensor, weight: Tensor) -> Tensor:
    """[B, H, N, D] times [B or 1, H or 1, N or 1]."""
    return (out * weight[..., None]).to(out.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        *lists_and_plan, q_code, k_code, scale = rest
        no_sets: list[int] = []
        results: tuple[Tensor, Tensor] = torch.ops.fastdiff.block_sparse_attention.default(
            q, k, v, *lists_and_plan, no_sets, bias, q_code, k_code, None, None, 0.0, scale
        )
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, bias, q_index, kv_index, *plan, q_code, k_code, scale = inputs
        tensors, ctx.block, ctx.scale = plan[:4], plan[4:], scale
        ctx.save_for_backward(q, k, v, q_index, kv_index, bias, q_code, k_code, *output, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, q_index, kv_index, bias, q_code, k_code, out, lse, *plan = ctx.saved_tensors
        wants_bias = ctx.needs_input_grad[3]
        dout = torch.zeros_like(out) if dout is None else dout
        tokens, results = (q, k, v, q_index, kv_index), (out, lse, dlse)
        dq, dk, dv, of_keys = torch.ops.fastdiff.block_sparse_attention_backward.default(
            dout, *tokens, *results, *plan, *ctx.block, bias, q_code, k_code, ctx.scale, wants_bias
        )
        dbias = of_keys[:, :, None].sum_to_size(bias.shape).to(bias.dtype) if wants_bias else None
        dq, dk, dv = scattered(dq, q_index, q), scattered(dk, kv_index, k), scattered(dv, kv_index, v)
        return (dq, dk, dv, dbias, *(None,) * 11)


def scattered(gradient: Tensor, index: Tensor | None, t: Tensor) -> Tensor:
    """The gradient of all tokens t [B, H, N, D] from that of those of an index [B or 1, M], which may repeat some."""
    if index is None:
        return gradient
    at = index[:, None, :, None].expand_as(gradient)
    return torch.zeros_like(t).scatter_add_(2, at, gradient)


_attend: Callable[..., Any] = _Attention.apply
