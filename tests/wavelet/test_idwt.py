# SPDX-License-Identifier: Apache-2.0
"""idwt's numbers: PyWavelets', for every discrete wavelet and mode; perfect reconstruction; thresholds."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from fastdiff import _C
from fastdiff.wavelet import dwt, idwt
from fastdiff.wavelet._filters import CIRCULAR, MODES, ZERO, filter_bank
from fastdiff.wavelet._reference import analysis_matrix
from fastdiff.wavelet.idwt import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.wavelet.dwt_oracle import (
    DTYPES,
    FEW,
    LAYOUTS,
    WAVELETS,
    assert_equal,
    cropped,
    full_size,
    inverse,
    laid_out,
    normal,
    sizes_of_bands,
    taps_of,
)

NAN, INF = math.nan, math.inf
each_isa = pytest.mark.parametrize("isa", usable_isas())
each_few = pytest.mark.parametrize("wavelet", FEW)
BOTH = ("zero", "periodization")  # all modes but the last have the same inverse
each_of_both = pytest.mark.parametrize("mode", BOTH)


def least_bands(wavelet: str, mode: str) -> int:
    """How many coefficients a signal of one sample has; PyWavelets refuses fewer."""
    return sizes_of_bands((1,), wavelet, mode)[0]


# ---- PyWavelets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior1.3", "bior2.4", "rbio3.1", "coif2"])
@each_of_both
def test_reference_is_pywavelets(wavelet: str, mode: str) -> None:
    """The transposed matrices, whose columns are the signals of single coefficients."""
    taps, edge = tuple(filter_bank(wavelet).synthesis_taps), ZERO if mode == "zero" else CIRCULAR
    for bands in range(least_bands(wavelet, mode), 14):
        (size,) = full_size((bands,), wavelet, mode)
        if size == 0:
            continue  # a haar of no coefficients
        units = torch.eye(2 * bands, dtype=torch.float64).view(2 * bands, 2, bands)
        want = inverse(units, wavelet, 1, mode).view(2, bands, size)
        assert_equal(analysis_matrix(size, taps, edge), want, f"{bands} coefficients")


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_one_dimension(wavelet: str) -> None:
    """Every mode and every length from 1 to 40: coefficients of no signal at all, and the shorter of both sizes too."""
    for mode in MODES:
        for size in range(1, 41):
            (bands,) = sizes_of_bands((size,), wavelet, mode)
            y = normal(3, 2, bands, seed=size)
            want = inverse(y, wavelet, 1, mode)
            got = idwt(y, wavelet, ndim=1, mode=mode, size=(size,))
            assert_equal(got, want[:, :size], f"{mode} {size}")
            if size == want.shape[-1]:
                assert_same_bits([idwt(y, wavelet, ndim=1, mode=mode)], [got])


@each_few
@pytest.mark.parametrize("mode", MODES)
def test_one_dimension_of_any_length(wavelet: str, mode: str) -> None:
    for size in (256, 1101, 2049, 2200, 33_331):
        (bands,) = sizes_of_bands((size,), wavelet, mode)
        y = normal(2, 2, bands, seed=size)
        got = idwt(y, wavelet, ndim=1, mode=mode, size=(size,))
        assert_equal(got, inverse(y, wavelet, 1, mode)[:, :size], f"{size}")


@each_few
@pytest.mark.parametrize("mode", MODES)
def test_two_and_three_dimensions(wavelet: str, mode: str) -> None:
    for sizes in (
        (1, 7),
        (7, 1),
        (2, 3),
        (9, 12),
        (1, 1),
        (13, 37),
        (5, 4200),
        (3, 4, 5),
        (1, 2, 9),
        (7, 6, 20),
    ):
        ndim, bands = len(sizes), sizes_of_bands(sizes, wavelet, mode)
        y = normal(2, 2**ndim, *bands, seed=sum(sizes))
        got = idwt(y, wavelet, ndim=ndim, mode=mode, size=sizes)
        assert_equal(got, cropped(inverse(y, wavelet, ndim, mode), sizes), f"{sizes}")


# ---- there and back --------------------------------------------------------------------------------------------

# Most filters of PyWavelets are exact to float64, but not all: the Meyer wavelet has infinitely long filters, of which
# dmey is a finite part, and those of the highest orders are as exact as whoever tabulated them.
INEXACT = {"dmey": 2e-2}
EXTRAPOLATING = ("smooth", "antireflect")


def largest_deviation(wavelet: str) -> float:
    """From the condition of perfect reconstruction, |sum of all products at an even distance - the unit's|."""
    bank = pywt.Wavelet(wavelet)
    product = sum(
        np.convolve(d, r) for d, r in ((bank.dec_lo, bank.rec_lo), (bank.dec_hi, bank.rec_hi))
    )  # 2 at the centre and 0 elsewhere
    unit = np.zeros_like(product)
    unit[len(product) // 2] = 2
    return float(np.abs(product - unit).max())


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_there_and_back(wavelet: str) -> None:
    limit = INEXACT.get(wavelet, max(1e-12, 50 * largest_deviation(wavelet)))
    assert limit < 1e-8 or wavelet in INEXACT
    for mode in MODES:
        for sizes in ((1,), (2,), (7,), (30,), (151,), (5, 8), (3, 4, 7)):
            x = normal(2, *sizes, seed=sum(sizes))
            options: dict[str, Any] = {"ndim": len(sizes), "mode": mode}
            back = idwt(dwt(x, wavelet, **options), wavelet, **options, size=sizes)
            # Where the signal is continued by extrapolation, the numbers in between are that much larger.
            growth = 1 if mode not in EXTRAPOLATING else 5 if wavelet in INEXACT else taps_of(wavelet) ** 2
            assert_equal(back, x, f"{mode} {sizes}", limit=limit * growth)


def test_the_inexact_are_listed() -> None:
    for wavelet, limit in INEXACT.items():
        x = normal(300)
        back = idwt(dwt(x, wavelet, ndim=1, mode="periodization"), wavelet, ndim=1, mode="periodization")
        error = float((back - x).abs().max())
        assert limit / 1e4 < error < limit
        theirs = pywt.idwt(*pywt.dwt(x.numpy(), wavelet, "periodization"), wavelet, "periodization")
        assert_equal(back, torch.from_numpy(theirs))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_there_and_back_in_a_smaller_dtype(dtype: torch.dtype) -> None:
    """Two roundings, of which the filters make the first one larger."""
    x = normal(2, 3, 33, 40, dtype=dtype)
    for wavelet in FEW:
        bank = filter_bank(wavelet)
        growth = (sum(map(abs, bank.rec_lo)) + sum(map(abs, bank.rec_hi))) ** 2
        y = dwt(x, wavelet, ndim=2, mode="symmetric")
        back = idwt(y, wavelet, ndim=2, mode="symmetric", size=(33, 40))
        error = float((back.double() - x.double()).abs().max())
        assert error <= torch.finfo(dtype).eps * growth * float(y.abs().max())


# ---- everything at once, against the reference -----------------------------------------------------------------


def numbers(draw: st.DrawFn, leading: tuple[int, ...], bands: int, seed: int) -> Tensor:
    shape = [draw(st.sampled_from([1, n])) for n in (*leading, bands)]
    shape = shape[draw(st.integers(0, len(shape))) :]
    return normal(*shape, seed=seed).abs().to(draw(st.sampled_from(DTYPES)))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, str, dict[str, Any]]:
    ndim = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 9)) for _ in range(ndim - 1)] + [draw(st.integers(1, 70))]
    leading = draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2), (0, 2), (2, 17)]))
    wavelet, mode = draw(st.sampled_from(FEW)), draw(st.sampled_from(BOTH))
    seed, dtype = draw(st.integers(0, 99)), draw(st.sampled_from(DTYPES))
    bands = sizes_of_bands(sizes, wavelet, mode)

    def more() -> list[int]:
        return [k + draw(st.integers(0, 3)) for k in bands] if draw(st.booleans()) else bands

    options: dict[str, Any] = {"ndim": ndim, "mode": mode, "size": sizes}
    apart = draw(st.booleans())
    if apart:
        low = normal(*leading, *more(), dtype=dtype, seed=seed + 1)
        options["approximation"] = laid_out(low, draw(st.sampled_from(LAYOUTS)), max(0, len(leading) - 1))
    if draw(st.booleans()):
        options["scale"] = numbers(draw, leading, 2**ndim, seed + 2)
    if draw(st.booleans()):
        options |= {
            "threshold": numbers(draw, leading, 2**ndim, seed + 3),
            "shrink": draw(st.sampled_from(["soft", "hard"])),
        }
    y = normal(*leading, 2**ndim - apart, *more(), dtype=dtype, seed=seed)
    return laid_out(y, draw(st.sampled_from(LAYOUTS)), max(0, len(leading) - 1)), wavelet, options


