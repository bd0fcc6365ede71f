# SPDX-License-Identifier: Apache-2.0
"""Guidance: the blends of several predictions, and the per-sample reductions that some of them need."""

from fastdiff.guidance.guidance_coefficients import guidance_coefficients
from fastdiff.guidance.guidance_stats import guidance_stats

__all__ = ["guidance_coefficients", "guidance_stats"]
