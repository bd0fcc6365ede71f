# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about laplacian_merge: that it is the inverse, its stencil, kornia, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, laplacian_merge, laplacian_split
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, simt_worker, usable_isas
from tests.kit.compare import ROUNDOFF, assert_same_bits
from tests.kit.simt.worker import SimtWorker

F32, F64 = torch.float32, torch.float64
DTYPES = [F32, torch.float16, torch.bfloat16, F64]
each_isa = pytest.mark.parametrize("isa", usable_isas())


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def pyramid(*shape: int, levels: int, dtype: torch.dtype = F32) -> list[Tensor]:
    """Bands that are those of no image in particular."""
    bands = []
    for n in range(levels):
        bands.append(normal(*shape, dtype=dtype, seed=n))
        shape = (*shape[:-2], (shape[-2] + 1) // 2, (shape[-1] + 1) // 2)
    return bands


def build_image_from_pyramid(bands: list[Tensor]) -> Tensor:
    """diffusers' function of this name."""
    pyrup = pytest.importorskip("kornia").geometry.pyrup
    image = bands[-1]
    for band in reversed(bands[:-1]):
        image = pyrup(image) + band
    return image


# ---- the inverse -----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    h=st.integers(1, 40),
    w=st.one_of(st.integers(1, 70), st.integers(250, 270)),
    levels=st.integers(2, 6),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(usable_isas()),
)
def test_reconstructs(h: int, w: int, levels: int, dtype: torch.dtype, isa: str) -> None:
    x = normal(2, h, w, dtype=dtype, seed=h * w)
    with instruction_set(isa):
        error = (laplacian_merge(laplacian_split(x, levels)).double() - x.double()).abs().max()
    assert float(error) <= 2 * levels * ROUNDOFF[dtype] * float(x.double().abs().max())


def test_split_of_merge_is_not_asked_for() -> None:
    """More numbers than the image has: bands that are those of no image come back as others, with the same merge."""
    bands = pyramid(1, 16, 16, levels=3, dtype=F64)
    image = laplacian_merge(bands)
    again = laplacian_split(image, 3)
    assert float((again[1] - bands[1]).abs().max()) > 0.1
    torch.testing.assert_close(laplacian_merge(again), image, rtol=1e-13, atol=1e-13)


def test_up_is_a_binomial() -> None:
    """Seen from a coarse pixel, far from the ends: (1, 7, 21, 35, 35, 21, 7, 1)/64 in both directions."""
    bands = [torch.zeros(24, 28, dtype=F64), torch.zeros(12, 14, dtype=F64)]
    bands[1][5, 6] = 1
    taps = torch.tensor([1, 7, 21, 35, 35, 21, 7, 1], dtype=F64) / 64
    expected = torch.zeros(24, 28, dtype=F64)
    expected[7:15, 9:17] = taps[:, None] * taps
    assert torch.equal(laplacian_merge(bands), expected)


def test_is_linear() -> None:
    a, b = (
        pyramid(2, 9, 12, levels=3, dtype=F64),
        [2 * t.flip(0) for t in pyramid(2, 9, 12, levels=3, dtype=F64)],
    )
    mixed = [3 * x - y for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(laplacian_merge(mixed), 3 * laplacian_merge(a) - laplacian_merge(b))


# ---- kornia ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (24, 40), (16, 264), (64, 520)], ids=str)
def test_equals_diffusers(size: tuple[int, int], levels: int) -> None:
    bands = pyramid(2, 3, *size, levels=levels, dtype=F64)
    torch.testing.assert_close(laplacian_merge(bands), build_image_from_pyramid(bands), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [F32, torch.float16, torch.bfloat16], ids=str)
def test_at_least_as_close_as_diffusers(dtype: torch.dtype) -> None:
    bands = pyramid(4, 3, 64, 64, levels=4, dtype=dtype)
    want = laplacian_merge([b.double() for b in bands])
    our_error, their_error = (
        float((y.double() - want).square().mean())
        for y in (laplacian_merge(bands), build_image_from_pyramid(bands))
    )
    assert our_error <= their_error


# ---- threads and memory ----------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("shape", [(1, 300, 301), (2, 131, 600), (40, 33, 31), (1, 1100, 40)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_any_thread_count(last: bool, shape: tuple[int, ...], isa: str) -> None:
    bands = pyramid(1, *shape, levels=3, dtype=torch.bfloat16)
    want = torch.cat([laplacian_merge([b[:, n] for b in bands]) for n in range(shape[0])])
    if last:
        bands = [b.to(memory_format=torch.channels_last) for b in bands]
    with instruction_set(isa):
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits([laplacian_merge(bands)[0]], [want], f"{threads} threads")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype: torch.dtype) -> None:
    for shape in ((2, 3, 17, 20), (1, 1, 200, 300)):
        bands = pyramid(*shape, levels=3, dtype=dtype)
        want = laplacian_merge(bands)
        assert laplacian_merge(bands, out=bands[0]) is bands[0]
        assert_same_bits([bands[0]], [want])