def safe_from_rounding(y: Tensor, options: dict[str, Any]) -> bool:
    """No scaled coefficient so close to a hard threshold that a rounding decides."""
    if options.get("shrink") != "hard":
        return True
    ndim, ones = options["ndim"], (1,) * options["ndim"]
    low = options.get("approximation")
    parts = [y.double()] if low is None else [y.double(), low.double().unsqueeze(-1 - ndim)]
    t = options["threshold"].double()
    scale = options.get("scale", torch.ones(1)).double()
    for n, c in enumerate(parts):
        bands = 2**ndim
        own = slice(bands - c.shape[-1 - ndim], None) if n == 0 else slice(0, 1)
        at, by = (
            v.expand(*v.shape[:-1], bands)[..., own] if v.dim() else v.expand(bands)[own] for v in (t, scale)
        )
        distance = (c.abs() * by.reshape(*by.shape, *ones) - at.reshape(*at.shape, *ones)).abs()
        if bool((distance < 1e-6).any()):
            return False
    return True


@settings(max_examples=200, deadline=None)
@given(call=calls())
def test_equals_the_reference(call: tuple[Tensor, str, dict[str, Any]]) -> None:
    y, wavelet, options = call
    got, want = idwt(y, wavelet, **options), reference(y, wavelet, **options)
    assert got.shape == want.shape
    if safe_from_rounding(y, options):
        assert_close(
            got,
            want,
            **tolerance(y, wavelet, **options),
            what=f"{list(y.shape)} {y.dtype} {wavelet} {options}",
        )
    room = torch.full((*want.shape, 2), -7.0, dtype=y.dtype)
    assert_same_bits([idwt(y, wavelet, **options, out=room[..., 0])], [got])
    assert bool((room[..., 1] == -7).all())


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior2.2"])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 33, 64, 65, 127, 1100, 1101, 4300])
def test_any_width(width: int, wavelet: str, dtype: torch.dtype, isa: str) -> None:
    for mode in BOTH:
        y = normal(2, 4, *sizes_of_bands((5, width), wavelet, mode), dtype=dtype)
        options: dict[str, Any] = {"ndim": 2, "mode": mode, "size": (5, width)}
        with instruction_set(isa):
            got = idwt(y, wavelet, **options)
        assert_close(got, reference(y, wavelet, **options), **tolerance(y, wavelet, **options), what=mode)


