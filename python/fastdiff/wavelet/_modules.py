# SPDX-License-Identifier: Apache-2.0
"""The transforms as modules, without parameters: a line in a model's ``Sequential``."""

from __future__ import annotations

from torch import Tensor, nn

from fastdiff.wavelet._filters import Wavelet, edge_of, filter_bank
from fastdiff.wavelet.dwt import dwt
from fastdiff.wavelet.idwt import idwt


class _Transform(nn.Module):
    def __init__(self, wavelet: Wavelet, *, ndim: int, mode: str = "zero") -> None:
        super().__init__()
        edge_of(mode)
        self.name = wavelet if isinstance(wavelet, str) else "custom"
        self.bank, self.ndim, self.mode = filter_bank(wavelet), ndim, mode

    def extra_repr(self) -> str:
        return f"{self.name!r}, ndim={self.ndim}, mode={self.mode!r}"


class DWT(_Transform):
    """:func:`fastdiff.dwt` as a module: ``[*, *spatial]`` -> ``[*, 2**ndim, *bands]``; with gradients.

    Args:
        wavelet, ndim, mode: as for :func:`fastdiff.dwt`.

    Raises: ValueError, ImportError: an unknown wavelet or mode; PyWavelets is missing.
    """

    def forward(self, x: Tensor) -> Tensor:
        return dwt(x, self.bank, ndim=self.ndim, mode=self.mode)


class IDWT(_Transform):
    """:func:`fastdiff.idwt` as a module: ``[*, 2**ndim, *bands]`` -> ``[*, *size]``; with gradients.

    Args:
        wavelet, ndim, mode: as for :func:`fastdiff.idwt`.

    Raises: as :class:`DWT`.
    """

    def forward(self, y: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        return idwt(y, self.bank, ndim=self.ndim, mode=self.mode, size=size)
