# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about laplacian_split: its stencils, kornia, sizes, threads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, laplacian_split
from fastdiff.wavelet.laplacian_split import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, simt_worker, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import Canary

F32, F64 = torch.float32, torch.float64
DTYPES = [F32, torch.float16, torch.bfloat16, F64]
each_isa = pytest.mark.parametrize("isa", usable_isas())


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def assert_right(x: Tensor, levels: int) -> None:
    for n, (got, want) in enumerate(zip(laplacian_split(x, levels), reference(x, levels), strict=True)):
        assert_close(
            got, want, **tolerance(x, levels), what=f"{list(x.shape)} {x.dtype}, band {n} of {levels}"
        )


# ---- the stencils ----------------------------------------------------------------------------------------------


def test_down_is_a_binomial() -> None:
    """Coarse pixel (4, 5) weighs fine rows 6 ... 11 and columns 8 ... 13 with (1, 5, 10, 10, 5, 1)/32."""
    weights = torch.zeros(16, 20, dtype=F64)
    for row in range(16):
        for column in range(20):
            impulse = torch.zeros(16, 20, dtype=F64)
            impulse[row, column] = 1
            weights[row, column] = laplacian_split(impulse, 2)[1][4, 5]
    taps = torch.tensor([1, 5, 10, 10, 5, 1], dtype=F64) / 32
    expected = torch.zeros_like(weights)
    expected[6:12, 8:14] = taps[:, None] * taps
    assert torch.equal(weights, expected)


def test_a_constant_has_no_detail() -> None:
    for size in ((1, 1), (2, 3), (5, 4), (17, 32)):
        *details, coarsest = laplacian_split(torch.full(size, 3.0), 4)
        assert all(bool((d == 0).all()) for d in details)
        assert bool((coarsest == 3).all())


def test_a_side_of_one_is_copied() -> None:
    """Down and up of a side of 1 change nothing, so that only the other one counts."""
    row = normal(1, 24, dtype=F64)
    both, alone = laplacian_split(row, 3), laplacian_split(row.expand(8, 24).contiguous(), 3)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a, b[:1], rtol=1e-14, atol=1e-14)


# ---- kornia ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (32, 8), (64, 40), (8, 520)], ids=str)
def test_equals_kornia(size: tuple[int, int], levels: int) -> None:
    """Sizes that it does not pad; the smallest side that its blur takes is 4."""
    pyramid = pytest.importorskip("kornia").geometry.transform.pyramid.build_laplacian_pyramid
    if min(size) >> (levels - 2) < 4:
        levels -= 1
    x = normal(2, 3, *size, dtype=F64)
    expected = pyramid(x, levels)
    assert expected[0].shape == x.shape
    for got, want in zip(laplacian_split(x, levels), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(5, 8), (8, 7), (9, 13), (3, 4), (3, 259)], ids=str)
def test_odd_sizes_are_kornia_on_one_more_row(size: tuple[int, int]) -> None:
    geometry = pytest.importorskip("kornia").geometry
    x = normal(2, 3, *size, dtype=F64)
    even = torch.nn.functional.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="reflect")
    coarse = geometry.pyrdown(even)
    detail = x - geometry.pyrup(coarse)[..., : size[0], : size[1]]
    for got, want in zip(laplacian_split(x, 2), (detail, coarse), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [F32, torch.float16, torch.bfloat16], ids=str)
def test_at_least_as_close_as_kornia(dtype: torch.dtype) -> None:
    pyramid = pytest.importorskip("kornia").geometry.transform.pyramid.build_laplacian_pyramid
    x = normal(4, 3, 64, 64, dtype=dtype)
    bands = zip(laplacian_split(x, 4), pyramid(x, 4), laplacian_split(x.double(), 4), strict=True)
    for n, (got, theirs, want) in enumerate(bands):
        our_error, their_error = ((b.double() - want).square().mean().sqrt() for b in (got, theirs))
        # NOTE: float32 sums of the same numbers are equally far off, one or the other by chance
        assert float(our_error) <= (1.1 if dtype == F32 else 1.0) * float(their_error), f"band {n}"


# ---- sizes, instruction sets, threads --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    h=st.integers(1, 40),
    w=st.one_of(st.integers(1, 70), st.integers(250, 270), st.integers(505, 530)),
    planes=st.integers(1, 3),
    levels=st.integers(2, 6),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(usable_isas()),
)
def test_any_size(h: int, w: int, planes: int, levels: int, dtype: torch.dtype, isa: str) -> None:
    with instruction_set(isa):
        assert_right(normal(planes, h, w, dtype=dtype, seed=h * w), levels)


