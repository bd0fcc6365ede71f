# SPDX-License-Identifier: Apache-2.0
"""The two stencils of a Laplacian pyramid in plain PyTorch, step by step as they are defined: blur, then resize."""

from __future__ import annotations

import torch
from torch import Tensor

BINOMIAL = (1, 4, 6, 4, 1)  # of 16


def reference_down(x: Tensor) -> Tensor:
    """``[*, H, W] -> [*, ceil(H / 2), ceil(W / 2)]``: blur with a reflection beyond the ends, mean of each pair.

    An odd number of rows (columns) is made even by one more, the reflection of the last but one.
    """
    for dim in (-2, -1):
        n = x.shape[dim]
        if n % 2 == 1:
            x = torch.cat((x, _rows(x, dim, [max(n - 2, 0)])), dim)
        blurred = _blur(x, dim)
        pairs = blurred.unflatten(dim, (-1, 2))
        x = pairs.mean(dim)
    return x


def reference_up(x: Tensor, height: int, width: int) -> Tensor:
    """``[*, ceil(height / 2), ceil(width / 2)] -> [*, height, width]``: bilinear resize by 2, then blur, then cut."""
    for dim, n in ((-2, height), (-1, width)):
        c = x.shape[dim]
        before = _rows(x, dim, [max(i - 1, 0) for i in range(c)])
        after = _rows(x, dim, [min(i + 1, c - 1) for i in range(c)])
        pairs = torch.stack((0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after), dim)
        x = _blur(pairs.flatten(dim - 1, dim), dim).narrow(dim, 0, n)
    return x


def _blur(x: Tensor, dim: int) -> Tensor:
    n = x.shape[dim]
    terms = (
        w / 16 * _rows(x, dim, [_reflected(i + k - 2, n) for i in range(n)]) for k, w in enumerate(BINOMIAL)
    )
    return torch.stack(list(terms)).sum(0)


def _reflected(i: int, n: int) -> int:
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


def _rows(x: Tensor, dim: int, which: list[int]) -> Tensor:
    return x.index_select(dim, torch.tensor(which, device=x.device))
