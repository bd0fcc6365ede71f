# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about block_means: any shape, sums that do not drift, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import block_means
from fastdiff.attention.block_means import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    shape = draw(1, 2, "B"), draw(1, 3, "H"), draw(1, 150, "N"), draw(1, 150, "D")
    x = normal(*shape, dtype=data.draw(st.sampled_from([F32, BF16, F16, F64]))) + 1
    order = data.draw(st.permutations(range(4)), "memory order")
    x = x.permute(order).contiguous().permute(*(order.index(d) for d in range(4)))
    block = draw(1, 200, "block")
    got = block_means(x, block)
    assert_close(got, reference(x, block), **tolerance(x, block))
    if shape[2] >= block:  # the first tokens in their order, one after another
        sums = torch.zeros_like(got[:, :, 0])
        for n in range(block):
            sums += x[:, :, n]
        assert_same_bits([got[:, :, 0]], [sums / block])


def test_the_last_block_has_its_own_count() -> None:
    x = torch.ones(1, 1, 130, 8)
    assert torch.equal(block_means(x, 64), torch.ones(1, 1, 3, 8))


def test_threads_share_the_blocks() -> None:
    x = normal(2, 4, 500, 64)
    assert_close(block_means(x, 64), reference(x, 64), **tolerance(x, 64))


def test_numpy() -> None:
    x = normal(2, 3, 70, 24)
    out = np.empty((2, 3, 5, 24), np.float32)
    _C.block_means(x.numpy(), out, block=16)
    assert_same_bits([torch.from_numpy(out)], [block_means(x, 16)])


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (normal(2, 3, 8), {"block": 4}, r"x must have 4 dimensions \[B, H, N, D\], got \[2, 3, 8\]"),
        (normal(1, 1, 3, 8).int(), {"block": 4}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (normal(1, 1, 3, 8), {"block": 0}, "block must be at least 1, got 0"),
        (normal(1, 1, 3, 8), {"block": 2, "out": normal(1, 1, 1, 8)},
         r"out must have shape \[1, 1, 2, 8\], got \[1, 1, 1, 8\]"),
        (normal(1, 1, 3, 8).half(), {"block": 4, "out": normal(1, 1, 1, 8).half()},
         "out must be float32, got float16"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::block_means: {message}"):
        block_means(x, **options)
