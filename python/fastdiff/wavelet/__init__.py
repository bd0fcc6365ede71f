# SPDX-License-Identifier: Apache-2.0
"""Wavelet transforms: forward, inverse, and their adjoints."""

from fastdiff.wavelet._levels import wavedec, waverec
from fastdiff.wavelet.dwt import dwt
from fastdiff.wavelet.idwt import idwt

__all__ = ["dwt", "idwt", "wavedec", "waverec"]
