# SPDX-License-Identifier: Apache-2.0
"""block_sparse_attention in bfloat16 by the tiles of AMX, where the CPU has them: what it shares with other CPUs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff.attention import AttentionPlan, block_sparse_attention
from fastdiff.attention.block_sparse_attention import reference, tolerance
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif("amx" not in usable_isas(), reason="this CPU or this build has no AMX")

BF16 = torch.bfloat16


def normal(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(*shape: int, keys: int, kv_heads: int | None = None, dtype: torch.dtype = BF16) -> list[Tensor]:
    b, h, _, d = shape
    there = (b, kv_heads or h, keys, d)
    return [normal(*size, seed=seed, dtype=dtype) for seed, size in enumerate((shape, there, there))]


def attend(isa: str, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    with instruction_set(isa):
        return block_sparse_attention(*args, **kwargs)


def assert_right(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, **options: Any) -> None:
    want = reference(q, k, v, plan, **options)
    limits = tolerance(q, k, v, plan, **options)
    for got, right in zip(attend("amx", q, k, v, plan, **options), want, strict=True):
        assert_close(got, right, **limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_other_dtypes_have_the_bits_of_avx512(dtype: torch.dtype) -> None:
    q, k, v = qkv(1, 2, 70, 24, keys=90, dtype=dtype)
    plan = AttentionPlan.dense(70, 90, block=(32, 16))
    assert_same_bits(attend("amx", q, k, v, plan), attend("avx512", q, k, v, plan))


def test_bfloat16_has_bits_of_its_own() -> None:
    """So that the other tests here are about the tiles; lse has no rounding of probabilities in it."""
    q, k, v = qkv(1, 2, 70, 64, keys=90)
    plan = AttentionPlan.dense(70, 90, block=(32, 16))
    (tiles, lse), (lanes, want) = (attend(isa, q, k, v, plan) for isa in ("amx", "avx512"))
    assert not torch.equal(tiles, lanes)
    torch.testing.assert_close(lse, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("d", [8, 16, 24, 40, 64, 72, 136, 256])
@pytest.mark.parametrize("block", [(16, 16), (32, 48), (128, 80), (64, 64)])
def test_sizes_that_are_no_tiles(block: tuple[int, int], d: int) -> None:
    q, k, v = qkv(1, 2, 83, d, keys=107, kv_heads=1)
    assert_right(q, k, v, AttentionPlan.dense(83, 107, block=block))


def test_more_keys_than_a_thread_keeps() -> None:
    """Each block of queries finds its keys, although other blocks, heads and samples had their places meanwhile."""
    q, k, v = qkv(2, 4, 48, 256, keys=1700, kv_heads=2)
    seen = torch.rand(2, 4, 3, 27, generator=torch.Generator().manual_seed(3)) < 0.6
    plan = AttentionPlan.from_blocks(seen, queries=48, keys=1700, block=(16, 64))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_right(q, k, v, plan)


def test_masks_biases_and_sets() -> None:
    q, k, v = qkv(1, 2, 45, 24, keys=75)
    mask = torch.rand(2, 45, 75, generator=torch.Generator().manual_seed(4)) < 0.4
    plan = AttentionPlan.from_mask(mask, (32, 16))
    bias = normal(1, 2, 45, 75, dtype=torch.float32, seed=5)
    assert_right(q, k, v, plan)
    assert_right(q, k, v, plan, bias=bias)
    assert_right(q, k, v, plan, bias=bias[:, :, :1], lerp=(normal(1, 2, 45, 24, seed=6), 0.25))
    both = AttentionPlan.beside(
        AttentionPlan.from_mask(mask[..., :40].contiguous(), (32, 16)),
        AttentionPlan.from_mask(mask[..., 40:].contiguous(), (32, 16)),
    )
    assert_right(q, k, v, both, bias=bias, weights=normal(2, 1, 2, 45, dtype=torch.float32, seed=7))


@pytest.mark.parametrize("falling", [False, True])
def test_scores_that_rise_or_fall_from_block_to_block(falling: bool) -> None:
    q, k, v = qkv(1, 1, 40, 16, keys=160)
    steps = torch.linspace(-4, 4, 160)[:, None]
    k = (q.float().mean(2, keepdim=True) * 40 * (-steps if falling else steps)).to(BF16)
    assert_right(q, k, v, AttentionPlan.dense(40, 160, block=(16, 16)))


@pytest.mark.parametrize("scale", [-0.5, 0.0, 30.0])
def test_any_scale(scale: float) -> None:
    """Scores far below the highest have probability 0 and cost no more than others."""
    q, k, v = qkv(1, 2, 40, 32, keys=50)
    assert_right(q, k, v, AttentionPlan.dense(40, 50, block=(16, 16)), scale=scale)


def test_what_fills_up_a_tile_is_not_read() -> None:
    """The tokens next to those of a call, and the elements next to those of a head."""
    wide = qkv(1, 2, 45, 48, keys=75)
    there = (slice(None), slice(None), slice(2, -3), slice(5, 29))
    plan = AttentionPlan.dense(40, 70, block=(32, 32))
    want = attend("amx", *(t[there].clone() for t in wide), plan)
    for t in wide:
        inner = t[there].clone()
        t.fill_(math.nan)
        t[there] = inner
    assert_same_bits(attend("amx", *(t[there] for t in wide), plan), want)


def test_nan_and_infinity() -> None:
    q, k, v = qkv(1, 1, 40, 16, keys=40)
    q[0, 0, 3, 1], v[0, 0, 4, 2] = math.nan, math.inf
    out, lse = attend("amx", q, k, v, AttentionPlan.dense(40, 40, block=(16, 16)))
    others = torch.arange(40) != 3
    assert bool(out[0, 0, 3].isnan().all())
    assert bool(lse[0, 0, 3].isnan())
    assert torch.equal(out[0, 0, others, 2], torch.full((39,), math.inf, dtype=BF16))
    assert bool(out[0, 0, others][:, torch.arange(16) != 2].isfinite().all())
    assert bool(lse[0, 0, others].isfinite().all())


def test_subnormal_numbers_are_zero() -> None:
    q, k, v = qkv(1, 1, 20, 16, keys=20)
    v.fill_(2.0**-130)
    plan = AttentionPlan.dense(20, 20)
    assert bool((attend("avx512", q, k, v, plan)[0] > 0).all())
    assert bool((attend("amx", q, k, v, plan)[0] == 0).all())
