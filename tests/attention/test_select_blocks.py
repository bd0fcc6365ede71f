# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about select_blocks: that it is a sort and a sum, at every size; refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import select_blocks
from fastdiff.attention.select_blocks import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import simt_worker
from tests.kit.compare import assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SPECIAL = (0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 1e-42, -3e38, 2.0**-140)


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_counts_are_a_sort(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 70), "C")
    dtype = data.draw(st.sampled_from([F32, BF16, F16, F64]), "dtype")
    numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(-4, 4, width=32))
    scores = torch.tensor(data.draw(st.lists(numbers, min_size=columns, max_size=columns)), dtype=F64)
    scores = scores.to(dtype)[None, None, None]
    count = data.draw(st.integers(1, columns + 2), "count")
    got = select_blocks(scores, count=count)
    assert_same_bits([got], [reference(scores, count=count)])
    assert got.sum() == min(count, columns)
    best = scores.topk(min(count, columns), -1).values  # NaN first
    assert_same_bits([scores[got].sort(descending=True).values + 0.0], [best.flatten() + 0.0])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_masses_are_a_sort_and_a_sum(data: st.DataObject) -> None:
    shape = (2, 2, data.draw(st.integers(1, 5), "R"), data.draw(st.integers(1, 300), "C"))
    dtype = data.draw(st.sampled_from([F32, BF16, F16, F64]), "dtype")
    scores = normal(*shape, dtype=dtype, seed=data.draw(st.integers(0, 99))) * data.draw(
        st.sampled_from([0.1, 1, 10])
    )
    mass = data.draw(st.sampled_from([1e-9, 0.1, 0.5, 0.99, 1.0]), "mass")
    share = scores.double().softmax(-1)
    chosen = select_blocks(scores, mass=mass)
    kept = torch.where(chosen, share, 0)
    assert bool((kept.sum(-1) >= mass - 1e-6).all())
    least = torch.where(chosen, share, 2).amin(-1)
    assert bool((kept.sum(-1) - least < mass + 1e-6).all())
    # No other one has a larger share; of equal ones the first are chosen.
    assert bool((torch.where(chosen, 0, share).amax(-1) <= least * (1 + 1e-5)).all())


def test_equal_scores_from_the_left() -> None:
    scores = torch.zeros(1, 1, 2, 10)
    scores[0, 0, :, 7] = 1
    assert select_blocks(scores, count=4)[0, 0, 0].nonzero().flatten().tolist() == [0, 1, 2, 7]
    assert select_blocks(torch.zeros(1, 1, 1, 8), mass=0.5)[0, 0, 0].nonzero().flatten().tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert select_blocks(torch.zeros(1, 1, 1, 8), mass=0.51).sum() == 5


def test_rows_without_a_softmax() -> None:
    """As the softmax of PyTorch, all of whose shares are NaN."""
    scores = torch.zeros(1, 1, 4, 3)
    scores[0, 0, 0, 1], scores[0, 0, 1, 2], scores[0, 0, 2], scores[0, 0, 3, 0] = (
        math.nan,
        math.inf,
        -math.inf,
        -math.inf,
    )
    assert select_blocks(scores, mass=1.0)[0, 0].tolist() == [[False] * 3] * 3 + [[False, True, True]]
    assert select_blocks(scores, count=1)[0, 0].int().argmax(-1).tolist() == [1, 2, 0, 1]


def test_a_limit_for_each_list() -> None:
    scores = normal(2, 3, 4, 30)
    count = torch.tensor([[1, 2, 3], [30, 31, 5]])
    assert select_blocks(scores, count=count).sum(-1)[..., 0].tolist() == [[1, 2, 3], [30, 30, 5]]
    mass = torch.tensor([[0.1, 0.5, 0.9]])
    got = select_blocks(scores, mass=mass)
    for head in range(3):
        each = select_blocks(scores[:, head : head + 1], mass=float(mass[0, head]))
        assert_same_bits([got[:, head : head + 1]], [each])


def test_threads_share_the_rows() -> None:
    scores = normal(2, 4, 33, 200)
    assert_same_bits([select_blocks(scores, count=20)], [reference(scores, count=20)])
    assert_same_bits([select_blocks(scores, mass=0.6)], [reference(scores, mass=0.6)])


def test_numpy() -> None:
    scores = normal(1, 2, 5, 24)
    out = np.empty(scores.shape, np.bool_)
    _C.select_blocks(scores.numpy(), out, count=np.full((1, 1), 7))
    assert_same_bits([torch.from_numpy(out)], [select_blocks(scores, count=7)])
    assert _C.select_blocks_scratch(scores.numpy()) == 0
    assert _C.select_blocks_scratch(np.empty((1, 2, 3, 3073), np.float32)) == 2 * 3 * 3073 * 4


X = normal(1, 2, 3, 8)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (X[0], {"count": 1}, r"scores must have 4 dimensions \[B, H, R, C\], got \[2, 3, 8\]"),
        (X.long(), {"count": 1}, "scores must be float32, float16, bfloat16 or float64, got int64"),
        (X, {}, "count or mass must be given, got neither"),
        (X, {"count": 1, "mass": 0.5}, "count or mass must be given, got both"),
        (X, {"count": 0}, "count must be at least 1, got 0"),
        (X, {"count": torch.tensor([[1, -3]])}, "count must be at least 1, got -3"),
        (X, {"count": torch.tensor([[1.0]])}, "count must be int64, got float32"),
        (X, {"count": torch.ones(1, 3, dtype=torch.int64)},
         r"count must have shape \[1 or 1, 2 or 1\], got \[1, 3\]"),
        (X, {"mass": torch.tensor([0.5])}, r"mass must have shape .* got \[1\]"),
        (X, {"mass": torch.tensor([[1]])}, "mass must be float32 or float64, got int64"),
        *((X, {"mass": mass}, "mass must be above 0 and at most 1, got") for mass in (0.0, 1.1, math.nan)),
        (X, {"count": 1, "out": torch.ones(1, 2, 3, 7, dtype=torch.bool)},
         r"out must have shape \[1, 2, 3, 8\], got \[1, 2, 3, 7\]"),
        (X, {"count": 1, "out": X.clone()}, "out must be bool, got float32"),
    ],
)  # fmt: skip
def test_refuses(scores: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::select_blocks: {message}"):
        select_blocks(scores, **options)


@pytest.mark.parametrize(
    ("limit", "message"),
    [({"count": torch.tensor([[0]])}, "count must be at least 1"),
     ({"mass": torch.tensor([[math.nan]])}, "mass must be above 0 and at most 1")],
    ids=["count", "mass"],
)  # fmt: skip
def test_the_device_refuses(limit: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        simt_worker().call("select_blocks", X, out=torch.ones(X.shape, dtype=torch.bool), **limit)
