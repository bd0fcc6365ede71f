# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about attention_map_energy: near and equal maps, gradients, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import attention_map_energy
from fastdiff.attention.attention_map_energy import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def maps(
    b: int,
    h: int,
    n: int,
    d: int,
    *,
    keys: int | None = None,
    dtype: torch.dtype = F32,
    by: float | None = None,
) -> tuple[Tensor, ...]:
    """q, k, q_ref, k_ref; `by`: the references are q and k, and so much noise."""
    keys = n if keys is None else keys
    q, k, q_ref, k_ref = (normal(b, h, m, d, seed=s, dtype=F64) for s, m in enumerate((n, keys, n, keys)))
    if by is not None:
        q_ref, k_ref = q + by * q_ref, k + by * k_ref
    return tuple(t.to(dtype) for t in (q, k, q_ref, k_ref))


def drawn_maps(data: st.DataObject) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    dtypes = st.sampled_from([F32, F32, F64, BF16, F16])
    shape = draw(1, 2, "B"), draw(1, 3, "H"), draw(1, 300, "N_q"), 8 * draw(1, 12, "D / 8")
    by = data.draw(st.sampled_from([None, 0.1, 1e-3]), "by")
    tensors = maps(*shape, keys=draw(1, 300, "N_kv"), by=by)
    tensors = tuple(t.to(data.draw(dtypes, "dtype")) for t in tensors)
    if data.draw(st.booleans(), "fused"):  # as projections give them
        tensors = tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors)
    scale = data.draw(st.sampled_from([None, 0.0, -0.3, 1.0]), "scale")
    return tensors, {} if scale is None else {"scale": scale}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    tensors, options = drawn_maps(data)
    got = attention_map_energy(*tensors, **options)
    assert_close(got, reference(*tensors, **options), **tolerance(*tensors, **options))


@pytest.mark.parametrize("keys", [1100, 5000, 9000])
def test_blocks_of_any_size_give_the_same_bits(keys: int) -> None:
    """The more keys, the fewer queries are done at a time; registers of any width."""
    tensors = maps(1, 1, 77, 16, keys=keys)
    want = attention_map_energy(*tensors)
    assert_close(want, reference(*tensors), **tolerance(*tensors))
    for isa in usable_isas():
        with instruction_set(isa):
            assert_same_bits([attention_map_energy(*tensors)], [want], f"{isa}, {keys} keys")


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
def test_equal_maps_have_no_energy_and_no_gradient(dtype: torch.dtype) -> None:
    q, k, *_ = maps(2, 3, 100, 40, keys=70, dtype=dtype)
    leaves = [t.requires_grad_() for t in (q, k)]
    energy = attention_map_energy(*leaves, q.detach().clone(), k.detach().clone())
    assert energy.tolist() == [0, 0]
    assert all(not bool(g.any()) for g in torch.autograd.grad(energy.sum(), leaves))


@pytest.mark.parametrize("by", [1e-2, 1e-3, 1e-4])
def test_near_maps_keep_their_digits(by: float) -> None:
    """The energy is of the order of by², where an expanded square would be off by roundoff / by²."""
    tensors = maps(1, 4, 256, 64, by=by)
    q, k, *references = tensors
    want = reference(*tensors)
    error = float((attention_map_energy(*tensors) / want - 1).abs())
    assert error <= 40 * 2.0**-24 / by
    leaves, wide = ([t.detach().to(d).requires_grad_() for t in (q, k)] for d in (F32, F64))
    gradients = torch.autograd.grad(attention_map_energy(*leaves, *references), leaves)
    exact = torch.autograd.grad(attention_map_energy(*wide, *(t.double() for t in references)), wide)
    for g, e in zip(gradients, exact, strict=True):
        assert float((g - e).abs().max() / e.abs().max()) <= 40 * 2.0**-24 / by


def test_scores_far_apart_do_not_overflow() -> None:
    tensors = tuple(100 * t for t in maps(1, 2, 40, 16))
    assert_close(attention_map_energy(*tensors), reference(*tensors), scale=1.0, terms=16)


def test_gradients() -> None:
    leaves = [t.requires_grad_() for t in maps(2, 2, 7, 8, keys=5, dtype=F64)]
    assert torch.autograd.gradcheck(attention_map_energy, leaves)
    want = torch.autograd.grad(attention_map_energy(*leaves).sum(), leaves)
    for some in ((0, 1), (2, 3), (1,)):
        energy = attention_map_energy(*(t if n in some else t.detach() for n, t in enumerate(leaves)))
        got = torch.autograd.grad(energy.sum(), [leaves[n] for n in some])
        assert_same_bits(got, [want[n] for n in some])


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_gradients_of_16_bits_do_not_vanish(dtype: torch.dtype) -> None:
    """By themselves they are below what float16 can hold; what is made of the energy brings them back."""
    tensors = maps(1, 2, 128, 32, dtype=dtype, by=0.1)
    leaves, wide = ([t.detach().to(d).requires_grad_() for t in tensors[:2]] for d in (dtype, F64))
    got = torch.autograd.grad(3e5 * attention_map_energy(*leaves, *tensors[2:]).sum(), leaves)
    want = torch.autograd.grad(
        3e5 * attention_map_energy(*wide, *(t.double() for t in tensors[2:])).sum(), wide
    )
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert float((g - w).abs().max()) <= 1.01 * torch.finfo(dtype).eps * float(w.abs().max())


