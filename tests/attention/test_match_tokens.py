# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about match_tokens: ties, NaN, sizes that need a graphic card's or a thread's edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import match_tokens
from fastdiff.attention.match_tokens import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def similarities(a: Tensor, b: Tensor) -> Tensor:
    x, y = (t.double() / t.double().norm(dim=-1, keepdim=True) for t in (a, b))
    return x @ y.mT


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    """Of scores that rounding cannot tell apart either may be chosen."""

    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, rows, columns, c = draw(1, 3, "B"), draw(0, 150, "N_a"), draw(1, 200, "N_b"), draw(1, 300, "C")
    dtype = data.draw(st.sampled_from([F32, BF16, F16, F64]))
    x, y = normal(b, rows, c, dtype=dtype), normal(b, columns, c, dtype=dtype, seed=1)
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    score, index = match_tokens(x, y)
    assert_close(score, reference(x, y)[0], **tolerance(x, y))
    chosen = similarities(x, y).gather(2, index[..., None])[..., 0]
    assert_close(chosen.to(score.dtype), score, **tolerance(x, y))


def test_the_first_of_equal_ones() -> None:
    """On every instruction set, within a tile, across tiles, and for scores of both zeros."""
    x, y = normal(1, 70, 40), normal(1, 37, 40, seed=1)
    copies = torch.cat([y, y, y, y, y, y, y, y], 1)
    for isa in usable_isas():
        with instruction_set(isa):
            assert_same_bits(match_tokens(x, copies), match_tokens(x, y), isa)
            orthogonal = torch.eye(6)[None, :1], -torch.eye(6)[None, 1:]
            assert int(match_tokens(*orthogonal)[1]) == 0


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_nan_as_torch_max(dtype: torch.dtype) -> None:
    x, y = normal(1, 40, 24, dtype=dtype), normal(1, 130, 24, dtype=dtype, seed=1)
    x[0, 3, 2], x[0, 20] = float("nan"), 0.0
    for nans in ([], [7], [120, 50]):
        y[0, nans] = float("nan")
        for isa in usable_isas():
            with instruction_set(isa):
                got, want = match_tokens(x, y), similarities(x, y).max(-1)
                assert_same_bits([got[1], got[0].isnan()], [want.indices, want.values.isnan()], isa)


def test_infinities_as_the_quotient() -> None:
    x, y = normal(1, 4, 8), normal(1, 5, 8, seed=1)
    x[0, 1, 2] = y[0, 3, 4] = float("inf")
    got, want = match_tokens(x, y), similarities(x, y).max(-1)
    assert_same_bits([got[1]], [want.indices])


def test_norms_do_not_depend_on_scale() -> None:
    x, y = normal(1, 9, 40), normal(1, 7, 40, seed=1)
    powers = 2.0 ** torch.arange(-20, 25, 5)
    want = match_tokens(x, y)
    assert_same_bits(match_tokens(x * powers[:, None], y * 2.0**30), want)


def test_numpy() -> None:
    x, y = normal(2, 9, 24), normal(2, 7, 24, seed=1)
    score, index = np.empty((2, 9), np.float32), np.empty((2, 9), np.int64)
    _C.match_tokens(x.numpy(), y.numpy(), [score, index])
    assert_same_bits([torch.from_numpy(t) for t in (score, index)], match_tokens(x, y))
    with pytest.raises(ValueError, match="out must be two arrays, score and index, got 1"):
        _C.match_tokens(x.numpy(), y.numpy(), [score])


A, B = normal(2, 5, 8), normal(2, 3, 8)


@pytest.mark.parametrize(
    ("a", "b", "out", "message"),
    [
        (normal(5, 8), B, None, r"a must have 3 dimensions \[B, N, C\], got \[5, 8\]"),
        (A.int(), B, None, "a must be float32, float16, bfloat16 or float64, got int32"),
        (A, B.half(), None, "b must be float32 like a, got float16"),
        (A, normal(2, 3, 9), None, r"b must have shape \[2, N, 8\] to go with a, got \[2, 3, 9\]"),
        (A, normal(1, 3, 8), None, r"b must have shape \[2, N, 8\] to go with a, got \[1, 3, 8\]"),
        (A, B[:, :0], None, "b must have 1 to 16777216 tokens, got 0"),
        (A, B, (normal(2, 5), normal(2, 5)), "index must be int64, got float32"),
        (A, B, (normal(2, 5).double(), normal(2, 5).long()), "score must be float32, got float64"),
        (A, B, (normal(2, 4), normal(2, 5).long()), r"score must have shape \[2, 5\], got \[2, 4\]"),
        (A, B, (A[..., 0], normal(2, 5).long()), "score must not share memory with a"),
    ],
)  # fmt: skip
def test_refuses(a: Tensor, b: Tensor, out: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::match_tokens: {message}"):
        match_tokens(a, b, out=out)
