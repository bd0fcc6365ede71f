# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about gather_tokens: torch.gather, gradients of all tensors, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import gather_tokens
from fastdiff.attention.gather_tokens import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def numbers(b: int, m: int, n: int, *, lowest: int = -1, seed: int = 0) -> Tensor:
    return torch.randint(lowest, n, (b, m), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, n, m, c = draw(1, 3, "B"), draw(1, 9, "N"), draw(1, 9, "M"), draw(1, 1500, "C")
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    x = normal(b, n, c, dtype=data.draw(dtypes))
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    index = numbers(data.draw(st.sampled_from([1, b])), m, n)
    options: dict[str, Any] = {}
    shape = data.draw(st.sampled_from([None, (c,), (1, 1, c), (b, 1, c), (1, m, c), (b, m, c)]), "fill")
    if shape is not None:
        options["fill"] = normal(*shape, dtype=data.draw(dtypes), seed=1)
    if data.draw(st.booleans(), "residual"):
        options["residual"] = normal(b, m, c, dtype=data.draw(dtypes), seed=2)
    assert_close(gather_tokens(x, index, **options), reference(x, index, **options), scale=8.0, terms=2)


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_is_torch_gather(dtype: torch.dtype) -> None:
    x, index = normal(2, 50, 320, dtype=dtype), numbers(2, 33, 50, lowest=0)
    want = x.gather(1, index[..., None].expand(-1, -1, 320))
    assert_same_bits([gather_tokens(x, index)], [want])


def test_many_rows_are_shared_among_threads() -> None:
    x, index, residual = normal(2, 300, 700), numbers(2, 400, 300), normal(2, 400, 700, seed=1)
    got = gather_tokens(x, index, residual=residual)
    assert_close(got, reference(x, index, residual=residual), scale=8.0, terms=2)


def test_over_the_residual() -> None:
    x, index, residual = normal(2, 5, 70), numbers(2, 9, 5), normal(2, 9, 70, seed=1)
    want = gather_tokens(x, index, residual=residual)
    assert gather_tokens(x, index, residual=residual, out=residual) is residual
    assert_same_bits([residual], [want])


def test_strides_beyond_32_bits() -> None:
    """The memory between the samples is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 100, dtype=BF16)
    x = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(normal(2, 3, 8, dtype=BF16))
    index = numbers(2, 5, 3)
    assert_same_bits([gather_tokens(x, index)], [gather_tokens(x.contiguous(), index)])
    out = torch.empty_like(room).as_strided((2, 5, 8), (2**31 + 7, 8, 1))
    assert_same_bits([gather_tokens(x, index, out=out)], [gather_tokens(x.contiguous(), index)])


def test_gradients() -> None:
    x, fill, residual = normal(2, 4, 3, dtype=F64), normal(2, 1, 3, dtype=F64), normal(2, 6, 3, dtype=F64)
    leaves = [t.requires_grad_() for t in (x, fill, residual)]
    for index in (numbers(2, 6, 4), numbers(1, 6, 4).int()):

        def function(x: Tensor, fill: Tensor, residual: Tensor, index: Tensor = index) -> Tensor:
            return gather_tokens(x, index, fill=fill, residual=residual)

        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)
    row = normal(3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda fill: gather_tokens(x.detach(), index, fill=fill), row)


def test_gradients_have_their_tensors_dtypes() -> None:
    x, residual = normal(2, 4, 8, dtype=BF16).requires_grad_(), normal(2, 6, 8).requires_grad_()
    fill = normal(8, dtype=F16).requires_grad_()
    gather_tokens(x, numbers(2, 6, 4), fill=fill, residual=residual).sum().backward()
    assert (x.grad.dtype, fill.grad.dtype, residual.grad.dtype) == (BF16, F16, F32)


def test_numpy() -> None:
    x, index, fill = normal(2, 7, 24), numbers(1, 5, 7), normal(24, seed=1)
    out = np.empty((2, 5, 24), np.float32)
    _C.gather_tokens(x.numpy(), index.numpy(), out, fill=fill.numpy())
    assert_same_bits([torch.from_numpy(out)], [gather_tokens(x, index, fill=fill)])


X, INDEX = normal(2, 5, 8), numbers(2, 3, 5)


@pytest.mark.parametrize(
    ("x", "index", "options", "message"),
    [
        (normal(5, 8), INDEX, {}, r"x must have 3 dimensions \[B, N, C\], got \[5, 8\]"),
        (X.int(), INDEX, {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (X, INDEX.float(), {}, "index must be int64 or int32, got float32"),
        (X, numbers(3, 3, 5), {}, r"index must have shape \[2 or 1, M\], got \[3, 3\]"),
        (X, INDEX[0], {}, r"index must have shape \[2 or 1, M\], got \[3\]"),
        (X, torch.tensor([[0, 5]]), {}, "index must be within -1 and 4, got 5 at place 1"),
        (X, torch.tensor([[-2, 0]]), {}, "index must be within -1 and 4, got -2 at place 0"),
        (X, torch.tensor([[0], [9]]), {}, "index must be within -1 and 4, got 9 at place 0"),
        (X[:, :0], INDEX.abs(), {}, "index must be within -1 and -1"),
        (X, INDEX, {"fill": normal(7)}, r"fill must have shape \[8\] or \[2 or 1, 3 or 1, 8\], got \[7\]"),
        (X, INDEX, {"fill": normal(2, 2, 8)}, r"fill must have shape \[8\].*got \[2, 2, 8\]"),
        (X, INDEX, {"fill": normal(8).int()}, "fill must be float32.*got int32"),
        (X, INDEX, {"residual": normal(2, 5, 8)}, r"residual must have shape \[2, 3, 8\], got \[2, 5, 8\]"),
        (X, INDEX, {"out": normal(2, 3, 9)}, r"out must have shape \[2, 3, 8\], got \[2, 3, 9\]"),
        (X, INDEX, {"out": normal(2, 3, 8).half()}, "out must be float32, got float16"),
        (X, INDEX, {"out": torch.zeros(8).expand(2, 3, 8)}, "out must not have elements that share memory"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, index: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::gather_tokens: {message}"):
        gather_tokens(x, index, **options)


def test_refuses_overlap_and_gradients_with_out() -> None:
    room = normal(2 * 3 * 8 + 8)
    residual, out = room[:48].view(2, 3, 8), room[8:].view(2, 3, 8)
    with pytest.raises(RuntimeError, match="out must be exactly residual or not share memory with residual"):
        gather_tokens(X, INDEX, residual=residual, out=out)
    with pytest.raises(RuntimeError, match="out must not share memory with fill"):
        gather_tokens(X, INDEX, fill=out[:1, :1], out=out)
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        gather_tokens(normal(2, 5, 8).requires_grad_(), INDEX, out=torch.empty(2, 3, 8))
