# SPDX-License-Identifier: Apache-2.0
"""Attention of some tokens over some others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdiff.attention._plan import AttentionPlan
from fastdiff.attention._relative import RelativeBias
from fastdiff.attention._standing import standing_plan
from fastdiff.attention.block_sparse_attention import block_sparse_attention


def token_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_index: Tensor | None = None,
    kv_index: Tensor | None = None,
    *,
    plan: AttentionPlan | None = None,
    scale: float | None = None,
    bias: Tensor | RelativeBias | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of the queries of a list over the keys and values of another, which are read where they are.

    Equivalent to ``block_sparse_attention(q[:, :, q_index], k[:, :, kv_index], v[:, :, kv_index], plan)`` without the
    three copies: masked transformers (MDT, ITA-MDT), and the few tokens that are left of many (FlexDiT).

    Args:
        q: ``[B, H, N, D]``, as for :func:`block_sparse_attention`.
        k, v: ``[B, H_kv, N', D]``.
        q_index: int64 ``[B or 1, M_q]``, which queries; default: all.
        kv_index: int64 ``[B or 1, M_kv]``, which keys and values; default: all.
        plan: of the M_q queries and M_kv keys; default: all see all.
        scale: of the scores; default: 1/√D.
        bias: added to the scores of the M_q queries and M_kv keys, as for :func:`block_sparse_attention`; a
            :class:`RelativeBias` is of all tokens.
        options: others of :func:`block_sparse_attention`: ``weights``, ``lerp``, ``layout``, ``out``.

    Returns:
        out ``[B, H, M_q, D]`` and lse ``[B, H, M_q]``.

    Raises: as :func:`block_sparse_attention`.

    Differentiable as :func:`block_sparse_attention`; tokens of no list have gradient 0. Where queries are few, the keys
    are split among threads and multiprocessors.
    """
    if plan is None:
        tokens = 1 if options.get("layout") == "bnhd" else 2
        counts = [t.shape[tokens] if n is None else n.shape[-1] for t, n in ((q, q_index), (k, kv_index))]
        plan = standing_plan(
            lambda: AttentionPlan.dense(*counts, device=q.device), ("dense", *counts), q.device
        )
    return block_sparse_attention(
        q, k, v, plan, scale=scale, bias=bias, q_index=q_index, kv_index=kv_index, **options
    )
