# SPDX-License-Identifier: Apache-2.0
"""dwt's numbers: PyWavelets', for every discrete wavelet and mode; what the contract's few cases cannot show."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from fastdiff import _C
from fastdiff.wavelet import dwt, idwt
from fastdiff.wavelet._filters import MODES, edge_of, filter_bank
from fastdiff.wavelet._reference import analysis_matrix
from fastdiff.wavelet.dwt import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.wavelet.dwt_oracle import (
    DTYPES,
    FEW,
    LAYOUTS,
    REFLECTING,
    WAVELETS,
    assert_equal,
    forward,
    laid_out,
    normal,
    sizes_of_bands,
    taps_of,
)

NAN, INF = math.nan, math.inf
each_isa = pytest.mark.parametrize("isa", usable_isas())
each_mode = pytest.mark.parametrize("mode", MODES)
each_few = pytest.mark.parametrize("wavelet", FEW)


# ---- PyWavelets ------------------------------------------------------------------------------------------------


def test_modes_are_those_of_pywavelets() -> None:
    assert set(MODES) == set(pywt.Modes.modes)
    assert len(WAVELETS) == 106


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "bior1.3", "bior2.4", "rbio3.1", "coif2"])
@each_mode
def test_reference_is_pywavelets(wavelet: str, mode: str) -> None:
    """The matrices, whose columns are the transforms of single samples."""
    taps = tuple(filter_bank(wavelet).analysis_taps)
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17):
        matrix = analysis_matrix(size, taps, edge_of(mode))
        want = forward(torch.eye(size, dtype=torch.float64), wavelet, 1, mode)  # [sample, band, K]
        assert_equal(matrix, want.movedim(0, -1), f"{size} samples")


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_one_dimension(wavelet: str) -> None:
    """Every mode and every length from 1 to 40, of which many are shorter than the filters."""
    for mode in MODES:
        for size in range(1, 41):
            x = normal(3, size, seed=size)
            assert_equal(dwt(x, wavelet, ndim=1, mode=mode), forward(x, wavelet, 1, mode), f"{mode} {size}")


@each_few
@each_mode
def test_one_dimension_of_any_length(wavelet: str, mode: str) -> None:
    """Past the strips in which a long line is worked on, their seams at both parities."""
    for size in (255, 1099, 1101, 2048, 4099, 33_331):
        x = normal(2, size, seed=size)
        assert_equal(dwt(x, wavelet, ndim=1, mode=mode), forward(x, wavelet, 1, mode), f"{size}")


@each_few
@each_mode
def test_two_and_three_dimensions(wavelet: str, mode: str) -> None:
    for sizes in (
        (1, 7),
        (7, 1),
        (2, 3),
        (9, 12),
        (16, 1),
        (13, 37),
        (5, 4200),
        (3, 4, 5),
        (1, 2, 9),
        (7, 6, 20),
    ):
        x = normal(2, *sizes, seed=sum(sizes))
        if mode in REFLECTING and 1 in sizes:
            continue  # PyWavelets refuses one sample: see below
        ndim = len(sizes)
        assert_equal(dwt(x, wavelet, ndim=ndim, mode=mode), forward(x, wavelet, ndim, mode), f"{sizes}")


@pytest.mark.parametrize("mode", REFLECTING)
@each_few
def test_one_sample_reflects_to_a_constant(wavelet: str, mode: str) -> None:
    with pytest.raises(ValueError, match=r"[Rr]eflect"):
        pywt.dwt(np.ones(1), wavelet, mode)
    for sizes in ((1,), (1, 1), (1, 6), (5, 1, 1)):
        x = normal(*sizes)
        want = x.expand(*sizes)
        for axis, size in enumerate(sizes):
            of_axis = "constant" if size == 1 else mode
            want = torch.from_numpy(
                np.stack(pywt.dwt(want.numpy(), wavelet, of_axis, axis=axis - len(sizes)))
            )
            want = want.movedim(0, axis)  # bands so far, then this axis', then the dimensions
        assert_equal(dwt(x, wavelet, ndim=len(sizes), mode=mode), want.flatten(0, len(sizes) - 1), f"{sizes}")


def test_bands_are_ordered_as_the_keys_of_pywavelets() -> None:
    """Varies along one dimension only: its details are in the bands with a d there."""
    ramp = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for axis, letters in enumerate(("daa", "ada", "aad")):
        x = ramp.reshape([4 if d == axis else 1 for d in range(3)]).expand(4, 4, 4)
        energy = dwt(x, "haar", ndim=3).square().sum((1, 2, 3))
        assert int(energy.argmax()) == int(letters.translate({97: "0", 100: "1"}), 2)
        assert int((energy > 1e-20).sum()) == 1


# ---- filters ---------------------------------------------------------------------------------------------------


def test_filters_in_any_form() -> None:
    x = normal(2, 9, 11)
    want = dwt(x, "bior2.2", ndim=2)
    w = pywt.Wavelet("bior2.2")
    for form in (w, w.filter_bank, tuple(map(np.asarray, w.filter_bank)), filter_bank("bior2.2")):
        assert_same_bits([dwt(x, form, ndim=2)], [want])


def test_haar_needs_no_pywavelets(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff.wavelet import _filters

    assert_equal(
        torch.tensor(filter_bank("haar"), dtype=torch.float64),
        torch.tensor(pywt.Wavelet("haar").filter_bank, dtype=torch.float64),
    )
    monkeypatch.setitem(__import__("sys").modules, "pywt", None)
    _filters._looked_up.cache_clear()
    try:
        x = normal(3, 8)
        assert_same_bits([dwt(x, "haar", ndim=1)], [dwt(x, "db1", ndim=1)])
        with pytest.raises(
            ImportError, match=r"the filters of 'db2' come from PyWavelets: pip install torch-fastdiff"
        ):
            dwt(x, "db2", ndim=1)
    finally:
        _filters._looked_up.cache_clear()


def test_the_longest_filters() -> None:
    """112 taps, more than any wavelet of PyWavelets has; of 114 see the refusals."""
    g = np.random.default_rng(0)
    filters = [list(g.standard_normal(112)) for _ in range(4)]
    w = pywt.Wavelet("long", filter_bank=filters)
    for mode in MODES:
        for size in (2, 30, 150):
            x = normal(2, size, seed=size)
            want = torch.from_numpy(np.stack(pywt.dwt(x.numpy(), w, mode), axis=1))
            assert_equal(dwt(x, filters, ndim=1, mode=mode), want, f"{mode} {size}")


# ---- everything at once, against the reference -----------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, str, dict[str, Any]]:
    ndim = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 9)) for _ in range(ndim - 1)] + [draw(st.integers(1, 45))]
    leading = draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2), (0, 2), (2, 17)]))
    wavelet, mode = draw(st.sampled_from(FEW)), draw(st.sampled_from(MODES))
    seed = draw(st.integers(0, 99))
    x = normal(*leading, *sizes, dtype=draw(st.sampled_from(DTYPES)), seed=seed)
    options: dict[str, Any] = {"ndim": ndim, "mode": mode}
    if draw(st.booleans()):
        shape = [draw(st.sampled_from([1, n])) for n in (*leading, 2**ndim)]
        shape = shape[draw(st.integers(0, len(shape))) :]
        options["scale"] = (1 + normal(*shape, seed=seed).abs()).to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        options["grid"] = [k + draw(st.integers(0, 5)) for k in sizes_of_bands(sizes, wavelet, mode)]
    return laid_out(x, draw(st.sampled_from(LAYOUTS)), max(0, len(leading) - 1)), wavelet, options


@settings(max_examples=200, deadline=None)
@given(call=calls())
def test_equals_the_reference(call: tuple[Tensor, str, dict[str, Any]]) -> None:
    x, wavelet, options = call
    got, want = dwt(x, wavelet, **options), reference(x, wavelet, **options)
    assert_close(
        got, want, **tolerance(x, wavelet, **options), what=f"{list(x.shape)} {x.dtype} {wavelet} {options}"
    )
    room = torch.full((*want.shape, 2), -7.0, dtype=x.dtype)
    assert_same_bits([dwt(x, wavelet, **options, out=room[..., 0])], [got])
    assert bool((room[..., 1] == -7).all())


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior2.2"])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 33, 64, 65, 127, 1100, 1101, 4300])
def test_any_width(width: int, wavelet: str, dtype: torch.dtype, isa: str) -> None:
    """One past a vector, one past a strip."""
    for mode in ("symmetric", "periodization"):
        x = normal(2, 5, width, dtype=dtype)
        with instruction_set(isa):
            got = dwt(x, wavelet, ndim=2, mode=mode)
        want = reference(x, wavelet, ndim=2, mode=mode)
        assert_close(got, want, **tolerance(x, wavelet, ndim=2, mode=mode), what=mode)


# ---- accuracy --------------------------------------------------------------------------------------------------


def eager(x: Tensor, wavelet: str) -> Tensor:
    """As a user would write it, in the dtype of x: for each dimension a padding and a strided convolution."""
    bank = filter_bank(wavelet)
    filters = torch.tensor([bank.dec_lo[::-1], bank.dec_hi[::-1]], dtype=x.dtype)[:, None]
    margin = taps_of(wavelet) - 2
    y = x[None]
    for axis in (-2, -1):
        rows = y.movedim(axis, -1)
        padded = torch.nn.functional.pad(rows, (margin, margin + rows.shape[-1] % 2))
        made = torch.nn.functional.conv1d(padded.flatten(0, -2)[:, None], filters, stride=2)
        made = made.unflatten(0, rows.shape[:-1])  # [bands so far, *, 2, K]
        y = made.movedim(-2, 1).flatten(0, 1).movedim(-1, axis)
    return y.movedim(0, -3)


@each_few
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_no_worse_than_eager(dtype: torch.dtype, wavelet: str) -> None:
    x = normal(4, 3, 60, 90, dtype=dtype)
    want = reference(x.double(), wavelet, ndim=2)

    def error(y: Tensor) -> float:
        return float((y.double() - want).square().mean().sqrt())

    theirs = error(eager(x, wavelet))
    assert error(dwt(x, wavelet, ndim=2)) <= (1.25 if dtype == torch.float32 else 0.9) * theirs


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_rounds_once(dtype: torch.dtype) -> None:
    """The result of half-precision numbers is float32's, rounded; that of a scale too."""
    x, scale = normal(3, 2, 21, 40, dtype=dtype), normal(4, dtype=torch.float32).abs() + 0.5
    for options in ({}, {"scale": scale}, {"scale": scale.to(dtype)}):
        wide = {name: t.float() for name, t in options.items()}
        want = dwt(x.float(), "bior4.4", ndim=2, **wide).to(dtype)
        assert_same_bits([dwt(x, "bior4.4", ndim=2, **options)], [want])