# ---- scale, threshold, approximation ---------------------------------------------------------------------------


@pytest.mark.parametrize("shrink", ["soft", "hard"])
@pytest.mark.parametrize("mode", BOTH)
def test_thresholds_are_those_of_pywavelets(mode: str, shrink: str) -> None:
    y, t = normal(3, 4, 9, 11), torch.tensor([0.0, 0.3, 0.7, 2.5], dtype=torch.float64)
    shrunk = [
        torch.from_numpy(pywt.threshold(band.numpy(), v, shrink))
        for band, v in zip(y.unbind(1), t.tolist(), strict=True)
    ]
    want = inverse(torch.stack(shrunk, 1), "sym4", 2, mode)
    assert_equal(idwt(y, "sym4", ndim=2, mode=mode, threshold=t, shrink=shrink), want)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threshold_at_its_edge(dtype: torch.dtype, isa: str) -> None:
    """|c| = t is kept by the hard rule and 0 by the soft one; what is below is 0 by both."""
    values = torch.tensor([0.5, -0.5, 0.25, -0.25, 0.75, -0.75, 0.0, -0.0] * 5, dtype=dtype)
    t = torch.tensor([0.5])
    with instruction_set(isa):
        for shrink, kept in (
            ("soft", [0, 0, 0, 0, 0.25, -0.25, 0, 0]),
            ("hard", [0.5, -0.5, 0, 0, 0.75, -0.75, 0, 0]),
        ):
            y = torch.stack((values, torch.zeros_like(values)))
            want = idwt(
                torch.stack((torch.tensor(kept * 5, dtype=dtype), torch.zeros_like(values))), "haar", ndim=1
            )
            assert_same_bits([idwt(y, "haar", ndim=1, threshold=t, shrink=shrink) + 0.0], [want + 0.0])