@each_isa
@pytest.mark.parametrize("shape", [(1, 300, 301), (2, 131, 600), (40, 33, 31), (1, 1100, 40)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_any_thread_count(last: bool, shape: tuple[int, ...], isa: str) -> None:
    """Many planes are shared out whole, few by their rows."""
    x = normal(1, *shape, dtype=torch.bfloat16)
    want = [torch.cat(b) for b in zip(*(laplacian_split(plane[None], 3) for plane in x[0]), strict=True)]
    if last:
        x = x.to(memory_format=torch.channels_last)
    with instruction_set(isa):
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits([b[0] for b in laplacian_split(x, 3)], want, f"{threads} threads")


def test_nan_reaches_what_its_stencils_cover() -> None:
    x = normal(32, 48)
    x[16, 20] = math.nan
    detail, coarse = laplacian_split(x, 2)
    rows, columns = coarse.isnan().nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (7, 9, 9, 11)
    rows, columns = detail.isnan().nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max())) == (2 * 7 - 3, 2 * 9 + 4)
    assert (int(columns.min()), int(columns.max())) == (2 * 9 - 3, 2 * 11 + 4)


# ---- refusals --------------------------------------------------------------------------------------------------

X = normal(2, 3, 6, 9)
OUT = laplacian_split(X, 3)
REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("dtype", {"x": X.long()}, "x must be float32, float16, bfloat16 or float64, got int64"),
    ("rank", {"x": X[0, 0, 0]}, r"x must have at least 2 dimensions \[\*, H, W\], got \[9\]"),
    ("no rows", {"x": X[:, :, :0]}, r"x must have sides of 1\.\.2\^30 pixels, got \[2, 3, 0, 9\]"),
    ("one level", {"levels": 1}, r"levels must be in 2\.\.32, got 1"),
    ("many levels", {"levels": 33}, r"levels must be in 2\.\.32, got 33"),
    ("too few results", {"out": OUT[:2]}, "out must be 3 tensors, one for each band, got 2"),
    ("dtype of a result", {"out": [OUT[0], OUT[1].half(), OUT[2]]},
     r"out\[1\] must be float32 like x, got float16"),
    ("shape of a result", {"out": [OUT[0], OUT[1][..., :4], OUT[2]]},
     r"out\[1\] must have shape \[2, 3, 3, 5\], got \[2, 3, 3, 4\]"),
    ("rank of a result", {"out": [OUT[0][0], *OUT[1:]]}, r"out\[0\] must have shape \[2, 3, 6, 9\], got \[3, 6, 9\]"),
    ("expanded", {"out": [OUT[0][:1].expand(2, 3, 6, 9), *OUT[1:]]},
     r"out\[0\] must not have elements that share memory"),
    ("x itself", {"out": [X, *OUT[1:]]}, r"out must not share memory with x, got out\[0\] that does"),
    ("the same twice", {"out": [OUT[0], OUT[0].flatten()[:90].view(2, 3, 3, 5), OUT[2]]},
     r"out\[1\] must not share memory with the other results, got overlap with out\[0\]"),
    ("meta", {"out": [OUT[0], OUT[1].to("meta"), OUT[2]]}, r"out\[1\] must be on cpu like x, got meta"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(options: dict[str, Any], message: str, mode: Any) -> None:
    canaries = [Canary(b) for b in OUT]
    before = [c.tensor.clone() for c in canaries]
    arguments = {"x": X, "levels": 3, "out": [c.tensor for c in canaries]} | options
    with mode(), pytest.raises(RuntimeError, match=f"fastdiff::laplacian_split: {message}"):
        laplacian_split(**arguments)
    assert_same_bits([c.tensor for c in canaries], before, "something was written")


def test_refuses_layouts_that_do_not_merge() -> None:
    x = torch.zeros(4, 4, 4, 4, 4, 4, 4, 2, 2)[::2, ::2, ::2, ::2, ::2, ::2, ::2]
    with pytest.raises(RuntimeError, match="laplacian_split: the tensors' layouts differ too much"):
        laplacian_split(x, 2)


# ---- without torch, and under the emulator ---------------------------------------------------------------------


def test_numpy_arrays() -> None:
    x = X.numpy()
    out = [np.full(b.shape, np.nan, np.float32) for b in OUT]
    _C.laplacian_split(x, out)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(out, OUT, strict=True))
    _C.laplacian_split(x[..., ::-1, :], out)
    flipped = laplacian_split(X.flip(-2), 3)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(out, flipped, strict=True))
    with pytest.raises(RuntimeError, match=r"laplacian_split: levels must be in 2\.\.32, got 1"):
        _C.laplacian_split(x, out[:1])


def test_scratch_memory_is_checked() -> None:
    assert _C.laplacian_split_scratch(X, 2) == 0
    needed = _C.laplacian_split_scratch(X, 3)
    assert needed == 2 * 3 * 3 * 5 * 4
    assert _C.laplacian_split_scratch(X.double(), 4) == 2 * 3 * (3 * 5 + 2 * 3) * 8
    for scratch in (None, torch.empty(needed - 1, dtype=torch.uint8), torch.empty(needed // 4)):
        with pytest.raises(RuntimeError, match=rf"scratch must be {needed} contiguous uint8 on cpu.*, got"):
            simt_worker().call("laplacian_split", X, out=[b.clone() for b in OUT], scratch=scratch)


def test_no_races_on_shared_memory() -> None:
    x = normal(1, 37, 75)
    want = laplacian_split(x, 2)
    with SimtWorker("races") as simt:
        for seed in (1, 2):
            simt.seed = seed
            out = [torch.empty_like(b) for b in want]
            simt.call("laplacian_split", x, out=out)
            assert_same_bits(out, want)
