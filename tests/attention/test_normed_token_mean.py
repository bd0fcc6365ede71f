# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about normed_token_mean: accuracy, gradients, the mixer it is for, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import normed_token_mean, uniform_mixer
from fastdiff.attention.normed_token_mean import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, n, d = draw(1, 3, "B"), draw(1, 150, "N"), draw(1, 150, "D")
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    x = normal(b, n, d, dtype=data.draw(dtypes)) * 3 + 1
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    options: dict[str, Any] = {"eps": data.draw(st.sampled_from([1e-6, 1e-5, 0.1]), "eps")}
    for seed, name in enumerate(("scale", "shift")):
        if data.draw(st.booleans(), name):
            options[name] = normal(data.draw(st.sampled_from([1, b])), d, dtype=data.draw(dtypes), seed=seed)
    got, want = normed_token_mean(x, **options), reference(x, **options)
    assert_close(got, want, **tolerance(x, **options))


def test_the_mean_of_no_tokens() -> None:
    """As torch.mean has it."""
    assert bool(normed_token_mean(normal(2, 0, 8)).isnan().all())


def test_large_means_do_not_cancel() -> None:
    """The variance is of differences, not a difference of squares."""
    x = normal(1, 16, 256, dtype=F64) + 1e4
    got = normed_token_mean(x.float())
    want = reference(x.float().double())
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_gradients() -> None:
    leaves = [normal(2, 5, 7, dtype=F64), normal(2, 7, dtype=F64, seed=1), normal(1, 7, dtype=F64, seed=2)]
    for t in leaves:
        t.requires_grad_()

    def function(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return normed_token_mean(x, scale=scale, shift=shift)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)
    assert torch.autograd.gradcheck(
        lambda scale: function(leaves[0].detach(), scale, leaves[2].detach()), leaves[1:2]
    )


def pooling_attention(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    qkv: Tensor,
    b_qkv: Tensor,
    w_o: Tensor,
    b_o: Tensor,
) -> Tensor:
    """The published form: the softmax of a matrix of ones times the values, for each head."""
    b, n, d = x.shape
    m = layer_norm(x, (d,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    v = linear(m, qkv, b_qkv).view(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4)[2]
    mixed = torch.ones(b, 4, n, n, dtype=x.dtype).softmax(-1) @ v
    return x + gate[:, None] * linear(mixed.transpose(1, 2).reshape(b, n, d), w_o, b_o)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_the_mixer_is_pooling_attention(dtype: torch.dtype) -> None:
    d = 32
    x, (shift, scale, gate) = normal(2, 50, d, dtype=dtype), normal(3, 2, d, dtype=dtype, seed=1)
    qkv, b_qkv, w_o, b_o = (
        normal(*s, dtype=dtype, seed=3) / d**0.5 for s in ((3 * d, d), (3 * d,), (d, d), (d,))
    )
    got = uniform_mixer(
        x, shift=shift, scale=scale, gate=gate, value=(qkv[2 * d :], b_qkv[2 * d :]), output=(w_o, b_o)
    )
    want = pooling_attention(x, shift, scale, gate, qkv, b_qkv, w_o, b_o)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=64 * eps, atol=64 * eps)


def test_the_mixer_has_gradients() -> None:
    d = 8
    leaves = [
        normal(2, 5, d, dtype=F64),
        *normal(3, 2, d, dtype=F64, seed=1),
        normal(d, d, dtype=F64, seed=2),
    ]
    for t in leaves:
        t.requires_grad_()

    def function(x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, w: Tensor) -> Tensor:
        return uniform_mixer(x, shift=shift, scale=scale, gate=gate, value=(w, None), output=(w, None))

    assert torch.autograd.gradcheck(function, [t.detach().requires_grad_() for t in leaves])


def test_numpy() -> None:
    x, scale = normal(2, 70, 24), normal(2, 24, seed=1)
    out = np.empty((2, 24), np.float32)
    _C.normed_token_mean(x.numpy(), out, scale=scale.numpy())
    assert_same_bits([torch.from_numpy(out)], [normed_token_mean(x, scale=scale)])


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (normal(3, 8), {}, r"x must have 3 dimensions \[B, N, D\], got \[3, 8\]"),
        (normal(2, 3, 8).int(), {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (normal(1, 1, 8193), {}, "x must have at most 8192 channels, got 8193"),
        (normal(2, 3, 8), {"scale": normal(8)}, r"scale must have shape \[2 or 1, 8\], got \[8\]"),
        (normal(2, 3, 8), {"shift": normal(3, 8)}, r"shift must have shape \[2 or 1, 8\], got \[3, 8\]"),
        (normal(2, 3, 8), {"eps": -1.0}, "eps must be finite and at least 0"),
        (normal(2, 3, 8), {"out": normal(2, 9)}, r"out must have shape \[2, 8\], got \[2, 9\]"),
        (normal(2, 3, 8), {"out": normal(2, 8).half()}, "out must be float32 like x, got float16"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::normed_token_mean: {message}"):
        normed_token_mean(x, **options)


def test_refuses_gradients_with_out() -> None:
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        normed_token_mean(normal(2, 3, 8).requires_grad_(), out=torch.empty(2, 8))
