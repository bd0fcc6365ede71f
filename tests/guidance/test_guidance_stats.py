# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about guidance_stats: its layout, its accuracy, its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, guidance_stats
from fastdiff.guidance import cosine
from fastdiff.guidance.guidance_stats import reference, sums_of, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.trees import Canary

X = torch.ones(2, 3, 4)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def tensors(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count)]


REFUSALS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("integers", [X.long(), X], {}, "uncond must be float32, float16, bfloat16 or float64, got int64"),
    ("complex", [X, X.cfloat()], {}, "cond must be float32, float16, bfloat16 or float64, got complex64"),
    ("no batch", [X[0, 0, 0]] * 2, {}, r"uncond must have at least 1 dimension \[B, \*sample\], got a 0-d tensor"),
    ("shape", [X, X[:, :2]], {}, r"cond must have shape \[2, 3, 4\] like uncond, got \[2, 2, 4\]"),
    ("shape of an extra", [X, X, [X, X[:1]]], {},
     r"extras\[1\] must have shape \[2, 3, 4\] like uncond, got \[1, 3, 4\]"),
    ("extras", [X, X, [X] * 3], {}, "extras must be at most 2 tensors, got 3"),
    ("mix", [X, X, [X]], {"mix": [(1, 0)]}, "mix must be 3 numbers per extra, 3 in all, got 2"),
    ("mix of nothing", [X, X], {"mix": [(1, 0, 0)]}, "mix must be 3 numbers per extra, 0 in all, got 3"),
    ("infinite mix", [X, X, [X]], {"mix": [(1, math.inf, 0)]}, r"mix\[1\] must be finite, got inf"),
    ("device", [X, X.to("meta")], {}, "every tensor must be on cpu like uncond, got one on meta"),
    ("shape of out", [X, X], {"out": torch.ones(2, 9).double()}, r"out must have shape \[2, 5\], got \[2, 9\]"),
    ("dtype of out", [X, X], {"out": torch.ones(2, 5)}, "out must be float64, got float32"),
    ("expanded out", [X, X], {"out": torch.ones(1, 5).double().expand(2, 5)}, "out must not have elements that share"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(inputs: list[Any], options: dict[str, Any], message: str, mode: Any) -> None:
    canary = Canary(torch.empty(2, 5, dtype=torch.float64))
    before = canary.tensor.clone()
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::guidance_stats: {message}"):
        guidance_stats(*inputs, **({"out": canary.tensor} | options))
    assert_same_bits([canary.tensor], [before], "something was written")


def test_refuses_out_over_an_extra() -> None:
    u, c, e = tensors(3, 2, 20)
    with pytest.raises(RuntimeError, match=r"out must not share memory with extras\[0\]"):
        guidance_stats(u, c, [e], out=e.flatten()[:18].view(2, 9))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equals_the_definition(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    count = data.draw(st.integers(2, 4))
    inputs = [
        x.to(data.draw(st.sampled_from(DTYPES)))
        for x in tensors(count, *shape, seed=data.draw(st.integers(0, 99)))
    ]
    number = st.floats(-2, 2, allow_nan=False, width=16)
    mix = [tuple(data.draw(number) for _ in range(3)) for _ in range(count - 2)]
    u, c, *extras = inputs
    got, want = guidance_stats(u, c, extras, mix=mix), reference(u, c, extras, mix=mix)
    assert_close(got, want, **tolerance(u, c, extras, mix=mix), what=f"{shape}")  # type: ignore[arg-type]


def test_layout_of_the_sums() -> None:
    u, c, e, f = tensors(4, 1, 7)
    stats = guidance_stats(u, c, [e, f], mix=[(1, 0, 0), (1, -1, 0)])[0]
    features = [u, c - u, e, f - u]
    assert stats.shape == (sums_of(4),) == (14,)
    at = 0
    for j, a in enumerate(features):
        torch.testing.assert_close(stats[at], a.sum())
        for i in range(j + 1):
            torch.testing.assert_close(stats[at + 1 + i], (features[i] * a).sum())
        at += j + 2
    assert torch.equal(guidance_stats(u, c)[0], stats[:5])
    torch.testing.assert_close(cosine(stats[None]), torch.nn.functional.cosine_similarity(u, c))


def test_the_error_does_not_grow_with_the_sample() -> None:
    for n in (1_000, 100_000, 3_000_000):
        u, c = (x.float() for x in tensors(2, 1, n))
        got, want = guidance_stats(u, c), reference(u, c)
        for k in (1, 4):  # sums of squares
            assert float((got[0, k] - want[0, k]).abs() / want[0, k]) < 3e-7, n


def test_nan_and_inf_stay_in_their_sample() -> None:
    u, c = (x.float() for x in tensors(2, 3, 2000))
    clean = guidance_stats(u, c)
    u[1, 5], c[2, 7] = math.nan, math.inf
    got = guidance_stats(u, c)
    assert torch.equal(got[0], clean[0])
    assert (
        bool(got[1].isnan().all())
        and bool(got[2, [2, 3, 4]].isinf().all())
        and bool(got[2, :2].isfinite().all())
    )


def test_16_bit_products_do_not_overflow() -> None:
    x = torch.full((1, 70_000), 1.0, dtype=torch.float16)
    assert guidance_stats(x, 2 * x).tolist() == [[70_000.0] * 5]


def test_numpy_arrays() -> None:
    u, c = (x.numpy() for x in tensors(2, 2, 3000))
    out = np.empty((2, 5))
    _C.guidance_stats(u, c, out)
    assert np.array_equal(out, guidance_stats(torch.from_numpy(u), torch.from_numpy(c)).numpy())
