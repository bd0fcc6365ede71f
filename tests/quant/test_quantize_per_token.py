# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about quantize_per_token: torch's expression, accuracy, large strides, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.quant import quantize_per_token
from fastdiff.quant._norm import normed
from fastdiff.quant.quantize_per_token import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, n, k = draw(1, 3, "B"), draw(1, 6, "N"), draw(1, 700, "K")
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    x = normal(b, n, k, dtype=data.draw(dtypes)) * 3 + 1
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    options: dict[str, Any] = {}
    if data.draw(st.booleans(), "norm"):
        options |= {"eps": data.draw(st.sampled_from([1e-6, 0.1])), "rms": data.draw(st.booleans(), "rms")}
    for seed, name in enumerate(("weight", "bias")):
        if data.draw(st.booleans(), name):
            options[name] = normal(k, dtype=data.draw(dtypes), seed=seed)
    for seed, name in enumerate(("scale_by", "shift")):
        shape = data.draw(st.sampled_from([None, (k,), (1, k), (b, k), (b, 1, k), (1, n, k)]), name)
        if shape is not None:
            options[name] = normal(*shape, dtype=data.draw(dtypes), seed=seed + 2)
    q, scale = quantize_per_token(x, **options)
    _, want = reference(x, **options)
    # Rounding, of q and of the float32 statistics, moves a number by little more than half a step.
    magnitude = x.double().abs().amax(-1, keepdim=True) / x.double().std(
        -1, correction=0, keepdim=True
    ).clamp(1e-3)
    assert_close(scale, want, scale=float(magnitude.max()) * 4, terms=64)
    step = (q.double() * want.double() - normed(x, **options)).abs() / want.double()
    assert float(step.max()) <= 0.5 + 1e-3 * float(magnitude.max())


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("k", [1, 31, 320, 1152, 9001])
def test_is_the_eager_expression_in_float32(dtype: torch.dtype, k: int) -> None:
    x = normal(9, k, dtype=dtype)
    amax = x.float().abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    q = (x.float() * (torch.full_like(amax, 127) / amax)).round().clamp(-127, 127).to(torch.int8)
    assert_same_bits(quantize_per_token(x), [q, amax / 127])


def test_the_largest_of_a_row_is_127() -> None:
    x = normal(64, 50) * torch.logspace(-29, 37, 64)[:, None]
    q, scale = quantize_per_token(x)
    assert bool((q.abs().amax(-1) == 127).all())
    assert bool(scale.isfinite().all())


def test_halves_go_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    q, scale = quantize_per_token(x)
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]
    assert float(scale) == 1


def test_a_row_that_is_no_number_spoils_its_product_alone() -> None:
    x = normal(4, 40)
    x[1, 3], x[2, 39] = float("nan"), float("inf")
    q, scale = quantize_per_token(x)
    assert scale.isnan().flatten().tolist() == [False, True, True, False]
    assert not bool(q[1:3].any())


@pytest.mark.parametrize("rms", [False, True], ids=["layer norm", "rms norm"])
def test_norms_are_those_of_torch(rms: bool) -> None:
    x, weight, bias = (
        normal(3, 5, 160, dtype=F64),
        normal(160, dtype=F64, seed=1),
        normal(160, dtype=F64, seed=2),
    )
    got = normed(x, eps=1e-5, rms=rms, weight=weight, bias=bias)
    want = rms_norm(x, (160,), weight, 1e-5) + bias if rms else layer_norm(x, (160,), weight, bias, 1e-5)
    torch.testing.assert_close(got, want)


def test_large_means_do_not_cancel() -> None:
    """The variance is of differences, not a difference of squares."""
    x = normal(4, 256) + 1e4
    q, scale = quantize_per_token(x, eps=1e-6)
    error = q.double() * scale.double() - normed(x, eps=1e-6)
    assert float((error.abs() / scale.double()).max()) < 0.6


def test_many_rows_are_shared_among_threads() -> None:
    x = normal(700, 333)
    assert_same_bits(quantize_per_token(x), reference(x))


def test_strides_beyond_32_bits() -> None:
    """The memory between the rows is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 100, dtype=BF16)
    x = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(normal(2, 3, 8, dtype=BF16))
    assert_same_bits(quantize_per_token(x), quantize_per_token(x.contiguous()))


def test_numpy() -> None:
    x, shift = normal(2, 7, 24), normal(2, 24, seed=1)
    q, scale = np.empty((2, 7, 24), np.int8), np.empty((2, 7, 1), np.float32)
    _C.quantize_per_token(x.numpy(), (q, scale), eps=1e-6, shift=shift.numpy())
    want = quantize_per_token(x, eps=1e-6, shift=shift)
    assert_same_bits([torch.from_numpy(q), torch.from_numpy(scale)], want)


X = normal(2, 3, 8)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X.int(), {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (torch.tensor(1.0), {}, r"x must have at least one dimension \[..., K\], got \[\]"),
        (X, {"eps": -1.0}, "eps must be finite and at least 0"),
        (X, {"eps": float("nan")}, "eps must be finite and at least 0"),
        (X, {"rms": True}, "rms needs eps, got none"),
        (X, {"weight": normal(7)}, r"weight must have shape \[8\], got \[7\]"),
        (X, {"bias": normal(1, 8)}, r"bias must have shape \[8\], got \[1, 8\]"),
        (X, {"bias": normal(8).int()}, "bias must be float32.*got int32"),
        (X, {"shift": normal(3, 8)}, r"shift must have shape \[8\], \[2 or 1, 8\] or one that.*got \[3, 8\]"),
        (X, {"scale_by": normal(2, 3, 1)}, r"scale_by must have shape.*got \[2, 3, 1\]"),
        (X, {"out": (X.to(torch.int8), normal(2, 3))}, r"scale must have shape \[2, 3, 1\], got \[2, 3\]"),
        (X, {"out": (X.clone(), normal(2, 3, 1))}, "q must be int8, got float32"),
        (X, {"out": (X[:1].to(torch.int8), normal(2, 3, 1))}, r"q must have shape \[2, 3, 8\], got \[1, 3, 8\]"),
        (X, {"out": (torch.zeros(8, dtype=torch.int8).expand(2, 3, 8), normal(2, 3, 1))},
         "q must not have elements that share memory"),
        (X, {"out": (X.to(torch.int8), X[..., :1])}, "scale must not share memory with x"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::quantize_per_token: {message}"):
        quantize_per_token(x, **options)