# ---- refusals --------------------------------------------------------------------------------------------------

BANDS = pyramid(2, 3, 6, 9, levels=3)
OUT = laplacian_merge(BANDS)
REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("none", {"bands": []}, r"bands must be 2\.\.32 tensors, got 0"),
    ("one", {"bands": BANDS[:1]}, r"bands must be 2\.\.32 tensors, got 1"),
    ("dtype", {"bands": [b.long() for b in BANDS]},
     "bands must be float32, float16, bfloat16 or float64, got int64"),
    ("dtypes", {"bands": [BANDS[0], BANDS[1].half(), BANDS[2]]},
     r"bands\[1\] must be float32 like bands\[0\], got float16"),
    ("rank", {"bands": [BANDS[0][0, 0, 0], BANDS[1]]},
     r"bands must have at least 2 dimensions \[\*, H, W\], got \[9\]"),
    ("no columns", {"bands": [BANDS[0][..., :0], BANDS[1]]}, r"bands must have sides of 1\.\.2\^30 pixels"),
    ("sizes", {"bands": [BANDS[0], BANDS[1][..., :4], BANDS[2]]},
     r"bands\[1\] must have shape \[2, 3, 3, 5\], half of the band before it, got \[2, 3, 3, 4\]"),
    ("planes", {"bands": [*BANDS[:2], BANDS[2][:1]]}, r"bands\[2\] must have shape \[2, 3, 2, 3\]"),
    ("ranks", {"bands": [BANDS[0], BANDS[1][0], BANDS[2]]}, r"bands\[1\] must have shape .*, got \[3, 3, 5\]"),
    ("dtype of out", {"out": OUT.double()}, "out must be float32 like bands, got float64"),
    ("shape of out", {"out": OUT[0]}, r"out must have shape \[2, 3, 6, 9\], got \[3, 6, 9\]"),
    ("expanded out", {"out": OUT[:1].expand(2, 3, 6, 9)}, "out must not have elements that share memory"),
    ("partial overlap", {"out": BANDS[0].as_strided((2, 3, 6, 9), (162, 54, 1, 6))},
     r"out must be exactly bands\[0\] or not share memory with it, got a partial overlap"),
    ("another band", {"bands": [BANDS[0], OUT.flatten()[:90].view(2, 3, 3, 5), BANDS[2]]},
     r"out must not share memory with bands\[1\]"),
    ("meta", {"bands": [BANDS[0], BANDS[1].to("meta"), BANDS[2]]},
     r"bands\[1\] must be on cpu like bands\[0\], got meta"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(options: dict[str, Any], message: str, mode: Any) -> None:
    before = [t.clone() for t in (OUT, *BANDS)]
    with mode(), pytest.raises(RuntimeError, match=f"fastdiff::laplacian_merge: {message}"):
        laplacian_merge(**({"bands": BANDS, "out": OUT} | options))
    assert_same_bits([OUT, *BANDS], before, "something was written")


# ---- without torch, and under the emulator ---------------------------------------------------------------------


def test_numpy_arrays() -> None:
    bands = [b.numpy() for b in BANDS]
    out = np.full(OUT.shape, np.nan, np.float32)
    _C.laplacian_merge(bands, out)
    assert np.array_equal(out, OUT.numpy())
    _C.laplacian_merge([b[:, ::-1] for b in bands], out)
    assert np.array_equal(out[:, ::-1], OUT.numpy())
    with pytest.raises(RuntimeError, match=r"laplacian_merge: bands must be 2\.\.32 tensors, got 1"):
        _C.laplacian_merge(bands[:1], out)


def test_scratch_memory_is_checked() -> None:
    assert _C.laplacian_merge_scratch(BANDS[:2]) == 0
    needed = _C.laplacian_merge_scratch(BANDS)
    assert needed == 2 * 3 * 3 * 5 * 4
    for scratch in (None, torch.empty(needed - 1, dtype=torch.uint8), torch.empty(needed // 4)):
        with pytest.raises(RuntimeError, match=rf"scratch must be {needed} contiguous uint8 on cpu.*, got"):
            simt_worker().call("laplacian_merge", BANDS, out=OUT.clone(), scratch=scratch)


def test_kernels_work_in_place() -> None:
    bands = pyramid(2, 37, 75, levels=2)
    want = laplacian_merge(bands)
    simt_worker().call("laplacian_merge", bands, out=bands[0])
    assert_same_bits([bands[0]], [want])


def test_no_races_on_shared_memory() -> None:
    bands = pyramid(1, 37, 75, levels=2)
    with SimtWorker("races") as simt:
        for seed in (1, 2):
            simt.seed = seed
            out = torch.empty_like(bands[0])
            simt.call("laplacian_merge", bands, out=out)
            assert_same_bits([out], [laplacian_merge(bands)])
