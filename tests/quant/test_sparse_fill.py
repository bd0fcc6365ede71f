# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about sparse_fill: masked_scatter, thresholds between numbers, SaRA's checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.quant import load_sparse_delta, sara_state, sparse_checksum, sparse_fill, sparse_take
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.kit.compare import assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_is_masked_scatter(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4), "shape"))
    w = normal(*shape, dtype=data.draw(st.sampled_from([F32, BF16, F16, F64])))
    if data.draw(st.booleans(), "transposed"):
        w = w.permute(*reversed(range(w.dim())))
    tau = data.draw(st.sampled_from([0.0, 2e-3, 0.1, 0.7, 5.0]), "threshold")
    mask = w.abs() < tau
    values = normal(int(mask.sum()), dtype=w.dtype, seed=1)
    got = sparse_fill(w, torch.tensor(tau, dtype=F64), values)
    assert_same_bits([got], [w.masked_scatter(mask, values)])
    assert_same_bits([sparse_take(got, torch.tensor(tau, dtype=F64), like=w)], [values])


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("tau", [1e-3, 2e-3, 3e-3, 0.1])
def test_thresholds_between_two_numbers(dtype: torch.dtype, tau: float) -> None:
    """`w.abs() < tau` rounds tau to the dtype of w, down or up."""
    centre = torch.tensor(tau, dtype=dtype)
    steps = torch.arange(-3, 4) * torch.finfo(dtype).eps * tau
    w = (centre.double() + steps).to(dtype).unique()
    mask = w.abs() < tau
    values = torch.full((int(mask.sum()),), 7.0, dtype=dtype)
    assert torch.equal(sparse_fill(w, torch.tensor(tau, dtype=F64), values) == 7, mask)


def test_many_chunks_are_shared_among_threads() -> None:
    w, tau = normal(700, 300), torch.tensor(0.3)
    values = normal(int((w.abs() < 0.3).sum()), seed=1)
    want = w.masked_scatter(w.abs() < 0.3, values)
    assert_same_bits([sparse_fill(w, tau, values)], [want])
    torch.set_num_threads(1)
    assert_same_bits([sparse_fill(w, tau, values)], [want])
    assert sparse_fill(w, tau, values, out=w) is w
    assert_same_bits([w], [want])


def test_gradients() -> None:
    w, tau = normal(4, 5, dtype=F64).requires_grad_(), torch.tensor(0.5)
    values = normal(int((w.abs() < 0.5).sum()), dtype=F64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(sparse_fill, (w, tau, values))
    assert torch.autograd.gradgradcheck(sparse_fill, (w, tau, values))
    sparse_fill(w.detach(), tau, values).square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * values.detach())


def test_the_number_of_values_is_checked_before_anything_is_written() -> None:
    w, tau = normal(50), torch.tensor(0.5)
    count = int((w.abs() < 0.5).sum())
    for wrong in (count - 1, count + 1, 0):
        out = torch.zeros(50)
        with pytest.raises(
            RuntimeError, match=rf"values must have as many elements as w has.*{count}, got {wrong}"
        ):
            sparse_fill(w, tau, normal(wrong), out=out)
        assert not out.any()
    with pytest.raises(RuntimeError, match="below the threshold, 0, got 2"):
        sparse_fill(w[:0], tau, normal(2))


def test_numpy() -> None:
    w, tau = normal(7, 24), torch.tensor(0.5)
    values = normal(int((w.abs() < 0.5).sum()), seed=1)
    out = np.empty((7, 24), np.float32)
    _C.sparse_fill(w.numpy(), tau.numpy(), values.numpy(), out)
    assert_same_bits([torch.from_numpy(out)], [sparse_fill(w, tau, values)])


# ---- SaRA ------------------------------------------------------------------------------------------------------


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 30))


def tuned(base: nn.Module, threshold: float) -> dict[str, Tensor]:
    """As training leaves it: small weights of one layer have moved, some of them above the threshold."""
    state = {name: t.clone() for name, t in base.state_dict().items()}
    w = state["1.weight"]
    w[w.abs() < threshold] += normal(int((w.abs() < threshold).sum()))
    return state


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_checkpoint(dtype: torch.dtype) -> None:
    base = model().to(dtype)
    after = tuned(base, 0.05)
    state = sara_state(base.state_dict(), after, 0.05)
    assert sorted(state) == ["1.weight.mask", "1.weight.threshold", "1.weight.values"]
    assert state["1.weight.values"].numel() < 0.5 * after["1.weight"].numel()
    load_sparse_delta(base, state)
    assert_same_bits(list(base.state_dict().values()), list(after.values()))


def test_checkpoint_of_another_base() -> None:
    """One weight crosses the threshold and another one back: as many, but not the same."""
    base = model()
    state = sara_state(base.state_dict(), tuned(base, 0.05), 0.05)
    w = base[1].weight.data
    small, large = (torch.nonzero(m)[3] for m in (w.abs() < 0.05, w.abs() >= 0.05))
    w[tuple(small)], w[tuple(large)] = 0.2, 0.0
    before = w.clone()
    with pytest.raises(ValueError, match=r"1\.weight is not the weight that the values were taken of"):
        load_sparse_delta(base, state)
    assert_same_bits([w], [before])


def test_checksum_notices_opposite_shifts() -> None:
    tau, w = torch.tensor(0.5), torch.ones(20)
    a, b = w.clone(), w.clone()
    a[[3, 10]], b[[4, 9]] = 0.0, 0.0
    assert not torch.equal(sparse_checksum(a, tau), sparse_checksum(b, tau))
    assert sparse_checksum(a, tau).dtype == torch.int64
    assert sparse_checksum(a, tau).tolist()[0] == 2


def test_what_is_no_sparse_delta() -> None:
    base = model()
    after = tuned(base, 0.05)
    with pytest.raises(ValueError, match=r"1\.weight changed where it is not below 0\.01"):
        sara_state(base.state_dict(), after, 0.01)
    with pytest.raises(ValueError, match=r"0\.weight must be torch\.bfloat16"):
        sara_state(model().bfloat16().state_dict(), after, 0.05)


W, TAU = normal(3, 8), torch.tensor(0.0)


@pytest.mark.parametrize(
    ("w", "threshold", "values", "options", "message"),
    [
        (W.int(), TAU, normal(0), {}, "w must be float32, float16, bfloat16 or float64, got int32"),
        (W, TAU[None], normal(0), {}, r"threshold must have shape \[\], got \[1\]"),
        (W, TAU, normal(0, 2), {}, r"values must have 1 dimension \[M\], got \[0, 2\]"),
        (W, TAU, normal(0), {"out": normal(3, 9)}, r"out must have shape \[3, 8\] like w, got \[3, 9\]"),
        (W, TAU, normal(0), {"out": W.half()}, "out must be float32 like w, got float16"),
        (W, TAU, normal(0), {"out": torch.zeros(8).expand(3, 8)}, "out must not have elements that share memory"),
    ],
)  # fmt: skip
def test_refuses(w: Tensor, threshold: Tensor, values: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::sparse_fill: {message}"):
        sparse_fill(w, threshold, values, **options)


def test_refuses_overlap_and_gradients_with_out() -> None:
    room = normal(60)
    with pytest.raises(RuntimeError, match="out must be exactly w or not share memory with w"):
        sparse_fill(room[:24], TAU, normal(0), out=room[6:30])
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        sparse_fill(W.clone().requires_grad_(), TAU, normal(0), out=torch.empty(3, 8))
