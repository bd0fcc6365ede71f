# SPDX-License-Identifier: Apache-2.0
"""Sparse attention where model code calls ``scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdiff.attention._plan import AttentionPlan
from fastdiff.attention._standing import standing_plan
from fastdiff.attention.block_sparse_attention import block_sparse_attention

_SDPA = torch.nn.functional.scaled_dot_product_attention


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    plan: AttentionPlan | None = None,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` that computes the blocks of a plan: the same signature.

    Args:
        query: ``[B, H, N_q, D]``, of the dtypes and sizes of :func:`block_sparse_attention`.
        key, value: ``[B, H, N_kv, D]``; with ``enable_gqa`` a number of heads that divides H.
        attn_mask: broadcasts to ``[B, H, N_q, N_kv]``: bool, True where a query sees a key, or added to the scores. One
            of keys, ``[..., 1, N_kv]``, costs nothing. A bool mask of pairs without a plan is made a plan at each call,
            which waits for the device: make one with ``AttentionPlan.from_mask`` instead; any other mask of pairs is
            read pair by pair.
        dropout_p: 0.
        is_causal: query n sees the keys up to n; not with a mask or a plan.
        scale: default: 1/√D.
        plan: what sees what, besides the mask; default: all.

    Returns:
        ``[B, H, N_q, D]``. Where a query sees nothing: 0 (PyTorch: NaN).

    Raises:
        ValueError: dropout; ``is_causal`` with a mask or plan; different numbers of heads without ``enable_gqa``.
        RuntimeError: as :func:`block_sparse_attention`.

    Differentiable as :func:`block_sparse_attention`.
    """
    if dropout_p:
        raise ValueError(f"fastdiff.sparse_attention: dropout_p must be 0, got {dropout_p}")
    if is_causal and (attn_mask is not None or plan is not None):
        raise ValueError(
            "fastdiff.sparse_attention: is_causal must be False where attn_mask or plan is given"
        )
    if query.shape[-3] != key.shape[-3] and not enable_gqa:
        raise ValueError(
            f"fastdiff.sparse_attention: enable_gqa must be True for {query.shape[-3]} and {key.shape[-3]} heads"
        )
    queries, keys = query.shape[-2], key.shape[-2]
    bias = None
    if attn_mask is not None:
        mask = attn_mask.reshape(*(1,) * (4 - attn_mask.dim()), *attn_mask.shape)
        if mask.dtype != torch.bool:
            bias = mask
        elif plan is None and mask.shape[2] != 1:
            plan = AttentionPlan.from_mask(mask.expand(-1, -1, queries, keys))
        else:
            bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    if plan is None:
        plan = _standing_plan(queries, keys, is_causal, query.device)
    return block_sparse_attention(query, key, value, plan, scale=scale, bias=bias)[0]


def _standing_plan(queries: int, keys: int, is_causal: bool, device: torch.device) -> AttentionPlan:
    def make() -> AttentionPlan:
        if is_causal:
            return AttentionPlan.from_rule(lambda q, k: k <= q, queries, keys, device=device)
        return AttentionPlan.dense(queries, keys, device=device)

    return standing_plan(make, ("causal" if is_causal else "dense", queries, keys), device)


Chooser = Callable[[Tensor, Tensor], AttentionPlan | None]


class SparseAttention(TorchFunctionMode):
    """Inside this context ``scaled_dot_product_attention`` computes the blocks of a plan, in any model's code.

        with SparseAttention(plan):  # all calls with as many queries and keys as the plan is for
            image = transformer(latents, ...)

    Calls of other sizes, with dropout, or for which the choice is None, are left to PyTorch.

    Args:
        plan: a plan; several, of which each serves the calls of its size; or plan(query, key) that returns one or None,
            such as ``lambda q, k: AttentionPlan.topk(q, k, 16)``.
    """

    def __init__(self, plan: AttentionPlan | Sequence[AttentionPlan] | Chooser) -> None:
        super().__init__()
        self._choose = (
            plan if callable(plan) else _by_size([plan] if isinstance(plan, AttentionPlan) else plan)
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not _SDPA:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        plan = None if dropout_p or is_causal or query.dim() != 4 else self._choose(query, key)
        if plan is None:
            dense: Tensor = _SDPA(query, key, value, attn_mask, dropout_p, is_causal, **options)
            return dense
        return sparse_attention(query, key, value, attn_mask, plan=plan, **options)


def _by_size(plans: Sequence[AttentionPlan]) -> Chooser:
    by_size = {(plan.queries, plan.keys): plan for plan in plans}
    return lambda query, key: by_size.get((query.shape[2], key.shape[2]))
