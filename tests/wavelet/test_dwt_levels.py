# SPDX-License-Identifier: Apache-2.0
"""wavedec and waverec: PyWavelets' wavedecn and waverecn, at every level and in every mode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from fastdiff.wavelet import dwt, pack_subbands, unpack_subbands, upsample_subbands, wavedec, waverec
from fastdiff.wavelet._filters import MODES, max_level
from torch import Tensor

from tests.kit.compare import assert_same_bits
from tests.wavelet.dwt_oracle import DTYPES, FEW, WAVELETS, assert_equal, normal

each_mode = pytest.mark.parametrize("mode", MODES)
SHAPES = [((2, 96), 1), ((2, 101), 1), ((2, 40, 57), 2), ((3, 64, 64), 2), ((24, 31, 40), 3)]
each_shape = pytest.mark.parametrize(("shape", "ndim"), SHAPES, ids=str)


def decomposed(x: Tensor, wavelet: str, mode: str, level: int, ndim: int) -> list[Tensor]:
    """PyWavelets' coefficients, the details of a level in one tensor in the order of their keys."""
    low, *details = pywt.wavedecn(x.numpy(), wavelet, mode, level, axes=range(-ndim, 0))
    stacked = (np.stack([bands[key] for key in sorted(bands)], axis=-1 - ndim) for bands in details)
    return [torch.from_numpy(low), *map(torch.from_numpy, stacked)]


def recomposed(coefficients: list[Tensor], wavelet: str, mode: str, ndim: int) -> Tensor:
    keys = [format(n, f"0{ndim}b").translate({48: "a", 49: "d"}) for n in range(1, 2**ndim)]
    low, *details = (c.numpy() for c in coefficients)
    levels = [dict(zip(keys, np.moveaxis(d, -1 - ndim, 0), strict=True)) for d in details]
    return torch.from_numpy(pywt.waverecn([low, *levels], wavelet, mode, axes=range(-ndim, 0)))


@each_shape
@each_mode
@pytest.mark.parametrize("wavelet", ["haar", "db3", "bior2.2", "bior2.4"])
@pytest.mark.filterwarnings("ignore:Level value")
def test_every_level(wavelet: str, mode: str, shape: tuple[int, ...], ndim: int) -> None:
    """One more than PyWavelets recommends, too."""
    x = normal(*shape)
    deepest = max_level(shape[-ndim:], wavelet) + (wavelet != "haar")  # of one sample there are no details
    for level in range(deepest + 1):
        want = decomposed(x, wavelet, mode, level, ndim)
        got = wavedec(x, wavelet, ndim=ndim, mode=mode, level=level)
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w, f"level {level}")
        # Of numbers that no signal has, with the shapes of those of one.
        numbers = [normal(*c.shape, seed=n) for n, c in enumerate(want)]
        whole = recomposed(numbers, wavelet, mode, ndim)
        assert_equal(waverec(numbers, wavelet, ndim=ndim, mode=mode), whole, f"level {level}")
        part = whole[(..., *map(slice, shape[-ndim:]))]
        assert_equal(
            waverec(numbers, wavelet, ndim=ndim, mode=mode, size=shape[-ndim:]), part, f"level {level}"
        )
        back = waverec(got, wavelet, ndim=ndim, mode=mode, size=shape[-ndim:])
        assert_equal(back, x, f"level {level}", limit=1e-10)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_the_deepest_level_is_that_of_pywavelets(wavelet: str) -> None:
    for sizes in ((1,), (2,), (7,), (8,), (203,), (1024,), (4096, 65_536), (5, 300, 17), (101, 100, 404)):
        want = pywt.dwtn_max_level(sizes, wavelet)
        assert max_level(sizes, wavelet) == want
    for n in range(1, 300):
        assert max_level((n,), wavelet) == pywt.dwt_max_level(n, wavelet), n


