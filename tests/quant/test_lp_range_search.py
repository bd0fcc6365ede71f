# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about lp_range_search: the published search, accuracy of powers, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.quant import lp_range_search
from fastdiff.quant.lp_range_search import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def loss(x: Tensor, scale: Tensor, zero_point: Tensor, p: float, bits: int) -> Tensor:
    """Sum over the last dimension of the errors' powers, in float64, by the definition."""
    half = 2 ** (bits - 1)
    s, z = scale.double()[..., None], zero_point.double()[..., None]
    q = (x.double() / s).round().add(z).clamp(-half, half - 1)
    return (x.double() - (q - z) * s).abs().pow(p).sum(-1)


def ptq4dm(x: Tensor, *, per_channel: bool, candidates: int = 100) -> tuple[Tensor, Tensor]:
    """ObserverBase.perform_1D_search and loss_fx of the published code, with its unsigned numbers."""
    y = x.flatten(1) if per_channel else x.reshape(1, -1)
    x_min, x_max = torch.aminmax(y, dim=1)
    side = "pos" if x.min() >= 0 else "neg" if x.max() <= 0 else "no"
    xrange = torch.max(x_min.abs(), x_max)
    best_score = torch.full_like(x_min, 1e10)
    best = [x_min, x_max]
    for i in range(1, candidates + 1):
        thres = xrange / candidates * i
        new_min = torch.zeros_like(x_min) if side == "pos" else -thres
        new_max = torch.zeros_like(x_max) if side == "neg" else thres
        scale = ((new_max - new_min) / 255).clamp(min=1e-8)[:, None]
        zero = (0 - torch.round(new_min[:, None] / scale)).clamp(0, 255)
        if side == "no":
            zero = torch.full_like(zero, 128)  # round(127.5), whatever the quotient is rounded to
        x_q = (torch.clamp(torch.round(y / scale) + zero, 0, 255) - zero) * scale
        score = (y - x_q).abs().pow(2.4).mean(1)
        best = [
            torch.where(score < best_score, new, old)
            for new, old in zip((new_min, new_max), best, strict=True)
        ]
        best_score = torch.min(score, best_score)
    return (best[1] - best[0]) / 255, zero[:, 0]


@pytest.mark.parametrize("sides", ["both", "pos", "neg"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["rows", "tensor"])
def test_is_the_published_search(sides: str, per_channel: bool) -> None:
    x = normal(6, 4, 9, 9, dtype=F64)
    x = {"both": x, "pos": x.relu(), "neg": -x.abs()}[sides]
    scale, zero = ptq4dm(x, per_channel=per_channel)
    got = lp_range_search(x, dim=0 if per_channel else None)
    torch.testing.assert_close(got[0].reshape(-1), scale.float(), rtol=1e-6, atol=0)
    assert torch.equal(got[1].reshape(-1) + 128, zero.int())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nothing_tried_is_better(data: st.DataObject) -> None:
    """Of all candidates by the definition in float64, up to the accuracy that is promised."""

    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    rows, count = draw(1, 4, "rows"), data.draw(st.sampled_from([1, 7, 64, 65, 1000, 5000]), "count")
    candidates, bits = draw(1, 40, "candidates"), draw(1, 8, "bits")
    p = data.draw(st.sampled_from([1.0, 1.5, 2.0, 2.4, 3.5, 4.0]), "p")
    x = normal(rows, count, dtype=data.draw(st.sampled_from([F32, BF16, F16, F64]))).pow(3)
    if data.draw(st.booleans(), "one-sided"):
        x = x.abs()
    scale, zero = lp_range_search(x, p=p, candidates=candidates, bits=bits, dim=0)
    unit = x.double().abs().amax(1) / (candidates * (2**bits - 1)) * (1 if bool((x >= 0).all()) else 2)
    chosen = (scale.double() / unit).round()
    assert bool(((chosen * unit - scale.double()).abs() <= 1e-6 * scale).all())
    got = loss(x, chosen * unit, zero, p, bits)
    of_all = torch.stack([loss(x, unit * i, zero, p, bits) for i in range(1, candidates + 1)])
    rounding = count * (chosen * unit * 2**bits * 2.0**-22).pow(p)  # of quotients, which float32 has to hold
    assert bool((got <= of_all.amin(0) * (1 + 1e-4) + rounding).all())


def test_strides_do_not_matter() -> None:
    x = normal(8, 6, 5, 5)
    for dim in (None, 0):
        want = lp_range_search(x, dim=dim)
        assert_same_bits(lp_range_search(x.to(memory_format=torch.channels_last), dim=dim), want)
    assert_same_bits(lp_range_search(normal(5000)[::2]), lp_range_search(normal(5000)[::2].clone()))


def test_small_tensors_have_the_least_scale() -> None:
    scale, _ = lp_range_search(normal(2, 9) * 1e-9, dim=0)
    assert scale.tolist() == [pytest.approx(1e-8)] * 2
    assert float(lp_range_search(torch.zeros(3))[0]) == pytest.approx(1e-8)


def test_rows_that_are_not_finite_leave_others_alone() -> None:
    x = normal(4, 300)
    want, _ = lp_range_search(x, dim=0)
    x[1, 70], x[2, 0] = float("inf"), float("nan")
    scale, zero = lp_range_search(x, dim=0)
    assert scale.isnan().tolist() == [False, True, True, False]
    assert_same_bits([scale[::3]], [want[::3]])
    assert zero.tolist() == [0] * 4


def test_many_chunks_are_shared_among_threads() -> None:
    x = normal(3, 30000)
    got = lp_range_search(x, candidates=10, dim=0)
    assert_same_bits(got, reference(x, candidates=10, dim=0))
    torch.set_num_threads(1)
    assert_same_bits(lp_range_search(x, candidates=10, dim=0), got)


def test_numpy() -> None:
    x = normal(3, 70)
    out = np.empty(3, np.float32), np.empty(3, np.int32)
    _C.lp_range_search(x.numpy(), out, by_rows=True)
    assert_same_bits([torch.from_numpy(t) for t in out], lp_range_search(x, dim=0))


X = normal(3, 8)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X.int(), {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (X[:, :0], {}, r"x must have elements to find the range of, got \[3, 0\]"),
        (X[:0], {}, r"x must have elements to find the range of, got \[0, 8\]"),
        (X[0, 0], {"dim": 0}, r"x must have at least 1 dimension \[rows, ...\] for dim=0, got \[\]"),
        (X, {"p": 0.0}, "p must be above 0 and at most 4"),
        (X, {"candidates": 257}, "candidates must be 1 to 256, got 257"),
        (X, {"bits": 9}, "bits must be 1 to 8, got 9"),
        (X, {"out": (torch.empty(1), torch.empty((), dtype=torch.int32))}, r"scale must have shape \[\], got \[1\]"),
        (X, {"out": (torch.empty(()), torch.empty(()))}, "zero_point must be int32, got float32"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::lp_range_search: {message}"):
        lp_range_search(x, **options)


def test_refuses_another_dim() -> None:
    with pytest.raises(ValueError, match="dim must be None or 0, got 1"):
        lp_range_search(X, dim=1)
