# SPDX-License-Identifier: Apache-2.0
"""PyWavelets, called as the operators are: bands side by side in one tensor, float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pywt
import torch
from fastdiff.wavelet._filters import band_size, edge_of, filter_bank, signal_size
from torch import Tensor

WAVELETS = pywt.wavelist(kind="discrete")
# Those that the slower tests take: two taps, orthogonal, both filters full, many zeros among the taps, long.
FEW = ("haar", "db2", "db4", "bior1.3", "bior2.2", "bior2.4", "bior4.4", "rbio3.1", "sym5", "coif2")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
FLOATS = "must be float32, float16, bfloat16 or float64"

# Of one sample PyWavelets refuses to reflect; ours is a constant then (to reflect once is to repeat it forever).
REFLECTING = ("reflect", "antireflect")


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def taps_of(wavelet: str) -> int:
    return len(filter_bank(wavelet).dec_lo)


def sizes_of_bands(sizes: Sequence[int], wavelet: str, mode: str) -> list[int]:
    return [band_size(n, taps_of(wavelet), edge_of(mode)) for n in sizes]


def full_size(bands: Sequence[int], wavelet: str, mode: str) -> list[int]:
    return [signal_size(k, taps_of(wavelet), edge_of(mode)) for k in bands]


def forward(x: Tensor, wavelet: str, ndim: int, mode: str) -> Tensor:
    """[*, *sizes] -> [*, 2**ndim, *bands]."""
    known = "constant" if mode in REFLECTING and min(x.shape[-ndim:]) == 1 else mode
    bands = pywt.dwtn(x.double().numpy(), wavelet, known, axes=range(-ndim, 0))
    return torch.from_numpy(np.stack([bands[key] for key in sorted(bands)], axis=-1 - ndim))


def inverse(y: Tensor, wavelet: str, ndim: int, mode: str) -> Tensor:
    """[*, 2**ndim, *bands] -> [*, *sizes], of the larger of the two sizes."""
    keys = [format(n, f"0{ndim}b").translate({48: "a", 49: "d"}) for n in range(2**ndim)]
    bands = dict(zip(keys, np.moveaxis(y.double().numpy(), -1 - ndim, 0), strict=True))
    return torch.from_numpy(pywt.idwtn(bands, wavelet, mode, axes=range(-ndim, 0)))


def cropped(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return x[(..., *map(slice, sizes))]


def assert_equal(got: Tensor, want: Tensor, what: str = "", *, limit: float = 1e-12) -> None:
    """Largest difference over largest number."""
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    error = float((got - want).abs().max() / want.abs().max().clamp_min(1e-300))
    assert error <= limit, f"{what}: relative error {error:.1e}, allowed {limit:.0e}"


def laid_out(x: Tensor, memory: str, first: int) -> Tensor:
    """The same numbers in other memory; ``first`` is the dimension that may come to lie innermost."""
    if memory == "innermost" and x.dim() > first:
        return x.movedim(first, -1).contiguous().movedim(-1, first)
    if memory == "backwards":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    if memory == "apart":
        return torch.stack((x, x), -1)[..., 0]
    if memory == "part":
        return torch.nn.functional.pad(x, (3, 2))[..., 3 : 3 + x.shape[-1]]
    return x.contiguous()


LAYOUTS = ("contiguous", "innermost", "backwards", "apart", "part")