def test_default_level() -> None:
    for shape, ndim in SHAPES:
        x = normal(*shape)
        want = pywt.wavedecn(x.numpy(), "db3", "symmetric", axes=range(-ndim, 0))
        got = wavedec(x, "db3", ndim=ndim, mode="symmetric")
        assert len(got) == len(want) > 2


def test_level_0_is_the_signal_itself() -> None:
    x = normal(3, 5)
    (low,) = wavedec(x, "db4", ndim=1, level=0)
    assert low is x
    assert waverec([low], "db4", ndim=1) is x


def test_details_are_views() -> None:
    """Nothing is copied: the approximation lies beside the details of its level."""
    low, coarse, fine = wavedec(normal(2, 16, 16), "haar", ndim=2, level=2)
    assert low.untyped_storage().data_ptr() == coarse.untyped_storage().data_ptr()
    assert low.untyped_storage().data_ptr() != fine.untyped_storage().data_ptr()
    assert fine.shape == (2, 3, 8, 8)


def test_a_level_is_a_dwt() -> None:
    x = normal(2, 3, 30, 41, dtype=torch.float32)
    low, coarse, fine = wavedec(x, "sym5", ndim=2, mode="reflect", level=2)
    first = dwt(x, "sym5", ndim=2, mode="reflect")
    second = dwt(first[:, :, 0], "sym5", ndim=2, mode="reflect")
    assert_same_bits([fine, coarse, low], [first[:, :, 1:], second[:, :, 1:], second[:, :, 0]])


