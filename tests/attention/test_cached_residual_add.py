# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about cached_residual_add: PixArt's block, gradients, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import cached_residual_add
from fastdiff.attention.cached_residual_add import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def test_is_closer_than_the_block_of_pixart() -> None:
    """The published block rounds after each of five operations."""
    h, a1, a2, ff = (normal(2, 64, 72, dtype=BF16, seed=n) for n in range(4))
    g1, g2 = normal(2, 1, 72, seed=5), normal(2, 1, 72, seed=6)
    exact = h.double() + g1.double() * a1.double() + a2.double() + g2.double() * ff.double()
    eager = h + (g1.bfloat16() * a1)
    eager = eager + a2
    eager = eager + g2.bfloat16() * ff
    ours = cached_residual_add(h, [a1, a2, ff], [g1, None, g2])
    error, theirs = ((t.double() - exact).abs().max() for t in (ours, eager))
    assert float(error) <= 2.0**-8 * float(exact.abs().max())
    assert float(error) < float(theirs)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=0, max_size=4), "shape"))
    h = normal(*shape, dtype=data.draw(dtypes))
    components, gates = [], []
    for n in range(data.draw(st.integers(0, 6), "components")):
        components.append(normal(*shape, dtype=data.draw(dtypes), seed=n))
        kept = shape[data.draw(st.integers(0, len(shape)), "first") :]
        sizes = [size if data.draw(st.booleans()) else 1 for size in kept]
        gates.append(
            normal(*sizes, dtype=data.draw(dtypes), seed=50 + n) if data.draw(st.booleans()) else None
        )
    got = cached_residual_add(h, components, gates)
    assert_close(got, reference(h, components, gates), scale=100.0, terms=16)


@pytest.mark.parametrize("of_gates", [F32, BF16, F16])
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
def test_side_by_side_or_not_the_bits_are_the_same(dtype: torch.dtype, of_gates: torch.dtype) -> None:
    """Rows in registers against blocks that are converted, for whole rows, tails and every kind of gate."""
    of_gates = F64 if dtype == F64 else of_gates
    for width in (64, 131, 1027):
        shape = (2, 3, width)
        h, *components = (normal(*shape, dtype=dtype, seed=n) for n in range(5))
        sizes = [(2, 1, width), (width,), (2, 1, 1)]
        gates = [normal(*size, dtype=of_gates, seed=n) for n, size in enumerate(sizes)]
        spread = [torch.stack((t, t), -1)[..., 0] for t in (h, *components)]
        want = cached_residual_add(spread[0], spread[1:], [*gates, None])
        assert_same_bits([cached_residual_add(h, components, [*gates, None])], [want], f"rows of {width}")


def test_gradients() -> None:
    h, a, b = (normal(2, 3, 5, dtype=F64, seed=n).requires_grad_() for n in range(3))
    gates = [normal(*shape, dtype=F64, seed=7).requires_grad_() for shape in ((2, 1, 5), (5,))]

    def function(h: Tensor, a: Tensor, b: Tensor, *gates: Tensor) -> Tensor:
        return cached_residual_add(h, [a, b, a], [gates[0], None, gates[1]])

    assert torch.autograd.gradcheck(function, (h, a, b, *gates))
    assert torch.autograd.gradgradcheck(function, (h, a, b, *gates))


def test_gradients_have_their_tensors_dtypes() -> None:
    h, c = (normal(2, 3, 8, dtype=BF16, seed=n).requires_grad_() for n in range(2))
    gamma = normal(8).requires_grad_()
    cached_residual_add(h, [c], [gamma]).float().sum().backward()
    assert (h.grad.dtype, c.grad.dtype, gamma.grad.dtype) == (BF16, BF16, F32)
    torch.testing.assert_close(gamma.grad, c.detach().float().sum((0, 1)))


def test_in_place_over_any_of_them() -> None:
    h, a, b = (normal(3, 700, seed=n) for n in range(3))
    want = cached_residual_add(h, [a, b], [normal(700), None])
    for target in (h, a, b):
        copies = [t.clone() for t in (h, a, b)]
        out = next(c for c, t in zip(copies, (h, a, b), strict=True) if t is target)
        got = cached_residual_add(copies[0], copies[1:], [normal(700), None], out=out)
        assert got is out
        assert_same_bits([out], [want])


def test_numpy() -> None:
    h, c, g = normal(3, 20), normal(3, 20, seed=1), normal(20, seed=2)
    out = np.empty((3, 20), np.float32)
    _C.cached_residual_add(h.numpy(), [c.numpy()], [g.numpy()], [0], out)
    assert_same_bits([torch.from_numpy(out)], [cached_residual_add(h, [c], [g])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": [normal(3, 21)]}, r"components\[0\] must have shape \[3, 20\] like h, got \[3, 21\]"),
        ({"components": [normal(3, 20).int()]}, r"components\[0\] must be float32.*got int32"),
        ({"gates": [normal(2, 20)]}, r"gates\[0\] must broadcast to h \[3, 20\], got \[2, 20\]"),
        ({"gates": [normal(1, 3, 20)]}, r"gates\[0\] must broadcast to h \[3, 20\], got \[1, 3, 20\]"),
        ({"components": [normal(3, 20)] * 25, "gates": None}, "components must be at most 24, got 25"),
        ({"out": normal(3, 21)}, r"out must have shape \[3, 20\], got \[3, 21\]"),
        ({"out": normal(3, 20).half()}, "out must be float32 like h, got float16"),
        ({"out": torch.zeros(20).expand(3, 20)}, "out must not have elements that share memory"),
    ],
)  # fmt: skip
def test_refuses(options: dict[str, Any], message: str) -> None:
    given_ = {"components": [normal(3, 20)], "gates": [normal(20)]} | options
    with pytest.raises(RuntimeError, match=f"^fastdiff::cached_residual_add: {message}"):
        cached_residual_add(normal(3, 20), **given_)


def test_refuses_overlap_and_numbers() -> None:
    room = normal(100)
    with pytest.raises(
        RuntimeError, match=r"out must be exactly components\[0\] or not share memory with components\[0\]"
    ):
        cached_residual_add(normal(50), [room[:50]], out=room[10:60])
    gate = normal(50)
    with pytest.raises(RuntimeError, match=r"out must not share memory with gates\[0\]"):
        cached_residual_add(normal(50), [normal(50)], [gate], out=gate)
    with pytest.raises(ValueError, match="gates must be one for each of 2 components, got 1"):
        cached_residual_add(normal(5), [normal(5), normal(5)], [None])
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        cached_residual_add(normal(5).requires_grad_(), [normal(5)], out=normal(5))
