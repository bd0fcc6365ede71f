# SPDX-License-Identifier: Apache-2.0
"""FrequencyDecoupled over wavelets: against its definition with PyWavelets' transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fastdiff import guidance as G
from fastdiff import planners, schedules
from torch import Tensor

from tests.kit import guidance as want

F64 = torch.float64
SCALES = (10.0, 5.0, 2.5)  # finest details, coarse details, approximation


def predictions(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(c, u)"""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(shape, generator=g, dtype=F64)
    return u + 0.3 * torch.randn(shape, generator=g, dtype=F64), u


def split(x: Tensor, wavelet: str, mode: str, ndim: int) -> list[Tensor]:
    """The finest first; the details of a level side by side, [B, C, 2**ndim - 1, *spatial]."""
    pywt = pytest.importorskip("pywt")
    axes = tuple(range(-ndim, 0))
    approximation, *details = pywt.wavedecn(x.numpy(), wavelet, mode, len(SCALES) - 1, axes)
    stacked = [torch.from_numpy(np.stack([level[k] for k in sorted(level)], -ndim - 1)) for level in details]
    return [*reversed(stacked), torch.from_numpy(approximation)]


def merge(bands: list[Tensor], x: Tensor, wavelet: str, mode: str, ndim: int) -> Tensor:
    pywt = pytest.importorskip("pywt")
    axes = tuple(range(-ndim, 0))
    pattern = pywt.wavedecn(x.numpy(), wavelet, mode, len(SCALES) - 1, axes)
    coefficients = [bands[-1].numpy()]
    for level, band in zip(pattern[1:], reversed(bands[:-1]), strict=True):
        coefficients.append(dict(zip(sorted(level), np.moveaxis(band.numpy(), -ndim - 1, 0), strict=True)))
    image = torch.from_numpy(pywt.waverecn(coefficients, wavelet, mode, axes))
    return image[tuple(slice(n) for n in x.shape)]


def definition(c: Tensor, u: Tensor, wavelet: str, mode: str, ndim: int, eta: float) -> Tensor:
    bands = zip(split(c, wavelet, mode, ndim), split(u, wavelet, mode, ndim), SCALES, strict=True)
    return merge([want.apg(cl, ul, s, eta, 0.0) for cl, ul, s in bands], c, wavelet, mode, ndim)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize(
    ("shape", "ndim"),
    [((2, 3, 40), 1), ((2, 3, 16, 24), 2), ((2, 3, 19, 22), 2), ((1, 2, 8, 12, 10), 3)],
    ids=str,
)
@pytest.mark.parametrize(
    ("wavelet", "mode"), [("haar", "symmetric"), ("db2", "reflect"), ("bior2.2", "periodization")]
)
def test_equals_the_definition(
    wavelet: str, mode: str, shape: tuple[int, ...], ndim: int, eta: float
) -> None:
    c, u = predictions(*shape)
    guidance = G.FrequencyDecoupled(SCALES, wavelet, ndim=ndim, mode=mode, parallel_weights=eta)
    expected = definition(c, u, wavelet, mode, ndim, eta)
    torch.testing.assert_close(guidance(c, u), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wavelet", ["haar", "sym4"])
def test_equal_scales_are_cfg(wavelet: str) -> None:
    c, u = predictions(2, 3, 21, 32)
    guidance = G.FrequencyDecoupled((7.5, 7.5, 7.5), wavelet)
    torch.testing.assert_close(guidance(c, u), want.cfg(c, u, 7.5), rtol=1e-11, atol=1e-11)


def test_a_band_that_is_off_is_that_of_c() -> None:
    c, u = predictions(2, 3, 16, 16)
    guidance = G.FrequencyDecoupled(SCALES, "haar", start=(0.0, 0.5, 0.0))
    bands = zip(
        split(c, "haar", "symmetric", 2), split(u, "haar", "symmetric", 2), (10.0, 1.0, 2.5), strict=True
    )
    expected = merge([want.cfg(cl, ul, s) for cl, ul, s in bands], c, "haar", "symmetric", 2)
    torch.testing.assert_close(guidance(c, u, step=0, steps=2), expected, rtol=1e-11, atol=1e-11)
    unset = torch.full_like(u, math.nan)
    assert torch.equal(G.FrequencyDecoupled(SCALES, "haar", start=0.5)(c, unset, step=0, steps=2), c)


def test_a_run_of_a_plan() -> None:
    plan = planners.ddim(schedules.scaled_linear(), 4)
    x = predictions(1, 3, 9, 8)[0]

    def model(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return 0.8 * x, 0.8 * torch.tanh(x)

    guidance = G.FrequencyDecoupled(SCALES, "haar")
    same = plan.run(lambda x, t: guidance(*model(x, t)[::-1]), x)
    torch.testing.assert_close(plan.run(model, x, guidance=guidance), same)