@pytest.mark.parametrize("shrink", ["soft", "hard"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_thresholds(ndim: int, shrink: str) -> None:
    """A number, one for each band, for each sample of the batch; the same for all levels or one for each."""
    coefficients = wavedec(normal(2, 21, 22, 23), "db2", ndim=ndim, mode="symmetric", level=2)
    bands = 2**ndim - 1
    leading = coefficients[0].shape[:-ndim]
    per_band = torch.rand(bands, dtype=torch.float64)
    shared: list[Tensor] = [
        torch.tensor(0.4, dtype=torch.float64),
        torch.tensor([0.4], dtype=torch.float64),
        per_band,
        torch.rand(*leading, bands, dtype=torch.float64),
        torch.rand(leading[0], *(1,) * len(leading), dtype=torch.float64),
    ]
    given: list[Any] = [*shared, [shared[1], per_band], [per_band, shared[0]], [shared[3], shared[3] * 2]]
    for thresholds in given:
        levels = [thresholds, thresholds] if isinstance(thresholds, Tensor) else thresholds
        shrunk = [coefficients[0]]
        for details, t in zip(coefficients[1:], levels, strict=True):
            ones = (1,) * ndim
            at = t.reshape(*t.shape, *ones).expand(details.shape)
            magnitude = details.abs()
            kept = details - torch.copysign(at, details) if shrink == "soft" else details
            shrunk.append(torch.where(magnitude < at, torch.zeros_like(details), kept))
        want = recomposed([c.contiguous() for c in shrunk], "db2", "symmetric", ndim)
        got = waverec(coefficients, "db2", ndim=ndim, mode="symmetric", threshold=thresholds, shrink=shrink)
        assert_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_there_and_back_in_a_smaller_dtype(dtype: torch.dtype) -> None:
    x = normal(3, 64, 65, dtype=dtype)
    for wavelet in FEW:
        if wavelet == "rbio3.1":
            continue  # its filters make every error four times as large at each level
        coefficients = wavedec(x, wavelet, ndim=2, mode="symmetric", level=3)
        back = waverec(coefficients, wavelet, ndim=2, mode="symmetric", size=(64, 65))
        assert {c.dtype for c in (*coefficients, back)} == {dtype}
        error = float((back.double() - x.double()).square().mean().sqrt())
        assert error < 4 * torch.finfo(dtype).eps, wavelet


def test_channels_last_stays() -> None:
    x = normal(2, 6, 20, 24, dtype=torch.float32).to(memory_format=torch.channels_last)
    got = wavedec(x, "bior2.2", ndim=2, mode="symmetric", level=2)
    want = wavedec(x.contiguous(), "bior2.2", ndim=2, mode="symmetric", level=2)
    assert_same_bits(got, want)
    back = waverec(got, "bior2.2", ndim=2, mode="symmetric", size=(20, 24), threshold=torch.tensor([0.1]))
    assert_same_bits(
        [back],
        [waverec(want, "bior2.2", ndim=2, mode="symmetric", size=(20, 24), threshold=torch.tensor([0.1]))],
    )


def test_denoises() -> None:
    """A smooth signal in noise: the universal threshold takes most of it away."""
    t = torch.linspace(0, 1, 4096, dtype=torch.float64)
    clean = torch.sin(2 * math.pi * 3 * t) + (t > 0.5)
    noisy = clean + 0.3 * normal(4096)
    coefficients = wavedec(noisy, "sym8", ndim=1, mode="symmetric", level=6)
    sigma = coefficients[-1].abs().median() / 0.6745
    assert abs(float(sigma) - 0.3) < 0.03
    threshold = sigma * math.sqrt(2 * math.log(4096))
    got = waverec(coefficients, "sym8", ndim=1, mode="symmetric", size=(4096,), threshold=threshold)
    assert float((got - clean).square().mean()) < 0.1 * float((noisy - clean).square().mean())


# ---- graphs ----------------------------------------------------------------------------------------------------


def test_one_graph_for_repeated_calls_and_one_for_all_shapes() -> None:
    def there_and_back(x: Tensor, threshold: Tensor) -> Tensor:
        coefficients = wavedec(x, "db2", ndim=2, mode="symmetric", level=2)
        return waverec(coefficients, "db2", ndim=2, mode="symmetric", size=x.shape[-2:], threshold=threshold)

    for dynamic, shapes in ((None, [(16, 20)] * 4), (True, [(16, 20), (17, 33), (40, 21)])):
        graphs: list[Any] = []

        def backend(module: torch.fx.GraphModule, _: Any) -> Any:
            graphs.append(module)  # noqa: B023
            return module.forward

        compiled = torch.compile(there_and_back, backend=backend, fullgraph=True, dynamic=dynamic)
        for seed, sizes in enumerate(shapes):
            x, t = normal(2, *sizes, dtype=torch.float32, seed=seed), torch.rand(3)
            assert_same_bits([compiled(x, t)], [there_and_back(x, t)])
        assert len(graphs) == 1
        torch._dynamo.reset()


def test_calls_of_no_level_are_checked_too() -> None:
    x = torch.zeros(8, 8)
    with pytest.raises(RuntimeError, match=r"^fastdiff: ndim must be 1, 2 or 3, got 7"):
        wavedec(x, "haar", ndim=7, level=0)
    with pytest.raises(ValueError, match="mode"):
        wavedec(x, "haar", ndim=2, mode="bogus", level=0)
    with pytest.raises(RuntimeError, match=r"^fastdiff: x must have at least 3 dimensions"):
        wavedec(x, "haar", ndim=3, level=0)
    with pytest.raises(ValueError, match="size must be that of the approximation"):
        waverec([x], "haar", ndim=2, size=(5, 5))
    with pytest.raises(ValueError, match="shrink"):
        waverec([x], "haar", ndim=2, shrink="bogus")
    assert waverec([x], "haar", ndim=2, size=(8, 8)) is x


def test_packing_wants_channels() -> None:
    with pytest.raises(RuntimeError, match=r"^fastdiff\.pack_subbands: x must have channels"):
        pack_subbands(torch.zeros(8, 8), "haar", ndim=2)
    with pytest.raises(RuntimeError, match=r"^fastdiff\.unpack_subbands: y must have channels"):
        unpack_subbands(torch.zeros(8, 8), "haar", ndim=2, size=(8, 8))
    with pytest.raises(RuntimeError, match=r"^fastdiff\.upsample_subbands: y must have 2 dimensions"):
        upsample_subbands(torch.zeros(8), ndim=2, bands=(4, 4), size=(8, 8))
