# SPDX-License-Identifier: Apache-2.0
"""Guidance: the blends of several predictions, and the per-sample reductions that some of them need."""

from fastdiff.guidance.window_blend import window_blend, window_views

__all__ = ["window_blend", "window_views"]
