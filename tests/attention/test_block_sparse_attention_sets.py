# SPDX-License-Identifier: Apache-2.0
"""Keys in several sets, queries between two tensors, rows that are split: block_sparse_attention's options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff.attention import AttentionPlan, RelativeBias, block_sparse_attention, token_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.attention.test_block_sparse_attention import HALVES, assert_right, normal, qkv, random_mask
from tests.kit.compare import assert_same_bits

F32, F64 = torch.float32, torch.float64


# ---- sets of keys ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sets(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, h, n, d = draw(1, 2, "B"), draw(1, 3, "H"), draw(1, 90, "N"), 8 * draw(1, 6, "D / 8")
    sizes = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=8), "keys of the sets")
    if sum(sizes) == 0:
        sizes[0] = 1
    block = data.draw(st.sampled_from([(16, 16), (32, 48), (64, 64)]), "block")
    plans = [
        AttentionPlan.from_mask(random_mask(b if m % 2 else 1, 1, n, m, share=0.5, seed=m), block)
        if data.draw(st.booleans())
        else AttentionPlan.dense(n, m, block=block)
        for m in sizes
    ]
    q, k, v = qkv(b, h, n, d, keys=sum(sizes), dtype=data.draw(st.sampled_from([F32, F64, *HALVES]), "dtype"))
    options: dict[str, Any] = {}
    if data.draw(st.booleans(), "weights"):
        options["weights"] = normal(
            len(sizes), data.draw(st.sampled_from([1, b])), 1, data.draw(st.sampled_from([1, n]))
        )
    if data.draw(st.booleans(), "bias"):
        options["bias"] = normal(b, 1, 1, sum(sizes), seed=5)
    assert_right(q, k, v, AttentionPlan.beside(*plans), **options)


def test_image_prompts_next_to_a_text() -> None:
    """IP-Adapter and AttenST: O = O_text + sum_j lambda_j Attn(Q, K_j, V_j)."""
    q, k, v = qkv(2, 4, 100, 40, keys=77 + 4 + 16)
    lambdas = torch.tensor([1.0, 1.2, 0.5])
    plan = AttentionPlan.beside(*(AttentionPlan.dense(100, n) for n in (77, 4, 16)))
    got, _ = block_sparse_attention(q, k, v, plan, weights=lambdas[:, None, None, None])
    parts = zip(k.double().split([77, 4, 16], 2), v.double().split([77, 4, 16], 2), lambdas, strict=True)
    want = sum(x * scaled_dot_product_attention(q.double(), there, values) for there, values, x in parts)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_soft_regions_share_keys_through_a_list() -> None:
    """FontStudio: O = m Attn(Q, K_fg, V_fg) + (1 - m) Attn(Q, K_bg, V_bg); the first and last token are in both."""
    q, k, v = qkv(1, 2, 64, 16, keys=20, dtype=F64)
    m = torch.rand(64, dtype=F64, generator=torch.Generator().manual_seed(1))
    sets = [[0, *range(1, 9), 19], [0, *range(9, 19), 19]]
    plan = AttentionPlan.beside(*(AttentionPlan.dense(64, len(s)) for s in sets))
    weights = torch.stack([m, 1 - m])[:, None, None]
    index = torch.tensor([[*sets[0], *sets[1]]])
    got, lse = token_attention(q, k, v, kv_index=index, plan=plan, weights=weights)
    one, other = (scaled_dot_product_attention(q, k[:, :, s], v[:, :, s]) for s in sets)
    torch.testing.assert_close(got, m[:, None] * one + (1 - m[:, None]) * other)
    assert list(lse.shape) == [2, 1, 2, 64]
    hard = m.round()
    got, _ = token_attention(
        q, k, v, kv_index=index, plan=plan, weights=torch.stack([hard, 1 - hard])[:, None, None]
    )
    seen = torch.zeros(64, 20, dtype=torch.bool)
    for n, choice in enumerate(hard.tolist()):
        seen[n, sets[0 if choice else 1]] = True
    torch.testing.assert_close(got, scaled_dot_product_attention(q, k, v, seen))


def test_one_set_is_its_plan_to_the_bit() -> None:
    q, k, v = qkv(1, 2, 70, 16)
    plan = AttentionPlan.from_mask(random_mask(70, 70, share=0.4), (16, 16))
    one = AttentionPlan.beside(plan)
    assert one.sets == [70]
    assert_same_bits(block_sparse_attention(q, k, v, one), block_sparse_attention(q, k, v, plan))
    halved, _ = block_sparse_attention(q, k, v, one, weights=torch.full((1, 1, 1, 1), 0.5))
    torch.testing.assert_close(halved, 0.5 * block_sparse_attention(q, k, v, plan)[0])


def test_weight_of_one_set_whose_rows_are_split() -> None:
    q, k, v = qkv(1, 1, 4, 16, keys=300)
    plan = AttentionPlan.beside(AttentionPlan.dense(4, 300, block=(16, 16)))
    assert_right(q, k, v, plan, weights=normal(1, 1, 1, 4))


def test_malformed_calls_are_refused_with_gradients_too() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 1, 12, 8, keys=16))
    plan = AttentionPlan.beside(AttentionPlan.dense(12, 9), AttentionPlan.dense(12, 7))

    def refused(message: str, *given: Any, **options: Any) -> None:
        for recording in (True, False):
            with (
                torch.set_grad_enabled(recording),
                pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention: {message}"),
            ):
                block_sparse_attention(*(given or (q, k, v)), plan, **options)

    refused("weights must have shape", weights=torch.ones(3, 1, 1, 12))
    refused("weights must have shape", weights=torch.ones(2, 12))
    refused("bias must have", bias=torch.ones(1, 1, 1, 20))
    refused("bias must have", bias=torch.ones(1, 1, 16))
    refused("v must have shape", q, k, normal(1, 1, 20, 8))
    refused("q_end must", lerp=(torch.ones(8), 0.5))
    refused("mix must be finite", lerp=(torch.ones_like(q), math.inf))
    codes = torch.zeros(1, 12, dtype=torch.int64), torch.zeros(1, 20, dtype=torch.int64)
    refused("k_code must have shape", bias=RelativeBias(torch.ones(1, 3), *codes))


def test_gradients_of_sets() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(2, 2, 12, 8, keys=25, dtype=F64))
    end = normal(2, 2, 12, 8, dtype=F64, seed=8).requires_grad_()
    weights = normal(2, 1, 1, 12, dtype=F64, seed=9).requires_grad_()
    bias = normal(1, 2, 1, 25, dtype=F64, seed=7).requires_grad_()
    plan = AttentionPlan.beside(
        AttentionPlan.from_mask(random_mask(12, 9, share=0.6)), AttentionPlan.dense(12, 16)
    )

    def attend(*given: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        q, k, v, end, weights, bias = given
        return block_sparse_attention(q, k, v, plan, weights=weights, lerp=(end, 0.3), bias=bias, **options)

    everything = (q, k, v, end, weights, bias)
    with torch.no_grad():
        fused = attend(*everything)
    for one, other in zip(attend(*everything), fused, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(attend, everything, fast_mode=True)
    listed = torch.tensor([[*range(24, -1, -1)]])
    assert torch.autograd.gradcheck(lambda *x: attend(*x, kv_index=listed), everything, fast_mode=True)


def test_plans_beside_each_other() -> None:
    masks = [random_mask(2, 3, 40, n, share=0.4, seed=n) for n in (50, 20)]
    plans = [AttentionPlan.from_mask(mask, (16, 16)) for mask in masks]
    plan = AttentionPlan.beside(*plans, AttentionPlan.dense(40, 7, block=(16, 16)))
    want = torch.cat([*masks, torch.ones(2, 3, 40, 7, dtype=torch.bool)], -1)
    assert torch.equal(plan.to_mask(), want)
    assert plan.sets == [50, 20, 7] and plan.keys == 77
    assert plan.density == pytest.approx(float(want.float().mean()))
    moved = plan.to("cpu")
    assert moved.sets == plan.sets and torch.equal(moved.columns, plan.columns)
    assert plan.plot().get_xlabel() == "key"


def test_sets_that_do_not_fit() -> None:
    one = AttentionPlan.dense(40, 20)
    with pytest.raises(ValueError, match="same queries and blocks and have no parts"):
        AttentionPlan.beside(one, AttentionPlan.dense(41, 20))
    with pytest.raises(ValueError, match="have no parts"):
        AttentionPlan.beside(AttentionPlan.beside(one, one), one)
    with pytest.raises(ValueError, match="plans must be 1 to 8, got 9"):
        AttentionPlan.beside(*[one] * 9)
    with pytest.raises(ValueError, match="plans must be 1 to 8, got 0"):
        AttentionPlan.beside()
    with pytest.raises(ValueError, match="must have no parts; unite those"):
        AttentionPlan.union(AttentionPlan.beside(one, one))
    q, k, v = qkv(1, 1, 40, 8)
    plan = AttentionPlan.beside(one, one)
    with pytest.raises(ValueError, match="weights are of the sets of a plan"):
        block_sparse_attention(q, k, v, AttentionPlan.dense(40, 40), weights=torch.ones(1, 1, 1, 1))
    with pytest.raises(
        RuntimeError, match=r"weights must have shape \[2, 1 or 1, 1 or 1, 40 or 1\] .*got \[3, 1, 1, 1\]"
    ):
        block_sparse_attention(q, k, v, plan, weights=torch.ones(3, 1, 1, 1))
    with pytest.raises(
        RuntimeError, match="weights must be float32, float16, bfloat16 or float64, got int64"
    ):
        block_sparse_attention(q, k, v, plan, weights=torch.ones(2, 1, 1, 1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"lse must have shape \[2, 1, 1, 40\], got \[1, 1, 40\]"):
        block_sparse_attention(q, k, v, plan, out=(torch.empty_like(q), torch.empty(1, 1, 40)))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([20, 21], "sets must have 40 keys together, as k has, got 41"),
        ([20], "sets must have 40 keys together, as k has, got 20"),
        ([50, -10], "sets must be within 0 and the 40 keys, got 50"),
        ([5] * 9, "sets must be at most 8, got 9"),
    ],
)
def test_malformed_sets(sets: list[int], message: str) -> None:
    q, k, v = qkv(1, 1, 40, 8)
    plan = AttentionPlan.dense(40, 40)
    with pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention: {message}"):
        torch.ops.fastdiff.block_sparse_attention(
            q, k, v, None, None, plan.offsets, plan.columns, None, None, 64, 64, sets, None, None, None, None, None,
            0.0, 1.0,
        )  # fmt: skip


# ---- queries between two tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_lerp_of_queries(layout: str) -> None:
    """AttenST: 0.75 Q_content + 0.25 Q_current over K and V of the style, with a temperature."""
    q, k, v = qkv(2, 3, 50, 16, dtype=F64)
    content = normal(2, 3, 50, 16, dtype=F64, seed=4)
    index = torch.randperm(50)[None, :30]
    want, _ = token_attention(0.75 * content + 0.25 * q, k, v, index, scale=2.25 / 4)
    plan, options = AttentionPlan.dense(30, 50), {"q_index": index, "scale": 2.25 / 4, "layout": layout}
    if layout == "bnhd":
        q, k, v, content = (t.transpose(1, 2).contiguous() for t in (q, k, v, content))
    got, _ = block_sparse_attention(q, k, v, plan, lerp=(content, 0.75), **options)  # type: ignore[arg-type]
    torch.testing.assert_close(got if layout == "bhnd" else got.transpose(1, 2), want)


def test_lerp_that_does_not_fit() -> None:
    q, k, v = qkv(1, 1, 40, 8)
    plan = AttentionPlan.dense(40, 40)
    with pytest.raises(RuntimeError, match=r"q_end must have shape \[1, 1, 40, 8\] like q"):
        block_sparse_attention(q, k, v, plan, lerp=(q[:, :, :5], 0.5))
    with pytest.raises(RuntimeError, match="q_end must be float32 like q, got float64"):
        block_sparse_attention(q, k, v, plan, lerp=(q.double(), 0.5))
    with pytest.raises(RuntimeError, match="mix must be finite, got nan"):
        block_sparse_attention(q, k, v, plan, lerp=(q, math.nan))


# ---- relative positions ----------------------------------------------------------------------------------------


def index_of_swin(rows: int, columns: int) -> Tensor:
    """The index of a table as Swin and MDT have it, written out: [N, N]."""
    y, x = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    return (y[:, None] - y + rows - 1) * (2 * columns - 1) + x[:, None] - x + columns - 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_relative_positions_of_kept_tokens(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 9), "rows"), data.draw(st.integers(1, 9), "columns")
    tokens, b, h = rows * columns, data.draw(st.integers(1, 3), "B"), data.draw(st.integers(1, 3), "H")
    table = normal(
        (2 * rows - 1) * (2 * columns - 1), h, dtype=data.draw(st.sampled_from([F32, F64, *HALVES]))
    ).T
    q, k, v = qkv(
        b, h, tokens, 8 * data.draw(st.integers(1, 4)), dtype=data.draw(st.sampled_from([F32, F64, *HALVES]))
    )
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    kept = torch.stack([torch.randperm(tokens, generator=g)[: 1 + tokens // 2] for _ in range(b)])
    n = kept.shape[1]
    bias = RelativeBias.grid(table, (rows, columns))
    pairs = table[:, index_of_swin(rows, columns)].expand(
        b, -1, -1, -1
    )  # what the published code gathers twice
    pairs = pairs.gather(2, kept[:, None, :, None].expand(-1, h, -1, tokens))
    pairs = pairs.gather(3, kept[:, None, None].expand(-1, h, n, -1))
    torch.testing.assert_close(bias.of_pairs(kept, kept), pairs)
    plan = AttentionPlan.from_mask(random_mask(n, n, share=0.7), (16, 16))
    got = block_sparse_attention(q, k, v, plan, bias=bias, q_index=kept, kv_index=kept)
    assert_same_bits(got, block_sparse_attention(q, k, v, plan, bias=pairs, q_index=kept, kv_index=kept))


@pytest.mark.parametrize("shape", [(11,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_a_table(shape: tuple[int, ...], shared: bool) -> None:
    tokens = math.prod(shape)
    q, k, v = (t.requires_grad_() for t in qkv(2, 2, tokens, 8, dtype=F64))
    entries = math.prod(2 * n - 1 for n in shape)
    table = normal(1 if shared else 2, entries, dtype=F64, seed=5).requires_grad_()
    kept = torch.stack([torch.randperm(tokens)[:9] for _ in range(2)])

    def attend(*given: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        bias = RelativeBias.grid(given[3], shape)
        return token_attention(*given[:3], **options, bias=bias)

    everything = (q, k, v, table)
    assert torch.autograd.gradcheck(attend, everything, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *x: attend(*x, q_index=kept, kv_index=kept[:1, :7]), everything, fast_mode=True
    )


def test_relative_positions_next_to_others() -> None:
    """Two sets whose keys are on the same grid."""
    q, k, v = qkv(1, 2, 12, 8, keys=20, dtype=F64)
    bias = RelativeBias.grid(normal(2, 5 * 7, dtype=F64).requires_grad_(), (3, 4))
    bias = RelativeBias(bias.table, bias.q_code, torch.cat([bias.k_code, bias.k_code[:, :8]], 1))
    plan = AttentionPlan.beside(AttentionPlan.dense(12, 12), AttentionPlan.dense(12, 8))
    recorded, _ = block_sparse_attention(q, k, v, plan, bias=bias)
    with torch.no_grad():
        fused, _ = block_sparse_attention(q, k, v, plan, bias=bias)
    torch.testing.assert_close(recorded, fused)


def test_relative_positions_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"table must have shape \[heads, 35\] for a grid \(3, 4\), got \[2, 34\]"
    ):
        RelativeBias.grid(normal(2, 34), (3, 4))
    with pytest.raises(ValueError, match="shape must be 1 to 3 positive sizes"):
        RelativeBias.grid(normal(2, 35), ())
    q, k, v = qkv(1, 2, 12, 8)
    plan, good = AttentionPlan.dense(12, 12), RelativeBias.grid(normal(2, 35), (3, 4))

    def refused(message: str, *given: Any) -> None:
        with pytest.raises(RuntimeError, match=f"^fastdiff::block_sparse_attention: {message}"):
            block_sparse_attention(q, k, v, plan, bias=RelativeBias(*given))

    refused(
        "q_code - k_code must be within 0 and 33, got 17 to 34 and 0 to 17",
        good.table[:, 1:],
        good.q_code,
        good.k_code,
    )
    refused("q_code - k_code must be within 0 and 34", good.table, good.q_code - 30, good.k_code)
    refused(
        r"q_code must have shape \[1 or 1, 12\], got \[1, 11\]", good.table, good.q_code[:, 1:], good.k_code
    )
    far = torch.iinfo(torch.int64)
    refused(
        "q_code - k_code must be within", good.table, good.q_code * 0 + far.max, good.k_code * 0 + far.min
    )
    refused(
        r"bias must have shape .*, entries\], got \[1, 2, 1, 0\]", good.table[:, :0], good.q_code, good.k_code
    )
    refused("k_code must be int64, got int32", good.table, good.q_code, good.k_code.int())
    refused(
        r"bias must have shape \[1 or 1, 2 or 1, 1 or 1, entries\], got \[1, 3, 1, 35\]",
        normal(3, 35),
        good.q_code,
        good.k_code,
    )


# ---- rows that are split ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_few_queries_and_many_keys(data: st.DataObject) -> None:
    """Split-KV: parts of a row, merged."""
    h, n, keys = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 70)),
        data.draw(st.integers(200, 1500)),
    )
    block = data.draw(st.sampled_from([(16, 16), (64, 64), (32, 128)]))
    q, k, v = qkv(
        1,
        h,
        n,
        8 * data.draw(st.integers(1, 5)),
        keys=keys,
        dtype=data.draw(st.sampled_from([F32, F64, *HALVES])),
    )
    mask = random_mask(1, h, n, keys, share=data.draw(st.sampled_from([0.0, 0.002, 0.5])))
    assert_right(q, k, v, AttentionPlan.from_mask(mask, block))


def test_splits_of_rows_that_see_nothing() -> None:
    q, k, v = qkv(1, 1, 20, 8, keys=1000)
    hidden = torch.full((1, 1, 1, 1000), -math.inf)
    plan = AttentionPlan.dense(20, 1000)
    out, lse = block_sparse_attention(q, k, v, plan, bias=hidden)
    assert not out.any() and bool((lse == -math.inf).all())
    hidden[..., 999] = 0
    out, _ = block_sparse_attention(q, k, v, plan, bias=hidden)
    torch.testing.assert_close(out, v[:, :, 999:].expand_as(out))
    k[0, 0, 500] = math.nan
    out, lse = block_sparse_attention(q, k, v, plan)
    assert bool(out.isnan().all()) and bool(lse.isnan().all())
