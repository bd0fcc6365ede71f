# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about block_sparse_attention_backward: it is the gradient, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import AttentionPlan, block_sparse_attention, block_sparse_attention_backward
from fastdiff.attention.block_sparse_attention import dlpack_plan
from fastdiff.attention.block_sparse_attention_backward import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.attention.test_block_sparse_attention import HALVES, normal, qkv, random_mask
from tests.kit.compare import assert_close, assert_same_bits

F32, F64 = torch.float32, torch.float64
NAMES = ("dq", "dk", "dv", "dbias")


def call(*shape: int, dtype: torch.dtype = F32, share: float = 0.5, **options: Any) -> tuple[Any, ...]:
    q, k, v = qkv(*shape, dtype=dtype, **options)
    plan = AttentionPlan.from_mask(random_mask(q.shape[2], k.shape[2], share=share), (16, 16))
    return (normal(*shape, dtype=dtype, seed=8), q, k, v, *block_sparse_attention(q, k, v, plan), plan)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, kv_heads, group = draw(1, 2, "B"), draw(1, 2, "H_kv"), draw(1, 3, "group")
    n, keys, d = draw(1, 130, "N_q"), draw(1, 130, "N_kv"), 8 * draw(1, 12, "D / 8")
    block = (16 * draw(1, 8, "block_q / 16"), 16 * draw(1, 8, "block_k / 16"))
    dtype = data.draw(st.sampled_from([F32, F64, *HALVES]), "dtype")
    share = data.draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]), "share")
    plan = AttentionPlan.from_mask(
        random_mask(kv_heads * group, n, keys, share=share, seed=draw(0, 99, "seed")), block
    )
    q, k, v = qkv(b, kv_heads * group, n, d, keys=keys, kv_heads=kv_heads, dtype=dtype)
    options: dict[str, Any] = {}
    if data.draw(st.booleans(), "bias"):
        options |= {"bias": normal(b, 1, 1, keys, seed=3), "wants_bias": True}
    forward = block_sparse_attention(q, k, v, plan, bias=options.get("bias"))
    if data.draw(st.booleans(), "dlse"):
        options["dlse"] = normal(b, kv_heads * group, n, seed=4).to(forward[1].dtype)
    arguments = (normal(*q.shape, dtype=dtype, seed=5), q, k, v, *forward, plan)
    limits = tolerance(*arguments, **options)
    results = zip(
        NAMES,
        block_sparse_attention_backward(*arguments, **options),
        reference(*arguments, **options),
        strict=True,
    )
    for name, got, want in results:
        assert_close(got, want, **limits, what=name)


def test_is_what_autograd_calls() -> None:
    dout, q, k, v, _, _, plan = call(1, 2, 40, 16)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out, lse = block_sparse_attention(*leaves, plan)
    got = torch.autograd.grad(out, leaves, dout)
    with torch.no_grad():
        want = block_sparse_attention_backward(dout, q, k, v, out, lse, plan)
    assert_same_bits(got, want[:3])
    assert want[3].shape == (0,)


def test_gradients_are_not_differentiable() -> None:
    dout, q, k, v, _, _, plan = call(1, 1, 20, 8, dtype=F64)
    out, _ = block_sparse_attention(q.requires_grad_(), k, v, plan)
    (dq,) = torch.autograd.grad(out, q, dout, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        dq.sum().backward()


def test_only_the_log_sum_exp_is_used() -> None:
    """Its gradient alone: d lse / d q is the mean of the keys under the softmax."""
    _, q, k, v, _, _, plan = call(1, 1, 20, 8, dtype=F64, share=1.0)
    _, lse = block_sparse_attention(q.requires_grad_(), k, v, plan, scale=1.0)
    (dq,) = torch.autograd.grad(lse.sum(), q)
    torch.testing.assert_close(dq, torch.softmax(q.detach() @ k.mT, -1) @ k)


def test_numpy() -> None:
    arguments = call(1, 2, 40, 16)
    plan = arguments[-1]
    arrays = {name: t.numpy() if isinstance(t, Tensor) else t for name, t in dlpack_plan(plan).items()}
    names = ("dout", "q", "k", "v", "result", "lse")
    given_ = {name: t.numpy() for name, t in zip(names, arguments, strict=False)}
    out = [np.empty((1, 2, 40, 16), np.float32) for _ in range(3)]
    _C.block_sparse_attention_backward(**given_, **arrays, out=out, scale=0.25)
    assert_same_bits(
        [torch.from_numpy(t) for t in out], block_sparse_attention_backward(*arguments, scale=0.25)[:3]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dout": normal(1, 2, 40, 8)}, r"dout must have shape \[1, 2, 40, 16\] like q"),
        ({"forward": normal(1, 2, 40, 16).half()}, "out must be float32 like q, got float16"),
        ({"lse": normal(1, 2, 41)}, r"lse must have shape \[1, 2, 40\], got \[1, 2, 41\]"),
        ({"dlse": normal(1, 2, 40, dtype=F64)}, "dlse must be float32, got float64"),
        ({"wants_bias": True}, "bias must be one of keys.* where its gradient is wanted, got none"),
        ({"scale": math.inf}, "scale must be finite"),
    ],
)  # fmt: skip
def test_refuses(change: dict[str, Any], message: str) -> None:
    names = ("dout", "q", "k", "v", "forward", "lse", "plan")
    arguments = dict(zip(names, call(1, 2, 40, 16), strict=True)) | change
    with pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention_backward: {message}"):
        block_sparse_attention_backward(**arguments)
