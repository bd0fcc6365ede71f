# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about block_sparse_attention: PyTorch's own attention, plans, refusals."""

from __future__ import annotations

import math
from typing import Any

import fastdiff
import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import AttentionPlan, block_sparse_attention
from fastdiff.attention.block_sparse_attention import dlpack_plan, reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention

from tests.kit.compare import assert_close, assert_same_bits

F32, F64 = torch.float32, torch.float64
HALVES = (torch.bfloat16, torch.float16)


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def qkv(*shape: int, keys: int | None = None, kv_heads: int | None = None, **options: Any) -> list[Tensor]:
    b, h, n, d = shape
    there = (b, kv_heads or h, n if keys is None else keys, d)
    return [normal(*size, seed=seed, **options) for seed, size in enumerate((shape, there, there))]


def random_mask(*shape: int, share: float, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def assert_right(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, **options: Any) -> None:
    want = reference(q, k, v, plan, **options)
    limits = tolerance(q, k, v, plan, **options)
    for name, g, w in zip(
        ("out", "lse"), block_sparse_attention(q, k, v, plan, **options), want, strict=True
    ):
        assert_close(
            g, w, **limits, what=f"{name} of {list(q.shape)} {list(k.shape)} {q.dtype} {plan.block} {options}"
        )


# ---- against PyTorch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32, *HALVES], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.4, 0.02])
def test_is_sdpa_with_the_mask(share: float, dtype: torch.dtype) -> None:
    q, k, v = qkv(2, 3, 130, 40, keys=75, dtype=dtype)
    mask = random_mask(2, 3, 130, 75, share=share)
    mask[..., 0] = True  # SDPA has NaN where nothing is seen
    out, _ = block_sparse_attention(q, k, v, AttentionPlan.from_mask(mask, (32, 16)))
    want = scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
    eps = torch.finfo(dtype).eps
    if dtype == torch.bfloat16 and fastdiff.isa() == "amx":
        atol = 2.0**-9 * float(v.abs().max())  # probabilities are rounded
    else:
        atol = 20 * torch.finfo(F64 if dtype == F64 else F32).eps
    torch.testing.assert_close(out.double(), want, rtol=eps, atol=atol)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_heads_that_share_keys(groups: int) -> None:
    q, k, v = qkv(1, 4, 65, 16, kv_heads=4 // groups, dtype=F64)
    out, _ = block_sparse_attention(q, k, v, AttentionPlan.dense(65, 65))
    want = scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_gradients_are_those_of_sdpa(share: float) -> None:
    mask = random_mask(1, 2, 70, 50, share=share)
    mask[..., 3] = True
    plan = AttentionPlan.from_mask(mask, (16, 32))
    leaves = [t.requires_grad_() for t in qkv(1, 2, 70, 24, keys=50, dtype=F64)]
    bias = normal(1, 2, 1, 50, dtype=F64, seed=9).requires_grad_()
    dout = normal(1, 2, 70, 24, dtype=F64, seed=5)
    out, _ = block_sparse_attention(*leaves, plan, bias=bias)
    got = torch.autograd.grad(out, (*leaves, bias), dout)
    added = torch.where(mask, bias, -math.inf)
    want = torch.autograd.grad(scaled_dot_product_attention(*leaves, added), (*leaves, bias), dout)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-12)


def test_gradients_against_finite_differences() -> None:
    mask = random_mask(40, 24, share=0.4)
    mask[5] = False
    plan = AttentionPlan.from_mask(mask, (16, 16))
    leaves = [t.requires_grad_() for t in qkv(1, 2, 40, 8, keys=24, kv_heads=1, dtype=F64)]
    bias = normal(1, 1, 1, 24, dtype=F64, seed=9).requires_grad_()

    def both(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = block_sparse_attention(q, k, v, plan, bias=bias, scale=0.7)
        return out, lse.masked_fill(lse == -math.inf, 0)

    assert torch.autograd.gradcheck(both, (*leaves, bias), fast_mode=True)
    assert torch.autograd.gradcheck(both, (*leaves, bias), atol=1e-7, nondet_tol=0)


# ---- random calls ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, kv_heads, group = draw(1, 2, "B"), draw(1, 2, "H_kv"), draw(1, 3, "group")
    n, keys, d = draw(1, 150, "N_q"), draw(1, 150, "N_kv"), 8 * draw(1, 12, "D / 8")
    block = (16 * draw(1, 8, "block_q / 16"), 16 * draw(1, 8, "block_k / 16"))
    dtype = data.draw(st.sampled_from([F32, F64, *HALVES]), "dtype")
    lists = data.draw(st.sampled_from([(), (b, 1), (kv_heads * group,), (b, kv_heads * group)]), "lists")
    share = data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]), "share")
    mask = random_mask(*lists, n, keys, share=share, seed=draw(0, 99, "seed"))
    q, k, v = qkv(b, kv_heads * group, n, d, keys=keys, kv_heads=kv_heads, dtype=dtype)
    options: dict[str, Any] = {}
    shape = data.draw(
        st.sampled_from([None, (1, 1, 1, keys), (b, 1, n, keys), (1, kv_heads * group, n, 1)]), "bias"
    )
    if shape is not None:
        options["bias"] = normal(*shape, seed=7)
    if lists == (b, 1):
        mask = mask.reshape(b, 1, n, keys)
    assert_right(q, k, v, AttentionPlan.from_mask(mask, block), **options)