@each_isa
@pytest.mark.parametrize("shrink", ["soft", "hard"])
def test_nan_and_inf_survive_a_threshold(shrink: str, isa: str) -> None:
    y = normal(1, 4, 9, 30, dtype=torch.float32)
    y[0, 1, 2, 3], y[0, 2, 5, 20], y[0, 3, 8, 29] = NAN, INF, -INF
    t = torch.full((4,), 0.5)
    with instruction_set(isa):
        got = idwt(y, "db2", ndim=2, threshold=t, shrink=shrink)
    want = reference(y, "db2", ndim=2, threshold=t, shrink=shrink)
    assert_same_bits([got.isnan(), got.isinf()], [want.isnan(), want.isinf()])
    assert bool(got.isnan().any())
    assert bool(got.isinf().any())


def test_scale_before_threshold() -> None:
    y, s, t = normal(2, 4, 6, 7), torch.tensor([1, 2, 3, 4.0]), torch.tensor([0, 0.5, 1, 1.5])
    want = idwt(y * s[:, None, None], "db2", ndim=2, threshold=t)
    assert_equal(idwt(y, "db2", ndim=2, scale=s, threshold=t), want, limit=1e-15)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("mode", BOTH)
def test_numbers_for_all_channels_that_lie_innermost(mode: str, wavelet: str) -> None:
    """Each coefficient is changed in its own memory, of which a column has as many as there are channels."""
    y, s, t = normal(2, 3, 4, 5, 6, dtype=torch.float32), torch.rand(4) + 0.5, torch.rand(4)
    for options in ({"scale": s}, {"threshold": t}, {"scale": s[:1], "threshold": t[:1]}):
        options = {"ndim": 2, "mode": mode} | options
        assert_same_bits(
            [idwt(laid_out(y, "innermost", 1), wavelet, **options)], [idwt(y, wavelet, **options)]
        )


@each_few
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_an_approximation_apart_is_the_first_band(ndim: int, wavelet: str) -> None:
    sizes = (5, 6, 21)[-ndim:]
    for dtype in DTYPES:
        for memory in LAYOUTS:
            y = normal(2, 3, 2**ndim, *sizes_of_bands(sizes, wavelet, "zero"), dtype=dtype)
            low = laid_out(torch.nn.functional.pad(y.select(2, 0), (0, 2)), memory, 1)
            details = laid_out(y.narrow(2, 1, 2**ndim - 1), memory, 1)
            options: dict[str, Any] = {"ndim": ndim, "size": sizes, "threshold": torch.tensor([0.2])}
            got = idwt(details, wavelet, **options, approximation=low)
            assert_same_bits([got], [idwt(y, wavelet, **options)], f"{dtype} {memory}")


# ---- accuracy --------------------------------------------------------------------------------------------------


def eager(y: Tensor, wavelet: str) -> Tensor:
    """As a user would write it, in the dtype of y: a transposed convolution along each dimension, and a crop."""
    bank = filter_bank(wavelet)
    filters = torch.tensor([bank.rec_lo, bank.rec_hi], dtype=y.dtype)[:, None]
    x = y.unflatten(-3, (2, 2))
    for axis in (-1, -2):
        rows = x.movedim((-3, axis), (-2, -1))  # the last dimension's bit is the lowest
        made = torch.nn.functional.conv_transpose1d(rows.flatten(0, -3), filters, stride=2)[:, 0]
        margin = len(bank.rec_lo) - 2
        made = made[:, margin : made.shape[-1] - margin] if margin else made
        x = made.unflatten(0, rows.shape[:-2]).movedim(-1, axis)
    return x


@each_few
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_no_worse_than_eager(dtype: torch.dtype, wavelet: str) -> None:
    y = normal(4, 3, 4, 60, 90, dtype=dtype)
    want = reference(y.double(), wavelet, ndim=2)

    def error(x: Tensor) -> float:
        return float((x.double() - want).square().mean().sqrt())

    theirs = error(eager(y, wavelet))
    assert theirs < 0.1 * float(want.std())  # it is the same transform
    assert error(idwt(y, wavelet, ndim=2)) <= (1.25 if dtype == torch.float32 else 0.9) * theirs


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_rounds_once(dtype: torch.dtype) -> None:
    y = normal(3, 2, 4, 21, 40, dtype=dtype)
    s, t = normal(4).abs().float() + 0.5, normal(4, seed=1).abs().float()
    for options in ({}, {"scale": s}, {"threshold": t}, {"scale": s, "threshold": t, "shrink": "hard"}):
        want = idwt(y.float(), "bior4.4", ndim=2, **options).to(dtype)
        assert_same_bits([idwt(y, "bior4.4", ndim=2, **options)], [want])


