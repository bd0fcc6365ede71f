# SPDX-License-Identifier: Apache-2.0
"""token_attention: lists of queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff.attention import AttentionPlan, block_sparse_attention, token_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.attention.test_block_sparse_attention import HALVES, normal, qkv, random_mask
from tests.kit.compare import assert_same_bits

F32, F64 = torch.float32, torch.float64


def numbers(b: int, count: int, tokens: int, *, seed: int = 0, repeat: bool = False) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if repeat:
        return torch.randint(tokens, (b, count), generator=g)
    return torch.stack([torch.randperm(tokens, generator=g)[:count] for _ in range(b)])


def gathered(t: Tensor, index: Tensor | None) -> Tensor:
    return (
        t
        if index is None
        else t.gather(2, index[:, None, :, None].expand(t.shape[0], t.shape[1], -1, t.shape[3]))
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_is_the_gathered_call_to_the_bit(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, h, n, there, d = (
        draw(1, 3, "B"),
        draw(1, 3, "H"),
        draw(1, 90, "N"),
        draw(1, 90, "N'"),
        8 * draw(1, 9, "D / 8"),
    )
    dtype = data.draw(st.sampled_from([F32, F64, *HALVES]), "dtype")
    q, k, v = qkv(b, h, n, d, keys=there, dtype=dtype)
    if data.draw(st.booleans(), "bnhd"):
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    q_index = (
        numbers(data.draw(st.sampled_from([1, b])), draw(1, n, "M_q"), n)
        if data.draw(st.booleans())
        else None
    )
    kv_index = numbers(data.draw(st.sampled_from([1, b])), draw(1, 120, "M_kv"), there, repeat=True)
    given_ = gathered(q, q_index), gathered(k, kv_index), gathered(v, kv_index)
    queries, keys = given_[0].shape[2], given_[1].shape[2]
    plan = AttentionPlan.from_mask(random_mask(queries, keys, share=0.6), (16, 32))
    options: dict[str, Any] = {"bias": normal(b, 1, 1, keys, seed=4)} if data.draw(st.booleans()) else {}
    got = token_attention(q, k, v, q_index, kv_index, plan=plan, **options)
    assert_same_bits(got, block_sparse_attention(*given_, plan, **options))


@pytest.mark.parametrize("repeat", [False, True])
def test_gradients(repeat: bool) -> None:
    """Tokens of no list have none, tokens that are named twice have both."""
    q, k, v = (t.requires_grad_() for t in qkv(2, 2, 20, 8, keys=24, dtype=F64))
    bias = normal(1, 2, 1, 17, dtype=F64, seed=6).requires_grad_()
    q_index, kv_index = numbers(2, 9, 20), numbers(1, 17, 24, seed=1, repeat=repeat)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return token_attention(q, k, v, q_index, kv_index, bias=bias)

    assert torch.autograd.gradcheck(attend, (q, k, v, bias), fast_mode=True)
    got = torch.autograd.grad(attend(q, k, v, bias)[0].square().sum(), (q, k, v))
    sparse = block_sparse_attention(
        gathered(q, q_index),
        gathered(k, kv_index),
        gathered(v, kv_index),
        AttentionPlan.dense(9, 17),
        bias=bias,
    )
    want = torch.autograd.grad(sparse[0].square().sum(), (q, k, v))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    unnamed = [n for n in range(24) if n not in kv_index.tolist()[0]]
    assert not bool(got[1][:, :, unnamed].any())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([[0, 40]]), "q_index must be within 0 and 39, got 40 at place 1"),
        (torch.tensor([[-1, 3]]), "q_index must be within 0 and 39, got -1 at place 0"),
        (torch.tensor([[0, 1]], dtype=torch.int32), "q_index must be int64, got int32"),
        (torch.tensor([0, 1]), r"q_index must have shape \[2 or 1, M\], got \[2\]"),
        (torch.zeros(3, 2, dtype=torch.int64), r"q_index must have shape \[2 or 1, M\], got \[3, 2\]"),
    ],
)  # fmt: skip
def test_refuses(index: Tensor, message: str) -> None:
    q, k, v = qkv(2, 2, 40, 8)
    plan = AttentionPlan.dense(2, 40)
    out = [torch.full((2, 2, 2, 8), 7.0), torch.full((2, 2, 2), 7.0)]
    with pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention: {message}"):
        block_sparse_attention(q, k, v, plan, q_index=index, out=out)
    assert all(bool((t == 7).all()) for t in out)
    with pytest.raises(
        RuntimeError, match=r"^fastdiff::block_sparse_attention: kv_index must be within 0 and 39"
    ):
        token_attention(q, k, v, kv_index=torch.full((1, 3), 99))


def test_plans_that_stand_are_of_no_mode() -> None:
    """One that a call in inference mode, or without data, has made serves calls that train."""
    q, k, v = qkv(1, 1, 21, 8)
    with torch.inference_mode():
        token_attention(q, k, v)
    q.requires_grad_()
    token_attention(q, k, v)[0].sum().backward()
    assert q.grad is not None
    with FakeTensorMode() as fakes:
        token_attention(*(fakes.from_tensor(t) for t in qkv(1, 1, 22, 8)))
    out, _ = token_attention(*qkv(1, 1, 22, 8))
    assert type(out) is Tensor
