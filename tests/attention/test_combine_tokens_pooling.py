# SPDX-License-Identifier: Apache-2.0
"""Pooling and un-pooling of a grid's tokens, and masked tokens, against what PyTorch and the papers' code do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import adaptive_pool_tokens, scatter_tokens, unpool_tokens
from torch import Tensor
from torch.nn import functional as F

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
POOLS = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def channels_first(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.mT.reshape(x.shape[0], x.shape[2], *grid)


GRIDS = [
    ((8,), (3,)),
    ((7,), (7,)),
    ((12, 12), (4, 4)),
    ((32, 32), (8, 8)),
    ((10, 7), (4, 3)),
    ((9, 16), (5, 16)),
    ((3, 4), (5, 9)),
    ((4, 6, 5), (2, 4, 3)),
]
each_grid = pytest.mark.parametrize(("grid", "to"), GRIDS, ids=str)


@each_grid
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_pools_as_pytorch(grid: tuple[int, ...], to: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(2, math.prod(grid), 24, dtype=dtype)
    want = POOLS[len(grid)](channels_first(x.double(), grid), to).flatten(2).mT
    got = adaptive_pool_tokens(x, grid, to)
    torch.testing.assert_close(got, want.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@each_grid
def test_unpools_as_pytorch(grid: tuple[int, ...], to: tuple[int, ...]) -> None:
    """Exactly, to larger grids and smaller ones."""
    for small, large in ((to, grid), (grid, to)):
        x, residual = normal(2, math.prod(small), 24), normal(2, math.prod(large), 24, seed=1)
        want = F.interpolate(channels_first(x, small), large, mode="nearest").flatten(2).mT
        assert torch.equal(unpool_tokens(x, small, large), want)
        assert torch.equal(unpool_tokens(x, small, large, residual=residual), want + residual)


def test_any_two_sizes_are_nearest() -> None:
    for size in range(1, 40):
        x = torch.arange(float(size))[None, :, None]
        for larger in range(1, 70):
            want = F.interpolate(x.mT, larger, mode="nearest").mT
            assert torch.equal(unpool_tokens(x, (size,), (larger,)), want), (size, larger)


def test_recovery_of_flexdit() -> None:
    """The published block, and the product on few tokens that is the same."""
    few, full = normal(2, 16, 24, dtype=F64), normal(2, 64, 24, dtype=F64, seed=1)
    w1, w2 = (torch.nn.Linear(24, 24, dtype=F64) for _ in range(2))
    up = F.interpolate(few.mT.reshape(2, 24, 4, 4), scale_factor=2, mode="nearest").flatten(2).mT
    got = unpool_tokens(w1(few), (4, 4), (8, 8), residual=w2(full))
    torch.testing.assert_close(got, w1(up) + w2(full))


def masked_transformer(x: Tensor, ids_restore: Tensor, mask_token: Tensor) -> Tensor:
    """The restoring of MDT: mask tokens are appended, and all are put into order."""
    masked = mask_token.expand(x.shape[0], ids_restore.shape[1] - x.shape[1], -1)
    whole = torch.cat([x, masked], 1)
    return whole.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[2]))


def test_restores_masked_tokens() -> None:
    order = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)).argsort(1)
    x, mask_token, positions = (
        normal(2, 8, 24),
        normal(24, seed=1),
        normal(1, 20, 24, seed=2).expand(2, 20, 24),
    )
    want = masked_transformer(x, order.argsort(1), mask_token)
    assert torch.equal(scatter_tokens(x, order[:, :8], 20, fill=mask_token), want)
    got = scatter_tokens(x, order[:, :8], 20, fill=mask_token, residual=positions)
    assert torch.equal(got, want + positions)


def test_the_last_of_several_wins() -> None:
    x = torch.arange(4.0)[None, :, None]
    got = scatter_tokens(x, torch.tensor([[2, 0, 2, 0]]), 3, fill=torch.tensor([9.0]))
    assert got.flatten().tolist() == [3.0, 9.0, 2.0]


def test_scatter_refuses_what_is_not_there() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        scatter_tokens(normal(1, 2, 8), torch.tensor([[0, 5]]), 4)


def test_gradients() -> None:
    x = normal(2, 20, 2, dtype=F64).requires_grad_()
    few = normal(2, 6, 2, dtype=F64).requires_grad_()
    full = normal(2, 20, 2, dtype=F64).requires_grad_()
    kept = torch.tensor([[3, 0, 7, 9, 1, 19]])

    def unpooled(few: Tensor, full: Tensor) -> Tensor:
        return unpool_tokens(few, (2, 3), (4, 5), residual=full)

    for function, inputs in (
        (lambda x: adaptive_pool_tokens(x, (4, 5), (3, 2)), (x,)),
        (unpooled, (few, full)),
        (lambda few: scatter_tokens(few, kept, 20), (few,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_lists_of_inference_mode_are_of_use_outside() -> None:
    grid, to = (5, 11), (2, 3)
    with torch.inference_mode():
        adaptive_pool_tokens(normal(1, 55, 8), grid, to)
        unpool_tokens(normal(1, 6, 8), to, grid)
    x = normal(1, 55, 8).requires_grad_()
    unpool_tokens(adaptive_pool_tokens(x, grid, to), to, grid).sum().backward()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(55.0 * 8))


def test_compiles_to_one_graph() -> None:
    def function(x: Tensor) -> Tensor:
        return unpool_tokens(adaptive_pool_tokens(x, (6, 5), (2, 2)), (2, 2), (6, 5), residual=x)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = normal(2, 30, 8)
    assert torch.equal(compiled(x), function(x))
    (got,), (want,) = (
        torch.autograd.grad(f(leaf).square().sum(), leaf)
        for f, leaf in ((compiled, x.clone().requires_grad_()), (function, x.clone().requires_grad_()))
    )
    assert torch.equal(got, want)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("function", "grid", "to", "message"),
    [
        (adaptive_pool_tokens, (4, 4), (2, 2), r"x must have shape \[B, 16, C\] for the grid \(4, 4\)"),
        (unpool_tokens, (4, 5), (2,), r"grid and to must be as many sizes above 0, got \(4, 5\) and \(2,\)"),
        (adaptive_pool_tokens, (4, 5), (0, 2), "grid and to must be as many sizes above 0"),
        (unpool_tokens, (), (), "grid and to must be as many sizes above 0"),
    ],
)  # fmt: skip
def test_refuses(function: Any, grid: tuple[int, ...], to: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^fastdiff.{function.__name__}: {message}"):
        function(normal(1, 20, 8), grid, to)
