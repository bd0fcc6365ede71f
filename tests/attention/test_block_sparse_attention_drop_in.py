# SPDX-License-Identifier: Apache-2.0
"""sparse_attention and SparseAttention: in the place of scaled_dot_product_attention."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from fastdiff.attention import AttentionPlan, SparseAttention, sparse_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.attention.test_block_sparse_attention import normal, qkv, random_mask

F64 = torch.float64


def tokens(**options: Any) -> list[Tensor]:
    return qkv(2, 4, 70, 16, keys=50, dtype=F64, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": random_mask(70, 50, share=0.5) | (torch.arange(50) == 0)},
        {"attn_mask": random_mask(2, 1, 1, 50, share=0.5) | (torch.arange(50) == 0)},
        {"attn_mask": normal(4, 70, 50, dtype=F64)},
        {"attn_mask": normal(2, 1, 1, 50, dtype=F64)},
    ],
    ids=["dense", "scale", "causal", "bool", "bool of keys", "bias", "bias of keys"],
)
def test_same_as_sdpa(options: dict[str, Any]) -> None:
    torch.testing.assert_close(sparse_attention(*tokens(), **options), sdpa(*tokens(), **options))


def test_groups() -> None:
    q, k, v = tokens(kv_heads=2)
    torch.testing.assert_close(sparse_attention(q, k, v, enable_gqa=True), sdpa(q, k, v, enable_gqa=True))
    with pytest.raises(ValueError, match="enable_gqa must be True for 4 and 2 heads"):
        sparse_attention(q, k, v)


def test_masks_and_plans_together() -> None:
    q, k, v = tokens()
    mask, hidden = random_mask(70, 50, share=0.4), random_mask(2, 1, 1, 50, share=0.8)
    plan = AttentionPlan.from_mask(mask, (16, 16))
    both = mask & hidden
    want = sdpa(q, k, v, both).nan_to_num(0)
    torch.testing.assert_close(sparse_attention(q, k, v, hidden, plan=plan), want)
    pairs = random_mask(70, 50, share=0.7, seed=3)
    torch.testing.assert_close(
        sparse_attention(q, k, v, pairs, plan=plan), sdpa(q, k, v, mask & pairs).nan_to_num(0)
    )


def test_same_parameters_as_sdpa() -> None:
    ours = list(inspect.signature(sparse_attention).parameters)
    named = {name for name in ours if f"{name}=" in sdpa.__doc__ or f"{name}," in sdpa.__doc__}
    assert ours[-1] == "plan"
    assert named >= {"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"}


def test_refuses() -> None:
    q, k, v = tokens()
    with pytest.raises(ValueError, match=r"dropout_p must be 0, got 0\.5"):
        sparse_attention(q, k, v, dropout_p=0.5)
    with pytest.raises(ValueError, match="is_causal must be False where attn_mask or plan"):
        sparse_attention(q, k, v, is_causal=True, plan=AttentionPlan.dense(70, 50))


# ---- in any model's code ---------------------------------------------------------------------------------------


def test_calls_of_the_plans_size_are_replaced() -> None:
    q, k, v = tokens()
    plan = AttentionPlan.from_mask(random_mask(70, 50, share=0.4) | (torch.arange(50) == 0), (16, 16))
    other = qkv(1, 1, 20, 8)
    with SparseAttention(plan):
        got = sdpa(q, k, v, scale=0.2)
        same = sdpa(*other)
        causal = sdpa(q, k, v, is_causal=True)
    torch.testing.assert_close(got, sdpa(q, k, v, plan.to_mask(), scale=0.2))
    assert torch.equal(same, sdpa(*other))
    assert torch.equal(causal, sdpa(q, k, v, is_causal=True))
    assert not torch.allclose(got, sdpa(q, k, v, scale=0.2))


def test_the_plan_may_be_chosen_at_each_call() -> None:
    q, k, v = qkv(1, 2, 64, 16, dtype=F64)
    seen = []

    def choose(query: Tensor, key: Tensor) -> AttentionPlan | None:
        seen.append((query.shape, key.shape))
        return AttentionPlan.topk(query, key, 2, block=(16, 16)) if len(seen) == 1 else None

    with SparseAttention(choose):
        first, second = sdpa(q, k, v), sdpa(q, k, v)
    plan = AttentionPlan.topk(q, k, 2, block=(16, 16))
    torch.testing.assert_close(first, sdpa(q, k, v, plan.to_mask()))
    assert torch.equal(second, sdpa(q, k, v))
    assert len(seen) == 2


def test_several_plans_by_their_sizes() -> None:
    plans = [AttentionPlan.strided(n, stride=5, block=(16, 16)) for n in (32, 48)]
    with SparseAttention(plans):
        for plan in plans:
            q, k, v = qkv(1, 1, plan.queries, 8, dtype=F64)
            torch.testing.assert_close(sdpa(q, k, v), sdpa(q, k, v, plan.to_mask()))


def test_gradients_pass() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 1, 32, 8, dtype=F64))
    plan = AttentionPlan.strided(32, stride=5, block=(16, 16))
    with SparseAttention(plan):
        got = torch.autograd.grad(sdpa(q, k, v).square().sum(), (q, k, v))
    want = torch.autograd.grad(sdpa(q, k, v, plan.to_mask()).square().sum(), (q, k, v))
    torch.testing.assert_close(got, want)