# ---- many threads, many elements -------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "ndim"),
    [((10, 9000), 1), ((20, 4300), 2), ((3, 50, 1101), 2), ((300, 9, 17), 2), ((2, 5, 40, 1301), 3)],
    ids=str,
)
def test_any_thread_count(shape: tuple[int, ...], ndim: int, dtype: torch.dtype, isa: str) -> None:
    leading, sizes = shape[:-ndim], shape[-ndim:]
    t = normal(2**ndim).abs()
    with instruction_set(isa):
        for wavelet, mode, threshold in (
            ("haar", "zero", None),
            ("db4", "zero", t),
            ("bior2.4", "periodization", None),
        ):
            y = normal(*leading, 2**ndim, *sizes_of_bands(sizes, wavelet, mode), dtype=dtype)
            options: dict[str, Any] = {"ndim": ndim, "mode": mode, "size": sizes, "threshold": threshold}
            torch.set_num_threads(1)
            want = idwt(y, wavelet, **options)
            for threads in (2, 3, 7):
                torch.set_num_threads(threads)
                assert_same_bits([idwt(y, wavelet, **options)], [want], f"{wavelet}, {threads} threads")
            assert_close(want, reference(y, wavelet, **options), **tolerance(y, wavelet, **options))


@each_isa
@each_of_both
def test_one_long_line_for_any_thread_count(mode: str, isa: str) -> None:
    y = normal(2, *sizes_of_bands((70_001,), "db4", mode))
    with instruction_set(isa):
        got = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            got.append(idwt(y, "db4", ndim=1, mode=mode, size=(70_001,)))
            assert_same_bits(got[-1:], got[:1], f"{threads} threads")
    assert_equal(got[0], inverse(y, "db4", 1, mode)[:70_001])


@pytest.mark.parametrize("at", range(4), ids=["planes", "bands", "rows", "columns"])
def test_more_than_2_to_the_31_elements_apart(at: int) -> None:
    """Further away than a 32-bit offset reaches; the memory between is never touched."""
    shape, far = [2, 4, 2, 5], 2**31 + 7
    strides = [2 * 4 * 5, 10, 5, 1]
    strides[at], shape[at] = far, 4 if at == 1 else 2
    y = torch.empty((shape[at] - 1) * far + 200, dtype=torch.bfloat16).as_strided(shape, strides)
    y.copy_(normal(*shape))
    size = [2 * k for k in shape[2:]]
    got = idwt(y, "haar", ndim=2, size=size, out=torch.empty(2, *size, dtype=torch.bfloat16))
    assert_same_bits([got], [idwt(y.contiguous(), "haar", ndim=2)])


@pytest.mark.parametrize("at", range(3), ids=["planes", "rows", "columns"])
def test_results_2_to_the_31_elements_apart(at: int) -> None:
    y = normal(2, 4, 1, 1, dtype=torch.bfloat16)
    strides = [50, 20, 1]
    strides[at] = 2**31 + 7
    out = torch.empty(2**31 + 200, dtype=torch.bfloat16).as_strided((2, 2, 2), strides)
    idwt(y, "haar", ndim=2, out=out)
    assert_same_bits([out], [idwt(y, "haar", ndim=2)])


# ---- memory ----------------------------------------------------------------------------------------------------


def test_what_is_after_the_bands_is_not_read() -> None:
    y = normal(2, 4, 8, 30, dtype=torch.float32)
    y[..., 6:, :] = y[..., 25:] = NAN
    for mode, size in (("zero", (10, 48)), ("periodization", (12, 50))):
        for memory in LAYOUTS:
            got = idwt(laid_out(y, memory, 0), "db2", ndim=2, mode=mode, size=size)
            used = y[..., :6, :25].contiguous()
            assert_same_bits([got], [idwt(used, "db2", ndim=2, mode=mode, size=size)])
            assert bool(got.isfinite().all())


