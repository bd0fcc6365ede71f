# SPDX-License-Identifier: Apache-2.0
"""Transforms into bands of frequency, and back."""

from fastdiff.wavelet.laplacian_merge import laplacian_merge
from fastdiff.wavelet.laplacian_split import laplacian_split

__all__ = ["laplacian_merge", "laplacian_split"]
