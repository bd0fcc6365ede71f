# SPDX-License-Identifier: Apache-2.0
"""Wavelet transforms and pyramids as diffusion models use them: forward, inverse, and their adjoints."""

from fastdiff.wavelet._levels import wavedec, waverec
from fastdiff.wavelet._modules import DWT, IDWT
from fastdiff.wavelet._packing import pack_subbands, unpack_subbands, upsample_subbands
from fastdiff.wavelet.dwt import dwt
from fastdiff.wavelet.haar_patch import haar_patch, haar_unpatch
from fastdiff.wavelet.idwt import idwt
from fastdiff.wavelet.laplacian_merge import laplacian_merge
from fastdiff.wavelet.laplacian_split import laplacian_split

__all__ = [
    "DWT",
    "IDWT",
    "dwt",
    "haar_patch",
    "haar_unpatch",
    "idwt",
    "laplacian_merge",
    "laplacian_split",
    "pack_subbands",
    "unpack_subbands",
    "upsample_subbands",
    "wavedec",
    "waverec",
]