@each_isa
@pytest.mark.parametrize("mode", ["zero", "symmetric", "periodization"])
def test_nan_and_inf_stay_where_the_filters_are(mode: str, isa: str) -> None:
    x = normal(1, 30, 50, dtype=torch.float32)
    x[0, 12, 20] = NAN
    x[0, 25, 40] = INF
    with instruction_set(isa):
        got = dwt(x, "db2", ndim=2, mode=mode)
    want = reference(x, "db2", ndim=2, mode=mode)
    assert_same_bits([got.isnan(), got.isinf()], [want.isnan(), want.isinf()])
    assert int(got.isfinite().sum()) > 0.8 * got.numel()


# ---- many threads, many elements -------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "ndim"),
    [((10, 9000), 1), ((20, 4300), 2), ((3, 50, 1101), 2), ((300, 9, 17), 2), ((2, 5, 40, 1301), 3)],
    ids=str,
)
def test_any_thread_count(shape: tuple[int, ...], ndim: int, dtype: torch.dtype, isa: str) -> None:
    x = normal(*shape, dtype=dtype)
    scale = normal(2**ndim).abs() + 1
    with instruction_set(isa):
        for wavelet, mode in (("haar", "zero"), ("db4", "reflect"), ("bior2.4", "periodization")):
            torch.set_num_threads(1)
            want = dwt(x, wavelet, ndim=ndim, mode=mode, scale=scale)
            for threads in (2, 3, 7):
                torch.set_num_threads(threads)
                got = dwt(x, wavelet, ndim=ndim, mode=mode, scale=scale)
                assert_same_bits([got], [want], f"{wavelet}, {threads} threads")
            assert_close(want, reference(x, wavelet, ndim=ndim, mode=mode, scale=scale),
                         **tolerance(x, wavelet, ndim=ndim, mode=mode))  # fmt: skip


