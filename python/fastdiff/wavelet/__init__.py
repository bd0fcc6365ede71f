# SPDX-License-Identifier: Apache-2.0
"""Wavelet transforms as diffusion models use them."""

from fastdiff.wavelet.haar_patch import haar_patch, haar_unpatch

__all__ = ["haar_patch", "haar_unpatch"]