def test_numpy_arrays() -> None:
    y = normal(3, 4, 9, 14, dtype=torch.float32)
    scale, threshold = np.float64([1, 2, 3, 4]), np.float32([0, 0.5, 0.5, 1])
    bank = {"taps": filter_bank("bior2.2").synthesis_taps, "ndim": 2, "edge": ZERO}
    numbers = {"scale": torch.from_numpy(scale), "threshold": torch.from_numpy(threshold), "shrink": "hard"}
    want = idwt(y, "bior2.2", ndim=2, **numbers)
    x = np.full(want.shape, NAN, np.float32)
    _C.idwt(y.numpy(), x, **bank, scale=scale, threshold=threshold, hard=True)
    assert np.array_equal(x, want.numpy())
    x[:] = NAN
    low, details = np.ascontiguousarray(y.numpy()[:, 0]), np.ascontiguousarray(y.numpy()[:, 1:])
    _C.idwt(details, x, **bank, scale=scale, threshold=threshold, hard=True, approximation=low)
    assert np.array_equal(x, want.numpy())
    want = idwt(y.flip(0, -2, -1), "bior2.2", ndim=2, size=(12, 20))
    x = np.full(want.shape, NAN, np.float32)
    _C.idwt(y.numpy()[::-1, :, ::-1, ::-1], x, **bank)
    assert np.array_equal(x, want.numpy())
    _C.idwt(details[::-1, :, ::-1, ::-1], x, **bank, approximation=low[::-1, ::-1, ::-1])
    assert np.array_equal(x, want.numpy())
    _C.idwt(y.numpy()[:, ::-1], x, **bank)  # bands backwards
    assert np.array_equal(x, idwt(y.flip(1), "bior2.2", ndim=2, size=(12, 20)).numpy())
    with pytest.raises(RuntimeError, match=r"^fastdiff::idwt: out must be float32 like y, got float64"):
        _C.idwt(y.numpy(), x.astype(np.float64), **bank)


def test_scratch_memory_is_known_for_any_shape() -> None:
    for sizes, ndim in (((14,), 1), ((9, 14), 2), ((3, 9, 14), 3)):
        for memory in LAYOUTS:
            y = laid_out(normal(3, 2**ndim, *sizes, dtype=torch.float32), memory, 0)
            bank: dict[str, Any] = {"taps": filter_bank("haar").synthesis_taps, "ndim": ndim, "edge": 0}
            size = [2 * n for n in sizes]
            assert _C.idwt_scratch(y.numpy(), **bank, size=size) >= 0
            assert _C.idwt_scratch(y[:, 1:].numpy(), **bank, size=size, split=True) >= 0


# ---- graphs ----------------------------------------------------------------------------------------------------


def counting(graphs: list[Any]) -> Any:
    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    return backend


def test_one_graph_for_repeated_calls() -> None:
    graphs: list[Any] = []
    call = functools.partial(idwt, wavelet="db2", ndim=2, mode="symmetric")
    compiled = torch.compile(call, backend=counting(graphs), fullgraph=True)
    for seed in range(4):
        y, low = normal(2, 3, 3, 10, 12, seed=seed), normal(2, 3, 10, 12, seed=seed + 9)
        given = {
            "approximation": low,
            "threshold": normal(4, seed=seed).abs(),
            "scale": normal(3, 1, seed=seed),
        }
        assert_same_bits([compiled(y, **given)], [call(y, **given)])
    assert len(graphs) == 1
    torch._dynamo.reset()


@each_of_both
@pytest.mark.parametrize("given", [False, True], ids=["largest", "given"])
def test_one_graph_for_all_shapes(given: bool, mode: str) -> None:
    graphs: list[Any] = []

    def call(y: Tensor) -> Tensor:
        size = [2 * n - 5 for n in y.shape[-2:]] if given else None
        return idwt(y, "bior2.2", ndim=2, mode=mode, size=size)

    compiled = torch.compile(call, backend=counting(graphs), fullgraph=True, dynamic=True)
    for sizes in ((10, 12), (11, 13), (6, 40), (64, 7)):
        y = normal(2, 4, *(n + 4 if given else n for n in sizes), dtype=torch.float32)
        assert_same_bits([compiled(y)], [call(y)])
    assert len(graphs) == 1
    torch._dynamo.reset()