@each_isa
@pytest.mark.parametrize("mode", ["smooth", "periodization"])
def test_one_long_line_for_any_thread_count(mode: str, isa: str) -> None:
    x = normal(70_001)
    with instruction_set(isa):
        got = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            got.append(dwt(x, "db4", ndim=1, mode=mode))
            assert_same_bits(got[-1:], got[:1], f"{threads} threads")
    assert_equal(got[0], forward(x, "db4", 1, mode))


def test_bits_do_not_depend_on_the_batch() -> None:
    x = normal(5, 7, 12, 33, dtype=torch.float32)
    whole = dwt(x, "db4", ndim=2, mode="symmetric")
    alone = [dwt(plane[None], "db4", ndim=2, mode="symmetric") for plane in x.flatten(0, 1)]
    assert_same_bits([whole.flatten(0, 1)], [torch.cat(alone)])


@pytest.mark.parametrize(
    ("shape", "strides", "ndim"),
    [
        ((2, 2, 3), (2**31 + 7, 3, 1), 2),
        ((2, 9), (2**31 + 7, 1), 2),
        ((9, 2), (1, 2**31 + 7), 2),
        ((2, 3, 4), (2**31 + 7, 4, 1), 3),
    ],
    ids=["planes", "rows", "columns", "slices"],
)
def test_more_than_2_to_the_31_elements_apart(
    shape: tuple[int, ...], strides: tuple[int, ...], ndim: int
) -> None:
    """Further away than a 32-bit offset reaches; the memory between is never touched."""
    x = torch.empty(2**31 + 100, dtype=torch.bfloat16).as_strided(shape, strides)
    x.copy_(normal(*shape))
    want = dwt(x.contiguous(), "db2", ndim=ndim, mode="symmetric")
    # A result that is laid out like x would need more memory between its elements than a test should ask for.
    got = dwt(x, "db2", ndim=ndim, mode="symmetric", out=torch.empty_like(want))
    assert_same_bits([got], [want])


