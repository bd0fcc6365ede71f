# SPDX-License-Identifier: Apache-2.0
"""TokenMerge against the algorithm of "Token Merging for Fast Stable Diffusion", step by step in PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from fastdiff import TokenMerge
from torch import Tensor

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def normal(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


class Published(NamedTuple):
    """A matching as lists of tokens, one sample at a time: who stays, who goes where, who is a destination."""

    staying: list[list[int]]
    merged: list[list[tuple[int, int]]]
    destinations: list[int]

    def merge(self, x: Tensor, mode: str) -> Tensor:
        out = []
        for sample, (staying, merged) in zip(x, zip(self.staying, self.merged, strict=True), strict=True):
            groups = {d: [d] for d in self.destinations}
            for source, destination in merged:
                groups[destination].append(source)
            if mode == "drop":
                groups = {d: [d] for d in self.destinations}
            means = [sample[g].sum(0) if mode == "sum" else sample[g].mean(0) for g in groups.values()]
            out.append(torch.stack([*(sample[n] for n in staying), *means]))
        return torch.stack(out)

    def unmerge(self, x: Tensor, tokens: int) -> Tensor:
        out = x.new_empty(x.shape[0], tokens, x.shape[2])
        for b, (staying, merged) in enumerate(zip(self.staying, self.merged, strict=True)):
            first = {d: len(staying) + n for n, d in enumerate(self.destinations)}
            for n, token in enumerate(staying):
                out[b, token] = x[b, n]
            for d, place in first.items():
                out[b, d] = x[b, place]
            for source, d in merged:
                out[b, source] = x[b, first[d]]
        return out


def published(
    metric: Tensor, grid: tuple[int, int], stride: tuple[int, int], r: int, choice: Tensor
) -> Published:
    """`choice` [rows, columns]: which token of each cell is its destination."""
    (height, width), (down, across) = grid, stride
    destinations = sorted(
        (i * down + int(choice[i, j]) // across) * width + j * across + int(choice[i, j]) % across
        for i in range(height // down)
        for j in range(width // across)
    )
    sources = [n for n in range(height * width) if n not in destinations]
    unit = metric / metric.norm(dim=-1, keepdim=True)
    staying, merged = [], []
    for sample in unit:
        score, partner = (sample[sources] @ sample[destinations].T).max(-1)
        order = score.argsort(descending=True).tolist()
        merged.append([(sources[n], destinations[int(partner[n])]) for n in order[:r]])
        staying.append([sources[n] for n in order[r:]])
    return Published(staying, merged, destinations)


def choices(grid: tuple[int, int], stride: tuple[int, int], seed: int | None) -> Tensor:
    cells = (grid[0] // stride[0], grid[1] // stride[1], 1)
    if seed is None:
        return torch.zeros(cells[:2], dtype=torch.int64)
    g = torch.Generator().manual_seed(seed)
    return torch.randint(stride[0] * stride[1], cells, generator=g)[..., 0]


@pytest.mark.parametrize(
    ("grid", "stride", "r", "seed"),
    [
        ((8, 8), (2, 2), 32, 3),
        ((8, 8), (2, 2), 16, None),
        ((7, 9), (2, 2), 20, 5),
        ((6, 8), (3, 2), 0, 1),
        ((6, 8), (1, 4), 48, 1),
        ((5, 5), (5, 5), 12, 2),
    ],
    ids=str,
)
def test_is_the_published_matching(
    grid: tuple[int, int], stride: tuple[int, int], r: int, seed: int | None
) -> None:
    tokens = grid[0] * grid[1]
    metric, x = normal(2, tokens, 24), normal(2, tokens, 10, seed=1)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    m = TokenMerge.match(metric, grid=grid, stride=stride, r=r, random=seed is not None, generator=generator)
    want = published(metric, grid, stride, r, choices(grid, stride, seed))
    for mode in ("mean", "sum", "drop"):
        torch.testing.assert_close(m.merge(x, mode=mode), want.merge(x, mode))
    y = m.merge(x)
    assert torch.equal(m.unmerge(y), want.unmerge(y, tokens))
    assert torch.equal(m.unmerge(y, residual=x), want.unmerge(y, tokens) + x)


def test_a_ratio_is_a_share_of_all_tokens() -> None:
    metric = normal(1, 64, 8)
    m = TokenMerge.match(metric, grid=(8, 8), ratio=0.4, random=False)
    assert m.merge(metric).shape == (1, 64 - 25, 8)
    everything = TokenMerge.match(metric, grid=(8, 8), ratio=1.0, random=False)
    assert everything.merge(metric).shape == (1, 16, 8)


def test_alike_tokens_are_merged_without_loss() -> None:
    """Each cell of four equal tokens becomes one."""
    cells = normal(1, 4, 4, 16)
    x = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    m = TokenMerge.match(x, grid=(8, 8), r=48, random=False)
    torch.testing.assert_close(m.unmerge(m.merge(x)), x)


def test_sizes_are_weights() -> None:
    """Merging twice with sizes is the mean over all that was merged."""
    x = normal(2, 64, 8)
    first = TokenMerge.match(x, grid=(8, 8), r=32, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 64, dtype=F64)
    size = first.merge(ones.expand(2, 64)[..., None], mode="sum")[..., 0]
    assert torch.equal(size.sum(1), torch.full((2,), 64.0, dtype=F64))
    once = first.merge(x, size=ones)
    torch.testing.assert_close(once, first.merge(x))
    second = TokenMerge.match(once, grid=(4, 8), r=16, random=False)
    twice = second.merge(once, size=size)
    totals = second.merge(size[..., None], mode="sum")
    torch.testing.assert_close((twice * totals).sum(1), x.sum(1))
    torch.testing.assert_close(second.merge(once, size=size, mode="sum"), twice * totals)


def test_gradients() -> None:
    x = normal(2, 24, 3).requires_grad_()
    m = TokenMerge.match(x, grid=(4, 6), r=10, random=False)
    few = normal(2, 14, 3).requires_grad_()
    size = normal(1, 24).abs().requires_grad_()
    for function, inputs in (
        *((lambda x, mode=mode: m.merge(x, mode=mode), (x,)) for mode in ("mean", "sum", "drop")),
        (m.unmerge, (few,)),
        (lambda x, size: m.merge(x, size=size), (x, size)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x = normal(2, 64, 32, dtype=dtype)
    m = TokenMerge.match(x, grid=(8, 8), r=32, generator=torch.Generator().manual_seed(0))
    got = m.unmerge(m.merge(x))
    want = m.unmerge(m.merge(x.double()))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_compiles_to_one_graph() -> None:
    def function(x: Tensor) -> Tensor:
        m = TokenMerge.match(x, grid=(4, 6), r=10, random=False)
        return m.unmerge(m.merge(x), residual=x)

    x = normal(2, 24, 8)
    assert torch.equal(torch.compile(function, backend="aot_eager", fullgraph=True)(x), function(x))
    torch._dynamo.reset()


X = normal(1, 24, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (5, 5), "r": 1}, r"metric must be \[B, N, C\] with N of the grid \(5, 5\)"),
        ({"grid": (4, 6), "r": 1, "stride": (5, 2)}, r"stride \(5, 2\) within it"),
        ({"grid": (4, 6)}, "give ratio or r, got None and None"),
        ({"grid": (4, 6), "r": 1, "ratio": 0.5}, "give ratio or r, got 0.5 and 1"),
        ({"grid": (4, 6), "r": 25}, "r must be from 0 to 24, got 25"),
        ({"grid": (4, 6), "ratio": -0.5}, "r must be from 0 to 24, got -12"),
    ],
)  # fmt: skip
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^fastdiff.TokenMerge.match: .*{message}"):
        TokenMerge.match(X, **options)


def test_refuses_an_unknown_mode() -> None:
    m = TokenMerge.match(X, grid=(4, 6), r=3, random=False)
    with pytest.raises(ValueError, match=r"mode must be one of .* got 'max'"):
        m.merge(X, mode="max")