# ---- what it promises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_two_halves_of_the_keys_give_the_whole(dtype: torch.dtype) -> None:
    """What attention over several devices does with lse."""
    q, k, v = qkv(1, 2, 50, 16, keys=96, dtype=dtype)
    mask = random_mask(1, 2, 50, 96, share=0.3)
    whole, lse = block_sparse_attention(q, k, v, AttentionPlan.from_mask(mask, (16, 16)))
    parts = [
        block_sparse_attention(
            q, k[:, :, s], v[:, :, s], AttentionPlan.from_mask(mask[..., s].contiguous(), (16, 16))
        )
        for s in (slice(0, 40), slice(40, 96))
    ]
    both = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * torch.exp(part - both)[..., None] for out, part in parts)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(both, lse, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(merged, whole, rtol=8 * eps, atol=8 * eps)


def test_what_is_not_seen_is_not_read() -> None:
    q, k, v = qkv(1, 1, 32, 8, keys=64)
    blocks = torch.tensor([[True, False, True, False], [False, False, True, False]])
    plan = AttentionPlan.from_blocks(blocks, queries=32, keys=64, block=(16, 16))
    want = block_sparse_attention(q, k, v, plan)
    for t in (k, v):
        t[:, :, 16:32], t[:, :, 48:] = math.nan, math.inf
    assert_same_bits(block_sparse_attention(q, k, v, plan), want)


def test_a_query_that_sees_nothing() -> None:
    q, k, v = qkv(1, 1, 20, 8)
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[3] = mask[17] = False
    out, lse = block_sparse_attention(q, k, v, AttentionPlan.from_mask(mask, (16, 16)))
    assert not bool(out[0, 0, [3, 17]].any())
    assert torch.equal(lse[0, 0].isinf(), ~mask.any(1))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    results = block_sparse_attention(*leaves, AttentionPlan.from_mask(mask, (16, 16)))
    gradients = torch.autograd.grad(results[0].sum(), leaves)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not bool(gradients[0][0, 0, [3, 17]].any())


def test_scores_of_any_size() -> None:
    """Large ones do not overflow, and the lowest number of a dtype as a mask hides nothing where all have it."""
    q, k, v = qkv(1, 1, 20, 8)
    plan = AttentionPlan.dense(20, 20)
    assert_right(q * 100, k * 100, v, plan)
    lowest = torch.full((1, 1, 1, 20), torch.finfo(F32).min)
    out, _ = block_sparse_attention(q, k, v, plan, bias=lowest)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


def test_infinite_values_reach_those_who_see_them() -> None:
    q, k, v = qkv(1, 1, 20, 8)
    v[0, 0, 4, 2] = math.inf
    mask = torch.arange(20)[:, None] >= torch.arange(20)
    out, lse = block_sparse_attention(q, k, v, AttentionPlan.from_mask(mask, (16, 16)))
    assert torch.equal(out[0, 0, 4:, 2], torch.full((16,), math.inf))
    assert bool(out[0, 0, :, [0, 1, 3]].isfinite().all())
    assert bool(lse.isfinite().all())


def test_regions_are_one_attention() -> None:
    """FontStudio: m Attn(Q, K_fg, V_fg) + (1 - m) Attn(Q, K_bg, V_bg) for a binary m."""
    q, k, v = qkv(1, 2, 48, 16, keys=12, dtype=F64)
    m = torch.arange(48) % 3 == 0
    fg, bg = torch.arange(12) < 7, (torch.arange(12) > 4) | (torch.arange(12) == 0)
    plan = AttentionPlan.from_mask(torch.where(m[:, None], fg, bg), (16, 16))
    out, _ = block_sparse_attention(q, k, v, plan)
    each = [scaled_dot_product_attention(q, k[:, :, part], v[:, :, part]) for part in (fg, bg)]
    torch.testing.assert_close(out, torch.where(m[:, None], *each))


def test_reference_keys_beside_the_own() -> None:
    """DiffEditor: attention over [K; K_ref] of which some tokens are masked, as a bias and as a plan."""
    q, k, v = qkv(1, 2, 20, 16, dtype=F64)
    _, k_ref, v_ref = qkv(1, 2, 20, 16, keys=20, dtype=F64)
    k, v = torch.cat([k, k_ref.flip(2)], 2), torch.cat([v, v_ref.flip(2)], 2)
    seen = torch.arange(40) % 5 != 1
    bias = torch.zeros(1, 1, 1, 40).masked_fill(~seen, -math.inf)
    want = scaled_dot_product_attention(q, k[:, :, seen], v[:, :, seen])
    by_bias, _ = block_sparse_attention(q, k, v, AttentionPlan.dense(20, 40), bias=bias)
    by_plan, _ = block_sparse_attention(
        q, k, v, AttentionPlan.from_mask(seen.expand(20, 40).contiguous(), (16, 16))
    )
    torch.testing.assert_close(by_bias, want)
    torch.testing.assert_close(by_plan, want)


def test_plans_can_be_moved_along_a_schedule() -> None:
    """A plan with more entries than it uses, such as one whose lists are rewritten at every step."""
    q, k, v = qkv(1, 1, 40, 8)
    plan = AttentionPlan.dense(40, 40, block=(16, 16))
    more = AttentionPlan(
        40, 40, (16, 16), plan.offsets, torch.cat([plan.columns, plan.columns.new_full((5,), 10**6)])
    )
    assert_same_bits(block_sparse_attention(q, k, v, more), block_sparse_attention(q, k, v, plan))
    assert_same_bits([more.to_mask()], [plan.to_mask()])


def test_layout_bnhd() -> None:
    q, k, v = qkv(2, 3, 33, 16)
    plan = AttentionPlan.dense(33, 33)
    want, lse = block_sparse_attention(q, k, v, plan)
    given_ = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    out, other = block_sparse_attention(*given_, plan, layout="bnhd")
    assert out.is_contiguous()
    assert_same_bits([out.transpose(1, 2), other], [want, lse])
    with pytest.raises(ValueError, match="layout must be one of bhnd, bnhd, got 'bhdn'"):
        block_sparse_attention(q, k, v, plan, layout="bhdn")


def test_one_graph_for_all_plans_of_a_shape() -> None:
    q, k, v = qkv(1, 1, 64, 8)
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
        return block_sparse_attention(q, k, v, plan)[0]

    for seed in range(3):
        blocks = random_mask(4, 4, share=0.5, seed=seed)
        blocks.fill_diagonal_(True)
        blocks.flatten()[1:3] = torch.tensor([True, False])
        plan = AttentionPlan.from_blocks(blocks, queries=64, keys=64, block=(16, 16))
        room = plan.columns.new_zeros(16)
        room[: len(plan.columns)] = plan.columns
        plan = AttentionPlan(64, 64, (16, 16), plan.offsets, room)
        assert_same_bits([attend(q, k, v, plan)], [block_sparse_attention(q, k, v, plan)[0]])
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_numpy() -> None:
    q, k, v = qkv(1, 2, 40, 16)
    plan = AttentionPlan.from_mask(random_mask(40, 40, share=0.3), (16, 16))
    arrays = {name: t.numpy() if isinstance(t, Tensor) else t for name, t in dlpack_plan(plan).items()}
    out, lse = np.empty((1, 2, 40, 16), np.float32), np.empty((1, 2, 40), np.float32)
    _C.block_sparse_attention(q.numpy(), k.numpy(), v.numpy(), out=[out, lse], scale=0.25, **arrays)
    assert_same_bits(
        [torch.from_numpy(out), torch.from_numpy(lse)], block_sparse_attention(q, k, v, plan, scale=0.25)
    )


# ---- refusals --------------------------------------------------------------------------------------------------


def broken_plan(**changes: Any) -> AttentionPlan:
    plan = AttentionPlan.from_mask(random_mask(40, 40, share=0.9), (16, 16))
    fields = {
        name: getattr(plan, name)
        for name in ("queries", "keys", "block", "offsets", "columns", "masks", "bits")
    }
    return AttentionPlan(**(fields | changes))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": ints(0, 3, 6, 10)[None, None]}, "offsets must ascend from 0 to at most 9, got 6 and then 10"),
        ({"offsets": ints(0, 3, 2, 9)[None, None]}, "offsets must ascend from 0 to at most 9, got 3 and then 2"),
        ({"offsets": ints(-1, 3, 6, 9)[None, None]}, "offsets must ascend from 0 to at most 9, got -1 and then 3"),
        ({"offsets": ints(0, 3, 9)[None, None]}, r"offsets must have shape \[1 or 1, 1 or 1, 4\].*, got \[1, 1, 3\]"),
        ({"offsets": ints(0, 3, 6, 9)[None, None].long()}, "offsets must be int32, got int64"),
        ({"columns": ints(0, 1, 3, 0, 1, 2, 0, 1, 2)}, "columns must be within 0 and 2, got 3 at entry 2"),
        ({"columns": ints(0, 1, 2, 0, -1, 2, 0, 1, 2)}, "columns must be within 0 and 2, got -1 at entry 4"),
        ({"columns": ints(0, 1, 1, 0, 1, 2, 0, 1, 2)}, "columns must ascend within a row, got 1 and then 1 at entry 2"),
        ({"masks": ints(0, 1, 2, 3, 4, 5, 6, 7, 9)}, "masks must be within -1 and 8, got 9 at entry 8"),
        ({"masks": ints(0, 1, 2, 3, 4, 5, 6, 7, -2)}, "masks must be within -1 and 8, got -2 at entry 8"),
        ({"masks": ints(0, 1)}, r"masks must have shape \[9\] like columns, got \[2\]"),
        ({"masks": None}, "masks and bits must be given together, got bits alone"),
        ({"bits": torch.zeros(9, 16, 2, dtype=torch.int32)}, r"bits must have shape \[M, 16, 1\], got \[9, 16, 2\]"),
        ({"block": (24, 16)}, "block_q must be a multiple of 16 from 16 to 256, got 24"),
        ({"block": (16, 512)}, "block_k must be a multiple of 16 from 16 to 256, got 512"),
    ],
)  # fmt: skip
def test_malformed_plans(changes: dict[str, Any], message: str) -> None:
    out = [torch.full((1, 1, 40, 8), 7.0), torch.full((1, 1, 40), 7.0)]
    with pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention: {message}"):
        block_sparse_attention(*qkv(1, 1, 40, 8), broken_plan(**changes), out=out)
    assert all(bool((t == 7).all()) for t in out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[..., :4], k[..., :4], v[..., :4]), "q must have a head_dim that is a multiple of 8"),
        (lambda q, k, v: (q.int(), k, v), "q must be float32, float16, bfloat16 or float64, got int32"),
        (lambda q, k, v: (q, k.half(), v), "k must be float32 like q, got float16"),
        (lambda q, k, v: (q, k[..., :8], v), r"k must have shape \[1, H, N, 16\] to go with q"),
        (lambda q, k, v: (q, k, v[:, :, :10]), r"v must have shape \[1, 2, 40, 16\] like k"),
        (lambda q, k, v: (torch.cat([q, q], 1)[:, :3], k, v), "k must have a number of heads that divides q's 3"),
    ],
)  # fmt: skip
def test_refuses(change: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention: {message}"):
        block_sparse_attention(*change(*qkv(1, 2, 40, 16)), AttentionPlan.dense(40, 40))


def test_refuses_other_sizes_and_biases() -> None:
    q, k, v = qkv(1, 2, 40, 16)
    with pytest.raises(ValueError, match="plan is for 41 queries and 40 keys, got 40 and 40"):
        block_sparse_attention(q, k, v, AttentionPlan.dense(41, 40))
    plan = AttentionPlan.dense(40, 40)
    with pytest.raises(
        RuntimeError, match=r"bias must have shape \[1 or 1, 2 or 1, 40 or 1, 40 or 1\], got \[40\]"
    ):
        block_sparse_attention(q, k, v, plan, bias=normal(40))
    with pytest.raises(RuntimeError, match="scale must be finite"):
        block_sparse_attention(q, k, v, plan, scale=math.nan)
    with pytest.raises(NotImplementedError, match=r"bias has a gradient where it is one of keys"):
        block_sparse_attention(q, k, v, plan, bias=normal(1, 1, 40, 40).requires_grad_())
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        block_sparse_attention(
            q.requires_grad_(), k, v, plan, out=[torch.empty(1, 2, 40, 16), torch.empty(1, 2, 40)]
        )


def test_refuses_wrong_results() -> None:
    q, k, v = qkv(1, 2, 40, 16)
    plan = AttentionPlan.dense(40, 40)
    lse = torch.empty(1, 2, 40)
    with pytest.raises(RuntimeError, match=r"out must have shape \[1, 2, 40, 16\] like q"):
        block_sparse_attention(q, k, v, plan, out=[torch.empty(1, 2, 40, 8), lse])
    with pytest.raises(RuntimeError, match="lse must be float32, got float64"):
        block_sparse_attention(q, k, v, plan, out=[torch.empty_like(q), lse.double()])
    with pytest.raises(RuntimeError, match="out must not share memory with k"):
        block_sparse_attention(q, k, v, plan, out=[k, lse])
