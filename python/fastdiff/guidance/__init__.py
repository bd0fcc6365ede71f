# SPDX-License-Identifier: Apache-2.0
"""Guidance: the blends of several predictions, and the per-sample reductions that some of them need."""

from fastdiff.guidance.channel_affine import channel_affine

__all__ = ["channel_affine"]