def test_gradients_of_gradients_are_refused() -> None:
    leaves = [t.requires_grad_() for t in maps(1, 1, 5, 8)[:2]]
    (dq,) = torch.autograd.grad(
        attention_map_energy(*leaves, *maps(1, 1, 5, 8)[2:]).sum(), leaves[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        dq.sum().backward()


def test_compiles_with_gradients() -> None:
    tensors = maps(2, 2, 9, 8)

    def guided(q: Tensor, k: Tensor) -> Tensor:
        return 3e5 * attention_map_energy(2 * q, 3 * k, *tensors[2:]).sum()

    results = []
    for function in (guided, torch.compile(guided, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in tensors[:2]]
        function(*leaves).backward()
        results.append([t.grad for t in leaves])
    assert_same_bits(*results)
    torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_no_pairs(shape: tuple[int, int, int, int]) -> None:
    b, h, n, keys = shape
    q, k, *references = maps(b, h, n, 8, keys=keys)
    leaves = [t.requires_grad_() for t in (q, k)]
    energy = attention_map_energy(*leaves, *references)
    assert bool(energy.isnan().all())
    assert all(not bool(g.any()) for g in torch.autograd.grad(energy.sum(), leaves))
    assert bool(attention_map_energy(q.detach(), k.detach(), *references).isnan().all())


def test_nan_stays_in_its_sample() -> None:
    tensors = maps(3, 2, 20, 8)
    tensors[1][1, 0, 3, 2] = math.nan
    assert attention_map_energy(*tensors).isnan().tolist() == [False, True, False]


def test_infinities_are_as_in_the_expression() -> None:
    tensors = maps(3, 1, 6, 8)
    tensors[0][0, 0, 2, 1] = math.inf  # a row of scores that are +inf and -inf
    tensors[3][1, 0, 4, :] = -math.inf * tensors[2][1, 0, 0].sign()  # -inf for query 0, NaN for others
    assert attention_map_energy(*tensors).isnan().tolist() == reference(*tensors).isnan().tolist()


def test_numpy() -> None:
    tensors = maps(2, 2, 9, 8, keys=12)
    out = np.empty(2, np.float32)
    _C.attention_map_energy(*(t.numpy() for t in tensors), out, scale=0.5)
    assert_same_bits([torch.from_numpy(out)], [attention_map_energy(*tensors, scale=0.5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": normal(2, 5, 8)}, r"q must have 4 dimensions \[B, H, N, D\], got \[2, 5, 8\]"),
        ({"k": normal(2, 5, 8)}, r"k must have 4 dimensions \[B, H, N, D\], got \[2, 5, 8\]"),
        ({"q": normal(1, 2, 5, 12)}, "q must have a head_dim that is a multiple of 8 from 8 to 256, got 12"),
        ({"q": normal(1, 2, 5, 264)}, "q must have a head_dim .*, got 264"),
        ({"k": normal(1, 1, 5, 8)}, r"k must have shape \[1, 2, N, 8\] to go with q, got \[1, 1, 5, 8\]"),
        ({"q_ref": normal(1, 2, 6, 8)}, r"q_ref must have shape \[1, 2, 5, 8\] like q, got \[1, 2, 6, 8\]"),
        ({"k_ref": normal(1, 2, 6, 8)}, r"k_ref must have shape \[1, 2, 5, 8\] like k, got \[1, 2, 6, 8\]"),
        ({"k_ref": normal(1, 2, 5, 8).int()}, "k_ref must be float32, .*got int32"),
        ({"scale": math.inf}, "scale must be finite, got inf"),
        ({"out": normal(2)}, r"energy must have shape \[1\] like q's samples, got \[2\]"),
        ({"out": normal(1).double()}, "energy must be float32 like q's samples, got float64"),
    ],
)  # fmt: skip
def test_refuses(options: dict[str, Any], message: str) -> None:
    given_ = dict(zip(("q", "k", "q_ref", "k_ref"), maps(1, 2, 5, 8), strict=True)) | options
    with pytest.raises(RuntimeError, match=f"^fastdiff::attention_map_energy: {message}"):
        attention_map_energy(**given_)


def test_refuses_out_with_gradients() -> None:
    tensors = maps(1, 1, 5, 8)
    tensors[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        attention_map_energy(*tensors, out=normal(1))