@pytest.mark.parametrize("at", [0, 1, 2], ids=["planes", "bands", "samples"])
def test_results_2_to_the_31_elements_apart(at: int) -> None:
    shape, strides = (2, 2, 2), [50, 20, 1]
    strides[at] = 2**31 + 7
    out = torch.empty(2**31 + 200, dtype=torch.bfloat16).as_strided(shape, strides)
    x = normal(2, 4, dtype=torch.bfloat16)
    dwt(x, "haar", ndim=1, out=out)
    assert_same_bits([out], [dwt(x, "haar", ndim=1)])


# ---- memory ----------------------------------------------------------------------------------------------------


def test_channels_last_keeps_its_layout() -> None:
    for channels in (2, 3, 16, 300):
        x = normal(2, channels, 10, 13, dtype=torch.float32)
        got = dwt(x.to(memory_format=torch.channels_last), "db2", ndim=2, mode="reflect")
        assert_same_bits([got], [dwt(x, "db2", ndim=2, mode="reflect")])
        assert got.stride(1) == 1


def test_what_is_after_the_bands_is_zero() -> None:
    for shape, grid in (((2, 9, 12), (8, 20)), ((2, 3, 4301), (5, 2200)), ((2, 20, 30), (30, 18))):
        for memory in LAYOUTS:
            x = laid_out(normal(*shape, dtype=torch.float32), memory, 0)
            want = dwt(x, "db2", ndim=2, mode="symmetric")
            out = torch.full((2, 4, *grid), NAN)
            dwt(x, "db2", ndim=2, mode="symmetric", grid=grid, out=out)
            margins = (0, grid[1] - want.shape[-1], 0, grid[0] - want.shape[-2])
            assert_same_bits([out], [torch.nn.functional.pad(want, margins)])
            # to the bit: a -0.0 would be one
            assert bool((out[..., want.shape[-1] :].view(torch.int32) == 0).all())


def test_numpy_arrays() -> None:
    x = normal(3, 9, 14, dtype=torch.float32)
    scale = np.float64([1, 2, 3, 4])
    bank = {"taps": filter_bank("bior2.2").analysis_taps, "ndim": 2, "edge": edge_of("smooth")}
    want = dwt(x, "bior2.2", ndim=2, mode="smooth", scale=torch.from_numpy(scale))
    y = np.full(want.shape, NAN, np.float32)
    _C.dwt(x.numpy(), y, **bank, scale=scale, divide=True)
    assert np.array_equal(y, want.numpy())
    wide = np.full((*want.shape, 2), NAN, np.float32)
    _C.dwt(x.numpy(), wide[..., 0], **bank, scale=scale, divide=True)
    assert np.array_equal(wide[..., 0], want.numpy())
    assert np.isnan(wide[..., 1]).all()
    flipped = x.flip(-1, 0)
    want = dwt(flipped, "bior2.2", ndim=2, mode="smooth", grid=(8, 15))
    y = np.full(want.shape, NAN, np.float32)
    _C.dwt(x.numpy()[::-1, :, ::-1], y, **bank)
    assert np.array_equal(y, want.numpy())
    with pytest.raises(RuntimeError, match=r"^fastdiff::dwt: out must be float32 like x, got float64"):
        _C.dwt(x.numpy(), y.astype(np.float64), **bank)
    with pytest.raises(
        RuntimeError, match=r"^fastdiff::dwt: grid must be 2 sizes of at least the bands' \(7, 9\)"
    ):
        _C.dwt(x.numpy(), y[..., :8], **bank)


