# SPDX-License-Identifier: Apache-2.0
"""Wavelet transforms as diffusion models use them: forward, inverse, and their adjoints."""

from fastdiff.wavelet._levels import wavedec, waverec
from fastdiff.wavelet.dwt import dwt
from fastdiff.wavelet.haar_patch import haar_patch, haar_unpatch
from fastdiff.wavelet.idwt import idwt

__all__ = ["dwt", "haar_patch", "haar_unpatch", "idwt", "wavedec", "waverec"]
