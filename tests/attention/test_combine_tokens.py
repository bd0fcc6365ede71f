# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about combine_tokens: scatter_reduce, the adjoint, gradients of weights, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import combine_tokens
from fastdiff.attention.combine_tokens import reference, tolerance
from fastdiff.attention.combine_tokens_grad import transpose
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def lists(b: int, m: int, e: int, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    bounds = torch.randint(0, e + 1, (b, m + 1), generator=g).sort(1).values
    return bounds, torch.randint(0, n, (b, e), generator=g)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, n, m = draw(1, 3, "B"), draw(1, 9, "N"), draw(0, 9, "M")
    c, e = draw(1, 1500, "C"), draw(0, 30, "E")
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    x = normal(b, n, c, dtype=data.draw(dtypes))
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    some = st.sampled_from([1, b])
    given_ = [x, lists(data.draw(some), m, e, n)[0], lists(data.draw(some), m, e, n)[1]]
    if data.draw(st.booleans(), "weights"):
        given_.append(normal(data.draw(some), e, dtype=data.draw(dtypes), seed=1))
    assert_close(combine_tokens(*given_), reference(*given_), **tolerance(*given_))


def test_is_scatter_reduce() -> None:
    """The lists of an index are what a scatter adds up."""
    x, index = normal(2, 60, 40), torch.randint(0, 9, (2, 60), generator=torch.Generator().manual_seed(0))
    order = index.argsort(dim=1, stable=True)
    bounds = torch.stack([torch.bincount(row, minlength=9).cumsum(0) for row in index])
    offsets = torch.nn.functional.pad(bounds, (1, 0))
    want = torch.zeros(2, 9, 40).scatter_add(1, index[..., None].expand(-1, -1, 40), x)
    torch.testing.assert_close(combine_tokens(x, offsets, order), want)


def test_the_adjoint_is_over_the_transposed_lists() -> None:
    """<A x, y> = <x, Aᵀ y>, also where entries are in no list, and for lists that some samples share."""
    for samples in ((2, 2, 2), (1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)):
        offsets, members = lists(samples[0], 6, 20, 5)[0], lists(samples[1], 6, 20, 5)[1]
        weights = normal(samples[2], 20, dtype=F64)
        x, y = normal(2, 5, 3, dtype=F64), normal(2, 6, 3, dtype=F64, seed=1)
        back = combine_tokens(y, *transpose(offsets, members, weights, 5))
        there = combine_tokens(x, offsets, members, weights)
        torch.testing.assert_close((there * y).sum(), (x * back).sum())


def test_strides_beyond_32_bits() -> None:
    """The memory between the samples is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 100, dtype=BF16)
    x = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(normal(2, 3, 8, dtype=BF16))
    mine = lists(2, 5, 9, 3)
    assert_same_bits([combine_tokens(x, *mine)], [combine_tokens(x.contiguous(), *mine)])


def test_gradients() -> None:
    x, one, each = (normal(*s, dtype=F64).requires_grad_() for s in ((2, 4, 3), (1, 11), (2, 11)))
    for samples in (1, 2):
        offsets, members = lists(samples, 5, 11, 4)
        for weights in (one, each):

            def function(x: Tensor, w: Tensor, o: Tensor = offsets, m: Tensor = members) -> Tensor:
                return combine_tokens(x, o, m, w)

            assert torch.autograd.gradcheck(function, (x, weights))
            assert torch.autograd.gradgradcheck(function, (x, weights))
    assert torch.autograd.gradcheck(lambda w: combine_tokens(x.detach(), offsets, members, w), each)


def test_gradients_have_their_tensors_dtypes() -> None:
    x, weights = normal(2, 4, 8, dtype=BF16).requires_grad_(), normal(1, 11).requires_grad_()
    combine_tokens(x, *lists(2, 5, 11, 4), weights).sum().backward()
    assert (x.grad.dtype, weights.grad.dtype) == (BF16, F32)


def test_numpy() -> None:
    x, (offsets, members), weights = normal(2, 7, 24), lists(2, 5, 12, 7), normal(1, 12)
    out = np.empty((2, 5, 24), np.float32)
    _C.combine_tokens(x.numpy(), offsets.numpy(), members.numpy(), out, weights=weights.numpy())
    assert_same_bits([torch.from_numpy(out)], [combine_tokens(x, offsets, members, weights)])


X, OFFSETS, MEMBERS = normal(2, 5, 8), torch.tensor([[0, 2, 3]]), torch.tensor([[0, 4, 1]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": normal(5, 8)}, r"x must have 3 dimensions \[B, N, C\], got \[5, 8\]"),
        ({"x": X.int()}, "x must be float32, float16, bfloat16 or float64, got int32"),
        ({"offsets": OFFSETS.float()}, "offsets must be int64 or int32, got float32"),
        ({"offsets": OFFSETS.expand(3, 3)}, r"offsets must have shape \[2 or 1, M\], got \[3, 3\]"),
        ({"offsets": OFFSETS[:, :0]}, r"offsets must have a number more than there are lists, got \[1, 0\]"),
        ({"offsets": OFFSETS + 1}, "offsets must ascend from 0 to at most 3, got 3 and then 4 at list 1"),
        ({"offsets": OFFSETS - 1}, "offsets must ascend from 0 to at most 3, got -1 and then 1 at list 0"),
        ({"offsets": OFFSETS.flip(1)}, "offsets must ascend from 0 to at most 3, got 3 and then 2 at list 0"),
        ({"members": MEMBERS + 1}, "members must be within 0 and 4, got 5 at entry 1"),
        ({"members": MEMBERS - 1}, "members must be within 0 and 4, got -1 at entry 0"),
        ({"members": MEMBERS.double()}, "members must be int64 or int32, got float64"),
        ({"weights": normal(1, 4)}, r"weights must have shape \[2 or 1, 3\], got \[1, 4\]"),
        ({"weights": normal(1, 3).int()}, "weights must be float32.*got int32"),
        ({"out": normal(2, 3, 8)}, r"out must have shape \[2, 2, 8\], got \[2, 3, 8\]"),
        ({"out": normal(2, 2, 8).half()}, "out must be float32, got float16"),
        ({"out": torch.zeros(8).expand(2, 2, 8)}, "out must not have elements that share memory"),
    ],
)  # fmt: skip
def test_refuses(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::combine_tokens: {message}"):
        combine_tokens(**({"x": X, "offsets": OFFSETS, "members": MEMBERS} | changed))


def test_what_is_in_no_list_is_not_looked_at() -> None:
    members = torch.tensor([[99, 4, -7]])
    got = combine_tokens(X, torch.tensor([[1, 2]]), members)
    assert_same_bits([got], [X[:, 4:]])


def test_refuses_overlap_and_gradients_with_out() -> None:
    room = normal(2, 5, 8)
    with pytest.raises(RuntimeError, match="out must not share memory with x"):
        combine_tokens(room, OFFSETS, MEMBERS, out=room[:, :2])
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        combine_tokens(normal(2, 5, 8).requires_grad_(), OFFSETS, MEMBERS, out=torch.empty(2, 2, 8))