def test_scratch_memory_is_known_for_any_shape() -> None:
    for shape, ndim in (((14,), 1), ((3, 9, 14), 2), ((2, 3, 9, 14), 2), ((2, 3, 4, 5), 3)):
        for memory in LAYOUTS:
            x = laid_out(normal(*shape, dtype=torch.float32), memory, 0).numpy()
            bank = filter_bank("bior2.2").analysis_taps
            assert _C.dwt_scratch(x, taps=bank, ndim=ndim, edge=0) >= 0


# ---- graphs ----------------------------------------------------------------------------------------------------


def counting(graphs: list[Any]) -> Any:
    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    return backend


def test_one_graph_for_repeated_calls() -> None:
    graphs: list[Any] = []
    call = functools.partial(dwt, wavelet="db2", ndim=2, mode="symmetric")
    compiled = torch.compile(call, backend=counting(graphs), fullgraph=True)
    for seed in range(4):
        x = normal(2, 3, 10, 12, dtype=torch.float32, seed=seed)
        scale = normal(3, 4, seed=seed).abs() + 1
        assert_same_bits([compiled(x, scale=scale)], [call(x, scale=scale)])
    assert len(graphs) == 1
    torch._dynamo.reset()


@each_mode
def test_one_graph_for_all_shapes(mode: str) -> None:
    graphs: list[Any] = []
    call = functools.partial(dwt, wavelet="bior2.2", ndim=2, mode=mode)
    compiled = torch.compile(call, backend=counting(graphs), fullgraph=True, dynamic=True)
    for sizes in ((10, 12), (11, 13), (5, 40), (64, 3)):
        x = normal(2, 3, *sizes, dtype=torch.float32)
        assert_same_bits([compiled(x)], [call(x)])
    assert len(graphs) == 1
    torch._dynamo.reset()


class Bands(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = dwt(x, "db3", ndim=2, mode="reflect")
        return y, idwt(y * 0.5, "db3", ndim=2, mode="reflect", size=x.shape[-2:])


def test_exported_for_any_size() -> None:
    height, width = torch.export.Dim("height", min=4, max=99), torch.export.Dim("width", min=4, max=99)
    x = normal(2, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(Bands(), (x,), dynamic_shapes={"x": {1: height, 2: width}})
        for sizes in ((8, 12), (9, 31), (50, 5)):
            x = normal(2, *sizes, dtype=torch.float32)
            assert_same_bits(program.module()(x), Bands()(x))


# ---- Wavelet Diffusion Neural Operator -------------------------------------------------------------------------


def padded(bands: Tensor, grid: Sequence[int]) -> Tensor:
    margins = [(0, g - n) for g, n in zip(grid, bands.shape[-len(grid) :], strict=True)]
    return torch.nn.functional.pad(bands, [m for margin in reversed(margins) for m in margin])


def test_wdno_burgers() -> None:
    """u and f on 81 x 120, four bands of 41 x 60 each, divided by a constant per channel, on a grid of 64 x 64."""
    fields, scale = normal(3, 2, 81, 120, dtype=torch.float32), torch.tensor([10, 3, 3, 1, 21, 5, 5, 1.0])
    options: dict[str, Any] = {"ndim": 2, "mode": "periodization", "scale": scale.view(2, 4)}
    y = dwt(fields, "bior2.4", **options, grid=(64, 64))
    channels = y.flatten(1, 2)
    want = forward(fields, "bior2.4", 2, "periodization").flatten(1, 2) / scale[:, None, None]
    assert want.shape == (3, 8, 41, 60)
    assert_equal(channels.double(), padded(want, (64, 64)), limit=1e-6)
    back = idwt(channels.unflatten(1, (2, 4)), "bior2.4", **options, size=(81, 120))
    assert_equal(back.double(), fields.double(), limit=1e-6)


def test_wdno_smoke() -> None:
    """Five fields of 32 x 64 x 64, eight bands of 18 x 34 x 34 each, on a grid of 24 x 40 x 40."""
    fields = normal(1, 5, 32, 64, 64, dtype=torch.float32)
    y = dwt(fields, "bior1.3", ndim=3, grid=(24, 40, 40))
    want = forward(fields, "bior1.3", 3, "zero")
    assert want.shape == (1, 5, 8, 18, 34, 34)
    assert_equal(y.double(), padded(want, (24, 40, 40)), limit=1e-6)
    assert_equal(idwt(y, "bior1.3", ndim=3, size=(32, 64, 64)).double(), fields.double(), limit=1e-6)
